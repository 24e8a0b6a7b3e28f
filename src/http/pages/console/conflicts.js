// An owner's conflicts, newest first, each with a way to bring the loser back.

import { announce, h, icon, keyed, text } from '../shared/dom.js';
import { ago, instant } from '../shared/format.js';
import { pretty } from '../shared/json.js';
import { api } from './api.js';

const OUTCOMES = { kept: 'the stored row stayed', overwritten: 'the sent row won', merged: 'made of both' };

/** A list of conflicts; `nameOf(id)` names a device, `soon()` looks at the owner again. */
export function conflictsList(owner, { nameOf, soon }) {
  const list = h('ul', { class: 'lines' });
  const none = h('p', { class: 'muted empty' }, 'Nobody has lost anything.');
  const more = h('button', { type: 'button', class: 'button', hidden: true, on: { click: older } }, 'Older ones');
  const told = h('p', { class: 'empty told', role: 'alert', hidden: true });
  const element = h('section', { class: 'card' }, h('div', { class: 'card-head' }, h('h3', { class: 'card-title' }, 'Conflicts')), none, told, list, h('div', { class: 'turns' }, more));
  let first = [];
  let rest = [];
  let next = null;

  function make(conflict) {
    const button = h('button', { type: 'button', class: 'button', on: { click: () => restore(conflict, button) } }, icon('undo'), h('span', {}, 'Bring the loser back'));
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

  function update(line, conflict) {
    const [, when, button] = line.children;
    text(when, conflict.restored_at ? `brought back ${ago(instant(conflict.restored_at))}` : ago(instant(conflict.at)));
    text(button.lastElementChild, conflict.restored_at ? 'Again' : 'Bring the loser back');
  }

  async function restore(conflict, button) {
    button.disabled = true;
    told.hidden = true;
    try {
      const { verdict } = await api.restore(owner, conflict.id);
      announce(`The loser is back: ${verdict}.`);
    } catch (error) {
      text(told, error.message);
      told.hidden = false;
    }
    button.disabled = false;
    soon();
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
    keyed(list, all, ({ id }) => id, make, update);
  }

  return {
    element,
    async look() {
      const page = await api.conflicts(owner);
      first = page.conflicts;
      if (rest.length === 0) next = page.next ?? null;
      paint();
    },
  };
}
