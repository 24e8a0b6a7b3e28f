// A lock: its holder, its expiry, and a button that breaks it.

import { announce, h, icon, text } from '../shared/dom.js';
import { clock, instant } from '../shared/format.js';
import { api } from './api.js';

/** How long the button waits for the second press. */
const CONFIRM_MS = 4_000;

/** A line for the lock of `owner`. `show(lock)` paints it; `refreshSoon()` is called after it was broken. */
export function lockLine(owner, refreshSoon, withOwner) {
  const words = h('span', { class: 'line-words' });
  const link = withOwner ? h('a', { href: `#/owners/${owner}`, class: 'mono' }, `${owner.slice(0, 8)}…`) : null;
  const button = h('button', { type: 'button', class: 'button button-bad', on: { click: press } }, 'Break');
  const line = h('li', { class: 'line' }, icon('lock'), words, link, button);
  let isArmed = false;
  let timer = null;
  let device = '';

  // A device whose lock is broken during a sync must start again, so the button needs a second press.
  async function press() {
    clearTimeout(timer);
    if (!isArmed) {
      isArmed = true;
      text(button, 'Really break it?');
      timer = setTimeout(disarm, CONFIRM_MS);
      return;
    }
    disarm();
    button.disabled = true;
    try {
      await api.breakLock(owner);
      announce(`The lock of ${device} is broken.`);
    } catch (error) {
      announce(error.message);
    }
    button.disabled = false;
    refreshSoon();
  }

  function disarm() {
    isArmed = false;
    text(button, 'Break');
  }

  line.show = (lock) => {
    device = lock.device ?? 'a device';
    text(words, `${device} since ${clock(instant(lock.since))}, until ${clock(instant(lock.until))}`);
  };
  return line;
}
