// The conflicts: each with both sides, the reason why one won, and a button that restores the losing row.

import { announce, h, icon, keyed, text } from '../shared/dom.js';
import { columnName, rowName, valueWords } from './tables.js';

const WHY = {
  newest: 'the later edit wins',
  server: 'the server’s row wins',
  client: 'the device’s row wins',
  merge: 'column by column',
  manual: 'until a person decides',
};

/** The side that lost, and the one that won. */
function sides({ outcome, stored, incoming }) {
  return outcome === 'kept' ? { loser: incoming, winner: stored } : { loser: stored, winner: incoming };
}

/** The columns in which the two sides differ. */
function differences({ stored, incoming, base }) {
  const [left, right] = [stored.row, incoming.row];
  if (!left || !right) return [];
  const columns = Object.keys(right).filter((column) => column in left && column !== 'last_update');
  return columns
    .filter((column) => JSON.stringify(left[column]) !== JSON.stringify(right[column]))
    .map((column) => ({ column, before: base?.[column] }));
}

/** The values before both edits, as words. */
function before(conflict, differ) {
  const known = differ.filter(({ before: value }) => value !== undefined);
  if (known.length === 0) return '';
  return `before: ${known.map(({ column, before: value }) => valueWords(conflict.table, column, value)).join(', ')}`;
}

/** One side of a conflict: its device, its time, and its values of the columns that differ. */
function sideView(conflict, side, differ, { fate, who, name }) {
  const values = side.row
    ? differ.map(({ column }) => [columnName(column), valueWords(conflict.table, column, side.row[column])])
    : [['the row', 'deleted']];
  return h(
    'div',
    { class: `side side-${fate}`, 'data-who': who },
    h(
      'p',
      { class: 'side-head' },
      h('span', {}, name),
      h('span', { class: 'side-at' }, String(side.last_update ?? '').slice(11, 19)),
      h('span', { class: 'side-fate' }, fate),
    ),
    values.map(([column, value]) => h('p', { class: 'side-value' }, h('span', { class: 'muted small' }, column), h('span', {}, value))),
  );
}

/**
 * Draws the conflicts. `show(conflicts)` takes them newest first. `lossOf(phone, table, key)` returns the note about the
 * latest conflict of a row for that phone, or null.
 */
export function conflictsView(place, phones, { nameOf, after }) {
  const list = h('ul', { class: 'conflict-list' });
  const many = h('span', { class: 'chip chip-wait' });
  place.replaceChildren(
    h('div', { class: 'card-head' }, h('h2', { class: 'card-title' }, 'Conflicts'), many, h('span', { class: 'muted small' }, 'The server keeps the losing row.')),
    list,
  );
  let conflicts = [];
  const restoredIds = new Set();

  const phoneOf = ({ device_id: id }) => phones.find(({ name }) => name === nameOf(id));
  const shortOf = (side) => phoneOf(side)?.short ?? nameOf(side.device_id) ?? 'Another device';
  const sideOf = (side, fate) => ({ fate, who: phoneOf(side)?.who, name: shortOf(side) });

  async function restore(conflict) {
    const first = phoneOf(sides(conflict).loser);
    const phone = [first, ...phones].find((one) => one && !one.state.airplane);
    if (!phone) {
      announce('Both phones are in airplane mode.');
      return;
    }
    restoredIds.add(conflict.id);
    await phone.client.conflicts.restore(conflict.id).catch(() => restoredIds.delete(conflict.id));
    announce(`${rowName(conflict.table, conflict.stored.row ?? conflict.incoming.row)}: the losing row is restored`);
    await phone.sync();
    after();
  }

  function make(conflict) {
    const { loser, winner } = sides(conflict);
    const row = conflict.incoming.row ?? conflict.stored.row ?? conflict.base;
    const differ = differences(conflict);
    const whole = conflict.stored.row ?? conflict.base ?? row;
    const button = h(
      'button',
      { type: 'button', class: 'button', on: { click: () => restore(conflict) } },
      icon('undo'),
      h('span', {}, `Restore ${shortOf(loser)}’s`),
    );
    return h(
      'li',
      { class: 'conflict' },
      h(
        'div',
        { class: 'conflict-head' },
        h('strong', {}, rowName(conflict.table, whole)),
        h('span', { class: 'muted small' }, [before(conflict, differ), WHY[conflict.policy] ?? conflict.policy].filter(Boolean).join(', ')),
        button,
      ),
      h(
        'div',
        { class: 'conflict-sides' },
        sideView(conflict, winner, differ, sideOf(winner, 'won')),
        sideView(conflict, loser, differ, sideOf(loser, 'lost')),
      ),
    );
  }

  function update(item, conflict) {
    const isRestored = Boolean(conflict.restored_at) || restoredIds.has(conflict.id);
    item.classList.toggle('is-restored', isRestored);
    const button = item.querySelector('button');
    button.disabled = isRestored;
    const name = shortOf(sides(conflict).loser);
    text(button.lastElementChild, isRestored ? `${name}’s is restored` : `Restore ${name}’s`);
  }

  return {
    get conflicts() {
      return conflicts;
    },
    show(now) {
      conflicts = now;
      place.hidden = conflicts.length === 0;
      const open = conflicts.filter((conflict) => !conflict.restored_at && !restoredIds.has(conflict.id));
      text(many, open.length > 0 ? `${open.length} open` : 'all resolved');
      many.className = `chip ${open.length > 0 ? 'chip-wait' : 'chip-good'}`;
      keyed(list, conflicts.slice(0, 20), ({ id }) => id, make, update);
    },
    lossOf(phone, table, key) {
      const conflict = conflicts.find((one) => one.table === table && one.key === key);
      if (!conflict || conflict.restored_at || restoredIds.has(conflict.id)) return null;
      const { loser, winner } = sides(conflict);
      if (phoneOf(loser) === phone) {
        return { words: `${shortOf(winner)}’s edit won.`, button: 'Restore mine', restore: () => restore(conflict) };
      }
      return phoneOf(winner) === phone ? { words: `Won over ${shortOf(loser)}’s edit.` } : null;
    },
  };
}
