// The functions that browser.test.mjs calls in the page.
import { openClient } from "/dist/index.js";
import { indexedDbStore } from "/dist/indexeddb.js";
import { storeCases } from "/test/store-cases.mjs";

window.storeTitles = Object.keys(storeCases);
window.checkStore = async (title) => {
  const name = `case ${title}`;
  await storeCases[title](indexedDbStore(name));
};
window.open_ = async (options, name) => {
  window.client = await openClient({ ...options, store: indexedDbStore(name) });
  window.seenTitles = [];
  window.status_ = null;
  window.sent = [];
  client.onTraffic(({ phase, method, path }) => phase === "sent" && sent.push(`${method} ${path.split("?")[0]}`));
  client.table("items").subscribe((rows) => seenTitles.push(rows.map(({ title }) => title)));
  client.onStatus((status) => (window.status_ = status));
};
window.ready = true;
