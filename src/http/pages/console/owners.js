// The list of owners, page by page, with a search by the beginning of the id or by a user's email address.

import { h, keyed, text } from '../shared/dom.js';
import { bytes, number } from '../shared/format.js';
import { api } from './api.js';

const PAGE = 12;

/** The id just before the first that begins with these digits: the page after that id begins with them. */
function justBefore(digits) {
  const first = BigInt(`0x${digits.padEnd(32, '0')}`);
  if (first === 0n) return null;
  const text = (first - 1n).toString(16).padStart(32, '0');
  return [text.slice(0, 8), text.slice(8, 12), text.slice(12, 16), text.slice(16, 20), text.slice(20)].join('-');
}

/** A list of owners with paging and search. */
export function ownersList() {
  const rows = h('tbody');
  const field = h('input', { class: 'field', type: 'search', placeholder: 'Id or email …', 'aria-label': 'Find owners by the beginning of the id, or by the email address of a member', maxlength: 254, spellcheck: 'false' });
  const back = h('button', { type: 'button', class: 'button', on: { click: () => turn(-1) } }, 'Previous');
  const forward = h('button', { type: 'button', class: 'button', on: { click: () => turn(1) } }, 'Next');
  const empty = h('p', { class: 'muted empty', hidden: true }, 'No owner here.');
  const element = h(
    'section',
    { class: 'card' },
    h('div', { class: 'card-head' }, h('h2', { class: 'card-title' }, 'Owners'), h('form', { class: 'search', role: 'search', on: { submit: find } }, field, h('button', { type: 'submit', class: 'button' }, 'Find'))),
    h(
      'table',
      { class: 'figures' },
      h('thead', {}, h('tr', {}, ['owner', 'name', 'version', 'rows', 'size'].map((name) => h('th', { scope: 'col' }, name)))),
      rows,
    ),
    empty,
    h('div', { class: 'turns' }, back, forward),
  );
  let digits = '';
  let email = null;
  let pages = [null];
  let next = null;

  function find(event) {
    event.preventDefault();
    email = field.value.includes('@') ? field.value.trim() : null;
    digits = email ? '' : field.value.toLowerCase().replace(/[^0-9a-f]/g, '').slice(0, 32);
    pages = [digits ? justBefore(digits) : null];
    refresh();
  }

  function turn(step) {
    if (step > 0) pages.push(next);
    else pages.pop();
    refresh();
  }

  const line = ({ owner }) =>
    h('tr', {}, h('th', { scope: 'row' }, h('a', { class: 'mono', href: `#/owners/${owner}` }, owner)), h('td'), h('td'), h('td'), h('td'));

  function paint(row, { name, role, version, rows: count, bytes: size, lock }) {
    const cells = [...row.children];
    text(cells[1], role ? `${name || 'unnamed'} (${role})` : name);
    text(cells[2], number(version));
    text(cells[3], number(count));
    text(cells[4], bytes(size));
    row.classList.toggle('is-locked', Boolean(lock));
  }

  async function refresh() {
    const page = email ? await api.ownersOf(email, 100) : await api.owners(pages.at(-1), PAGE);
    const fits = page.owners.filter(({ owner }) => owner.replaceAll('-', '').startsWith(digits));
    next = fits.length === page.owners.length ? (page.next ?? null) : null;
    keyed(rows, fits, ({ owner }) => owner, line, paint);
    empty.hidden = fits.length > 0;
    back.disabled = pages.length < 2;
    forward.disabled = !next;
  }

  return { element, refresh };
}
