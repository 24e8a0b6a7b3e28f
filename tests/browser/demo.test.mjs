// The demo, as a visitor uses it.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { expectAccessible, expectNoSideways, launch, open, picture } from './browser.mjs';
import { start } from './server.mjs';

let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

/** Starts a new demo and opens its page, with both phones up to date. */
async function demo(context, options) {
  const server = await start(['demo']);
  const page = await open(browser, `${server.url}/demo`, options);
  context.after(async () => {
    await page.context().close();
    await server.stop();
  });
  await equal(page);
  return page;
}

const phone = (page, number) => page.locator(`#phone-${number}`);
const row = (page, number, name) => phone(page, number).locator('.row', { hasText: name });
const airplane = (page, number) => phone(page, number).getByRole('switch', { name: /Airplane/ });
const badge = (page) => page.locator('.badge');

/** Waits until both phones are proved equal to the server. */
const equal = (page) =>
  badge(page).filter({ hasText: 'Both phones are equal to the server' }).waitFor({ state: 'attached' });
const shows = (locator, words) => locator.filter({ hasText: words }).first().waitFor();

async function edit(page, number, name, fields) {
  await row(page, number, name).locator('.row-main').click();
  const form = phone(page, number).locator('.row-form');
  for (const [label, value] of Object.entries(fields)) await form.getByLabel(label, { exact: true }).fill(String(value));
  await form.getByRole('button', { name: 'Save' }).click();
}

test('both phones begin with the server’s rows, proved equal', async (context) => {
  const page = await demo(context);
  for (const number of [1, 2]) {
    assert.equal(await phone(page, number).locator('.rows:visible .row').count(), 8);
    await shows(phone(page, number).locator('.device-line'), 'Up to date, and proved');
  }
  assert.equal(await page.locator('.proof-side[data-look="equal"]').count(), 8);
  page.expectClean();
});

test('an edit on one phone arrives on the other', async (context) => {
  const page = await demo(context);
  await edit(page, 1, 'DJ & dance floor', { 'Cost in euros': 666 });
  await shows(row(page, 2, 'DJ & dance floor'), '€666');
  const form = phone(page, 2).getByRole('form', { name: /^New expense/ });
  await form.getByLabel('New expense').fill('Fireworks <img src=x onerror=alert(1)>');
  await form.getByLabel('Cost in euros').fill('280');
  await form.getByRole('button', { name: 'Add the expense' }).click();
  await shows(row(page, 1, 'Fireworks <img src=x onerror=alert(1)>'), '€280');
  assert.equal(await page.locator('img').count(), 0, 'a user’s input stays text');
  await row(page, 1, 'Fireworks').getByRole('button', { name: /^Delete/ }).click();
  await row(page, 2, 'Fireworks').waitFor({ state: 'detached' });
  await equal(page);
  page.expectClean();
});

test('guests and to-dos are synced too', async (context) => {
  const page = await demo(context);
  for (const number of [1, 2]) await phone(page, number).getByRole('tab', { name: 'Guests' }).click();
  await row(page, 1, 'Yuki Tanaka').getByRole('button', { name: /comes\. Change/ }).click();
  await row(page, 2, 'Yuki Tanaka').getByRole('button', { name: /cannot come\. Change/ }).waitFor();
  const form = phone(page, 2).getByRole('form', { name: /^New guest/ });
  await form.getByLabel('New guest').fill('The choir of St Mary');
  await form.getByLabel('Category').selectOption({ label: 'Colleagues' });
  await form.getByRole('button', { name: 'Add the guest' }).click();
  await row(page, 1, 'The choir of St Mary').waitFor();
  for (const number of [1, 2]) await phone(page, number).getByRole('tab', { name: 'To-dos' }).click();
  await row(page, 2, 'Send the invitations').getByRole('button', { name: /not done yet/ }).click();
  await row(page, 1, 'Send the invitations').getByRole('button', { name: /: done\. Change/ }).waitFor();
  await equal(page);
  page.expectClean();
});

