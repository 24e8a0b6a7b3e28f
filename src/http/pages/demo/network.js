// The network between one phone and the server, with an airplane mode, slow motion, and a report of the events.

const SLOW_MS = 900;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The same response, with a call of `onEvent` for each event that is read from it, and of `onEnd` at its end. */
function withEvents(response, onEvent, onEnd) {
  const decoder = new TextDecoder();
  let rest = '';
  const parser = new TransformStream({
    transform(chunk, controller) {
      controller.enqueue(chunk);
      rest += decoder.decode(chunk, { stream: true });
      const blocks = rest.split('\n\n');
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split('\n').map((line) => line.match(/^(\w+): ?(.*)$/)).filter(Boolean);
        const fields = Object.fromEntries(lines.map(([, name, value]) => [name, value]));
        if (fields.event) onEvent({ name: fields.event, data: fields.data ?? '', bytes: block.length + 2 });
      }
    },
    flush: onEnd,
  });
  const { status, statusText, headers } = response;
  return new Response(response.body.pipeThrough(parser), { status, statusText, headers });
}

/**
 * A network for one phone. Its client calls `fetch` instead of the browser's own.
 *
 * - `onEvent({name, data, bytes})` is called with each event of `GET /events`.
 * - `onDevice(id)` is called with each id that the phone has on the server: the id of its token when it logs in, and the
 *   id of its installation, by which the server stores its edits.
 */
export function network({ onEvent, onDevice }) {
  const underway = new Set();
  let airplane = false;
  let slow = false;
  let authorization = null;
  let installation = null;

  async function fetch(input, options = {}) {
    const request = new Request(input, options);
    const path = new URL(request.url).pathname;
    const cut = new AbortController();
    const cause = request.signal;
    const pass = () => cut.abort(cause.reason);
    if (cause.aborted) pass();
    cause.addEventListener('abort', pass, { once: true });
    authorization = request.headers.get('authorization') ?? authorization;
    // A stream of events lasts until the client ends it, or until airplane mode.
    const stream = path === '/events';
    underway.add(cut);
    try {
      refuseInAirplane();
      if (slow && !stream) await pause(SLOW_MS);
      refuseInAirplane();
      const response = await globalThis.fetch(request, { signal: cut.signal });
      if (stream && response.ok && response.body) return withEvents(response, onEvent, () => underway.delete(cut));
      if (slow) await pause(SLOW_MS);
      refuseInAirplane();
      if (path === '/login' && response.ok) onDevice((await response.clone().json()).device_id);
      if (response.ok) await findInstallation(request.headers);
      return response;
    } finally {
      if (!stream) underway.delete(cut);
      cause.removeEventListener('abort', pass);
      if (stream) cause.addEventListener('abort', pass, { once: true });
    }
  }

  /** Requests the server's id of a new installation. */
  async function findInstallation(headers) {
    const [name, token] = [headers.get('sync-device'), headers.get('authorization')];
    const id = name?.split('.')[0];
    if (!id || id === installation) return;
    installation = id;
    const response = await globalThis.fetch('/me', { headers: { authorization: token, 'sync-device': name } });
    if (response.ok) onDevice((await response.json()).device);
  }

  function refuseInAirplane() {
    if (airplane) throw new TypeError('The phone is in airplane mode.');
  }

  return {
    fetch,
    get airplane() {
      return airplane;
    },
    set airplane(on) {
      airplane = on;
      if (!on) return;
      for (const cut of underway) cut.abort(new TypeError('The phone went into airplane mode.'));
      underway.clear();
    },
    set slow(on) {
      slow = on;
    },
    /** The header with the phone's token; null before its first request. */
    get authorization() {
      return authorization;
    },
  };
}
