// Builds dist: plain ES modules without comments, and declarations with them.
import { execFileSync } from "node:child_process";
import { readdirSync, rmSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = process.argv[2] ?? `${here}dist`;
rmSync(out, { recursive: true, force: true });
const tsc = (...options) =>
  execFileSync(process.execPath, [`${here}node_modules/typescript/bin/tsc`, "-p", here, "--outDir", out, ...options], { stdio: "inherit" });
tsc("--declaration", "false", "--removeComments");
tsc("--emitDeclarationOnly");

let bytes = 0;
for (const name of readdirSync(out)) if (name.endsWith(".js")) bytes += statSync(`${out}/${name}`).size;
console.log(`${out}: ${bytes} bytes of modules`);