test('of two offline edits of one row the later wins, and the loser can be restored', async (context) => {
  const page = await demo(context);
  for (const number of [1, 2]) await airplane(page, number).click();
  await edit(page, 1, 'Photographer', { 'Cost in euros': 800 });
  await shows(phone(page, 1).locator('.device-line'), '1 edit to send');
  await page.waitForTimeout(1_100); // the demo's times have seconds
  await edit(page, 2, 'Photographer', { 'Cost in euros': 1200 });
  await shows(badge(page), 'not yet equal');
  await airplane(page, 1).click();
  await shows(phone(page, 1).locator('.device-line'), 'Up to date');
  await airplane(page, 2).click();
  const conflict = page.locator('.conflict');
  await shows(conflict.locator('.side-won'), '€1,200');
  await shows(conflict.locator('.side-lost'), '€800');
  await shows(row(page, 1, 'Photographer'), 'Ben’s edit won.');
  await equal(page);
  await page.getByRole('button', { name: 'Restore mine' }).click();
  for (const number of [1, 2]) await shows(row(page, number, 'Photographer'), '€800');
  await shows(page.locator('.conflicts'), 'all resolved');
  await equal(page);
  page.expectClean();
});

test('a deletion against an edit is a conflict too', async (context) => {
  const page = await demo(context);
  for (const number of [1, 2]) await airplane(page, number).click();
  await edit(page, 1, 'Groom', { 'Cost in euros': 410 });
  await page.waitForTimeout(1_100);
  await row(page, 2, 'Groom').getByRole('button', { name: /^Delete/ }).click();
  for (const number of [1, 2]) await airplane(page, number).click();
  await shows(page.locator('.conflict'), 'deleted');
  await equal(page);
  await page.locator('.conflict').getByRole('button', { name: 'Restore Anna’s' }).click();
  for (const number of [1, 2]) await shows(row(page, number, 'Groom'), '€410');
  await equal(page);
  page.expectClean();
});

test('the page names the holder of the lock, and the other phone waits', async (context) => {
  const page = await demo(context);
  await page.getByRole('button', { name: 'Anna stalls' }).click();
  await shows(page.locator('.lock-words'), /^Anna’s phone has the lock, \d+ s left\.$/);
  await edit(page, 2, 'DJ & dance floor', { 'Cost in euros': 650 });
  await shows(phone(page, 2).locator('.device-line'), 'Waiting: Anna’s phone has the lock');
  await shows(page.locator('.wire-item[data-look="wait"]'), 'Anna’s phone has the lock');
  await picture(page, 'demo-lock');
  await page.getByRole('button', { name: 'Anna releases' }).click();
  await shows(page.locator('.lock-words'), 'The lock is free.');
  await shows(row(page, 1, 'DJ & dance floor'), '€650');
  await equal(page);
  page.expectClean();
});

test('the wire inspector shows requests and responses by phone, without secrets', async (context) => {
  const page = await demo(context);
  await edit(page, 1, 'DJ & dance floor', { 'Cost in euros': 640 });
  const sent = page.locator('.wire-item[data-who="anna"]', { hasText: 'sends 1 edited' }).first();
  await shows(sent, '1 updated');
  await sent.locator('summary').first().click();
  await shows(sent.locator('.json').first(), '"cost": 640');
  await page.getByRole('group', { name: 'Show' }).getByRole('button', { name: 'Ben' }).click();
  assert.equal(await page.locator('.wire-item[data-who="anna"]:visible').count(), 0);
  assert.ok((await page.locator('.wire-item[data-who="ben"]:visible').count()) > 0);
  await page.getByRole('group', { name: 'Show' }).getByRole('button', { name: 'Both' }).click();
  for (const item of await page.locator('.wire-item').all()) await item.evaluate((one) => (one.querySelector('details').open = true));
  for (const headers of await page.locator('.wire-headers').all()) await headers.evaluate((one) => (one.open = true));
  const text = await page.locator('.wire-list').innerText();
  assert.doesNotMatch(text, /rc_[\w-]{20}/, 'no token is shown');
  assert.doesNotMatch(text, /something borrowed/, 'no password is shown');
  page.expectClean();
});

