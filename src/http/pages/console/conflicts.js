// An owner's conflicts, newest first, each with a button that restores the losing row.

import { announce, h, icon, keyed, text } from '../shared/dom.js';
import { ago, instant } from '../shared/format.js';
import { pretty } from '../shared/json.js';
import { api } from './api.js';

const OUTCOMES = { kept: 'the stored row stayed', overwritten: 'the sent row won', merged: 'the rows were merged' };

/** The line of one conflict, with both sides in its details. */
function makeLine(conflict, { nameOf, restore }) {
  const button = h('button', { type: 'button', class: 'button', on: { click: () => restore(conflict, button) } }, icon('undo'), h('span', {}, 'Restore the losing row'));
  const side = (title, { row, device_id: id, last_update: at }) =>
    h('div', { class: 'side' }, h('h4', {}, title), h('p', { class: 'muted small' }, `${nameOf(id)}, ${at ?? 'at an unknown time'}`), h('pre', { tabindex: '0', 'aria-label': title }, row ? pretty(row) : 'deleted'));
  const sides = h('div', { class: 'sides' });
  const details = h(
    'details',
    {
      on: {
        toggle: () => {
          if (details.open && !sides.firstChild) sides.append(side('Stored', conflict.stored), side('Sent', conflict.incoming));
        },
      },
    },
    h('summary', {}, h('strong', {}, conflict.table), ` ${conflict.key.slice(0, 8)}…, ${OUTCOMES[conflict.outcome] ?? conflict.outcome} (${conflict.policy})`),
    sides,
  );
  return h('li', { class: 'line conflict-line' }, details, h('span', { class: 'muted small' }), button);
}

function updateLine(line, conflict) {
  const [, when, button] = line.children;
  text(when, conflict.restored_at ? `restored ${ago(instant(conflict.restored_at))}` : ago(instant(conflict.at)));
  text(button.lastElementChild, conflict.restored_at ? 'Again' : 'Restore the losing row');
}

/** A list of conflicts. `nameOf(id)` names a device; `refreshSoon()` is called after a restore. */
export function conflictsList(owner, { nameOf, refreshSoon }) {
  const list = h('ul', { class: 'lines' });
  const none = h('p', { class: 'muted empty' }, 'There are no conflicts.');
  const more = h('button', { type: 'button', class: 'button', hidden: true, on: { click: older } }, 'Older ones');
  const errorLine = h('p', { class: 'empty error-line', role: 'alert', hidden: true });
  const element = h('section', { class: 'card' }, h('div', { class: 'card-head' }, h('h3', { class: 'card-title' }, 'Conflicts')), none, errorLine, list, h('div', { class: 'turns' }, more));
  let first = [];
  let rest = [];
  let next = null;

  async function restore(conflict, button) {
    button.disabled = true;
    errorLine.hidden = true;
    try {
      const { verdict } = await api.restore(owner, conflict.id);
      announce(`The losing row was restored: ${verdict}.`);
    } catch (error) {
      text(errorLine, error.message);
      errorLine.hidden = false;
    }
    button.disabled = false;
    refreshSoon();
  }

  async function older() {
    const page = await api.conflicts(owner, next);
    rest = [...rest, ...page.conflicts];
    next = page.next ?? null;
    paint();
  }

  function paint() {
    const known = new Set(first.map(({ id }) => id));
    const all = [...first, ...rest.filter(({ id }) => !known.has(id))];
    none.hidden = all.length > 0;
    more.hidden = !next;
    keyed(list, all, ({ id }) => id, (conflict) => makeLine(conflict, { nameOf, restore }), updateLine);
  }

  return {
    element,
    async refresh() {
      const page = await api.conflicts(owner);
      first = page.conflicts;
      if (rest.length === 0) next = page.next ?? null;
      paint();
    },
  };
}
