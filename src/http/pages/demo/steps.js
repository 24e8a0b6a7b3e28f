// The steps of the tour. Each can be done by hand or by its button, and knows when it is done.

import { TABS } from './tables.js';

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The rows that are edited on a phone and not sent yet: `table key`. */
async function waitingRows(phone) {
  const all = await Promise.all(TABS.map(({ table }) => phone.client.table(table).entries()));
  return all.flat().filter(({ state }) => state !== 'clean').map(({ table, key }) => `${table} ${key}`);
}

/** A row of the budget to play with: the photographer, or whatever is there. */
async function someExpense(phone, name) {
  const rows = await phone.client.table('budget').list();
  return rows.find((row) => row.expense_title === name) ?? rows[0];
}

const patch = (phone, row, columns) => phone.client.table('budget').patch(row.bid, columns);

/**
 * `begin` notes where things stand; `done` compares with that; `act` does it for whoever watches. All take
 * `{phones: [anna, ben], seen, proof, noted}`.
 */
export const STEPS = [
  {
    title: 'Edit on one phone, look at the other',
    words: 'Change a price on Anna’s phone. The server tells Ben’s phone that there is news, and Ben’s phone asks for it.',
    target: '#phone-1',
    button: 'Change a price',
    begin: ({ seen }) => ({ version: seen.version }),
    done: ({ seen, proof, noted }) => noted.version !== null && seen.version > noted.version && proof.equal,
    async act({ phones: [anna] }) {
      const row = await someExpense(anna, 'Wedding cake, three tiers');
      await patch(anna, row, { cost: row.cost + 25 });
    },
  },
  {
    title: 'Take both phones offline',
    words: 'Airplane mode cuts a phone from the server. The planner goes on working: each phone has all rows of its own.',
    target: '.switch-airplane',
    button: 'Both into airplane mode',
    done: ({ phones }) => phones.every(({ state }) => state.airplane),
    act: ({ phones }) => Promise.all(phones.map((phone) => phone.setAirplane(true))),
  },
  {
    title: 'Edit the same row on both',
    words: 'Give the photographer one price on Anna’s phone and another on Ben’s. Neither can know of the other.',
    target: '.frame',
    button: 'Edit it on both',
    async done({ phones }) {
      const [annas, bens] = await Promise.all(phones.map(waitingRows));
      return annas.some((row) => bens.includes(row));
    },
    async act({ phones: [anna, ben] }) {
      const row = await someExpense(anna, 'Photographer');
      await patch(anna, row, { cost: row.cost - 150 });
      // The schema keeps seconds: the later edit is to be the later one.
      await pause(1_200);
      await patch(ben, row, { cost: row.cost + 250 });
    },
  },
  {
    title: 'Come back',
    words: 'Let both online again. The server sees that neither knew of the other, and lets the later edit win.',
    target: '.switch-airplane',
    button: 'Both online again',
    begin: ({ seen }) => ({ conflicts: seen.conflicts.length }),
    done: ({ phones, seen, proof, noted }) =>
      phones.every(({ state }) => !state.airplane) && seen.conflicts.length > noted.conflicts && proof.equal,
    async act({ phones: [anna, ben] }) {
      await anna.setAirplane(false);
      await pause(900);
      await ben.setAirplane(false);
    },
  },
  {
    title: 'Bring the loser back',
    words: 'The edit that lost is not gone. Both sides are kept, with the row that they began with. One call brings it back.',
    target: '#conflicts',
    button: 'Bring it back',
    begin: ({ seen }) => ({ open: seen.conflicts.filter((one) => !one.restored_at).length }),
    done: ({ seen, noted, proof }) =>
      seen.conflicts.filter((one) => !one.restored_at).length < noted.open && proof.equal,
    act: () => document.querySelector('.conflict:not(.is-restored) button')?.click(),
  },
  {
    title: 'Watch the lock',
    words: 'One device syncs at a time. Anna’s phone takes the lock and stalls; Ben’s phone edits, and is told who to wait for.',
    target: '.lock',
    button: 'Let Anna stall for 5 s',
    done: ({ seen, noted, proof, phones }) => {
      if (seen.lock?.held && phones[1].state.status?.pending.rows > 0) noted.held = true;
      return Boolean(noted.held) && !seen.lock?.held && proof.equal;
    },
    async act({ phones: [anna, ben] }) {
      await anna.holdLock();
      await pause(600);
      const row = await someExpense(ben, 'Flowers for church & tables');
      await patch(ben, row, { cost: row.cost + 10 });
      await pause(5_000);
      await anna.releaseLock();
    },
  },
];