test('a waiting edit survives a reload, and the phone can sync by manifest', async (context) => {
  const page = await demo(context);
  await phone(page, 1).getByRole('switch', { name: /Sync automatically/ }).click();
  await edit(page, 1, 'Photographer', { 'Cost in euros': 901 });
  await shows(phone(page, 1).locator('.device-line'), '1 edit to send');
  await page.reload();
  await shows(row(page, 2, 'Photographer'), '€901');
  await equal(page);
  await phone(page, 1).getByLabel(/^How .* syncs$/).selectOption('manifest');
  await phone(page, 1).getByRole('button', { name: 'Sync now' }).click();
  await shows(page.locator('.wire-item[data-who="anna"]'), 'fetches the manifest');
  await page.getByRole('button', { name: 'Reset' }).click();
  await shows(page.locator('.wire-item'), /all \d+ rows/);
  await equal(page);
  page.expectClean();
});

test('a visitor can follow the tour by its buttons alone', async (context) => {
  const page = await demo(context);
  const tour = page.getByRole('region', { name: 'Guided tour' });
  for (const [button, next] of [
    ['Change a price', 'Next'],
    ['Both into airplane mode', 'Next'],
    ['Edit it on both', 'Next'],
    ['Both online again', 'Next'],
    ['Restore it', 'Next'],
    ['Let Anna stall for 5 s', 'Finish'],
  ]) {
    await tour.getByRole('button', { name: button }).click();
    await tour.getByText('Done', { exact: true }).waitFor();
    if (button === 'Both online again') await picture(page, 'demo-light');
    await tour.getByRole('button', { name: next, exact: true }).click();
  }
  await shows(tour, 'Nothing lost, and proved');
  page.expectClean();
});

test('a visitor can do everything with the keyboard', async (context) => {
  const page = await demo(context);
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Skip to the phones');
  await page.keyboard.press('Enter');
  const tabTo = async (name) => {
    for (let step = 0; step < 80; step += 1) {
      await page.keyboard.press('Tab');
      const here = await page.evaluate(() => {
        const one = document.activeElement;
        const style = getComputedStyle(one);
        return {
          name: one.getAttribute('aria-label') ?? one.textContent,
          seen: style.outlineStyle !== 'none' && Number.parseFloat(style.outlineWidth) >= 2,
        };
      });
      assert.ok(here.seen, `the focus cannot be seen on ${here.name}`);
      if (name.test(here.name)) return;
    }
    assert.fail(`Tab never reaches ${name}`);
  };
  await tabTo(/^Airplane mode, Anna/);
  await page.keyboard.press('Space');
  await shows(phone(page, 1).locator('.device-line'), 'In airplane mode');
  await tabTo(/^Photographer€/);
  await page.keyboard.press('Enter');
  await page.keyboard.press('Tab');
  await page.keyboard.type('777');
  await page.keyboard.press('Enter');
  await shows(row(page, 1, 'Photographer'), '€777');
  const focused = (name) => page.waitForFunction((begin) => document.activeElement.textContent.startsWith(begin), name);
  await focused('Photographer');
  await page.keyboard.press('Enter');
  await page.keyboard.type('Nobody');
  await page.keyboard.press('Escape');
  await shows(row(page, 1, 'Photographer'), '€777');
  await tabTo(/^Delete Photographer/);
  await page.keyboard.press('Enter');
  await row(page, 1, 'Photographer').waitFor({ state: 'detached' });
  await focused('Honeymoon flights');
  await tabTo(/^Budget$/);
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Guests');
  await row(page, 1, 'Aunt Margaret').waitFor();
  page.expectClean();
});

test('the demo fits a screen of 360 pixels', async (context) => {
  const page = await demo(context, { viewport: { width: 360, height: 740 }, hasTouch: true });
  await picture(page, 'demo-narrow');
  for (const name of ['Anna', 'Server', 'Ben']) {
    await page.getByRole('tab', { name, exact: true }).click();
    await expectNoSideways(page, name);
  }
  await page.getByRole('tab', { name: 'Anna', exact: true }).click();
  for (const name of ['Guests', 'To-dos', 'Budget']) {
    await phone(page, 1).getByRole('tab', { name }).click();
    await expectNoSideways(page, name);
  }
  await edit(page, 1, 'Photographer', { 'Cost in euros': 930 });
  await page.getByRole('tab', { name: 'Ben', exact: true }).click();
  await shows(row(page, 2, 'Photographer'), '€930');
  await row(page, 2, 'Photographer').locator('.row-main').click();
  await expectNoSideways(page, 'a form');
  page.expectClean();
});

