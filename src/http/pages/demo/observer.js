// The page's own view of the server: digests, lock, conflicts. The page logs in as a third device, so that it works
// while both phones are offline.

const EVERY_MS = 1_500;
const SOON_MS = 80;
const STORAGE_KEY = 'rollcall-demo-page';

/** Polls the server. `onRefresh(seen)` is called after each poll. */
export function observer({ account, owner, onRefresh }) {
  const seen = { reachable: null, version: null, digests: null, lock: null, conflicts: [] };
  let token = null;
  let timer = null;
  let isPolling = false;
  let again = false;

  async function logIn() {
    const stored = sessionStorage.getItem(STORAGE_KEY)?.split(' ') ?? [];
    const device_id = stored[0] === owner ? stored[1] : undefined;
    const body = JSON.stringify({ email: account.email, password: account.password, device: 'The demo page', device_id });
    const response = await fetch('/login', { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    if (!response.ok) throw new Error(`log-in: ${response.status}`);
    const session = await response.json();
    sessionStorage.setItem(STORAGE_KEY, `${owner} ${session.device_id}`);
    token = session.token;
  }

  async function get(path) {
    if (!token) await logIn();
    const response = await fetch(path, { headers: { authorization: `Bearer ${token}` } });
    if (response.status === 401) token = null;
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
    return response.json();
  }

  async function poll() {
    if (isPolling) {
      again = true;
      return;
    }
    isPolling = true;
    clearTimeout(timer);
    try {
      const [digests, lock] = [await get('/digests'), await get('/lock')];
      if (digests.as_of !== seen.version || !seen.reachable) {
        seen.conflicts = (await get('/conflicts?limit=50')).conflicts;
      }
      Object.assign(seen, { digests, lock, version: digests.as_of, reachable: true });
    } catch {
      seen.reachable = false;
    }
    isPolling = false;
    onRefresh(seen);
    if (!document.hidden) timer = setTimeout(poll, again ? SOON_MS : EVERY_MS);
    again = false;
  }

  document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : poll()));
  poll();
  return {
    seen,
    /** Polls again in a moment, after a phone has received a response. */
    refreshSoon() {
      if (isPolling) again = true;
      else {
        clearTimeout(timer);
        timer = setTimeout(poll, SOON_MS);
      }
    },
  };
}
