// The guided tour: one step after the other, which the visitor does by hand or by a button.

import { announce, h, icon, text } from '../shared/dom.js';
import { STEPS } from './steps.js';

const THE_END = {
  title: 'Nothing lost, and proved',
  words: 'Both phones have the same count and the same sum of hashes for each table as the server. Now try to break it: the phones are yours.',
};

/** Draws the tour. `check()` checks whether the present step is done. */
export function tourView(place, opener, context) {
  const dots = STEPS.map((step, i) =>
    h('button', { type: 'button', class: 'tour-dot', 'aria-label': `Step ${i + 1}: ${step.title}`, on: { click: () => go(i) } }, String(i + 1)),
  );
  const title = h('h2', { class: 'tour-title' });
  const words = h('p', { class: 'tour-words' });
  const act = h('button', { type: 'button', class: 'button', on: { click: run } });
  const next = h('button', { type: 'button', class: 'button button-strong', on: { click: () => go(current + 1) } });
  const close = h('button', { type: 'button', class: 'button button-quiet button-icon', 'aria-label': 'Close the tour', on: { click: () => show(false) } }, icon('cross'));
  const doneMark = h('span', { class: 'tour-done', role: 'status' });
  place.replaceChildren(
    h('ol', { class: 'tour-dots' }, dots.map((dot) => h('li', {}, dot))),
    h('div', { class: 'tour-text' }, title, words),
    h('div', { class: 'tour-tools' }, doneMark, act, next, close),
  );
  const finished = new Set();
  let current = 0;
  let noted = {};
  let checking = false;
  let acting = false;

  function go(to) {
    current = Math.min(to, STEPS.length);
    noted = STEPS[current]?.begin?.({ ...context, noted: {} }) ?? {};
    paint();
    check();
  }

  async function run() {
    acting = true;
    paint();
    try {
      await STEPS[current].act({ ...context, noted });
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
    const step = STEPS[current];
    const isDone = finished.has(current);
    text(title, (step ?? THE_END).title);
    text(words, (step ?? THE_END).words);
    dots.forEach((dot, number) => {
      dot.setAttribute('aria-current', number === current ? 'step' : 'false');
      dot.classList.toggle('is-done', finished.has(number));
    });
    act.hidden = !step || isDone;
    text(act, step?.button ?? '');
    act.disabled = acting;
    next.hidden = !step;
    text(next, current === STEPS.length - 1 ? 'Finish' : 'Next');
    next.classList.toggle('is-ready', isDone);
    doneMark.replaceChildren(...(isDone ? [icon('check'), 'Done'] : []));
    point(isDone ? null : step?.target);
  }

  async function check() {
    const step = STEPS[current];
    if (checking || !step || finished.has(current) || place.hidden) return;
    checking = true;
    const checked = current;
    const isDone = await step.done({ ...context, noted });
    checking = false;
    if (!isDone || checked !== current) return;
    finished.add(current);
    announce(`Step ${current + 1} is done.`);
    paint();
  }

  function show(open) {
    place.hidden = !open;
    opener.setAttribute('aria-expanded', String(open));
    paint();
    if (!open) opener.focus();
  }

  opener.addEventListener('click', () => {
    if (place.hidden && current === STEPS.length) go(0);
    show(place.hidden);
  });
  go(0);
  return {
    check() {
      // The first step begins with the version that the observer finds first.
      if (current === 0 && noted.version === null) noted = STEPS[0].begin({ ...context, noted });
      check();
    },
  };
}
