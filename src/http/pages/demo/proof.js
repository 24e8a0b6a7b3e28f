// The proof: the digest of each table on each side, that is the count of its rows and the sum of their hashes.

import { h, icon, svg, text } from '../shared/dom.js';
import { counted } from '../shared/format.js';

const SHOWN = [
  ['budget', 'Budget'],
  ['invitation_categories', 'Groups'],
  ['invitations', 'Guests'],
  ['todo', 'To-dos'],
];
const SOON_MS = 40;

/** The 16 digits of a root as bars, to compare at a glance. */
function bars() {
  const columns = Array.from({ length: 16 }, (_, i) => svg('rect', { x: i * 5, width: 3.4, rx: 1, y: 20, height: 2 }));
  return svg('svg', { class: 'bars', viewBox: '0 0 79 22', 'aria-hidden': 'true' }, columns);
}

function paintBars(picture, root) {
  [...picture.children].forEach((bar, i) => {
    const height = root ? 2 + (Number.parseInt(root[i], 16) / 15) * 20 : 2;
    bar.setAttribute('height', height);
    bar.setAttribute('y', 22 - height);
  });
}

function side() {
  const picture = bars();
  const count = h('span', { class: 'proof-count' });
  const words = h('span', { class: 'unseen' });
  return { cell: h('td', { class: 'proof-side' }, picture, count, words), picture, count, words };
}

/** Draws the proof. `refresh()` compares again and then calls `onChange`; `state` is the result. */
export function proofView(place, phones, observed, onChange) {
  const badge = h('p', { class: 'badge', role: 'status' });
  const state = { equal: false, phones: phones.map(() => ({ equal: false, waiting: 0 })) };
  const lines = SHOWN.map(([table, label]) => {
    const [left, server, right] = [side(), side(), side()];
    const signs = [h('td', { class: 'proof-sign' }), h('td', { class: 'proof-sign' })];
    const row = h('tr', {}, h('th', { scope: 'row' }, label), left.cell, signs[0], server.cell, signs[1], right.cell);
    return { table, row, server, sides: [left, right], signs };
  });
  const heading = (words) => h('th', { scope: 'col' }, words);
  const blank = () => h('td', { class: 'proof-sign' });
  place.replaceChildren(
    h('div', { class: 'card-head' }, h('h2', { class: 'card-title' }, 'Proof'), badge),
    h(
      'table',
      { class: 'proof-table' },
      h('caption', { class: 'unseen' }, 'Digests of each table on both phones and on the server'),
      h('thead', {}, h('tr', {}, h('td'), heading(phones[0].name), blank(), heading('Server'), blank(), heading(phones[1].name))),
      h('tbody', {}, lines.map(({ row }) => row)),
    ),
  );
  let timer = null;

  function paintLine({ table, server, sides, signs }, digests, edits) {
    const truth = observed.digests?.tables[table];
    paintSide(server, truth);
    sides.forEach((each, i) => {
      const mine = digests[i]?.tables[table];
      const waiting = edits[i][table] ?? 0;
      const equal = Boolean(truth && mine && truth.root === mine.root && truth.count === mine.count && !waiting);
      paintSide(each, mine);
      const look = equal ? 'equal' : waiting ? 'waiting' : mine ? 'behind' : 'empty';
      each.cell.dataset.look = look;
      signs[i].dataset.look = look;
      const words = { equal: '=', waiting: `${waiting} to send`, behind: '≠', empty: '…' }[look];
      text(signs[i], words);
      text(each.words, { equal: 'equal to the server', waiting: words, behind: 'differs', empty: 'empty' }[look]);
    });
  }

  function paintSide({ picture, count, words }, digest) {
    paintBars(picture, digest?.root);
    text(count, digest ? String(digest.count) : '–');
    picture.parentElement.title = digest ? `${counted(digest.count, 'row')}, root ${digest.root}` : '';
    text(words, '');
  }

  async function waitingOf(phone) {
    const edits = {};
    for (const name of Object.keys(phone.client.tables)) {
      const entries = await phone.client.table(name).entries();
      edits[name] = entries.filter((entry) => entry.state !== 'clean').length;
    }
    return edits;
  }

  async function compare() {
    const digests = await Promise.all(phones.map((phone) => phone.client.digests().catch(() => null)));
    const edits = await Promise.all(phones.map(waitingOf));
    for (const line of lines) paintLine(line, digests, edits);
    const truth = Object.entries(observed.digests?.tables ?? {});
    state.phones = phones.map((_, i) => {
      const waiting = Object.values(edits[i]).reduce((all, one) => all + one, 0);
      const same = ([table, { count, root }]) => {
        const mine = digests[i]?.tables[table];
        return mine?.count === count && mine.root === root;
      };
      return { waiting, equal: truth.length > 0 && waiting === 0 && truth.every(same) };
    });
    state.equal = state.phones.every(({ equal }) => equal);
    paintBadge();
    onChange(state);
  }

  function paintBadge() {
    const look = state.equal ? 'equal' : 'open';
    const behind = phones.filter((_, i) => !state.phones[i].equal).map(({ short }) => short);
    const words = state.equal ? 'Both phones are equal to the server' : `${behind.join(' and ')} not yet equal`;
    if (badge.dataset.words === words) return;
    badge.dataset.words = words;
    badge.dataset.look = look;
    badge.replaceChildren(icon(state.equal ? 'shield' : 'sync'), words);
  }

  return {
    state,
    refresh() {
      clearTimeout(timer);
      timer = setTimeout(compare, SOON_MS);
    },
  };
}
