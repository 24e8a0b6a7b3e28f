// The wedding planner: its tables, and how a row of each is shown and edited.

import { h, icon } from '../shared/dom.js';

/** The tables as fixtures/wedding/schema.toml declares them. */
export const SCHEMA = {
  budget: {
    key: 'bid',
    columns: {
      expense_title: { type: 'text', required: true, max_length: 200 },
      assigned_to: { type: 'integer', required: true },
      status: { type: 'integer', required: true },
      cost: { type: 'integer', required: true },
      couple_id: { type: 'uuid', required: true },
      brideOrGroom: { type: 'text', required: true },
      created: { type: 'timestamp', required: true },
    },
  },
  invitation_categories: {
    key: 'icid',
    columns: { title: { type: 'text', max_length: 100 }, colour: 'text', sort_order: 'integer' },
  },
  invitations: {
    key: 'iid',
    columns: {
      guest: { type: 'text', max_length: 200 },
      icid: { type: 'uuid', references: 'invitation_categories' },
      party_size: { type: 'integer', default: 1 },
      email: { type: 'text', max_length: 254 },
      rsvp: 'boolean',
      table_number: 'integer',
      notes: 'text',
    },
  },
  wishlist: {
    key: 'gid',
    columns: {
      title: { type: 'text', max_length: 200 },
      url: 'text',
      price: 'decimal',
      quantity: { type: 'integer', default: 1 },
      bought: { type: 'boolean', default: false },
    },
  },
  gift_list: {
    key: 'id',
    columns: {
      title: { type: 'text', max_length: 200 },
      from_whom: 'text',
      received: 'date',
      thanked: { type: 'boolean', default: false },
    },
  },
  todo: {
    key: 'id',
    columns: {
      title: { type: 'text', max_length: 200 },
      notes: 'text',
      due: 'date',
      done: { type: 'boolean', default: false },
      reminder: 'timestamp',
    },
  },
};

const COUPLE = 'ac646699-47b1-4b70-b794-e069891bad56';

const money = (amount) => `€${Number(amount).toLocaleString('en')}`;
const day = (date) =>
  new Date(`${date}T12:00:00Z`).toLocaleDateString('en-GB', { day: 'numeric', month: 'short', timeZone: 'UTC' });
const sum = (rows, of) => rows.reduce((total, row) => total + (Number(of(row)) || 0), 0);

/** A time in whole seconds, the format of the schema. */
const secondsOf = (at) => new Date(at).toISOString().slice(0, 19).replace('T', ' ');

/**
 * The tabs of the app. Each has `table`, the `title` column, the `fields` of its form, `flag` (the button at the left:
 * its look for a value, and the next value), `note` (small print), `end` (the text at the right), `head` (the summary),
 * `group` (the column of the heading) and `blank` (the columns of a new row that the form lacks).
 */
