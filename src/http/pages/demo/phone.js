// The view of a phone: its frame with switches, and the wedding planner on its screen.

import { announce, h, icon, text } from '../shared/dom.js';
import { clock, counted } from '../shared/format.js';
import { edits, inputFor, rowList } from './rows.js';
import { TABS } from './tables.js';
import { onArrowKeys } from './tabs.js';

/**
 * Draws a phone into `place`, an element. `losses(phone, table, key)` returns a row's conflict, `holder()` the name of
 * the lock's holder; `onRows` is called when rows changed. Call `refresh()` after a conflict or the lock changed.
 */
export function phoneView(place, phone, { losses, holder, onRows }) {
  place.dataset.who = phone.who;
  const parts = controls(phone);
  const screen = planner(phone, losses, onRows);
  place.replaceChildren(
    h(
      'header',
      { class: 'device-head' },
      h('span', { class: 'avatar', 'aria-hidden': 'true' }, phone.short[0]),
      h('div', { class: 'device-name' }, h('h2', {}, phone.name), parts.line),
      parts.airplane,
    ),
    h(
      'div',
      { class: 'frame' },
      h('div', { class: 'statusbar', 'aria-hidden': 'true' }, parts.time, h('span', { class: 'island' }), parts.signal),
      screen.element,
    ),
    h('footer', { class: 'device-foot' }, parts.sync, parts.way, parts.live),
  );
  const refreshLine = () => paint(phone, place, parts, holder());
  phone.onState(refreshLine);
  return {
    refresh() {
      refreshLine();
      screen.refresh();
    },
  };
}

function controls(phone) {
  const way = h(
    'select',
    { class: 'field way', 'aria-label': `How ${phone.name} syncs`, title: 'By cursor: the changes since the version of this phone. By manifest: a list of all rows, compared.' },
    h('option', { value: 'cursor' }, 'by cursor'),
    h('option', { value: 'manifest' }, 'by manifest'),
  );
  const toggle = (name, label, words, isOn, set) =>
    h(
      'button',
      {
        type: 'button',
        class: `switch switch-${name}`,
        role: 'switch',
        'aria-label': `${label}, ${phone.name}`,
        'aria-checked': 'false',
        on: { click: () => set(!isOn()) },
      },
      words,
      h('span', { class: 'switch-knob' }),
    );
  const airplane = toggle('airplane', 'Airplane mode', icon('plane'), () => phone.state.airplane, (on) => {
    announce(`${phone.name}: airplane mode ${on ? 'on' : 'off'}`);
    phone.setAirplane(on);
  });
  airplane.title = 'Airplane mode';
  const live = toggle('live', 'Sync automatically', h('span', {}, 'Live'), () => phone.state.live, (on) => phone.setLive(on));
  live.title = 'Sync after each edit, and whenever the server reports a change';
  const sync = h(
    'button',
    { type: 'button', class: 'button sync-now', on: { click: () => phone.sync(way.value) } },
    icon('sync'),
    'Sync now',
  );
  const time = h('span', { class: 'statusbar-time' }, clock(Date.now()).slice(0, 5));
  setInterval(() => text(time, clock(Date.now()).slice(0, 5)), 10_000);
  const line = h('p', { class: 'device-line' });
  return { airplane, live, sync, way, time, line, signal: h('span', { class: 'statusbar-signal' }) };
}

/** The one line under the phone's name. */
function lineOf({ name, state: { airplane, syncing, status, progress, error } }, holder) {
  const waiting = status?.pending.rows ?? 0;
  const edits = waiting > 0 ? `${counted(waiting, 'edit')} to send` : 'nothing to send';
  if (airplane) return { look: 'off', words: `In airplane mode, ${edits}` };
  const inSync = syncing || status?.syncing;
  if (inSync && holder && holder !== name) return { look: 'wait', words: `Waiting: ${holder} has the lock` };
  if (progress?.phase === 'retrying') return { look: 'wait', words: 'No response, retrying' };
  if (progress?.phase === 'repairing') return { look: 'wait', words: 'Digests differ, repairing' };
  if (inSync) return { look: 'busy', words: 'Syncing …' };
  const failed = error ?? (status?.lastError && status.lastError.at > (status.lastSync?.at ?? 0) ? status.lastError : null);
  if (failed?.code === 'sync_in_progress') return { look: 'wait', words: 'Another phone has the lock' };
  if (failed) return { look: 'bad', words: failed.message };
  if (waiting > 0) return { look: 'wait', words: `${counted(waiting, 'edit')} to send` };
  if (!status?.lastSync) return { look: 'busy', words: 'Starting …' };
  if (status.lastSync.report.digestsEqual) return { look: 'good', words: 'Up to date, and proved' };
  return { look: 'good', words: 'Up to date' };
}

