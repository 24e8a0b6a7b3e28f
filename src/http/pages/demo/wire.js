// The wire inspector: every request with its response, newest first.

import { h, icon, text } from '../shared/dom.js';
import { bytes, clock, counted, ms } from '../shared/format.js';
import { pretty } from '../shared/json.js';
import { summary } from './words.js';

const KEPT_MAX = 150;

function look(exchange) {
  if (exchange.kind === 'event') return 'event';
  if (exchange.phase === 'sent') return 'open';
  if (exchange.phase === 'failed') return 'bad';
  if (exchange.status === 423) return 'wait';
  return exchange.status >= 400 ? 'bad' : 'good';
}

function headersOf(headers) {
  return Object.entries(headers ?? {})
    .map(([name, value]) => `${name}: ${value}`)
    .join('\n');
}

function bodyView(title, headers, body, none) {
  const lines = headersOf(headers);
  return h(
    'div',
    { class: 'wire-body' },
    h('h3', {}, title),
    lines ? h('details', { class: 'wire-headers' }, h('summary', {}, counted(lines.split('\n').length, 'header')), h('pre', { class: 'mono' }, lines)) : null,
    body === undefined ? h('p', { class: 'muted small' }, none) : h('pre', { tabindex: '0', 'aria-label': title }, pretty(body)),
  );
}

/** One exchange in the list, whose body is laid out when it is opened. */
function makeEntry(phone, exchange, paint) {
  const inside = h('div', { class: 'wire-inside' });
  const parts = {
    verb: h('span', { class: 'wire-verb mono' }, exchange.kind === 'event' ? 'event' : `${exchange.method} ${exchange.path.split('?')[0]}`),
    status: h('span', { class: 'chip wire-status' }),
    sizes: h('span', { class: 'wire-sizes' }),
    time: h('span', { class: 'wire-ms' }),
    words: h('span', { class: 'wire-words' }),
  };
  const item = h(
    'li',
    { class: 'wire-item', data: { who: phone.who } },
    h(
      'details',
      { on: { toggle: ({ target }) => fill(target.open) } },
      h(
        'summary',
        {},
        h('span', { class: 'wire-who', title: `${phone.name}, ${clock(Date.now())}` }, phone.short[0]),
        parts.verb,
        parts.status,
        parts.sizes,
        parts.time,
        parts.words,
      ),
      inside,
    ),
  );
  const entry = { item, parts, exchange, update };

  // JSON of hundreds of rows is laid out only for a visitor who opens it.
  function fill(isOpen) {
    inside.replaceChildren();
    if (!isOpen) return;
    if (exchange.kind === 'event') {
      inside.append(bodyView(`event: ${exchange.name}`, null, asJson(exchange.data), ''));
      return;
    }
    inside.append(
      h('p', { class: 'wire-path mono' }, `${exchange.method} ${exchange.path}`),
      bodyView('Request', exchange.requestHeaders, exchange.requestBody, 'No body.'),
      bodyView('Response', exchange.headers, exchange.body, exchange.phase === 'answered' ? 'No body.' : (exchange.error ?? 'On its way …')),
    );
  }

  function update(changes) {
    Object.assign(exchange, changes);
    paint(entry);
    if (item.firstElementChild.open) fill(true);
  }
  return entry;
}

function asJson(data) {
  try {
    return JSON.parse(data);
  } catch {
    return data;
  }
}

/** Draws the inspector. `note(phone, traffic)` adds a request, a response or an event. */
export function wireView(place, phones) {
  const list = h('ol', { class: 'wire-list', 'aria-label': 'Requests and responses, newest first', tabindex: '0' });
  const total = h('p', { class: 'muted small wire-total', 'aria-live': 'off' });
  const empty = h('p', { class: 'wire-empty muted' }, 'No request has been sent yet.');
  const open = new Map();
  const sums = { requests: 0, up: 0, down: 0 };
  let filter = 'both';
  let events = true;

  const choices = [['both', 'Both'], ...phones.map(({ who, short }) => [who, short])].map(([value, label]) =>
    h(
      'button',
      {
        type: 'button',
        class: 'button button-quiet',
        'aria-pressed': String(value === filter),
        'data-filter': value,
        on: { click: () => setFilter(value) },
      },
      label,
    ),
  );
  const eventsButton = h(
    'button',
    { type: 'button', class: 'button button-quiet', 'aria-pressed': 'true', on: { click: () => setEvents(!events) } },
    'Events',
  );
  const clear = h('button', { type: 'button', class: 'button button-quiet', on: { click: wipe } }, 'Clear');
  place.replaceChildren(
    h(
      'div',
      { class: 'card-head' },
      h('h2', { class: 'card-title' }, 'On the wire'),
      total,
      h('div', { class: 'wire-filter', role: 'group', 'aria-label': 'Show' }, choices, eventsButton, clear),
    ),
    empty,
    list,
  );

  function setFilter(value) {
    filter = value;
    for (const button of choices) button.setAttribute('aria-pressed', String(button.dataset.filter === value));
    for (const item of list.children) item.hidden = !fits(item);
  }

  function setEvents(on) {
    events = on;
    eventsButton.setAttribute('aria-pressed', String(on));
    for (const item of list.children) item.hidden = !fits(item);
  }

  const fits = ({ dataset }) => (filter === 'both' || dataset.who === filter) && (events || dataset.look !== 'event');

  function wipe() {
    open.clear();
    list.replaceChildren();
    Object.assign(sums, { requests: 0, up: 0, down: 0 });
    paintTotal();
  }

  function paintTotal() {
    text(total, sums.requests ? `${counted(sums.requests, 'request')}, ${bytes(sums.up + sums.down)}` : '');
    empty.hidden = list.children.length > 0;
  }

  function paint({ item, parts, exchange }) {
    item.dataset.look = look(exchange);
    item.hidden = !fits(item);
    const { kind, phase, status } = exchange;
    text(parts.status, kind === 'event' ? exchange.name : phase === 'answered' ? String(status) : phase === 'failed' ? 'cut' : '…');
    text(parts.time, kind === 'event' ? '' : ms(exchange.ms));
    parts.sizes.replaceChildren(
      ...(kind === 'event' ? [] : [icon('up'), bytes(exchange.bytesSent)]),
      icon('down'),
      bytes(kind === 'event' ? exchange.bytes : exchange.bytesReceived),
    );
    text(parts.words, summary(exchange));
  }

  return {
    note(phone, traffic) {
      const id = `${phone.number} ${traffic.id}`;
      const known = traffic.kind === 'event' ? undefined : open.get(id);
      if (known) {
        known.update(traffic);
        if (traffic.phase !== 'sent') open.delete(id);
      } else {
        const entry = makeEntry(phone, { ...traffic }, paint);
        if (traffic.phase === 'sent') open.set(id, entry);
        paint(entry);
        list.prepend(entry.item);
        if (list.children.length > KEPT_MAX) list.lastElementChild.remove();
      }
      if (traffic.phase === 'sent') {
        sums.requests += 1;
        sums.up += traffic.bytesSent ?? 0;
      }
      sums.down += traffic.kind === 'event' ? traffic.bytes : (traffic.bytesReceived ?? 0);
      paintTotal();
    },
    wipe,
  };
}
