// Puts the page together: two phones, and what lies between them.

import { announce, h } from '../shared/dom.js';
import { conflictsView } from './conflicts.js';
import { device } from './device.js';
import { linkView } from './link.js';
import { observer } from './observer.js';
import { phoneView } from './phone.js';
import { proofView } from './proof.js';
import { pagesOfNarrow } from './tabs.js';
import { tourView } from './tour.js';
import { wireView } from './wire.js';

const NAMES = 'rollcall-demo-names';

const $ = (id) => document.getElementById(id);

/** Which device has which id: told at log-in, kept over a reload. */
function names(owner) {
  const kept = JSON.parse(localStorage.getItem(NAMES) ?? '{}');
  const known = kept.owner === owner ? kept.known : {};
  return {
    of: (id, otherwise) => known[id] ?? otherwise ?? null,
    note(id, name) {
      known[id] = name;
      localStorage.setItem(NAMES, JSON.stringify({ owner, known }));
    },
  };
}

async function start() {
  const answer = await fetch('/demo/account.json');
  if (!answer.ok) throw new Error('The demo can be seen on the machine that it runs on, at 127.0.0.1 or localhost.');
  const { owner, phones: accounts } = await answer.json();
  const known = names(owner);
  const phones = await Promise.all(
    accounts.map((account, at) =>
      device({
        number: at + 1,
        who: ['anna', 'ben'][at],
        account,
        owner,
        named: (id) => known.note(id, account.device),
      }),
    ),
  );

  let tour = null;
  const pulse = () => tour?.check();
  const wire = wireView($('wire'), phones);
  const link = linkView($('link'), phones, known.of);
  const conflicts = conflictsView($('conflicts'), phones, { nameOf: known.of, after: () => watch.soon() });
  const watch = observer({
    account: accounts[0],
    owner,
    onLook(seen) {
      link.show(seen);
      conflicts.show(seen.conflicts);
      for (const view of views) view.refresh();
      proof.refresh();
      pulse();
    },
  });
  const proof = proofView($('proof'), phones, watch.seen, pulse);
  const views = phones.map((phone) =>
    phoneView($(`phone-${phone.number}`), phone, {
      losses: (...row) => conflicts.lossOf(...row),
      holder: () => link.holder,
      onRows() {
        proof.refresh();
        pulse();
      },
    }),
  );
  tour = tourView($('tour'), $('tour-open'), { phones, seen: watch.seen, proof: proof.state });
  pagesOfNarrow($('tabs'));

  for (const phone of phones) {
    phone.onTraffic((traffic) => {
      wire.note(phone, traffic);
      if (traffic.kind === 'event') link.fly(phone, false, 'event');
      else if (traffic.phase === 'sent') link.fly(phone, true, 'good');
      else if (traffic.phase === 'answered') link.fly(phone, false, traffic.status >= 400 ? 'bad' : 'good');
      if (traffic.phase !== 'sent') watch.soon();
    });
    phone.onState(pulse);
  }
  switches(phones);
  for (const phone of phones) await phone.open();
}

function switches(phones) {
  $('slow').addEventListener('click', ({ currentTarget }) => {
    const on = currentTarget.getAttribute('aria-checked') !== 'true';
    currentTarget.setAttribute('aria-checked', String(on));
    for (const phone of phones) phone.setSlow(on);
    announce(`Slow motion ${on ? 'on' : 'off'}`);
  });
  $('reset').addEventListener('click', async () => {
    announce('Both phones begin anew');
    await Promise.all(phones.map((phone) => phone.wipe()));
    location.reload();
  });
}

start().catch((error) => {
  $('stage').replaceChildren(h('p', { class: 'fatal', role: 'alert' }, String(error.message ?? error)));
});
