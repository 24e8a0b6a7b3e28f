// Drives Debian's Chromium, or the browser in CHROMIUM, by playwright-core.
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { after } from "node:test";
import { chromium } from "playwright-core";

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
export const noBrowser = existsSync(executablePath) ? false : `no browser at ${executablePath}: install chromium, or set CHROMIUM`;
if (noBrowser && process.env.CI) throw new Error(noBrowser);

const ends = [];
after(async () => {
  for (const end of ends.reverse()) await end();
});

const types = { ".js": "text/javascript", ".mjs": "text/javascript", ".html": "text/html; charset=utf-8", ".css": "text/css" };

/** Serves folders, each under its prefix. Returns the origin. */
export async function serveFiles(folders, headers = {}) {
  const server = createServer((request, response) => {
    const path = normalize(new URL(request.url, "http://x").pathname);
    const [prefix, folder] = Object.entries(folders).find(([prefix]) => path.startsWith(prefix)) ?? [];
    const file = folder && join(folder, path.slice(prefix.length) || "index.html");
    if (!file || !existsSync(file)) return response.writeHead(404).end();
    response.writeHead(200, { "Content-Type": types[extname(file)] ?? "application/octet-stream", ...headers }).end(readFileSync(file));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  ends.push(() => server.close());
  return `http://127.0.0.1:${server.address().port}`;
}

export async function launch() {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  ends.push(() => browser.close());
  return browser;
}
