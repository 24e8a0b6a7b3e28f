// One phone: a client of rollcall with its own database in this browser, and its own network.

import { openClient } from '../client/index.js';
import { indexedDbStore } from '../client/indexeddb.js';
import { pause } from '../client/turn.js';
import { network } from './network.js';
import { SCHEMA } from './tables.js';

/** An edit is sent so soon after it is made, ms: late enough to see it waiting. */
const DEBOUNCE_MS = 350;
/** Longest pause between two attempts, ms: on a stage nobody waits as long as the lock may last. */
const PAUSE_MAX_MS = 2_500;
/** Between two looks where the server's events cannot be heard, ms. */
const POLL_MS = 2_000;

/**
 * Makes a phone. `who` is `anna` or `ben`, for colours; `account` what it logs in with; `named` hears its id.
 *
 * The phone tells `onState` listeners whenever something of `state` changes.
 */
export async function device({ number, who, account, owner, named }) {
  const listeners = new Set();
  const trafficListeners = new Set();
  const state = { airplane: false, live: true, syncing: false, status: null, progress: null, error: null };

  const net = network({
    onEvent: (event) => tellTraffic({ kind: 'event', ...event }),
    onDevice: named,
  });
  const client = await openClient({
    url: '',
    tables: SCHEMA,
    store: indexedDbStore(`rollcall-demo-${owner.slice(0, 8)}-${number}`),
    login: account,
    fetch: net.fetch,
    patience: { pause: (ms, signal) => pause(Math.min(ms, PAUSE_MAX_MS), signal) },
  });
  let live = null;

  const tell = (changes) => {
    Object.assign(state, changes);
    for (const listener of listeners) listener(state);
  };
  const tellTraffic = (traffic) => {
    for (const listener of trafficListeners) listener(traffic);
  };
  client.onTraffic(tellTraffic);
  client.onStatus((status) => {
    tell({ status });
    // An idle client waits for nothing.
    if (!status.syncing && state.progress && !state.syncing) tell({ progress: null });
  });

  function listen() {
    live?.stop();
    live = state.live && !state.airplane ? client.live({ debounceMs: DEBOUNCE_MS, pollMs: POLL_MS }) : null;
  }

  /** A request of the phone's own that the client has no call for; seen in the inspector like any other. */
  async function call(method, path) {
    const id = `own-${crypto.randomUUID()}`;
    const asked = { id, method, path, requestHeaders: {}, requestBody: undefined, bytesSent: 0 };
    const started = performance.now();
    tellTraffic({ ...asked, phase: 'sent' });
    try {
      const headers = net.authorization ? { authorization: net.authorization } : {};
      const answer = await net.fetch(path, { method, headers });
      const words = await answer.text();
      tellTraffic({
        ...asked,
        phase: 'answered',
        status: answer.status,
        headers: Object.fromEntries(answer.headers),
        body: words ? JSON.parse(words) : undefined,
        bytesReceived: new Blob([words]).size,
        ms: performance.now() - started,
      });
      return answer.ok;
    } catch (error) {
      tellTraffic({ ...asked, phase: 'failed', error: String(error.message ?? error), ms: performance.now() - started });
      return false;
    }
  }

  return {
    who,
    number,
    name: account.device,
    short: account.device.split('’')[0],
    client,
    state,
    onState(listener) {
      listeners.add(listener);
      listener(state);
    },
    onTraffic: (listener) => trafficListeners.add(listener),

    /** Opens the phone: listens, and gets what is new. */
    async open() {
      await this.sync();
      listen();
    },

    async sync(way) {
      if (state.syncing) return null;
      tell({ syncing: true, progress: null, error: null });
      try {
        return await client.sync({ way, onProgress: (progress) => tell({ progress }) });
      } catch (error) {
        tell({ error: { code: error.code ?? 'unknown', message: String(error.message ?? error) } });
        return null;
      } finally {
        tell({ syncing: false, progress: null });
      }
    },

    async setAirplane(on) {
      if (state.airplane === on) return;
      net.airplane = on;
      tell({ airplane: on, error: null });
      listen();
      if (!on && state.live) await this.sync();
    },

    setLive(on) {
      tell({ live: on });
      listen();
    },

    setSlow(on) {
      net.slow = on;
    },

    /** Takes the lock and does nothing with it, as a phone that stalls in the middle of a sync. */
    holdLock: () => call('POST', '/lock'),
    releaseLock: () => call('DELETE', '/lock'),

    async wipe() {
      live?.stop();
      await client.wipe();
      await client.close();
    },
  };
}
