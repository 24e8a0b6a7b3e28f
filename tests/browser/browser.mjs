// A browser that notes whatever a page must not do.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');

/** An answer that is no success is part of the protocol; the browser writes each to its console. */
const ANSWERS = /^Failed to load resource: the server responded with a status of (409|423|401)\b/;

export async function launch() {
  const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
  return chromium.launch({ executablePath, args: ['--no-sandbox', '--force-color-profile=srgb'] });
}

/**
 * A page at `url`, with `faults`: what went wrong on it. `expectClean` fails if there are any.
 */
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme: 'light', ...options });
  const page = await context.newPage();
  const faults = [];
  const origin = new URL(url).origin;
  page.on('pageerror', (error) => faults.push(`error: ${error.stack ?? error}`));
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !ANSWERS.test(message.text())) {
      faults.push(`console: ${message.text()} ${message.location().url ?? ''}`);
    }
  });
  page.on('request', (request) => {
    const asked = new URL(request.url());
    if (asked.protocol !== 'data:' && asked.origin !== origin) faults.push(`leaves the server: ${request.url()}`);
    if (/rc_[\w-]{20}|token|password/i.test(asked.search)) faults.push(`a secret in the address: ${request.url()}`);
  });
  await page.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) =>
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`),
    );
  });
  await page.goto(url);
  page.faults = faults;
  page.expectClean = () => assert.deepEqual(faults, []);
  return page;
}

/** Fails on what axe finds: names, roles, contrast and the like. */
export async function expectAccessible(page, what) {
  // Colours that have just changed are drawn first.
  await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
  await page.evaluate(`${await readFile(AXE, 'utf8')}; undefined`);
  const { violations } = await page.evaluate(() =>
    globalThis.axe.run(document, {
      runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
    }),
  );
  const told = violations.flatMap(({ id, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id}: ${target} ${failureSummary.replaceAll('\n', ' ')}`),
  );
  assert.deepEqual(told, [], what);
}

/** Fails if the page can be moved sideways. */
export async function expectNoSideways(page, what) {
  const { wide, shown, who } = await page.evaluate(() => {
    const shown = document.documentElement.clientWidth;
    const beyond = [...document.querySelectorAll('body *')].find(
      (one) => one.getBoundingClientRect().right > shown + 1 && !one.closest('pre, .unseen, .skip, [data-scrolls]'),
    );
    return { wide: document.documentElement.scrollWidth, shown, who: beyond?.outerHTML.slice(0, 120) };
  });
  assert.ok(wide <= shown, `${what}: ${wide} > ${shown}, ${who ?? ''}`);
}

/** Keeps a picture of the page in the folder that `SCREENSHOTS` names, if it does. */
export async function picture(page, name) {
  const folder = process.env.SCREENSHOTS;
  if (!folder) return;
  await mkdir(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`), animations: 'disabled' });
}
