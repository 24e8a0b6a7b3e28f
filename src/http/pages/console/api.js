// The console's requests. The token is kept for this tab only, and is sent in a header, never in an address.

const STORAGE_KEY = 'rollcall-console-token';

/** The response to a request that failed. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? `The server responded with ${status}.`);
    this.status = status;
    this.code = problem?.code ?? 'unknown';
  }
}

/** The token of this tab; null without one. */
export const token = {
  get: () => sessionStorage.getItem(STORAGE_KEY),
  set: (value) => sessionStorage.setItem(STORAGE_KEY, value),
  forget: () => sessionStorage.removeItem(STORAGE_KEY),
};

async function call(method, path, given = token.get()) {
  const headers = { authorization: `Bearer ${given}` };
  const response = await fetch(`/console/api/${path}`, { method, headers, cache: 'no-store' });
  const body = response.status === 204 ? null : await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, body);
  return body;
}

const part = encodeURIComponent;

/** A path with the parameters that have a value. */
function withQuery(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== '');
  return given.length > 0 ? `${path}?${new URLSearchParams(given)}` : path;
}

export const api = {
  /** Fails with 401 unless `given` is the console's token. */
  tryToken: (given) => call('GET', 'overview', given),
  overview: () => call('GET', 'overview'),
  series: () => call('GET', 'series'),
  owners: (after, limit) => call('GET', withQuery('owners', { after, limit })),
  ownersOf: (email, limit) => call('GET', withQuery('owners', { email, limit })),
  owner: (owner) => call('GET', `owners/${part(owner)}`),
  conflicts: (owner, page) => call('GET', withQuery(`owners/${part(owner)}/conflicts`, { page, limit: 20 })),
  restore: (owner, conflict) => call('POST', `owners/${part(owner)}/conflicts/${part(conflict)}/restore`),
  breakLock: (owner) => call('DELETE', `owners/${part(owner)}/lock`),
  why: (owner, table, key, device) => call('GET', withQuery(`owners/${part(owner)}/why`, { table, key, device })),
};