function paint(phone, place, parts, holder) {
  const { state } = phone;
  const { look, words } = lineOf(phone, holder);
  text(parts.line, words);
  parts.line.dataset.look = look;
  place.classList.toggle('is-airplane', state.airplane);
  place.classList.toggle('is-syncing', look === 'busy');
  parts.airplane.setAttribute('aria-checked', String(state.airplane));
  parts.live.setAttribute('aria-checked', String(state.live));
  parts.sync.disabled = state.syncing || state.airplane;
  if (parts.signal.dataset.airplane !== String(state.airplane)) {
    parts.signal.dataset.airplane = String(state.airplane);
    parts.signal.replaceChildren(icon(state.airplane ? 'plane' : 'signal'));
  }
}

/** The tabs of the planner, each with its button and its panel: a list of rows and a form for a new one. */
function plannerTabs(phone, losses, categories, choose) {
  const id = (name) => `${name}-${phone.number}`;
  return TABS.map((tab) => {
    const rows = rowList(phone, tab, {
      lost: (key) => losses(phone, tab.table, key),
      categories,
    });
    const panel = h(
      'div',
      { class: 'app-panel', role: 'tabpanel', id: id(tab.id), 'aria-labelledby': id(`tab-${tab.id}`), hidden: true },
      rows.list,
      addForm(phone, tab, categories),
    );
    const button = h(
      'button',
      {
        type: 'button',
        role: 'tab',
        id: id(`tab-${tab.id}`),
        'aria-controls': id(tab.id),
        on: { click: () => choose(tab.id) },
      },
      icon(tab.icon),
      h('span', {}, tab.label),
    );
    return { tab, rows, panel, button, entries: [] };
  });
}

/** The app on the phone: three tabs, each a list with a summary above and a form below. */
function planner(phone, losses, onRows) {
  let categories = [];
  const head = { big: h('p', { class: 'app-big' }), small: h('p', { class: 'app-small' }), part: h('span') };
  const tabs = plannerTabs(phone, losses, () => categories, choose);
  let chosen = tabs[0];

  function choose(name) {
    chosen = tabs.find(({ tab }) => tab.id === name);
    for (const each of tabs) {
      each.panel.hidden = each !== chosen;
      each.button.setAttribute('aria-selected', String(each === chosen));
      each.button.tabIndex = each === chosen ? 0 : -1;
    }
    paintHead();
  }

  function paintHead() {
    const rows = chosen.entries.filter(({ state }) => state !== 'deleted').map(({ row }) => row);
    const { big, small, part } = chosen.tab.head(rows);
    text(head.big, big);
    text(head.small, small);
    head.part.style.width = `${Math.round(part * 100)}%`;
  }

  for (const each of tabs) {
    phone.client.table(each.tab.table).subscribe((_, entries) => {
      each.entries = entries;
      each.rows.show(entries);
      paintHead();
      onRows();
    });
  }
  phone.client.table('invitation_categories').subscribe((rows) => {
    categories = rows.sort((a, b) => (a.sort_order ?? 99) - (b.sort_order ?? 99));
    const guests = tabs.find(({ tab }) => tab.group);
    guests.rows.draw();
    for (const select of guests.panel.querySelectorAll('.add select')) {
      select.replaceWith(inputFor({ ...guests.tab.fields.find(({ type }) => type === 'category') }, select.value, categories));
    }
  });

  const bar = h('div', { class: 'app-tabs', role: 'tablist', 'aria-label': `Planner on ${phone.name}` }, tabs.map(({ button }) => button));
  onArrowKeys(bar, (step) => {
    const next = tabs[(tabs.indexOf(chosen) + step + tabs.length) % tabs.length];
    choose(next.tab.id);
    next.button.focus();
  });
  choose(tabs[0].tab.id);
  return {
    element: h(
      'div',
      { class: 'app' },
      h(
        'div',
        { class: 'app-head' },
        h('p', { class: 'app-title' }, 'Anna & Ben'),
        h('div', { class: 'app-sum' }, head.big, head.small),
        h('div', { class: 'app-part', 'aria-hidden': 'true' }, head.part),
      ),
      tabs.map(({ panel }) => panel),
      bar,
    ),
    refresh: () => tabs.forEach(({ rows }) => rows.draw()),
  };
}


function addForm(phone, tab, categories) {
  const form = h(
    'form',
    {
      class: 'add',
      'aria-label': `New ${tab.one} on ${phone.name}`,
      on: {
        submit: async (event) => {
          event.preventDefault();
          const given = edits(tab.fields, form, null);
          form.reset();
          const row = await phone.client.table(tab.table).put({ ...tab.blank(), ...given });
          announce(`${row[tab.title]} added on ${phone.name}`);
          form.elements[0].focus();
        },
      },
    },
    tab.fields.map((field) =>
      inputFor(
        field.required && field.type === 'text' ? { ...field, label: `New ${tab.one}` } : field,
        field.column === 'party_size' ? 1 : null,
        categories(),
      ),
    ),
    h('button', { type: 'submit', class: 'button button-strong button-icon', 'aria-label': `Add the ${tab.one}` }, icon('plus')),
  );
  return form;
}
