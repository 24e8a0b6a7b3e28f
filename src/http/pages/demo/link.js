// The line between the phones and the server: packets on their way, the lock, its holder and its remaining time.

import { calm, h, icon, text } from '../shared/dom.js';

const FLIGHT_MS = 620;

/** Moves a packet along a track once, from left to right or back. */
function animatePacket(track, look, toRight) {
  const packet = h('span', { class: `packet packet-${look}` });
  track.append(packet);
  const [from, to] = toRight ? ['0%', '100%'] : ['100%', '0%'];
  packet
    .animate(
      [
        { left: from, opacity: 0, scale: 0.5 },
        { opacity: 1, scale: 1, offset: 0.2 },
        { opacity: 1, scale: 1, offset: 0.8 },
        { left: to, opacity: 0, scale: 0.5 },
      ],
      { duration: FLIGHT_MS, easing: 'cubic-bezier(.45,.05,.55,.95)' },
    )
    .finished.finally(() => packet.remove());
}

/** Draws the line. `show(seen)` takes the observer's state; `fly(phone, up, look)` animates a packet. */
export function linkView(place, phones, nameOf) {
  const tracks = phones.map((phone) => h('div', { class: 'track', 'data-who': phone.who, 'aria-hidden': 'true' }));
  const ends = phones.map((phone) =>
    h('span', { class: 'link-end', 'data-who': phone.who, 'aria-hidden': 'true' }, phone.short[0]),
  );
  const version = h('span', { class: 'link-version' }, '–');
  const server = h(
    'div',
    { class: 'link-server' },
    icon('server'),
    h('span', { class: 'link-name' }, 'Server'),
    h('span', { class: 'link-state' }, 'version ', version),
  );
  const words = h('p', { class: 'lock-words', role: 'status' }, 'The lock is free.');
  const lockIcon = h('span', { class: 'lock-icon' }, icon('unlock'));
  const left = h('span', { class: 'lock-left', 'aria-hidden': 'true' }, h('span'));
  const hold = phones.map((phone) =>
    h(
      'button',
      {
        type: 'button',
        class: 'button',
        'data-who': phone.who,
        title: `${phone.name} takes the lock and stalls, as if in a slow sync`,
        on: { click: () => (holder === phone.name ? phone.releaseLock() : phone.holdLock()) },
      },
      '',
    ),
  );
  let holder = null;
  let lock = null;

  place.replaceChildren(
    h('div', { class: 'link-line' }, ends[0], tracks[0], server, tracks[1], ends[1]),
    h('div', { class: 'lock card' }, lockIcon, h('div', { class: 'lock-text' }, words, left), h('div', { class: 'lock-hold' }, hold)),
  );

  function paint() {
    const until = lock?.held ? Date.parse(lock.until) : 0;
    const seconds = Math.max(0, Math.ceil((until - Date.now()) / 1000));
    holder = seconds > 0 ? nameOf(lock.holder?.device_id, lock.holder?.device) : null;
    const phone = phones.find(({ name }) => name === holder);
    place.dataset.holder = phone?.who ?? (holder ? 'other' : '');
    text(words, holder ? `${holder} has the lock, ${seconds} s left.` : 'The lock is free.');
    const part = holder ? (until - Date.now()) / (until - Date.parse(lock.since)) : 0;
    left.firstElementChild.style.width = `${Math.max(0, Math.min(1, part)) * 100}%`;
    if (lockIcon.dataset.held !== String(Boolean(holder))) {
      lockIcon.dataset.held = String(Boolean(holder));
      lockIcon.replaceChildren(icon(holder ? 'lock' : 'unlock'));
    }
    hold.forEach((button, i) => {
      const mine = phones[i].name === holder;
      text(button, mine ? `${phones[i].short} releases` : `${phones[i].short} stalls`);
      button.setAttribute('aria-pressed', String(mine));
      button.disabled = phones[i].state.airplane;
    });
  }
  setInterval(paint, 500);
  phones.forEach((phone, i) =>
    phone.onState(({ airplane }) => {
      tracks[i].classList.toggle('is-cut', airplane);
      paint();
    }),
  );

  return {
    /** The name of the device that has the lock, or null. */
    get holder() {
      return holder;
    },
    show(seen) {
      lock = seen.lock;
      text(version, seen.reachable ? String(seen.version) : 'unreachable');
      server.classList.toggle('is-away', seen.reachable === false);
      paint();
    },
    fly(phone, up, look) {
      if (calm() || document.hidden) return;
      const track = tracks[phones.indexOf(phone)];
      // The first phone is at the left of the server, the second at its right.
      animatePacket(track, look, (phone === phones[0]) === up);
    },
  };
}
