// Who holds a lock, until when, and a way to break it.

import { announce, h, icon, text } from '../shared/dom.js';
import { clock, instant } from '../shared/format.js';
import { api } from './api.js';

const SURE_MS = 4_000;

/** A line for a lock of `owner`; `show(lock)` paints it, `soon()` looks again after it was broken. */
export function lockLine(owner, soon, withOwner) {
  const words = h('span', { class: 'line-words' });
  const link = withOwner ? h('a', { href: `#/owners/${owner}`, class: 'mono' }, `${owner.slice(0, 8)}…`) : null;
  const button = h('button', { type: 'button', class: 'button button-bad', on: { click: press } }, 'Break');
  const line = h('li', { class: 'line' }, icon('lock'), words, link, button);
  let isSure = false;
  let timer = null;
  let device = '';

  // Whoever breaks a lock under a device at work makes it begin again: one press is not enough.
  async function press() {
    clearTimeout(timer);
    if (!isSure) {
      isSure = true;
      text(button, 'Really break it?');
      timer = setTimeout(relax, SURE_MS);
      return;
    }
    relax();
    button.disabled = true;
    try {
      await api.breakLock(owner);
      announce(`The lock of ${device} is broken.`);
    } catch (error) {
      announce(error.message);
    }
    button.disabled = false;
    soon();
  }

  function relax() {
    isSure = false;
    text(button, 'Break');
  }

  line.show = (lock) => {
    device = lock.device ?? 'a device';
    text(words, `${device} since ${clock(instant(lock.since))}, until ${clock(instant(lock.until))}`);
  };
  return line;
}
