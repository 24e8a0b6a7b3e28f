// Follows the web tutorial literally in an empty folder: its files, its commands, then two browsers. Only the path of
// the binary and the ports differ.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { launch, noBrowser } from "./chromium.mjs";
import { root, skip as noServer } from "./support.mjs";

const tutorial = readFileSync(new URL("../../../docs/tutorials/web.md", import.meta.url), "utf8");
const blocks = [...tutorial.matchAll(/^```(\S+) (\S+)\n([^]*?)^```/gm)].map(([, language, name, text]) => ({ language, name, text }));

const free = () =>
  new Promise((resolve) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });

test("from an empty folder to a table in two browsers", { skip: noBrowser || noServer, timeout: 60_000 }, async (t) => {
  const began = Date.now();
  assert.deepEqual(blocks.map(({ name }) => name), ["setup", "schema.toml", "index.html", "app.js", "server", "page"]);
  const parent = mkdtempSync(join(tmpdir(), "rollcall-walk-"));
  const [folder, children] = [join(parent, "shopping"), []];
  after(() => {
    for (const child of children) if (child.exitCode === null) process.kill(-child.pid, "SIGKILL");
    rmSync(parent, { recursive: true, force: true });
  });
  mkdirSync(folder);
  // A checkout beside it, as a reader has it after `cargo build --release`.
  mkdirSync(join(parent, "rollcall/clients/typescript"), { recursive: true });
  mkdirSync(join(parent, "rollcall/target/release"), { recursive: true });
  cpSync(join(root, "clients/typescript/dist"), join(parent, "rollcall/clients/typescript/dist"), { recursive: true });
  symlinkSync(process.env.ROLLCALL_BIN ?? join(root, "target/debug/rollcall"), join(parent, "rollcall/target/release/rollcall"));

  const [api, web] = [await free(), await free()];
  const here = (text) => text.replaceAll("8000", String(web)).replaceAll("localhost:7878", `localhost:${api}`);
  const run = (text) => {
    const child = spawn("bash", ["-ec", text], { cwd: folder, detached: true, stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ROLLCALL: "../rollcall" } });
    children.push(child);
    let printed = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (printed += data));
    return Object.assign(child, { printed: () => printed });
  };
  const until = async (holds, what) => {
    for (const start = Date.now(); !(await holds()); await new Promise((resolve) => setTimeout(resolve, 50))) {
      if (Date.now() - start > 15_000) throw new Error(`not within 15 s: ${what()}`);
    }
  };
  const responds = (url) => fetch(url).then(({ ok }) => ok, () => false);
  const serve = async () => {
    const child = run(here(blocks.find(({ name }) => name === "server").text).replace(/\n$/, ` --listen 127.0.0.1:${api}\n`));
    await until(() => responds(`http://localhost:${api}/healthz`), child.printed);
    return child;
  };

  for (const { language, name, text } of blocks) {
    if (language !== "sh") writeFileSync(join(folder, name), here(text));
    else if (name === "setup") await new Promise((resolve, reject) => run(text).on("exit", (code) => (code ? reject(new Error(`setup ended with ${code}`)) : resolve())));
  }
  assert.ok(existsSync(join(folder, "rollcall-client/index.js")));
  let server = await serve();
  const page = run(here(blocks.find(({ name }) => name === "page").text));
  await until(() => responds(`http://localhost:${web}/`), page.printed);

  const browser = await launch();
  const open = async () => {
    const window = await (await browser.newContext()).newPage();
    window.on("pageerror", (error) => console.error(error));
    await window.goto(`http://localhost:${web}/`);
    return window;
  };
  const [one, two] = [await open(), await open()];
  const add = async (window, title) => {
    await window.fill("input[name=title]", title);
    await window.click("form button");
  };
  const shows = (window, text) => window.waitForFunction((text) => document.querySelector("ul").innerText.replace(/ Remove/g, "").replace(/\s*\n\s*/g, ",").trim() === text, text);
  const showsStatus = (window, text) => window.waitForFunction((text) => document.querySelector("p").innerText.startsWith(text), text);
  await showsStatus(one, "in step with the server");
  await add(one, "Milk");
  await shows(two, "Milk");
  await add(two, "Bread");
  await shows(one, "Milk,Bread");
  await one.check("li:first-child input");
  await two.waitForFunction(() => document.querySelector("li input").checked);
  await two.click("li:last-child button");
  await shows(one, "Milk");

  // Stop the server, add a row, start the server again: the row is sent.
  const ended = new Promise((resolve) => server.on("exit", resolve));
  process.kill(-server.pid, "SIGTERM");
  await ended;
  await add(one, "Eggs");
  await showsStatus(one, "1 to send");
  server = await serve();
  await shows(two, "Milk,Eggs");
  await showsStatus(one, "in step with the server");
  t.diagnostic(`the walk took a script ${Math.round((Date.now() - began) / 1000)} s`);
});
