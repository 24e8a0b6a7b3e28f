import { h } from './dom.js';

// Longer JSON is cut off: a page of 5,000 rows would block the browser.
const CHARACTERS_MAX = 60_000;

const TOKEN = /("(?:\\.|[^"\\])*")(\s*:)?|\b(true|false|null)\b|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)/g;

/** Indented JSON with coloured parts. A string is shown as it is. */
export function pretty(value) {
  const whole = typeof value === 'string' ? value : JSON.stringify(value, null, 2);
  const shown = whole.length > CHARACTERS_MAX ? whole.slice(0, CHARACTERS_MAX) : whole;
  const block = h('code', { class: 'json' });
  let from = 0;
  for (const match of shown.matchAll(TOKEN)) {
    const [all, quoted, colon, word, digits] = match;
    if (match.index > from) block.append(shown.slice(from, match.index));
    if (quoted && colon) block.append(h('span', { class: 'json-name' }, quoted), colon);
    else if (quoted) block.append(h('span', { class: 'json-text' }, quoted));
    else if (word) block.append(h('span', { class: 'json-word' }, word));
    else if (digits) block.append(h('span', { class: 'json-number' }, digits));
    else block.append(all);
    from = match.index + all.length;
  }
  block.append(shown.slice(from));
  if (shown.length < whole.length) block.append(`\n… ${whole.length - shown.length} characters more`);
  return block;
}
