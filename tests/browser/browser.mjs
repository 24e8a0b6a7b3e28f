// A browser whose pages record their faults: errors, requests to other servers, secrets in addresses.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');

/** The browser logs each failed response to its console; these statuses are part of the protocol. */
const EXPECTED = /^Failed to load resource: the server responded with a status of (409|423|401)\b/;

export async function launch() {
  const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
  return chromium.launch({ executablePath, args: ['--no-sandbox', '--force-color-profile=srgb'] });
}

/**
 * Opens a page at `url`, with its list of `faults`. `expectClean` fails if there are any.
 */
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme: 'light', ...options });
  const page = await context.newPage();
  const faults = [];
  const origin = new URL(url).origin;
  page.on('pageerror', (error) => faults.push(`error: ${error.stack ?? error}`));
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !EXPECTED.test(message.text())) {
      faults.push(`console: ${message.text()} ${message.location().url ?? ''}`);
    }
  });
  page.on('request', (request) => {
    const target = new URL(request.url());
    if (target.protocol !== 'data:' && target.origin !== origin) faults.push(`leaves the server: ${request.url()}`);
    if (/rc_[\w-]{20}|token|password/i.test(target.search)) faults.push(`a secret in the address: ${request.url()}`);
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

/** Fails if axe finds a violation: names, roles, contrast and others. */
export async function expectAccessible(page, what) {
  // Wait until colours that have just changed are drawn.
  await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
  await page.evaluate(`${await readFile(AXE, 'utf8')}; undefined`);
  const { violations } = await page.evaluate(() =>
    globalThis.axe.run(document, {
      runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
    }),
  );
  const found = violations.flatMap(({ id, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id}: ${target} ${failureSummary.replaceAll('\n', ' ')}`),
  );
  assert.deepEqual(found, [], what);
}

/** Fails if the page is wider than the screen. */
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

/** Saves a picture of the page in the folder `SCREENSHOTS`, if that variable is set. */
export async function picture(page, name) {
  const folder = process.env.SCREENSHOTS;
  if (!folder) return;
  await mkdir(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`), animations: 'disabled' });
}
