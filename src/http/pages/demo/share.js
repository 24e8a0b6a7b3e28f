// A list that two couples share: an owner of its own, an invitation by code, and a member who is taken out again.

import { openClient } from '../client/index.js';
import { indexedDbStore } from '../client/indexeddb.js';
import { announce, h, icon, keyed, text } from '../shared/dom.js';
import { counted } from '../shared/format.js';
import { SCHEMA } from './tables.js';

const LIST = 'Party of both couples';
/** Time between an edit and its sync, and between two polls where events cannot be streamed, ms. */
const LIVE = { debounceMs: 100, pollMs: 2_000 };

/**
 * Lets `opener` open the dialog `place`. Anna's side works on her phone's client; Eva's client is opened with the dialog,
 * so that a visitor who does not share sees none of its requests.
 */
export function shareView(place, opener, { anna, account, owner }) {
  const close = h('button', { type: 'button', class: 'button button-icon', 'aria-label': 'Close', on: { click: () => place.close() } }, icon('cross'));
  const code = h('output', { class: 'share-code', 'aria-label': 'Invitation code' });
  const sides = [
    side('anna', 'Anna', 'Anna has her wedding, and lists that she shares with others.'),
    side('eva', 'Eva', 'Eva is planning another wedding, and sees nothing of Anna’s.'),
  ];
  const [hers, guest] = sides;
  place.replaceChildren(
    h('div', { class: 'share-head' }, h('h2', { id: 'share-title' }, 'Share a list with another couple'), close),
    h('p', {}, 'Each list that is shared is an owner of its own, with members and roles. All of a user’s owners are in one store and one live stream.'),
    h('div', { class: 'share-sides' }, sides.map(({ element }) => element)),
  );

  let eva = null;
  let shared = null;

  const make = action('Make a list to share', async () => {
    shared = (await anna.client.owners.make(LIST)).owner;
    await hers.open(anna.client.owner(shared));
    paint();
    await invite();
  });
  const invite = async () => {
    text(code, (await anna.client.owner(shared).invite({ role: 'write' })).code);
    announce('There is an invitation code');
    paint();
  };
  const again = action('Invite with a new code', invite);
  const remove = action('Take Eva out', async () => {
    const { user } = (await anna.client.owner(shared).members()).find(({ name }) => name === 'Eva') ?? {};
    if (user) await anna.client.owner(shared).removeMember(user);
    text(code, '');
    await eva.owner(shared).sync().catch(() => {}); // its live stream would say so as well
    await paintLeft();
    paint();
  });
  const field = h('input', { class: 'field', 'aria-label': 'Code of the invitation', placeholder: 'ri_…', required: true, autocomplete: 'off' });
  const join = h(
    'form',
    {
      class: 'share-join',
      on: {
        submit: (event) => {
          event.preventDefault();
          guest.attempt(async () => {
            const joined = await eva.owners.accept(field.value.trim(), 'Eva');
            field.value = '';
            text(code, '');
            shared = joined.owner;
            await guest.open(eva.owner(shared));
            paint();
          });
        },
      },
    },
    field,
    h('button', { type: 'submit', class: 'button button-strong' }, 'Join'),
  );
  hers.tools.append(make, again, remove, code);
  guest.tools.append(join);

  function action(words, work) {
    return h('button', { type: 'button', class: 'button', on: { click: () => hers.attempt(work) } }, words);
  }

  function paint() {
    make.hidden = hers.isOpen;
    remove.hidden = !guest.isOpen;
    again.hidden = !hers.isOpen || guest.isOpen || code.textContent !== '';
    code.hidden = code.textContent === '';
    join.hidden = guest.isOpen;
  }

  /** What Eva sees once she is no member any more. */
  async function paintLeft() {
    const left = await eva.owner(shared).left();
    if (!left) return;
    guest.shut(`Eva is no member any more: the list is gone from her device, ${counted(left.rows.length, 'unsent edit')} kept.`);
    announce('Eva is no member any more');
  }

  async function begin() {
    eva = await openClient({ url: '', tables: SCHEMA, store: indexedDbStore(`rollcall-demo-${owner.slice(0, 8)}-eva`), login: account });
    await eva.sync();
    eva.live(LIVE);
    const [ours, theirs] = await Promise.all([anna.client.owners.list(), eva.owners.list()]);
    shared = ours.find(({ name }) => name === LIST)?.owner ?? null;
    if (shared) await hers.open(anna.client.owner(shared));
    if (shared && theirs.some((one) => one.owner === shared)) await guest.open(eva.owner(shared));
    paint();
  }

  let begun = null;
  opener.addEventListener('click', () => {
    place.showModal();
    paint();
    begun ??= hers.attempt(begin);
  });

  return {
    async wipe() {
      await begun;
      await eva?.wipe();
      await eva?.close();
    },
  };
}

/** One side of the dialog: a person, tools, and the list once it is open. */
function side(who, name, words) {
  const line = h('p', { class: 'share-line', role: 'status' }, words);
  const tools = h('div', { class: 'share-tools' });
  const list = h('ul', { class: 'share-list', 'aria-label': `Shared list of ${name}` });
  const input = h('input', { class: 'field', 'aria-label': `New entry of ${name}`, placeholder: 'New entry', required: true, maxlength: 200 });
  const form = h(
    'form',
    {
      class: 'share-add',
      hidden: true,
      on: {
        submit: (event) => {
          event.preventDefault();
          const title = input.value.trim();
          input.value = '';
          if (title) attempt(() => rows.put({ title, done: false }));
        },
      },
    },
    input,
    h('button', { type: 'submit', class: 'button button-icon button-strong', 'aria-label': `Add the entry of ${name}` }, icon('plus')),
  );
  let rows = null;
  let stop = null;

  /** Runs work, and says what went wrong. */
  async function attempt(work) {
    try {
      await work();
    } catch (error) {
      text(line, String(error.message ?? error));
    }
  }

  function entry({ id }) {
    const toggle = () => attempt(async () => rows.put({ id, done: !(await rows.get(id))?.done }));
    return h('li', {}, h('button', { type: 'button', class: 'share-entry', on: { click: toggle } }, h('span', { class: 'share-tick' }), h('span')));
  }

  function draw(element, { title, done }) {
    const button = element.firstElementChild;
    button.setAttribute('aria-pressed', String(Boolean(done)));
    button.firstElementChild.replaceChildren(...(done ? [icon('check')] : []));
    text(button.lastElementChild, title);
  }

  return {
    tools,
    attempt,
    element: h('section', { class: 'share-side', 'data-who': who, 'aria-label': name }, h('h3', {}, name), line, tools, list, form),
    get isOpen() {
      return rows !== null;
    },
    async open(client) {
      stop?.();
      rows = client.table('todo');
      form.hidden = false;
      text(line, `${name} has the list “${LIST}”.`);
      stop = rows.subscribe((all) => keyed(list, all.toSorted((a, b) => a.title.localeCompare(b.title)), ({ id }) => id, entry, draw));
      await client.sync();
    },
    shut(why) {
      stop?.();
      [rows, stop] = [null, null];
      form.hidden = true;
      list.replaceChildren();
      text(line, why);
    },
  };
}
