// The list of the rows of one table on a phone, with a form for each row and a button that deletes it.

import { announce, calm, h, icon, keyed, text } from '../shared/dom.js';
import { paintFlag } from './tables.js';

const WAITING = { added: 'new, not sent yet', edited: 'edited, not sent yet' };

/** The value of a form's field, as the column stores it. */
function valueOf(field, input) {
  const given = input.value.trim();
  if (field.type === 'number') return given === '' ? null : Number(given);
  return given === '' ? null : given;
}

/** An input for a field. `categories` are the choices of a field of that type. */
export function inputFor(field, value, categories) {
  const options = { 'aria-label': field.label, class: `field${field.short ? ' field-short' : ''}`, name: field.column };
  if (field.type === 'category') {
    const choices = categories.map(({ icid, title }) =>
      h('option', { value: icid, selected: icid === value }, title ?? 'without a name'),
    );
    return h('select', options, h('option', { value: '' }, 'no category'), choices);
  }
  return h('input', {
    ...options,
    type: field.type,
    required: field.required,
    min: field.min,
    maxlength: field.type === 'text' ? 200 : undefined,
    placeholder: field.label,
    autocomplete: 'off',
    value: value ?? '',
  });
}

/** The columns of a form whose values differ from `row`. */
export function edits(fields, form, row) {
  const changed = {};
  for (const field of fields) {
    const value = valueOf(field, form.elements.namedItem(field.column));
    if (value !== (row?.[field.column] ?? null)) changed[field.column] = value;
  }
  return changed;
}

/** Opens the form of a row below its list item. `save` takes the columns that the visitor changed. */
function openForm(item, { label, fields, row, categories, save }) {
  if (item.querySelector('form')) return;
  const form = h(
    'form',
    { class: 'row-form', 'aria-label': label, on: { submit, keydown } },
    fields.map((field) => inputFor(field, row[field.column], categories)),
    h(
      'span',
      { class: 'row-form-buttons' },
      h('button', { type: 'submit', class: 'button button-strong' }, 'Save'),
      h('button', { type: 'button', class: 'button', on: { click: close } }, 'Cancel'),
    ),
  );
  item.classList.add('is-edited');
  item.append(form);
  const field = form.elements[0];
  field.focus();
  field.select?.();

  function close() {
    form.remove();
    item.classList.remove('is-edited');
    item.querySelector('.row-main').focus();
  }

  async function submit(event) {
    event.preventDefault();
    const changed = edits(fields, form, row);
    close();
    if (Object.keys(changed).length === 0) return;
    await save(changed);
    item.querySelector('.row-main').focus(); // the list may have moved the item
  }

  function keydown(event) {
    if (event.key !== 'Escape') return;
    event.stopPropagation();
    close();
  }
}

function paintLoss(element, loss) {
  const words = loss?.words ?? '';
  element.hidden = !loss;
  if (element.dataset.words === words) return;
  element.dataset.words = words;
  element.replaceChildren();
  if (!loss) return;
  element.append(h('span', {}, words));
  if (loss.restore) {
    element.append(
      h('button', { type: 'button', class: 'button', on: { click: loss.restore } }, icon('undo'), loss.button),
    );
  }
}

function flash(item) {
  const from = getComputedStyle(item).getPropertyValue('--flash');
  item.animate([{ backgroundColor: from }, { backgroundColor: 'transparent' }], { duration: 1600, easing: 'ease-out' });
}

/** The items of the list: the rows in their order, below headings if the tab has groups. */
function itemsOf(entries, tab, categories) {
  const alive = entries.filter(({ state }) => state !== 'deleted').sort((a, b) => tab.order(a.row, b.row));
  if (!tab.group) return alive.map((entry) => ({ id: entry.key, entry }));
  const groups = [...categories, { icid: null, title: 'No category' }];
  const known = new Set(groups.map(({ icid }) => icid));
  return groups.flatMap(({ icid, title, colour }) => {
    const members = alive.filter(({ row }) => (known.has(row[tab.group]) ? row[tab.group] : null) === icid);
    if (members.length === 0) return [];
    const heading = { id: `group-${icid}`, heading: title ?? 'without a name', colour };
    return [heading, ...members.map((entry) => ({ id: entry.key, entry }))];
  });
}

/**
 * A list of rows. `lost(key)` returns the note about a row's conflict, `{words, button, restore}`, or null.
 */
export function rowList(phone, tab, { lost, categories }) {
  const list = h('ul', { class: 'rows', 'aria-label': tab.label });
  const table = phone.client.table(tab.table);
  const key = table.keyColumn;
  const shown = new Map();
  let entries = [];
  let first = true;

  function makeItem({ entry, heading }) {
    if (heading !== undefined) return h('li', { class: 'group' }, h('span', { class: 'group-dot' }), h('span'));
    const row = () => shown.get(entry.key).row;
    const flag = h('button', {
      type: 'button',
      class: 'flag',
      on: { click: () => table.patch(entry.key, tab.flag.next(row())) },
    });
    const main = h(
      'button',
      { type: 'button', class: 'row-main', on: { click: () => edit(item, row()) } },
      h('span', { class: 'row-title' }),
      h('span', { class: 'row-end' }),
      h('span', { class: 'row-note' }),
      h('span', { class: 'unseen' }, 'edit'),
    );
    const remove = h(
      'button',
      { type: 'button', class: 'row-delete', on: { click: () => removeRow(item, row()) } },
      icon('trash'),
    );
    const item = h('li', { class: 'row' }, flag, main, remove, h('div', { class: 'row-lost', hidden: true }));
    return item;
  }

  function edit(item, row) {
    openForm(item, {
      label: `Edit ${row[tab.title]} on ${phone.name}`,
      fields: tab.fields,
      row,
      categories: categories(),
      save: (changed) => table.patch(row[key], changed),
    });
  }

  async function removeRow(item, row) {
    const beside = item.nextElementSibling ?? item.previousElementSibling;
    await table.remove(row[key]);
    announce(`${row[tab.title]} deleted on ${phone.name}`);
    (beside?.querySelector('.row-main') ?? list).focus();
  }

  function updateItem(item, { entry, heading, colour }) {
    if (heading !== undefined) {
      text(item.lastElementChild, heading);
      if (colour) item.firstElementChild.style.background = colour;
      return;
    }
    const { row } = entry;
    const before = shown.get(entry.key);
    shown.set(entry.key, entry);
    const [flag, main, remove, loss] = item.children;
    const [title, end, note] = main.children;
    const name = row[tab.title] || 'without a name';
    text(title, name);
    text(end, tab.end(row));
    text(note, WAITING[entry.state] ?? tab.note(row));
    paintFlag(flag, tab.flag.look(row), name);
    remove.setAttribute('aria-label', `Delete ${name}`);
    item.classList.toggle('is-waiting', entry.state !== 'clean');
    item.classList.toggle('is-struck', Boolean(tab.strike?.(row)));
    paintLoss(loss, lost(entry.key));
    const isNew = !first && entry.state === 'clean' && (!before || JSON.stringify(before.row) !== JSON.stringify(row));
    if (isNew && !calm()) flash(item);
  }

  function draw() {
    keyed(list, itemsOf(entries, tab, categories()), ({ id }) => id, makeItem, updateItem);
  }

  return {
    list,
    draw,
    show(now) {
      first = entries.length === 0;
      entries = now;
      draw();
    },
  };
}
