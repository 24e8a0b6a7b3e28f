// Builds the page: two phones, and the views of the server between them.

import { announce, h } from '../shared/dom.js';
import { conflictsView } from './conflicts.js';
import { device } from './device.js';
import { linkView } from './link.js';
import { observer } from './observer.js';
import { phoneView } from './phone.js';
import { proofView } from './proof.js';
import { shareView } from './share.js';
import { tabsOfStage } from './tabs.js';
import { tourView } from './tour.js';
import { wireView } from './wire.js';

const NAMES = 'rollcall-demo-names';

const $ = (id) => document.getElementById(id);

/** The names of devices by id. They are noted at log-in and survive a reload. */
function names(owner) {
  const stored = JSON.parse(localStorage.getItem(NAMES) ?? '{}');
  const known = stored.owner === owner ? stored.known : {};
  return {
    of: (id, otherwise) => known[id] ?? otherwise ?? null,
    note(id, name) {
      known[id] = name;
      localStorage.setItem(NAMES, JSON.stringify({ owner, known }));
    },
  };
}

async function start() {
  const response = await fetch('/demo/account.json');
  if (!response.ok) throw new Error('The demo can only be opened on the machine on which it runs, at 127.0.0.1 or localhost.');
  const { owner, phones: accounts, guest } = await response.json();
  const known = names(owner);
  const phones = await Promise.all(
    accounts.map((account, i) =>
      device({
        number: i + 1,
        who: ['anna', 'ben'][i],
        account,
        owner,
        onDevice: (id) => known.note(id, account.device),
      }),
    ),
  );

  let tour = null;
  const checkTour = () => tour?.check();
  const wire = wireView($('wire'), phones);
  const link = linkView($('link'), phones, known.of);
  const conflicts = conflictsView($('conflicts'), phones, { nameOf: known.of, after: () => watch.refreshSoon() });
  const watch = observer({
    account: accounts[0],
    owner,
    onRefresh(seen) {
      link.show(seen);
      conflicts.show(seen.conflicts);
      for (const view of views) view.refresh();
      proof.refresh();
      checkTour();
    },
  });
  const proof = proofView($('proof'), phones, watch.seen, checkTour);
  const views = phones.map((phone) =>
    phoneView($(`phone-${phone.number}`), phone, {
      losses: (...row) => conflicts.lossOf(...row),
      holder: () => link.holder,
      onRows() {
        proof.refresh();
        checkTour();
      },
    }),
  );
  tour = tourView($('tour'), $('tour-open'), { phones, seen: watch.seen, proof: proof.state });
  tabsOfStage($('tabs'));

  for (const phone of phones) {
    phone.onTraffic((traffic) => {
      wire.note(phone, traffic);
      if (traffic.kind === 'event') link.fly(phone, false, 'event');
      else if (traffic.phase === 'sent') link.fly(phone, true, 'good');
      else if (traffic.phase === 'answered') link.fly(phone, false, traffic.status >= 400 ? 'bad' : 'good');
      if (traffic.phase !== 'sent') watch.refreshSoon();
    });
    phone.onState(checkTour);
  }
  const share = shareView($('share'), $('share-open'), { anna: phones[0], account: guest, owner });
  switches(phones, share);
  for (const phone of phones) await phone.open();
}

function switches(phones, share) {
  $('slow').addEventListener('click', ({ currentTarget }) => {
    const on = currentTarget.getAttribute('aria-checked') !== 'true';
    currentTarget.setAttribute('aria-checked', String(on));
    for (const phone of phones) phone.setSlow(on);
    announce(`Slow motion ${on ? 'on' : 'off'}`);
  });
  $('reset').addEventListener('click', async () => {
    announce('Both phones are being reset');
    await Promise.all([share, ...phones].map((one) => one.wipe()));
    location.reload();
  });
}

start().catch((error) => {
  $('stage').replaceChildren(h('p', { class: 'fatal', role: 'alert' }, String(error.message ?? error)));
});
