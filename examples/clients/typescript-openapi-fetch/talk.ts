// The conversation of examples/clients/README.md. A wrong table or column name does not compile.
import createClient, { type Client } from "openapi-fetch";
import type { components, paths } from "./generated/api.js";

type Report = components["schemas"]["Report"];
type Verdicts = Record<string, { verdict: string }[] | undefined>;

const baseUrl = process.env["ROLLCALL_URL"]!;
const account = { email: process.env["EMAIL"]!, password: "correct horse battery" };
const key = (n: number) => `01901651-0000-7000-8000-00000000000${n}`;
const first = "2013-05-01 10:00:00";
const second = "2013-05-02 10:00:00";

// GET /changes can return a stream too: this client declares that it reads JSON.
type Json = "application/json" | "application/problem+json";
const anyone = createClient<paths, Json>({ baseUrl });

async function logIn(device: string): Promise<Client<paths, Json>> {
  const { data, error } = await anyone.POST("/login", { body: { ...account, device } });
  if (error) throw new Error(error.detail);
  return createClient<paths, Json>({ baseUrl, headers: { Authorization: `Bearer ${data.token}` } });
}

async function good<T>(call: Promise<{ data?: T; error?: { detail: string } }>): Promise<T> {
  const { data, error } = await call;
  if (data === undefined) throw new Error(error?.detail ?? "no response");
  return data;
}

await good(anyone.POST("/register", { body: account }));
const phone = await logIn("phone");
const tablet = await logIn("tablet");
const verdicts: string[] = [];
const note = (report: Report) => {
  for (const sets of [report.add, report.update, report.delete] as Verdicts[])
    for (const set of Object.values(sets)) verdicts.push(...set!.map((one) => one.verdict));
  return report;
};

// 1. The phone begins; the tablet must wait.
const begun = await phone.GET("/fetch");
const fence = Number(begun.response.headers.get("Sync-Lock"));
const { error: locked } = await tablet.GET("/fetch");

// 2. The phone sends its first rows.
note(await good(phone.POST("/synchronise", {
  params: { header: { "Sync-Lock": fence } },
  body: {
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
  },
})));

// 3. The tablet has no rows: it requests all listed rows, and sends its own edits.
const listed = await good(tablet.GET("/fetch"));
const report = note(await good(tablet.POST("/synchronise", {
  body: {
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
  },
})));

// 4. The phone has edited the same row meanwhile. It compares: it must get a gift, drop a todo and send an edit.
const manifest = await good(phone.GET("/fetch"));
const fetched = manifest.gift_list!.map((row) => row.id);
const dropped = [key(5), key(6)].filter((mine) => !manifest.todo!.some((row) => row.id === mine));
const lost = note(await good(phone.POST("/synchronise", {
  body: {
    get: { gift_list: fetched },
    update: {
      invitation_categories: [
        { icid: key(1), title: "School", last_update: "2013-05-01 12:00:00", _base: first },
      ],
    },
  },
})));

// 5. The edit lost. The user insists: the phone sends the row again, based on the server's row.
const theirs = lost.update.invitation_categories![0]!.row!;
note(await good(phone.POST("/synchronise", {
  body: {
    update: {
      invitation_categories: [
        { icid: key(1), title: "School", last_update: "2013-05-03 10:00:00", _base: theirs.last_update },
      ],
    },
  },
})));
const { conflicts } = await good(phone.GET("/conflicts"));

// 6. The tablet sends a cursor that the server never issued, and then fetches everything.
const { error: expired } = await tablet.GET("/changes", { params: { query: { since: Number.MAX_SAFE_INTEGER } } });
const changes = await good(tablet.GET("/changes"));
const digests = await good(tablet.GET("/digests"));

const counts = Object.entries(digests.tables).map(([table, digest]) => [table, digest.count]);
console.log(JSON.stringify({
  verdicts,
  received: Object.values(report.get).reduce((sum, rows) => sum + rows.length, 0),
  missing: report.missing.todo,
  refused: [`${locked?.code} by ${locked?.holder}`, expired?.code],
  fetched,
  dropped,
  conflict: conflicts.map((one) => `${one.table} ${one.outcome}`).join(", "),
  rows: changes.add,
  counts: Object.fromEntries(counts),
}));
