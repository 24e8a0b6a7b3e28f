// The console's calls. The token is kept for this tab alone, and goes in a header, never in an address.

const KEPT = 'rollcall-console-token';

/** What a call was answered with, if it was no success. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.code = problem?.code ?? 'unknown';
  }
}

/** The token of this tab; null without one. */
export const token = {
  get: () => sessionStorage.getItem(KEPT),
  set: (value) => sessionStorage.setItem(KEPT, value),
  forget: () => sessionStorage.removeItem(KEPT),
};

async function call(method, path, given = token.get()) {
  const headers = { authorization: `Bearer ${given}` };
  const answer = await fetch(`/console/api/${path}`, { method, headers, cache: 'no-store' });
  const body = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Refused(answer.status, body);
  return body;
}

const part = encodeURIComponent;

/** A path with the parameters that have a value. */
function asked(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== '');
  return given.length > 0 ? `${path}?${new URLSearchParams(given)}` : path;
}

export const api = {
  /** Fails with 401 unless `given` is the console's token. */
  tryToken: (given) => call('GET', 'overview', given),
  overview: () => call('GET', 'overview'),
  series: () => call('GET', 'series'),
  owners: (after, limit) => call('GET', asked('owners', { after, limit })),
  owner: (owner) => call('GET', `owners/${part(owner)}`),
  conflicts: (owner, page) => call('GET', asked(`owners/${part(owner)}/conflicts`, { page, limit: 20 })),
  restore: (owner, conflict) => call('POST', `owners/${part(owner)}/conflicts/${part(conflict)}/restore`),
  breakLock: (owner) => call('DELETE', `owners/${part(owner)}/lock`),
  why: (owner, table, key, device) => call('GET', asked(`owners/${part(owner)}/why`, { table, key, device })),
};
