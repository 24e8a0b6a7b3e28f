// One phone: a rollcall client with its own database in this browser, and its own network.

import { openClient } from '../client/index.js';
import { indexedDbStore } from '../client/indexeddb.js';
import { pause } from '../client/turn.js';
import { network } from './network.js';
import { SCHEMA } from './tables.js';

/** Time between an edit and its sync, ms: long enough for a visitor to see that it waits. */
const DEBOUNCE_MS = 350;
/** Longest pause between two attempts, ms: a visitor should not wait as long as a lock may last. */
const PAUSE_MAX_MS = 2_500;
/** Time between two polls if the server's events cannot be streamed, ms. */
const POLL_MS = 2_000;

/** Sends a request for which the client has no call. The inspector shows it like any other. */
async function call(net, notifyTraffic, method, path) {
  const id = `own-${crypto.randomUUID()}`;
  const request = { id, method, path, requestHeaders: {}, requestBody: undefined, bytesSent: 0 };
  const started = performance.now();
  notifyTraffic({ ...request, phase: 'sent' });
  try {
    const headers = net.authorization ? { authorization: net.authorization } : {};
    const response = await net.fetch(path, { method, headers });
    const received = await response.text();
    notifyTraffic({
      ...request,
      phase: 'answered',
      status: response.status,
      headers: Object.fromEntries(response.headers),
      body: received ? JSON.parse(received) : undefined,
      bytesReceived: new Blob([received]).size,
      ms: performance.now() - started,
    });
    return response.ok;
  } catch (error) {
    notifyTraffic({ ...request, phase: 'failed', error: String(error.message ?? error), ms: performance.now() - started });
    return false;
  }
}

/**
 * Makes a phone. `who` is `anna` or `ben`, for colours; `account` has its credentials; `onDevice` is called with its id.
 *
 * The phone calls the `onState` listeners at every change of `state`.
 */
export async function device({ number, who, account, owner, onDevice }) {
  const listeners = new Set();
  const trafficListeners = new Set();
  const state = { airplane: false, live: true, syncing: false, status: null, progress: null, error: null };

  const net = network({
    onEvent: (event) => notifyTraffic({ kind: 'event', ...event }),
    onDevice,
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

  const setState = (changes) => {
    Object.assign(state, changes);
    for (const listener of listeners) listener(state);
  };
  const notifyTraffic = (traffic) => {
    for (const listener of trafficListeners) listener(traffic);
  };
  client.onTraffic(notifyTraffic);
  client.onStatus((status) => {
    setState({ status });
    // The progress of a sync by `live` ends with it.
    if (!status.syncing && state.progress && !state.syncing) setState({ progress: null });
  });

  function listen() {
    live?.stop();
    live = state.live && !state.airplane ? client.live({ debounceMs: DEBOUNCE_MS, pollMs: POLL_MS }) : null;
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

    /** Syncs once and then follows the server's events. */
    async open() {
      await this.sync();
      listen();
    },

    async sync(way) {
      if (state.syncing) return null;
      setState({ syncing: true, progress: null, error: null });
      try {
        return await client.sync({ way, onProgress: (progress) => setState({ progress }) });
      } catch (error) {
        setState({ error: { code: error.code ?? 'unknown', message: String(error.message ?? error) } });
        return null;
      } finally {
        setState({ syncing: false, progress: null });
      }
    },

    async setAirplane(on) {
      if (state.airplane === on) return;
      net.airplane = on;
      setState({ airplane: on, error: null });
      listen();
      if (!on && state.live) await this.sync();
    },

    setLive(on) {
      setState({ live: on });
      listen();
    },

    setSlow(on) {
      net.slow = on;
    },

    /** Takes the lock without a sync, like a phone that stalls in the middle of one. */
    holdLock: () => call(net, notifyTraffic, 'POST', '/lock'),
    releaseLock: () => call(net, notifyTraffic, 'DELETE', '/lock'),

    async wipe() {
      live?.stop();
      await client.wipe();
      await client.close();
    },
  };
}
