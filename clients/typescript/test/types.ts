// Types that the compiler must infer, and code that it must refuse. `npm run check` checks it; it never runs.
import { openClient, memoryStore, type Row } from "../dist/index.js";

const client = await openClient({
  url: "",
  store: memoryStore(),
  tables: {
    todo: {
      key: "id",
      columns: { title: { type: "text", required: true }, done: { type: "boolean", default: false }, due: "date", price: "decimal" },
    },
    loose: { key: "key" },
  },
});
type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const holds = <T extends true>(): T | void => {};

const row = await client.table("todo").put({ title: "Cake" });
holds<Equal<typeof row, { id: string; title: string; done: boolean | null; due: string | null; price: string | null }>>();
holds<Equal<Awaited<ReturnType<ReturnType<typeof client.table<"todo">>["list"]>>, (typeof row)[]>>();
await client.table("todo").patch(row.id, { due: null, done: true });
const loose = await client.table("loose").put({ anything: [1] });
holds<Equal<typeof loose, Row>>();

// @ts-expect-error there is no such table
client.table("presents");
// @ts-expect-error a required column is missing
await client.table("todo").put({ done: true });
// @ts-expect-error there is no such column
await client.table("todo").put({ title: "x", colour: "red" });
// @ts-expect-error another type
await client.table("todo").patch(row.id, { done: "yes" });
// @ts-expect-error a required column cannot be emptied
await client.table("todo").patch(row.id, { title: null });
