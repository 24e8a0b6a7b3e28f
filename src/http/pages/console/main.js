// The console: who looks, what they look at, and when it is looked at again.

import { announce, h, text } from '../shared/dom.js';
import { clock } from '../shared/format.js';
import { Refused, api, token } from './api.js';
import { ownerView } from './owner.js';
import { overviewView } from './overview.js';
import { signIn } from './sign_in.js';

/** Between two looks while all is well; doubled with each failure, up to a minute. */
const EVERY_MS = 5_000;
const EVERY_MAX_MS = 60_000;

const view = document.getElementById('view');
const pulse = document.getElementById('pulse');
const out = document.getElementById('sign-out');
let shown = null;
let timer = null;
let failures = 0;
let looking = false;

/** What the address asks for: `#/owners/ID`, or everything. */
function wanted() {
  const [, owner] = location.hash.match(/^#\/owners\/([0-9a-f-]{36})$/) ?? [];
  return owner ? ownerView(owner, { soon: look }) : overviewView({ soon: look });
}

function show() {
  if (!token.get()) {
    clearTimeout(timer);
    shown = null;
    out.hidden = true;
    text(pulse, '');
    view.replaceChildren(signIn(api.tryToken, (given) => {
      token.set(given);
      show();
    }));
    view.querySelector('input').focus();
    return;
  }
  out.hidden = false;
  shown = wanted();
  view.replaceChildren(shown.element);
  look();
}

async function look() {
  if (looking || !shown) return;
  looking = true;
  clearTimeout(timer);
  const asked = shown;
  try {
    await asked.look();
    failures = 0;
    text(pulse, `Looked at ${clock(Date.now())}`);
    pulse.dataset.look = 'good';
  } catch (error) {
    failures += 1;
    if (error instanceof Refused && error.status === 401) {
      token.forget();
      looking = false;
      show();
      announce('The token is no longer good.');
      return;
    }
    text(pulse, error instanceof Refused ? error.message : 'The server cannot be reached.');
    pulse.dataset.look = 'bad';
    if (error instanceof Refused && error.status === 404 && asked === shown) {
      asked.element.replaceChildren(h('p', { class: 'fatal' }, 'There is no such owner.'));
    }
  }
  looking = false;
  if (asked !== shown) look();
  else if (!document.hidden) timer = setTimeout(look, Math.min(EVERY_MS * 2 ** failures, EVERY_MAX_MS));
}

out.addEventListener('click', () => {
  token.forget();
  show();
});
addEventListener('hashchange', () => {
  if (!token.get()) return;
  show();
  view.focus();
});
document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : look()));
show();
