// Small charts of the last hour, drawn as SVG. A chart has the width of the page and shows only the highest value as an
// axis. A sentence below it states the same in words.

import { h, svg, text } from '../shared/dom.js';
import { clock } from '../shared/format.js';

const WIDTH = 720;
const HEIGHT = 120;

const highest = (values) => values.reduce((most, value) => Math.max(most, value ?? 0), 0);

/** A round number that is not below `value`. */
function ceiling(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value);
}

/**
 * A chart. `kind` is `bars` (one or more stacked series) or `lines`; `series` are `{name, look}`; `unit` formats a
 * value; `words(values, data)` is the sentence below the chart.
 */
export function chart({ title, kind, series, unit, words }) {
  const picture = svg('svg', { class: 'chart-picture', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  const grid = [0.5, 1].map((part) => svg('line', { class: 'chart-grid', x1: 0, x2: WIDTH, y1: HEIGHT * (1 - part) + 1, y2: HEIGHT * (1 - part) + 1 }));
  const paths = series.map(({ look }) => svg('path', { class: `chart-${kind === 'bars' ? 'area' : 'line'} look-${look}` }));
  const hair = svg('line', { class: 'chart-hair', y1: 0, y2: HEIGHT, x1: -9, x2: -9 });
  picture.append(...grid, ...paths, hair);
  const top = h('span', { class: 'chart-top' });
  const caption = h('figcaption', { class: 'chart-words muted small' });
  const at = h('span', { class: 'chart-at', 'aria-hidden': 'true' });
  const legend = series.length > 1 ? h('ul', { class: 'chart-legend' }, series.map(({ name, look }) => h('li', {}, h('span', { class: `dot look-${look}` }), name))) : null;
  const stage = h('div', { class: 'chart-stage' }, picture, top, at);
  const element = h('figure', { class: 'card chart' }, h('div', { class: 'card-head' }, h('h2', { class: 'card-title' }, title), legend), stage, caption);
  let values = [];
  let data = null;
  let most = 1;

  const across = (step) => (step / Math.max(1, data.steps)) * WIDTH;
  const up = (value) => HEIGHT - (value / most) * (HEIGHT - 2);

  /** The bars of a series as one path, each as wide as its step and on top of `floor`. */
  function bars(row, floor) {
    const wide = Math.max(1, (WIDTH / data.steps) * 0.82);
    const parts = row.map((value, step) => {
      if (!value) return '';
      const left = across(step).toFixed(1);
      return `M${left} ${up(floor[step]).toFixed(1)}V${up(floor[step] + value).toFixed(1)}h${wide.toFixed(1)}V${up(floor[step]).toFixed(1)}z`;
    });
    return parts.join('');
  }

  function line(row) {
    let isDown = true;
    return row
      .map((value, step) => {
        if (value === null || value === undefined) {
          isDown = true;
          return '';
        }
        // A single value between gaps is drawn as a dash.
        const command = `${isDown ? 'M' : 'L'}${across(step).toFixed(1)} ${up(value).toFixed(1)}${isDown ? 'h4' : ''}`;
        isDown = false;
        return command;
      })
      .join('');
  }

  function draw(now, rows) {
    data = now;
    values = rows;
    const sums = rows[0].map((_, step) => rows.reduce((all, row) => all + (row[step] ?? 0), 0));
    most = ceiling(highest(kind === 'bars' ? sums : rows.flat()));
    let floor = sums.map(() => 0);
    rows.forEach((row, number) => {
      paths[number].setAttribute('d', kind === 'bars' ? bars(row, floor) : line(row));
      if (kind === 'bars') floor = floor.map((value, step) => value + (row[step] ?? 0));
    });
    text(top, unit(most));
    text(caption, words(rows, now));
  }

  stage.addEventListener('pointermove', (event) => {
    if (!data) return;
    const box = stage.getBoundingClientRect();
    const step = Math.min(values[0].length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * data.steps)));
    const x = across(step + 0.4);
    hair.setAttribute('x1', x);
    hair.setAttribute('x2', x);
    const parts = series.map(({ name }, number) => {
      const value = values[number][step];
      if (value === null || value === undefined || (value === 0 && series.length > 2)) return null;
      return series.length > 1 ? `${name} ${unit(value)}` : unit(value);
    });
    text(at, [clock(data.since + step * data.step), ...parts.filter(Boolean)].join(' · '));
    at.classList.toggle('is-left', event.clientX > box.left + box.width / 2);
  });
  stage.addEventListener('pointerleave', () => {
    hair.setAttribute('x1', -9);
    hair.setAttribute('x2', -9);
    text(at, '');
  });
  return { element, draw };
}
