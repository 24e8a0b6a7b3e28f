// A rollcall server and devices for the adapters' tests.
import { server as start, skip } from "../../clients/typescript/test/support.mjs";
export { skip };

const schema = `
[table.notes]
key = "id"
policy = "manual"
[table.notes.columns]
text = "text"
done = { type = "boolean", default = false }
stars = "integer"
`;

export const server = () => start({ schemaText: schema });

/** Logs a new device in; gives its token. */
export async function device({ url }, email, name) {
  const post = async (path, body) =>
    (await fetch(url + path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();
  await post("/register", { email, password: "something borrowed" });
  return post("/login", { email, password: "something borrowed", device: name });
}

/** Waits until it holds, at most 10 s. */
export async function until(holds, what) {
  for (const began = Date.now(); !(await holds()); await new Promise((resolve) => setTimeout(resolve, 20))) {
    if (Date.now() - began > 10_000) throw new Error(`not within 10 s: ${what}`);
  }
}
