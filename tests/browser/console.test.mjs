// The console, as an operator uses it.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, test } from 'node:test';
import { expectAccessible, expectNoSideways, launch, open, picture } from './browser.mjs';
import { SCHEMA, start } from './server.mjs';

const TOKEN = 'a token for the console';
const PASSWORD = 'correct horse battery';

let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

/** A server with some users, each with a phone, a tablet, some rows and a conflict. */
async function busy(context, people = ['anna', 'ben']) {
  const server = await start(
    ['serve', '--schema', SCHEMA, '--database', 'sqlite:server.db', '--log', 'warn', '--registration', 'open'],
    { ROLLCALL_CONSOLE_TOKEN: TOKEN, ROLLCALL_LOGINS_PER_ADDRESS_PER_MIN: '1000' },
  );
  context.after(() => server.stop());
  const call = async (method, path, token, body) => {
    const headers = { 'content-type': 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) };
    const response = await fetch(server.url + path, { method, headers, body: body && JSON.stringify(body) });
    return response.status === 204 ? null : response.json();
  };
  const sync = (token, body) => call('POST', '/synchronise', token, { pull: true, ...body });
  const users = [];
  for (const name of people) {
    const email = `${name}@example.com`;
    await call('POST', '/register', null, { email, password: PASSWORD });
    const logIn = async (device) => (await call('POST', '/login', null, { email, password: PASSWORD, device })).token;
    const [phone, tablet] = [await logIn(`${name}’s phone`), await logIn(`${name}’s tablet`)];
    const rows = Array.from({ length: 12 }, (_, i) => ({ id: randomUUID(), title: `to do ${i}`, done: false }));
    const { version } = await sync(phone, { add: { todo: rows } });
    await sync(tablet, {});
    const edit = (title, at) => ({ base: version, update: { todo: [{ id: rows[0].id, title, last_update: at }] } });
    await sync(phone, edit('the phone’s words', '2026-01-01 10:00:00'));
    await sync(tablet, edit('the tablet’s words', '2026-01-01 09:00:00'));
    users.push({ name, phone, tablet, rows });
  }
  return { server, call, sync, people: users };
}

/** A response of `series` after an hour with a peak in it. */
function madeUp() {
  let state = 7;
  const chance = () => (state = (state * 48_271) % 2_147_483_647) / 2_147_483_647;
  const steps = Array.from({ length: 361 }, (_, i) => 14 + 10 * Math.sin(i / 40) + 34 * Math.exp(-(((i - 250) / 30) ** 2)) + 9 * chance());
  const rows = (part) => steps.map((many) => Math.round(many * part * chance()));
  const slow = (base, swing) => steps.map((many) => base + (many / 60) * swing * (0.5 + chance()));
  const verdicts = { added: 0.7, updated: 1.6, merged: 0.08, deleted: 0.2, same: 0.15, kept: 0.06, gone: 0.03, absent: 0.02, rejected: 0.04 };
  return {
    step_s: 10,
    since: new Date(Date.now() - 3_605_000).toISOString(),
    syncs: steps.map(Math.round),
    p50_ms: slow(1.4, 1.2),
    p99_ms: slow(5, 9),
    verdicts: Object.fromEntries(Object.entries(verdicts).map(([name, part]) => [name, rows(part)])),
    refused: steps.map(() => (chance() < 0.05 ? Math.ceil(3 * chance()) : 0)),
  };
}

async function enter(server, options) {
  const page = await open(browser, `${server.url}/console`, options);
  await page.getByLabel('The token').fill(TOKEN);
  await page.keyboard.press('Enter');
  await page.getByText('Owners', { exact: true }).first().waitFor();
  return page;
}

const shows = (locator, words) => locator.filter({ hasText: words }).first().waitFor();

test('a wrong token is refused, and the right one is kept in its tab', async (context) => {
  const { server } = await busy(context, ['anna']);
  const page = await open(browser, `${server.url}/console`);
  await page.getByLabel('The token').fill('not the token at all');
  await page.getByRole('button', { name: 'Enter' }).click();
  await shows(page.getByRole('alert'), 'not the console’s token');
  await expectAccessible(page, 'sign-in');
  await page.getByLabel('The token').fill(TOKEN);
  await page.getByRole('button', { name: 'Enter' }).click();
  await shows(page.locator('.tile'), 'Owners');
  assert.ok(!page.url().includes('token'));
  await page.reload();
  await shows(page.locator('.tile'), 'Owners');
  const other = await page.context().newPage();
  await other.goto(`${server.url}/console`);
  await other.getByLabel('The token').waitFor();
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByLabel('The token').waitFor();
  await page.reload();
  await page.getByLabel('The token').waitFor();
  page.expectClean();
});

test('the overview shows figures, charts and owners', async (context) => {
  const { server, people } = await busy(context, ['anna', 'ben', 'carol']);
  const page = await enter(server);
  await shows(page.locator('figure').filter({ hasText: 'Syncs' }), /\d+ syncs in the last hour/);
  await shows(page.locator('figure').filter({ hasText: 'Verdicts' }), /36 added.*3 kept/);
  assert.ok((await page.locator('.chart-area.look-ben').first().getAttribute('d')).length > 10, 'something is drawn');
  const owners = page.locator('section', { hasText: 'Owners' }).locator('tbody a');
  await shows(owners, /-/);
  assert.equal(await owners.count(), people.length);
  const [first] = await owners.allTextContents();
  await page.getByRole('searchbox').fill(first.slice(0, 10));
  await page.getByRole('button', { name: 'Find' }).click();
  await page.waitForFunction((owner) => {
    const links = [...document.querySelectorAll('tbody a')];
    return links.length === 1 && links[0].textContent === owner;
  }, first);
  page.expectClean();

  // The picture shows invented figures of a busy hour.
  await page.route('**/console/api/series', (route) => route.fulfill({ json: madeUp() }));
  await page.getByRole('searchbox').fill('');
  await page.getByRole('button', { name: 'Find' }).click();
  await page.reload();
  await shows(page.locator('figure').filter({ hasText: 'Verdicts' }), 'rejected');
  await picture(page, 'console-light');
  await page.emulateMedia({ colorScheme: 'dark' });
  await picture(page, 'console-dark');
  page.expectClean();
});