test('the colours follow the system, or the stored choice', async (context) => {
  const page = await demo(context);
  const brightness = () =>
    page.evaluate(() => {
      const [red, green, blue] = getComputedStyle(document.querySelector('.tour')).backgroundColor.match(/[\d.]+/g).map(Number);
      return red + green + blue;
    });
  assert.ok((await brightness()) > 600);
  await page.emulateMedia({ colorScheme: 'dark' });
  assert.ok((await brightness()) < 200);
  await picture(page, 'demo-dark');
  const toggle = page.getByRole('button', { name: /^Colours/ });
  await toggle.click();
  assert.ok((await brightness()) > 600, 'chosen light');
  await page.reload();
  assert.ok((await brightness()) > 600, 'the choice is stored');
  await toggle.click();
  await page.emulateMedia({ colorScheme: 'light' });
  assert.ok((await brightness()) < 200, 'chosen dark');
  page.expectClean();
});

test('the demo is accessible', async (context) => {
  const page = await demo(context, { reducedMotion: 'reduce' });
  await shows(page.locator('.wire-item'), 'logs in');
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await expectAccessible(page, colorScheme);
  }
  for (const number of [1, 2]) await airplane(page, number).click();
  await edit(page, 1, 'Photographer', { 'Cost in euros': 800 });
  await page.waitForTimeout(1_100);
  await edit(page, 2, 'Photographer', { 'Cost in euros': 1200 });
  await expectAccessible(page, 'in airplane mode');
  for (const number of [1, 2]) await airplane(page, number).click();
  await page.locator('.conflict').waitFor();
  await page.getByRole('button', { name: 'Ben stalls' }).click();
  await shows(page.locator('.lock-words'), 'Ben’s phone has the lock');
  await page.locator('.wire-item summary').first().click();
  await row(page, 1, 'Photographer').locator('.row-main').click();
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await expectAccessible(page, `${colorScheme}, with a conflict`);
  }
  assert.equal(await page.locator('.packet').count(), 0, 'no packets with reduced motion');
  page.expectClean();
});

test('two couples share a list, by an invitation that one takes back', async (context) => {
  const page = await demo(context);
  await page.getByRole('button', { name: 'Share a list' }).click();
  const dialog = page.getByRole('dialog', { name: /another couple/ });
  const side = (name) => dialog.getByRole('region', { name, exact: true });
  await side('Anna').getByRole('button', { name: 'Make a list to share' }).click();
  const code = await side('Anna').locator('.share-code').filter({ hasText: /^ri_/ }).textContent();
  await side('Eva').getByLabel('Code of the invitation').fill('ri_wrong');
  await side('Eva').getByRole('button', { name: 'Join' }).click();
  await shows(side('Eva').locator('.share-line'), /invitation/);
  await side('Eva').getByLabel('Code of the invitation').fill(code);
  await side('Eva').getByRole('button', { name: 'Join' }).click();
  for (const [name, title] of [['Anna', 'Bring the <b>cake</b>'], ['Eva', 'Book the band']]) {
    await side(name).getByLabel(`New entry of ${name}`).fill(title);
    await side(name).getByRole('button', { name: `Add the entry of ${name}` }).click();
    for (const other of ['Anna', 'Eva']) await side(other).getByRole('button', { name: title, exact: true }).waitFor();
  }
  await side('Eva').getByRole('button', { name: 'Bring the <b>cake</b>' }).click();
  await side('Anna').locator('.share-entry[aria-pressed="true"]', { hasText: 'cake' }).waitFor();
  for (const width of [320, 768, 1440]) {
    await page.setViewportSize({ width, height: 800 });
    await expectNoSideways(page);
    await expectAccessible(page);
  }
  await side('Anna').getByRole('button', { name: 'Take Eva out' }).click();
  await shows(side('Eva').locator('.share-line'), 'Eva is no member any more');
  assert.equal(await side('Eva').locator('.share-entry').count(), 0);
  assert.equal(await side('Anna').locator('.share-entry').count(), 2);
  await page.keyboard.press('Escape');
  await dialog.waitFor({ state: 'detached' });
  assert.equal(await phone(page, 2).locator('.row', { hasText: 'Book the band' }).count(), 0, 'Ben is no member');
});
