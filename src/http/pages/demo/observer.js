// The page's own look at the server, beside the phones: digests, lock, conflicts. A device of its own, so that it
// sees when both phones are offline, and holds no phone's lock.

const EVERY_MS = 1_500;
const SOON_MS = 80;
const KEPT = 'rollcall-demo-page';

/** Watches the server. `onLook(seen)` hears after each look. */
export function observer({ account, owner, onLook }) {
  const seen = { reachable: null, version: null, digests: null, lock: null, conflicts: [] };
  let token = null;
  let timer = null;
  let looking = false;
  let again = false;

  async function logIn() {
    const kept = sessionStorage.getItem(KEPT)?.split(' ') ?? [];
    const device_id = kept[0] === owner ? kept[1] : undefined;
    const body = JSON.stringify({ email: account.email, password: account.password, device: 'The demo page', device_id });
    const answer = await fetch('/login', { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    if (!answer.ok) throw new Error(`log-in: ${answer.status}`);
    const told = await answer.json();
    sessionStorage.setItem(KEPT, `${owner} ${told.device_id}`);
    token = told.token;
  }

  async function ask(path) {
    if (!token) await logIn();
    const answer = await fetch(path, { headers: { authorization: `Bearer ${token}` } });
    if (answer.status === 401) token = null;
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  }

  async function look() {
    if (looking) {
      again = true;
      return;
    }
    looking = true;
    clearTimeout(timer);
    try {
      const [digests, lock] = [await ask('/digests'), await ask('/lock')];
      if (digests.as_of !== seen.version || !seen.reachable) {
        seen.conflicts = (await ask('/conflicts?limit=50')).conflicts;
      }
      Object.assign(seen, { digests, lock, version: digests.as_of, reachable: true });
    } catch {
      seen.reachable = false;
    }
    looking = false;
    onLook(seen);
    if (!document.hidden) timer = setTimeout(look, again ? SOON_MS : EVERY_MS);
    again = false;
  }

  document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : look()));
  look();
  return {
    seen,
    /** Looks again in a moment: something has passed. */
    soon() {
      if (looking) again = true;
      else {
        clearTimeout(timer);
        timer = setTimeout(look, SOON_MS);
      }
    },
  };
}
