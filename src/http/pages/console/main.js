// The console: signing in, choosing the view by the address, and refreshing it.

import { announce, h, text } from '../shared/dom.js';
import { clock } from '../shared/format.js';
import { Refused, api, token } from './api.js';
import { ownerView } from './owner.js';
import { overviewView } from './overview.js';
import { signIn } from './sign_in.js';

/** Time between two refreshes. It doubles with each failure, up to a minute. */
const EVERY_MS = 5_000;
const EVERY_MAX_MS = 60_000;

const view = document.getElementById('view');
const pulse = document.getElementById('pulse');
const signOut = document.getElementById('sign-out');
let shown = null;
let timer = null;
let failures = 0;
let isRefreshing = false;

/** The view of the address: of one owner for `#/owners/ID`, otherwise the overview. */
function viewOfAddress() {
  const [, owner] = location.hash.match(/^#\/owners\/([0-9a-f-]{36})$/) ?? [];
  return owner ? ownerView(owner, { refreshSoon: refresh }) : overviewView({ refreshSoon: refresh });
}

function show() {
  if (!token.get()) {
    clearTimeout(timer);
    shown = null;
    signOut.hidden = true;
    text(pulse, '');
    view.replaceChildren(signIn(api.tryToken, (given) => {
      token.set(given);
      show();
    }));
    view.querySelector('input').focus();
    return;
  }
  signOut.hidden = false;
  shown = viewOfAddress();
  view.replaceChildren(shown.element);
  refresh();
}

async function refresh() {
  if (isRefreshing || !shown) return;
  isRefreshing = true;
  clearTimeout(timer);
  const current = shown;
  try {
    await current.refresh();
    failures = 0;
    text(pulse, `Refreshed at ${clock(Date.now())}`);
    pulse.dataset.look = 'good';
  } catch (error) {
    failures += 1;
    if (error instanceof Refused && error.status === 401) {
      token.forget();
      isRefreshing = false;
      show();
      announce('The token is no longer valid.');
      return;
    }
    text(pulse, error instanceof Refused ? error.message : 'The server cannot be reached.');
    pulse.dataset.look = 'bad';
    if (error instanceof Refused && error.status === 404 && current === shown) {
      current.element.replaceChildren(h('p', { class: 'fatal' }, 'There is no such owner.'));
    }
  }
  isRefreshing = false;
  if (current !== shown) refresh();
  else if (!document.hidden) timer = setTimeout(refresh, Math.min(EVERY_MS * 2 ** failures, EVERY_MAX_MS));
}

signOut.addEventListener('click', () => {
  token.forget();
  show();
});
addEventListener('hashchange', () => {
  if (!token.get()) return;
  show();
  view.focus();
});
document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : refresh()));
show();