test('an owner’s page breaks a lock, restores a losing row, and explains a missing row', async (context) => {
  const { server, call, sync, people } = await busy(context);
  const [anna] = people;
  const page = await enter(server);
  await call('POST', '/lock', anna.phone);
  const lock = page.locator('section', { hasText: 'Locks' }).locator('.line');
  await shows(lock, 'anna’s phone');
  await lock.getByRole('link').click();
  await shows(page.locator('.owner tr'), 'anna’s tablet');
  const held = page.locator('section').filter({ hasText: /^Lock/ });
  await held.getByRole('button', { name: 'Break' }).click();
  await held.getByRole('button', { name: 'Really break it?' }).click();
  await shows(held, 'The lock is free.');

  const last_update = new Date().toISOString();
  await sync(anna.phone, { update: { todo: [{ id: anna.rows[1].id, title: 'later', last_update }] } });
  await shows(page.locator('.owner .chip'), /version/);
  const why = page.locator('section', { hasText: 'Why is this row' });
  await why.getByLabel('Table').selectOption('todo');
  await why.getByLabel('Row').fill(anna.rows[1].id);
  const device = await why.getByLabel('Device').locator('option', { hasText: 'tablet' }).getAttribute('value');
  await why.getByLabel('Device').selectOption(device);
  await why.getByRole('button', { name: 'Ask' }).click();
  await shows(why.locator('.why-answer'), /\w/);

  const conflict = page.locator('.conflict-line').first();
  await conflict.locator('summary').click();
  await shows(conflict, 'the tablet’s words');
  await picture(page, 'console-owner');
  await conflict.getByRole('button', { name: 'Restore the losing row' }).click();
  await shows(conflict, 'restored');
  const { get } = await sync(anna.phone, { get: { todo: [anna.rows[0].id] } });
  assert.equal(get.todo[0].title, 'the tablet’s words');
  page.expectClean();
});

test('owners have names and members, and are found by the email of one', async (context) => {
  const { server, call, people } = await busy(context);
  const [anna, ben] = people;
  const { owner } = await call('POST', '/owners', anna.phone, { name: 'Party of both' });
  const { code } = await call('POST', `/owners/${owner}/invitations`, anna.phone, { role: 'read' });
  await call('POST', '/invitations/accept', ben.phone, { code, name: 'Ben' });
  const page = await enter(server);
  const owners = page.locator('section', { hasText: 'Owners' }).locator('tbody');
  await page.getByRole('searchbox').fill('BEN@example.com');
  await page.getByRole('button', { name: 'Find' }).click();
  await page.waitForFunction(() => document.querySelectorAll('tbody a').length === 2);
  await shows(owners.locator('tr'), 'Party of both');
  await page.getByRole('searchbox').fill('nobody@example.com');
  await page.getByRole('button', { name: 'Find' }).click();
  await page.waitForFunction(() => document.querySelectorAll('tbody a').length === 0);
  await page.getByRole('searchbox').fill('anna@example.com');
  await page.getByRole('button', { name: 'Find' }).click();
  await owners.locator('tr', { hasText: 'Party of both' }).getByRole('link').click();
  for (const [email, role] of [['anna@example.com', 'manage'], ['ben@example.com', 'read']]) {
    await shows(page.locator('.owner tr', { hasText: email }), role);
  }
  await expectAccessible(page, 'an owner with members');
  page.expectClean();
});

test('the console is accessible, works with the keyboard, and fits 360 pixels', async (context) => {
  const { server } = await busy(context);
  const page = await enter(server, { reducedMotion: 'reduce' });
  await shows(page.locator('figure'), /sync/);
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await expectAccessible(page, `overview, ${colorScheme}`);
  }
  await page.getByRole('button', { name: 'Find' }).focus();
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await shows(page.locator('.owner tr'), 'phone');
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await expectAccessible(page, `an owner, ${colorScheme}`);
  }
  await page.setViewportSize({ width: 360, height: 740 });
  await expectNoSideways(page, 'an owner');
  await page.getByRole('link', { name: 'All owners' }).click();
  await shows(page.locator('figure'), /sync/);
  await expectNoSideways(page, 'the overview');
  page.expectClean();
});

test('the console refreshes itself, but not while its tab is hidden', async (context) => {
  const { server, sync, people } = await busy(context, ['anna']);
  const page = await enter(server);
  await shows(page.locator('.tile'), 'Rows');
  const requests = [];
  page.on('request', (request) => requests.push(request.url()));
  await page.evaluate(() => {
    Object.defineProperty(document, 'hidden', { value: true, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  });
  await page.waitForTimeout(6_500);
  assert.deepEqual(requests, [], 'a hidden page sends no request');
  await sync(people[0].phone, { add: { todo: [{ id: randomUUID(), title: 'one more' }] } });
  await page.evaluate(() => {
    Object.defineProperty(document, 'hidden', { value: false, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  });
  await shows(page.locator('figure').filter({ hasText: 'Verdicts' }), '13 added');
  page.expectClean();
});
