// The owners, a page at a time, and a way to find one by the beginning of its id.

import { h, keyed, text } from '../shared/dom.js';
import { bytes, number } from '../shared/format.js';
import { api } from './api.js';

const PAGE = 12;

/** The id just before the first that begins with these digits: the page after it begins with them. */
function justBefore(digits) {
  const first = BigInt(`0x${digits.padEnd(32, '0')}`);
  if (first === 0n) return null;
  const text = (first - 1n).toString(16).padStart(32, '0');
  return [text.slice(0, 8), text.slice(8, 12), text.slice(12, 16), text.slice(16, 20), text.slice(20)].join('-');
}

/** A list of owners with paging and search. */
export function ownersList() {
  const rows = h('tbody');
  const field = h('input', { class: 'field', type: 'search', placeholder: 'Begins with …', 'aria-label': 'Find an owner by the beginning of its id', maxlength: 36, spellcheck: 'false' });
  const back = h('button', { type: 'button', class: 'button', on: { click: () => turn(-1) } }, 'Previous');
  const on = h('button', { type: 'button', class: 'button', on: { click: () => turn(1) } }, 'Next');
  const told = h('p', { class: 'muted empty', hidden: true }, 'No owner here.');
  const element = h(
    'section',
    { class: 'card' },
    h('div', { class: 'card-head' }, h('h2', { class: 'card-title' }, 'Owners'), h('form', { class: 'search', role: 'search', on: { submit: find } }, field, h('button', { type: 'submit', class: 'button' }, 'Find'))),
    h(
      'table',
      { class: 'figures' },
      h('thead', {}, h('tr', {}, ['owner', 'version', 'rows', 'size'].map((name) => h('th', { scope: 'col' }, name)))),
      rows,
    ),
    told,
    h('div', { class: 'turns' }, back, on),
  );
  let digits = '';
  let pages = [null];
  let next = null;

  function find(event) {
    event.preventDefault();
    digits = field.value.toLowerCase().replace(/[^0-9a-f]/g, '').slice(0, 32);
    pages = [digits ? justBefore(digits) : null];
    look();
  }

  function turn(step) {
    if (step > 0) pages.push(next);
    else pages.pop();
    look();
  }

  const line = ({ owner }) =>
    h('tr', {}, h('th', { scope: 'row' }, h('a', { class: 'mono', href: `#/owners/${owner}` }, owner)), h('td'), h('td'), h('td'));

  function paint(row, { version, rows: count, bytes: size, lock }) {
    const [, state, held, weight] = row.children;
    text(state, number(version));
    text(held, number(count));
    text(weight, bytes(size));
    row.classList.toggle('is-locked', Boolean(lock));
  }

  async function look() {
    const answer = await api.owners(pages.at(-1), PAGE);
    const fits = answer.owners.filter(({ owner }) => owner.replaceAll('-', '').startsWith(digits));
    next = fits.length === answer.owners.length ? (answer.next ?? null) : null;
    keyed(rows, fits, ({ owner }) => owner, line, paint);
    told.hidden = fits.length > 0;
    back.disabled = pages.length < 2;
    on.disabled = !next;
  }

  return { element, look };
}
