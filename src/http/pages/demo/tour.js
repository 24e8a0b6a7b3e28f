// The guided tour: one step at a time, done by hand or by a button.

import { announce, h, icon, text } from '../shared/dom.js';
import { STEPS } from './steps.js';

const THE_END = {
  title: 'Nothing lost, and proved',
  words: 'Both phones hold what the server holds: the same count and the same sum of hashes for each table. Now break it: the phones are yours.',
};

/** Draws the tour. `check()` looks whether the step at hand is done. */
export function tourView(place, opener, context) {
  const dots = STEPS.map((step, at) =>
    h('button', { type: 'button', class: 'tour-dot', 'aria-label': `Step ${at + 1}: ${step.title}`, on: { click: () => go(at) } }, String(at + 1)),
  );
  const title = h('h2', { class: 'tour-title' });
  const words = h('p', { class: 'tour-words' });
  const act = h('button', { type: 'button', class: 'button', on: { click: run } });
  const next = h('button', { type: 'button', class: 'button button-strong', on: { click: () => go(at + 1) } });
  const close = h('button', { type: 'button', class: 'button button-quiet button-icon', 'aria-label': 'Close the tour', on: { click: () => show(false) } }, icon('cross'));
  const told = h('span', { class: 'tour-done', role: 'status' });
  place.replaceChildren(
    h('ol', { class: 'tour-dots' }, dots.map((dot) => h('li', {}, dot))),
    h('div', { class: 'tour-text' }, title, words),
    h('div', { class: 'tour-tools' }, told, act, next, close),
  );
  const finished = new Set();
  let at = 0;
  let noted = {};
  let checking = false;
  let acting = false;

  function go(to) {
    at = Math.min(to, STEPS.length);
    noted = STEPS[at]?.begin?.({ ...context, noted: {} }) ?? {};
    paint();
    check();
  }

  async function run() {
    acting = true;
    paint();
    try {
      await STEPS[at].act({ ...context, noted });
    } finally {
      acting = false;
      paint();
    }
  }

  function point(target) {
    for (const old of document.querySelectorAll('.is-pointed')) old.classList.remove('is-pointed');
    if (!target || place.hidden) return;
    for (const one of document.querySelectorAll(target)) one.classList.add('is-pointed');
  }

  function paint() {
    const step = STEPS[at];
    const isDone = finished.has(at);
    text(title, (step ?? THE_END).title);
    text(words, (step ?? THE_END).words);
    dots.forEach((dot, number) => {
      dot.setAttribute('aria-current', number === at ? 'step' : 'false');
      dot.classList.toggle('is-done', finished.has(number));
    });
    act.hidden = !step || isDone;
    text(act, step?.button ?? '');
    act.disabled = acting;
    next.hidden = !step;
    text(next, at === STEPS.length - 1 ? 'Finish' : 'Next');
    next.classList.toggle('is-ready', isDone);
    told.replaceChildren(...(isDone ? [icon('check'), 'Done'] : []));
    point(isDone ? null : step?.target);
  }

  async function check() {
    const step = STEPS[at];
    if (checking || !step || finished.has(at) || place.hidden) return;
    checking = true;
    const looked = at;
    const isDone = await step.done({ ...context, noted });
    checking = false;
    if (!isDone || looked !== at) return;
    finished.add(at);
    announce(`Step ${at + 1} is done.`);
    paint();
  }

  function show(open) {
    place.hidden = !open;
    opener.setAttribute('aria-expanded', String(open));
    paint();
    if (!open) opener.focus();
  }

  opener.addEventListener('click', () => {
    if (place.hidden && at === STEPS.length) go(0);
    show(place.hidden);
  });
  go(0);
  return {
    check() {
      // The first step begins where the first look finds things.
      if (at === 0 && noted.version === null) noted = STEPS[0].begin({ ...context, noted });
      check();
    },
  };
}
