// The conversation of examples/clients/README.md. A wrong table or column name does not compile.
import {
  changes, digests, fetchManifest, listConflicts, login, register, synchronise, type BatchBody, type Report,
} from "./generated/rollcall.js";

type Verdicts = Record<string, { verdict: string }[] | undefined>;

const account = { email: process.env["EMAIL"]!, password: "correct horse battery" };
const key = (n: number) => `01901651-0000-7000-8000-00000000000${n}`;
const first = "2013-05-01 10:00:00";
const second = "2013-05-02 10:00:00";

type Device = { headers: Record<string, string> };

async function logIn(device: string): Promise<Device> {
  const { token } = await good(login({ ...account, device }));
  return { headers: { authorization: `Bearer ${token}` } };
}

/** Returns the body of the expected status; any other status is an error. */
async function good<A extends { status: number; data: unknown }>(
  call: Promise<A>,
): Promise<Extract<A, { status: 200 | 201 }>["data"]> {
  const response = await call;
  if (response.status === 200 || response.status === 201) return response.data as Extract<A, { status: 200 | 201 }>["data"];
  throw new Error(`${response.status} ${JSON.stringify(response.data)}`);
}

const sync = (device: Device, body: BatchBody, headers: Record<string, string> = {}) =>
  good(synchronise(body, {}, { headers: { ...device.headers, ...headers } }));

await good(register(account));
const phone = await logIn("phone");
const tablet = await logIn("tablet");
const verdicts: string[] = [];
const note = (report: Report) => {
  for (const sets of [report.add, report.update, report.delete] as Verdicts[])
    for (const set of Object.values(sets)) verdicts.push(...set!.map((one) => one.verdict));
  return report;
};

// 1. The phone begins; the tablet must wait.
const begun = await fetchManifest({}, phone);
const fence = Number(begun.headers.get("Sync-Lock"));
const locked = await fetchManifest({}, tablet);

// 2. The phone sends its first rows.
note(await sync(phone, {
    add: {
      invitation_categories: [{ icid: key(1), title: "University", last_update: first }],
      invitations: [
        { iid: key(2), guest: "Jón Þór", icid: key(1), party_size: 2, last_update: first },
        { iid: key(3), guest: "Clara", last_update: first },
      ],
      wishlist: [{ gid: key(4), title: "Pot", price: "89.95", last_update: first }],
      todo: [
        { id: key(5), title: "Book the band", due: "2013-06-01", last_update: first },
        { id: key(6), title: "Cake", done: true, last_update: first },
      ],
    },
}, { "Sync-Lock": String(fence) }));

// 3. The tablet has no rows: it requests all listed rows, and sends its own edits.
const listed = await good(fetchManifest({}, tablet));
const report = note(await sync(tablet, {
    get: {
      invitation_categories: listed.invitation_categories!.map((row) => row.icid),
      invitations: listed.invitations!.map((row) => row.iid),
      wishlist: listed.wishlist!.map((row) => row.gid),
      todo: listed.todo!.map((row) => row.id),
    },
    add: { gift_list: [{ id: key(7), title: "Vase", received: "2013-05-02", last_update: second }] },
    update: {
      invitation_categories: [{ icid: key(1), colour: "#27ae60", last_update: second, _base: first }],
    },
    delete: { todo: [{ id: key(6), last_update: second, _base: first }] },
}));

// 4. The phone has edited the same row meanwhile. It compares: it must get a gift, drop a todo and send an edit.
const manifest = await good(fetchManifest({}, phone));
const fetched = manifest.gift_list!.map((row) => row.id);
const dropped = [key(5), key(6)].filter((mine) => !manifest.todo!.some((row) => row.id === mine));
const lost = note(await sync(phone, {
    get: { gift_list: fetched },
    update: {
      invitation_categories: [
        { icid: key(1), title: "School", last_update: "2013-05-01 12:00:00", _base: first },
      ],
    },
}));

// 5. The edit lost. The user insists: the phone sends the row again, based on the server's row.
const theirs = lost.update.invitation_categories![0]!.row!;
note(await sync(phone, {
    update: {
      invitation_categories: [
        { icid: key(1), title: "School", last_update: "2013-05-03 10:00:00", _base: theirs.last_update },
      ],
    },
}));
const { conflicts } = await good(listConflicts({}, phone));

// 6. The tablet sends a cursor that the server never issued, and then fetches everything.
const expired = await changes({ since: Number.MAX_SAFE_INTEGER }, tablet);
const all = await good(changes({}, tablet));
if (typeof all === "string") throw new Error("NDJSON, although it was not requested");
const proof = await good(digests({}, tablet));

const counts = Object.entries(proof.tables).map(([table, digest]) => [table, digest.count]);
console.log(JSON.stringify({
  verdicts,
  received: Object.values(report.get).reduce((sum, rows) => sum + rows.length, 0),
  missing: report.missing.todo,
  refused: [
    locked.status === 423 ? `${locked.data.code} by ${locked.data.holder}` : locked.status,
    expired.status === 410 ? expired.data.code : expired.status,
  ],
  fetched,
  dropped,
  conflict: conflicts.map((one) => `${one.table} ${one.outcome}`).join(", "),
  rows: all.add,
  counts: Object.fromEntries(counts),
}));
