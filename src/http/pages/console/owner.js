// One owner: the devices and how far behind they are, the lock, the tables, the conflicts, and the form "why".

import { h, icon, keyed, text } from '../shared/dom.js';
import { ago, bytes, counted, instant, number } from '../shared/format.js';
import { api } from './api.js';
import { conflictsList } from './conflicts.js';
import { lockLine } from './locks.js';
import { whyForm } from './why.js';

/** The size of an owner's past, as a sentence. */
const pastOf = (past) =>
  past
    ? `The past takes ${bytes(past.bytes)}: ${counted(past.tombstones, 'remembered deletion')}, history of ${bytes(past.history_bytes)}, conflicts of ${bytes(past.conflicts_bytes)}, kept responses of ${bytes(past.answers_bytes)}.`
    : 'The size of the past is not counted yet.';

const head = (...names) => h('thead', {}, h('tr', {}, names.map((name) => h('th', { scope: 'col' }, name))));

const deviceLine = ({ device_id: id }) =>
  h('tr', {}, h('th', { scope: 'row' }, h('span'), h('span', { class: 'device-id muted mono' }, id)), h('td', {}, h('span', { class: 'chip' })), h('td'), h('td'));

function paintDevice(row, { device, acknowledged, behind, seen_at: seen, signed_in: isIn }) {
  const [name, late, version, last] = row.children;
  text(name.firstElementChild, `${device ?? 'unnamed device'}${isIn === false ? ' (signed out)' : ''}`);
  const chip = late.firstElementChild;
  const isKnown = behind !== null && behind !== undefined;
  text(chip, isKnown ? (behind === 0 ? 'up to date' : counted(behind, 'version')) : 'shows no cursor');
  chip.className = `chip ${isKnown ? (behind === 0 ? 'chip-good' : 'chip-wait') : ''}`;
  text(version, acknowledged === null || acknowledged === undefined ? '–' : number(acknowledged));
  text(last, seen ? ago(instant(seen)) : '–');
}

const memberLine = ({ user, email }) => h('tr', {}, h('th', { scope: 'row', class: email ? '' : 'mono' }, email ?? user), h('td'), h('td'), h('td'));

function paintMember(row, { name, role, joined_at: joined }) {
  const [, called, may, since] = row.children;
  text(called, name || '–');
  text(may, role);
  text(since, ago(instant(joined)));
}

/** Draws an owner's page. `refresh()` requests its data and paints it. */
export function ownerView(owner, { refreshSoon }) {
  const about = h('p', { class: 'about muted' });
  const name = h('span');
  const devices = h('tbody');
  const members = h('tbody');
  const tables = h('tbody');
  const lock = h('ul', { class: 'lines' });
  const free = h('p', { class: 'muted empty' }, 'The lock is free.');
  const names = new Map();
  const why = whyForm(owner);
  const conflicts = conflictsList(owner, { nameOf: (id) => names.get(id) ?? `${String(id).slice(0, 8)}…`, refreshSoon });
  const element = h(
    'div',
    { class: 'owner' },
    h('p', {}, h('a', { class: 'back', href: '#/' }, icon('left'), 'All owners')),
    h('h2', { class: 'owner-name' }, name, h('span', { class: 'mono' }, owner)),
    about,
    h(
      'div',
      { class: 'columns' },
      h(
        'div',
        { class: 'column' },
        h(
          'section',
          { class: 'card' },
          h('div', { class: 'card-head' }, h('h3', { class: 'card-title' }, 'Devices')),
          h('table', { class: 'figures' }, head('device', 'behind by', 'version seen', 'last seen'), devices),
        ),
        h(
          'section',
          { class: 'card' },
          h('div', { class: 'card-head' }, h('h3', { class: 'card-title' }, 'Members')),
          h('table', { class: 'figures' }, head('user', 'name', 'role', 'since'), members),
        ),
        conflicts.element,
      ),
      h(
        'div',
        { class: 'column' },
        h('section', { class: 'card' }, h('div', { class: 'card-head' }, h('h3', { class: 'card-title' }, 'Lock')), free, lock),
        why.element,
        h('section', { class: 'card' }, h('div', { class: 'card-head' }, h('h3', { class: 'card-title' }, 'Tables')), h('table', { class: 'figures' }, head('table', 'rows'), tables)),
      ),
    ),
  );

  function paint(now) {
    text(about, `Version ${number(now.version)}, ${counted(now.rows, 'row')}, ${bytes(now.bytes)}; deletions are remembered from version ${number(now.horizon)} on. ${pastOf(now.past)}`);
    text(name, now.name ? `${now.name} ` : '');
    keyed(members, now.members ?? [], ({ user }) => user, memberLine, paintMember);
    for (const { device_id: id, device } of now.devices) if (device) names.set(id, device);
    keyed(devices, now.devices, ({ device_id: id }) => id, deviceLine, paintDevice);
    keyed(
      tables,
      now.tables,
      ({ table }) => table,
      ({ table }) => h('tr', {}, h('th', { scope: 'row' }, table), h('td')),
      (row, { rows }) => text(row.lastElementChild, number(rows)),
    );
    free.hidden = Boolean(now.lock);
    keyed(lock, now.lock ? [now.lock] : [], () => owner, () => lockLine(owner, refreshSoon, false), (line, held) => line.show(held));
    why.offer(now.tables.map(({ table }) => table), now.devices);
  }

  return {
    element,
    async refresh() {
      paint(await api.owner(owner));
      await conflicts.refresh();
    },
  };
}
