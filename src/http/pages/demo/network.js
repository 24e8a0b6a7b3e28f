// What lies between one phone and the server: an airplane mode, slow motion, and eyes on what passes.

const SLOW_MS = 900;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * A network for one phone. `fetch` is what the phone's client calls instead of the browser's own.
 *
 * - `onEvent({name, data, bytes})` hears what comes in over `GET /events`.
 * - `onDevice(id)` is called with each id that the server knows the phone by: the id of its token when it logs in, and
 *   the id of the installation, under which its edits are kept.
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
    // The events of a server end with the phone's own patience, or with airplane mode.
    const stream = path === '/events';
    underway.add(cut);
    try {
      refuseInAirplane();
      if (slow && !stream) await pause(SLOW_MS);
      refuseInAirplane();
      const answer = await globalThis.fetch(request, { signal: cut.signal });
      if (stream && answer.ok && answer.body) return overheard(answer, cut);
      if (slow) await pause(SLOW_MS);
      refuseInAirplane();
      if (path === '/login' && answer.ok) onDevice((await answer.clone().json()).device_id);
      if (answer.ok) await findInstallation(request.headers);
      return answer;
    } finally {
      if (!stream) underway.delete(cut);
      cause.removeEventListener('abort', pass);
      if (stream) cause.addEventListener('abort', pass, { once: true });
    }
  }

  /** Asks under which id the server knows an installation that has not been seen yet. */
  async function findInstallation(headers) {
    const [name, token] = [headers.get('sync-device'), headers.get('authorization')];
    const id = name?.split('.')[0];
    if (!id || id === installation) return;
    installation = id;
    const answer = await globalThis.fetch('/me', { headers: { authorization: token, 'sync-device': name } });
    if (answer.ok) onDevice((await answer.json()).device);
  }

  function refuseInAirplane() {
    if (airplane) throw new TypeError('The phone is in airplane mode.');
  }

  /** The same answer; what is read of it is told on the way. */
  function overheard(answer, cut) {
    const decoder = new TextDecoder();
    let rest = '';
    const eye = new TransformStream({
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
      flush: () => void underway.delete(cut),
    });
    const { status, statusText, headers } = answer;
    return new Response(answer.body.pipeThrough(eye), { status, statusText, headers });
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
    /** What the phone shows the server to say who it is; null before its first request. */
    get authorization() {
      return authorization;
    },
  };
}