export const TABS = [
  {
    id: 'budget',
    table: 'budget',
    label: 'Budget',
    icon: 'wallet',
    one: 'expense',
    title: 'expense_title',
    fields: [
      { column: 'expense_title', label: 'Expense', type: 'text', required: true },
      { column: 'cost', label: 'Cost in euros', type: 'number', required: true, min: 0, short: true },
    ],
    flag: {
      look: ({ status }) => (status === 1 ? { icon: 'check', on: true, words: 'paid' } : { words: 'not paid yet' }),
      next: ({ status }) => ({ status: status === 1 ? 0 : 1 }),
    },
    note: ({ status }) => (status === 1 ? 'paid' : 'to pay'),
    end: ({ cost }) => money(cost),
    order: (a, b) => b.cost - a.cost,
    head(rows) {
      const all = sum(rows, ({ cost }) => cost);
      const paid = sum(rows, ({ cost, status }) => (status === 1 ? cost : 0));
      return { big: money(all), small: `${money(paid)} paid`, part: all ? paid / all : 0 };
    },
    blank: () => ({
      assigned_to: 8,
      status: 0,
      couple_id: COUPLE,
      brideOrGroom: '1',
      created: secondsOf(Date.now()),
    }),
  },
  {
    id: 'guests',
    table: 'invitations',
    label: 'Guests',
    icon: 'guests',
    one: 'guest',
    title: 'guest',
    fields: [
      { column: 'guest', label: 'Guest', type: 'text', required: true },
      { column: 'party_size', label: 'Party of', type: 'number', required: true, min: 1, short: true },
      { column: 'icid', label: 'Category', type: 'category' },
    ],
    flag: {
      look: ({ rsvp }) => {
        if (rsvp === true) return { icon: 'check', on: true, words: 'comes' };
        if (rsvp === false) return { icon: 'cross', off: true, words: 'cannot come' };
        return { icon: 'ask', words: 'has not replied' };
      },
      next: ({ rsvp }) => ({ rsvp: rsvp === true ? false : rsvp === false ? null : true }),
    },
    note: ({ table_number: table, notes }) =>
      [table ? `Table ${table}` : null, notes].filter(Boolean).join(' · ') || 'no table yet',
    end: ({ party_size: size }) => `${size ?? 1}`,
    order: (a, b) => String(a.guest).localeCompare(String(b.guest)),
    group: 'icid',
    head(rows) {
      const all = sum(rows, ({ party_size: size }) => size ?? 1);
      const come = sum(rows, ({ party_size: size, rsvp }) => (rsvp === true ? (size ?? 1) : 0));
      return { big: `${all} invited`, small: `${come} coming`, part: all ? come / all : 0 };
    },
    blank: () => ({}),
  },
  {
    id: 'todo',
    table: 'todo',
    label: 'To-dos',
    icon: 'todo',
    one: 'to-do',
    title: 'title',
    fields: [
      { column: 'title', label: 'To do', type: 'text', required: true },
      { column: 'due', label: 'Due', type: 'date', short: true },
    ],
    flag: {
      look: ({ done }) => (done ? { icon: 'check', on: true, words: 'done' } : { words: 'not done yet' }),
      next: ({ done }) => ({ done: !done }),
    },
    note: ({ notes }) => notes || '',
    end: ({ due }) => (due ? day(due) : ''),
    strike: ({ done }) => done,
    order: (a, b) =>
      Number(a.done) - Number(b.done) || String(a.due ?? '9').localeCompare(String(b.due ?? '9')),
    head(rows) {
      const done = rows.filter((row) => row.done).length;
      return { big: `${rows.length - done} to do`, small: `${done} done`, part: rows.length ? done / rows.length : 0 };
    },
    blank: () => ({ done: false }),
  },
];

const WORDS = {
  expense_title: 'expense',
  cost: 'cost',
  status: 'paid',
  guest: 'guest',
  party_size: 'party of',
  icid: 'category',
  rsvp: 'coming',
  table_number: 'table',
  title: 'title',
  due: 'due',
  done: 'done',
  notes: 'notes',
};

/** A column's name for people. */
export const columnName = (column) => WORDS[column] ?? column.replaceAll('_', ' ');

/** A value for people. */
export function valueWords(table, column, value) {
  if (value === null || value === undefined || value === '') return 'nothing';
  if (column === 'cost') return money(value);
  if (column === 'status') return value === 1 ? 'yes' : 'no';
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  return String(value);
}

/** The name of a row for people. */
export const rowName = (table, row) => {
  const title = TABS.find((tab) => tab.table === table)?.title ?? 'title';
  return String(row?.[title] ?? row?.title ?? 'a row');
};

/** The round button at the left of a row. */
export function paintFlag(button, look, name) {
  button.classList.toggle('is-on', Boolean(look.on));
  button.classList.toggle('is-off', Boolean(look.off));
  button.setAttribute('aria-label', `${name}: ${look.words}. Change`);
  button.replaceChildren(look.icon ? icon(look.icon) : h('span'));
}
