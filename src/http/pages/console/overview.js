// The server as a whole: figures, charts, locks, tables, owners.

import { h, keyed, text } from '../shared/dom.js';
import { ago, bytes, counted, instant, ms, number } from '../shared/format.js';
import { api } from './api.js';
import { chart } from './charts.js';
import { lockLine } from './locks.js';
import { ownersList } from './owners.js';

/** The fewest and the most steps that a chart shows. A server that has just started has less than an hour of them. */
const STEPS = [60, 360];
const VERDICTS = [
  ['added', 'good'],
  ['updated', 'ben'],
  ['merged', 'gold'],
  ['deleted', 'muted'],
  ['same', 'faint'],
  ['kept', 'anna'],
  ['gone', 'strong'],
  ['absent', 'soft'],
  ['rejected', 'bad'],
];

const total = (row) => row.reduce((all, value) => all + (value ?? 0), 0);
const most = (row) => row.reduce((high, value) => Math.max(high, value ?? 0), 0);

function tile(label) {
  const value = h('dd', { class: 'tile-value' });
  const note = h('dd', { class: 'tile-note muted' });
  return { element: h('div', { class: 'tile card' }, h('dt', { class: 'tile-label' }, label), value, note), value, note };
}

function makeTiles() {
  return {
    owners: tile('Owners'),
    rows: tile('Rows'),
    syncs: tile('Syncs a minute'),
    slowest: tile('Slowest of a hundred'),
    listening: tile('Devices listening'),
    refused: tile('Refused in the hour'),
  };
}

function makeCharts() {
  return {
    syncs: chart({
      title: 'Syncs',
      kind: 'bars',
      series: [{ name: 'syncs', look: 'ben' }],
      unit: number,
      words: ([row]) => `${counted(total(row), 'sync')} in the last hour, at most ${number(most(row))} in 10 s.`,
    }),
    latency: chart({
      title: 'How long a sync takes',
      kind: 'lines',
      series: [
        { name: 'half of them, at most', look: 'good' },
        { name: 'all but one in a hundred', look: 'anna' },
      ],
      unit: ms,
      words: ([half, slow]) => `At most ${ms(most(half))} for half of them, ${ms(most(slow))} for all but one in a hundred.`,
    }),
    verdicts: chart({
      title: 'Verdicts',
      kind: 'bars',
      series: VERDICTS.map(([name, look]) => ({ name, look })),
      unit: number,
      words: (rows) => VERDICTS.map(([name], i) => [total(rows[i]), name]).filter(([count]) => count > 0).map(([count, name]) => `${number(count)} ${name}`).join(', ') || 'No row was sent in the last hour.',
    }),
    refused: chart({
      title: 'Refused or failed',
      kind: 'bars',
      series: [{ name: 'refused', look: 'bad' }],
      unit: number,
      words: ([row]) => `${counted(total(row), 'response')} with status 400 or above in the last hour.`,
    }),
  };
}

function tableLine({ table }) {
  return h('tr', {}, h('th', { scope: 'row' }, table), h('td', { class: 'with-bar' }, h('span', { class: 'bar-of' }), h('span')), h('td'));
}

function paintTable(line, { rows, tombstones }, largest) {
  const [, count, dead] = line.children;
  count.firstElementChild.style.width = `${(rows / largest) * 100}%`;
  text(count.lastElementChild, number(rows));
  text(dead, tombstones === null || tombstones === undefined ? 'not counted yet' : number(tombstones));
}

/** Paints the charts and the tiles of the last hour. */
function paintSeries(charts, tiles, now) {
  const steps = Math.min(Math.max(now.syncs.length, STEPS[0]), STEPS[1]);
  const missing = Math.max(0, steps - now.syncs.length);
  const step = now.step_s * 1000;
  const hour = (row) => [...Array(missing).fill(null), ...(row ?? now.syncs.map(() => 0))];
  const data = { since: instant(now.since) - missing * step, step, steps: steps + 1 };
  charts.syncs.draw(data, [hour(now.syncs)]);
  charts.latency.draw(data, [hour(now.p50_ms), hour(now.p99_ms)]);
  charts.verdicts.draw(data, VERDICTS.map(([name]) => hour(now.verdicts[name])));
  charts.refused.draw(data, [hour(now.refused)]);
  const minute = Math.max(1, Math.round(60 / now.step_s));
  const last = now.syncs.slice(-minute);
  text(tiles.syncs.value, number(total(last)));
  text(tiles.syncs.note, `${number(total(now.syncs))} in the hour`);
  const slow = now.p99_ms.filter((value) => value !== null);
  text(tiles.slowest.value, slow.length > 0 ? ms(slow.at(-1)) : '–');
  text(tiles.slowest.note, slow.length > 0 ? `at most ${ms(most(slow))} in the hour` : 'no sync yet');
  text(tiles.refused.value, number(total(now.refused)));
  text(tiles.refused.note, `${number(total(now.refused.slice(-minute)))} in the last minute`);
}

/** Draws the overview. `refresh()` requests its data and paints it. */
export function overviewView({ refreshSoon }) {
  const tiles = makeTiles();
  const charts = makeCharts();
  const about = h('p', { class: 'about muted' });
  const locks = h('ul', { class: 'lines' });
  const noLocks = h('p', { class: 'muted empty' }, 'No device is syncing now.');
  const tables = h('tbody');
  const owners = ownersList();
  const element = h(
    'div',
    { class: 'overview' },
    about,
    h('dl', { class: 'tiles' }, Object.values(tiles).map((one) => one.element)),
    h('div', { class: 'charts' }, Object.values(charts).map((one) => one.element)),
    h(
      'div',
      { class: 'columns' },
      owners.element,
      h(
        'div',
        { class: 'column' },
        h('section', { class: 'card' }, h('div', { class: 'card-head' }, h('h2', { class: 'card-title' }, 'Locks')), noLocks, locks),
        h(
          'section',
          { class: 'card' },
          h('div', { class: 'card-head' }, h('h2', { class: 'card-title' }, 'Tables')),
          h(
            'table',
            { class: 'figures' },
            h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'table'), h('th', { scope: 'col' }, 'rows'), h('th', { scope: 'col' }, 'tombstones'))),
            tables,
          ),
        ),
      ),
    ),
  );

  function paintOverview(now) {
    text(about, `Version ${now.version} on ${now.engine}, started ${ago(instant(now.started_at))}.`);
    text(tiles.owners.value, number(now.owners));
    text(tiles.owners.note, now.counted_at ? `counted ${ago(instant(now.counted_at))}` : '');
    text(tiles.rows.value, number(now.rows));
    text(tiles.rows.note, bytes(now.bytes));
    text(tiles.listening.value, number(now.totals.event_streams));
    text(tiles.listening.note, `of ${counted(now.totals.connections, 'connection')}`);
    noLocks.hidden = now.locks.length > 0;
    keyed(locks, now.locks, ({ owner }) => owner, (lock) => lockLine(lock.owner, refreshSoon, true), (line, lock) => line.show(lock));
    const largest = now.tables.reduce((high, { rows }) => Math.max(high, rows), 1);
    keyed(tables, now.tables, ({ table }) => table, tableLine, (line, one) => paintTable(line, one, largest));
  }

  return {
    element,
    async refresh() {
      const [overview, series] = await Promise.all([api.overview(), api.series(), owners.refresh()]);
      paintOverview(overview);
      paintSeries(charts, tiles, series);
    },
  };
}
