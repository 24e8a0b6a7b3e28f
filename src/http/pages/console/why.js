// The form "Why is this row not on that device?"

import { h, keyed, text } from '../shared/dom.js';
import { pretty } from '../shared/json.js';
import { api } from './api.js';

/** A form whose answer comes from the server. `offer(tables, devices)` sets its choices. */
export function whyForm(owner) {
  const table = h('select', { class: 'field', id: 'why-table' });
  const key = h('input', { class: 'field mono', id: 'why-key', required: true, spellcheck: 'false', autocomplete: 'off', maxlength: 36, placeholder: 'the row’s key' });
  const device = h('select', { class: 'field', id: 'why-device' });
  const button = h('button', { type: 'submit', class: 'button button-strong' }, 'Ask');
  const answer = h('p', { class: 'why-answer', role: 'status' });
  const facts = h('div', { class: 'why-facts' });
  const line = (label, field) => h('p', { class: 'why-line' }, h('label', { for: field.id }, label), field);

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    facts.replaceChildren();
    try {
      const explanation = await api.why(owner, table.value, key.value.trim(), device.value);
      text(answer, explanation.answer);
      facts.append(h('details', {}, h('summary', {}, 'Facts'), h('pre', { tabindex: '0', 'aria-label': 'Facts' }, pretty(explanation.facts))));
    } catch (error) {
      text(answer, error.message);
    }
    button.disabled = false;
  }

  const option = ([value]) => h('option', { value });
  const choices = (select, pairs) => keyed(select, pairs, ([value]) => value, option, (one, [, words]) => text(one, words));

  return {
    element: h(
      'section',
      { class: 'card' },
      h('div', { class: 'card-head' }, h('h3', { class: 'card-title' }, 'Why is this row not on that device?')),
      h('form', { class: 'why', on: { submit } }, line('Table', table), line('Row', key), line('Device', device), button),
      answer,
      facts,
    ),
    offer(tables, devices) {
      choices(table, tables.map((name) => [name, name]));
      choices(device, devices.map(({ device_id: id, device: name }) => [id, `${name ?? 'unnamed device'} (${id.slice(0, 8)}…)`]));
    },
  };
}
