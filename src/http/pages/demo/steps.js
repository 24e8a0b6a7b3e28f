// The steps of the tour. A visitor can do each by hand or by its button.

import { TABS } from './tables.js';

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The names (`table key`) of the rows of a phone with an unsent edit. */
async function waitingRows(phone) {
  const all = await Promise.all(TABS.map(({ table }) => phone.client.table(table).entries()));
  return all.flat().filter(({ state }) => state !== 'clean').map(({ table, key }) => `${table} ${key}`);
}

/** The row of the budget with that title, or the first one. */
async function someExpense(phone, name) {
  const rows = await phone.client.table('budget').list();
  return rows.find((row) => row.expense_title === name) ?? rows[0];
}

const patch = (phone, row, columns) => phone.client.table('budget').patch(row.bid, columns);

/**
 * `begin` returns the state before the step (`noted`); `done` compares with it; `act` does the step for the visitor. All
 * take `{phones: [anna, ben], seen, proof, noted}`.
 */
export const STEPS = [
  {
    title: 'Edit on one phone, look at the other',
    words: 'Change a price on Anna’s phone. The server sends an event to Ben’s phone, and Ben’s phone fetches the change.',
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
    words: 'Airplane mode cuts a phone from the server. The planner still works: each phone has its own copy of all rows.',
    target: '.switch-airplane',
    button: 'Both into airplane mode',
    done: ({ phones }) => phones.every(({ state }) => state.airplane),
    act: ({ phones }) => Promise.all(phones.map((phone) => phone.setAirplane(true))),
  },
  {
    title: 'Edit the same row on both',
    words: 'Give the photographer one price on Anna’s phone and another on Ben’s. Neither phone has the other’s edit.',
    target: '.frame',
    button: 'Edit it on both',
    async done({ phones }) {
      const [annas, bens] = await Promise.all(phones.map(waitingRows));
      return annas.some((row) => bens.includes(row));
    },
    async act({ phones: [anna, ben] }) {
      const row = await someExpense(anna, 'Photographer');
      await patch(anna, row, { cost: row.cost - 150 });
      // The schema keeps whole seconds, so the two edits need different ones.
      await pause(1_200);
      await patch(ben, row, { cost: row.cost + 250 });
    },
  },
  {
    title: 'Go online again',
    words: 'Turn airplane mode off on both. The server detects the conflict, and the later edit wins.',
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
    title: 'Restore the losing edit',
    words: 'The losing edit is not lost. The server keeps both sides, and the row before both edits. One request restores the loser.',
    target: '#conflicts',
    button: 'Restore it',
    begin: ({ seen }) => ({ open: seen.conflicts.filter((one) => !one.restored_at).length }),
    done: ({ seen, noted, proof }) =>
      seen.conflicts.filter((one) => !one.restored_at).length < noted.open && proof.equal,
    act: () => document.querySelector('.conflict:not(.is-restored) button')?.click(),
  },
  {
    title: 'Watch the lock',
    words: 'One device syncs at a time. Anna’s phone takes the lock and stalls. Ben’s phone has an edit, and the response names the device for which it must wait.',
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
