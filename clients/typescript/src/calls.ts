/** The requests of the protocol, with retries. */
import { lockPauseMs, pauseMs } from "./decide.js";
import { RollcallError, type Problem } from "./error.js";
import { assignedInstallation, boundTo, type Installation, type Me } from "./identity.js";
import { readKey } from "./key.js";
import { parseTime } from "./time.js";
import type { Declared } from "./held.js";
import type { Digests, Json, Patience, Progress, Row, Traffic, Verdict } from "./types.js";

/** The server's result for one row that was sent. Its key is under the table's key column. */
export interface VerdictItem {
  readonly verdict: Verdict;
  readonly last_update?: string;
  readonly row?: Row;
  readonly error?: { readonly code: string; readonly detail: string; readonly column?: string; readonly retry_after_s?: number };
  readonly conflict?: string;
  readonly [key: string]: unknown;
}

interface Rows {
  readonly [table: string]: Row[];
}

export interface Changes {
  readonly type: "full" | "diff";
  readonly version: number;
  readonly more?: boolean;
  readonly next?: string;
  readonly add?: Rows;
  readonly update?: Rows;
  readonly delete?: { readonly [table: string]: string[] };
  readonly digests?: Digests;
}

/** The response of `POST /synchronise`. */
export interface SyncResponse {
  readonly add?: { readonly [table: string]: VerdictItem[] };
  readonly update?: { readonly [table: string]: VerdictItem[] };
  readonly delete?: { readonly [table: string]: VerdictItem[] };
  readonly get?: Rows;
  readonly missing?: { readonly [table: string]: string[] };
  readonly version: number;
  readonly changes?: Changes;
  readonly digests?: Digests;
}

/** The response of `GET /fetch`. */
export interface Manifest {
  /** By table, the time of each row by its key. Null if nothing changed since the `ETag` of the request. */
  readonly tables: Map<string, Map<string, number>> | null;
  readonly version: number;
  readonly fence: string | null;
  readonly etag: string | null;
}

interface JsonResponse {
  readonly status: number;
  readonly header: (name: string) => string | null;
  readonly body: Json | undefined;
}

/** The headers and the body of a request. */
interface Content {
  readonly headers?: { [name: string]: string };
  readonly body?: Json | undefined;
}

interface CallOptions {
  /** Sends no token. */
  readonly open?: boolean;
  /** Sends this token, which is not bound to the store yet. */
  readonly token?: string;
  /** Sends no `Sync-For` and `Sync-Device`: the request finds out whose rows the store holds. */
  readonly unbound?: boolean;
  /** Is not repeated after it took too long: the caller sends a smaller request instead. */
  readonly divisible?: boolean;
}

/** No response came within `requestMaxMs`, or the connection broke after a long time. */
class TimedOut extends RollcallError {}

/** Whether a request took too long for the line or for the server, so that a smaller one may succeed. */
export const tookTooLong = (error: unknown): error is RollcallError =>
  error instanceof TimedOut ||
  (error instanceof RollcallError && (error.status === 408 || error.status === 504 || (error.status === 503 && error.code === "timeout")));

/** How a client reaches its server. */
export interface Wire {
  readonly url: string;
  /** The owner of the rows, whom requests name; null for the owner that was made with the account. */
  readonly owner: string | null;
  readonly fetch: typeof globalThis.fetch;
  readonly patience: Patience;
  /** Returns a token other than `refused`, which the server refused. Null if there is none. */
  token(refused: string | null): Promise<string | null>;
  /** Returns the headers `Sync-For` and `Sync-Device`. Null: the store is not bound yet. */
  identity(): Promise<{ [name: string]: string } | null>;
  /** Binds the store to a token's user and owner. `seed` requests the owner's seed. Throws `other_user`. */
  bind(me: Me, seed: () => Promise<string>): Promise<void>;
  /** Until this time the server is taken for one without `GET /me`, ms since 1970. */
  olderUntil: number;
  /** Stores the installation that the server assigned in a response to a request with the headers `sent`. */
  adopt(sent: { [name: string]: string }, assigned: Installation): Promise<void>;
  traffic(traffic: Traffic): void;
  listening(): boolean;
  online(online: boolean): void;
}

/** Time after which the client tries `GET /me` again, if the server does not have it, ms. */
const OLDER_MS = 3_600_000;
/** A connection that breaks after this time counts as broken by the length of the request, ms. */
const SLOW_MS = 10_000;
/** How long the server may wait for the lock before it responds with 423, s. */
const LOCK_WAIT_S = 10;
const RETRIED = [408, 429, 500, 502, 503, 504];

let requests = 0;
const bytes = (text: string | undefined) => (text ? new TextEncoder().encode(text).length : 0);
export const readJson = (text: string): Json | undefined => {
  try {
    return text ? (JSON.parse(text) as Json) : undefined;
  } catch {
    return undefined;
  }
};

/** Replaces the secrets in a body, for inspectors. */
const redacted = (body: Json | undefined): Json | undefined => {
  if (!body || typeof body !== "object" || Array.isArray(body)) return body;
  const secret = ["password", "token", "seed"].filter((name) => name in body);
  return secret.length ? { ...body, ...Object.fromEntries(secret.map((name) => [name, "…"])) } : body;
};

/**
 * Sends one request, once. Returns a response whose body has been read or, for `stream`, a successful one whose body
 * has not. Fails with `offline` if no response comes, or with `aborted`.
 */
export async function send(
  wire: Wire,
  method: string,
  path: string,
  token: string | null,
  { headers: given = {}, body }: Content,
  signal: AbortSignal | undefined,
  stream = false,
): Promise<Response & { text(): Promise<string> }> {
  const id = ++requests;
  const text = body === undefined ? undefined : JSON.stringify(body);
  const headers = { ...given, ...(text === undefined ? {} : { "Content-Type": "application/json" }) };
  const traffic = { id, method, path, requestHeaders: headers, requestBody: redacted(body), bytesSent: wire.listening() ? bytes(text) : 0 };
  wire.traffic({ ...traffic, phase: "sent" });
  const began = Date.now();
  const control = new AbortController();
  const abort = () => control.abort();
  if (signal?.aborted) abort();
  signal?.addEventListener("abort", abort);
  let late = false;
  const timer = setTimeout(() => ((late = true), abort()), wire.patience.requestMaxMs);
  try {
    const response = await wire.fetch(wire.url + path, {
      method,
      headers: token === null ? headers : { ...headers, Authorization: `Bearer ${token}` },
      signal: control.signal,
      cache: "no-store", // otherwise the browser would handle a 304 itself
      credentials: "omit",
      ...(text === undefined ? {} : { body: text }),
    });
    if (stream && response.ok && response.body) {
      wire.traffic({ ...traffic, phase: "answered", status: response.status, ms: Date.now() - began });
      wire.online(true);
      return response;
    }
    const received = await response.text();
    wire.online(true);
    if (wire.listening()) {
      const headers: Record<string, string> = {};
      response.headers.forEach((value, name) => (headers[name] = value));
      const body = redacted(readJson(received));
      wire.traffic({ ...traffic, phase: "answered", status: response.status, headers, body, bytesReceived: bytes(received), ms: Date.now() - began });
    }
    return { status: response.status, ok: response.ok, headers: response.headers, text: async () => received } as Response;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    wire.traffic({ ...traffic, phase: "failed", error: reason, ms: Date.now() - began });
    if (signal?.aborted) throw new RollcallError("aborted", "the sync was cancelled");
    wire.online(false);
    if (late) throw new TimedOut("offline", `the server did not respond within ${wire.patience.requestMaxMs} ms`);
    throw new (Date.now() - began > SLOW_MS ? TimedOut : RollcallError)("offline", `the server cannot be reached: ${reason}`);
  } finally {
    clearTimeout(timer);
    if (!stream) signal?.removeEventListener("abort", abort);
  }
}

/** Makes an error of a response that is a problem document, or of a proxy's error page. */
export function problemOf(status: number, header: (name: string) => string | null, body: Json | undefined): RollcallError {
  const received = (body && typeof body === "object" && !Array.isArray(body) ? body : {}) as Partial<Problem>;
  const after = Number(header("retry-after") ?? NaN);
  const { code = "unknown", detail = `HTTP ${status}`, retry_after_s } = received;
  const problem: Problem = { ...received, status, code, detail, ...(retry_after_s === undefined && after >= 0 ? { retry_after_s: after } : {}) };
  return new RollcallError(code, `the server refused (${status} ${code}): ${detail}`, problem);
}

/** Returns the error `offline` instead of throwing it, so that the caller can retry. */
const catchOffline = <R>(work: () => Promise<R>): Promise<R | RollcallError> =>
  work().catch((error: unknown) => {
    if (error instanceof RollcallError && error.code === "offline") return error;
    throw error;
  });

/** The path of a request about the rows of the client's owner. */
export const about = ({ owner }: Wire, path: string): string =>
  owner === null || /[?&]owner=/.test(path) ? path : `${path}${path.includes("?") ? "&" : "?"}owner=${owner}`;

/** The requests of one sync. */
export class Calls {
  requests = 0;
  repeats = 0;
  /** The epoch of the data, by the last response that named it. */
  epoch: number | null = null;
  /** Whether this device may hold the lock, which must then be released after a failure. */
  holding = false;

  constructor(
    private readonly wire: Wire,
    private readonly signal: AbortSignal | undefined,
    private readonly progress: (progress: Progress) => void,
  ) {}

  /** Sends a request until it gets a final response. `make` receives the number of failed attempts. */
  async call(method: string, path: string, make: (failed: number) => Content = () => ({}), options: CallOptions = {}): Promise<JsonResponse> {
    const { patience } = this.wire;
    let [failed, waited, renewed] = [0, 0, false];
    for (;;) {
      if (this.signal?.aborted) throw new RollcallError("aborted", "the sync was cancelled");
      const identity = options.open || options.unbound ? {} : await this.identity();
      const began = Date.now();
      let token: string | null = null;
      const result = await catchOffline(async () => {
        token = options.open ? null : (options.token ?? (await this.wire.token(null)));
        if (!options.open && token === null) throw new RollcallError("not_logged_in", "this device has no token: log in first");
        return this.attempt(method, path, token, make(failed), identity);
      });
      if (!(result instanceof RollcallError)) return result;
      if (options.divisible && tookTooLong(result)) throw result;
      const { status } = result;
      if (status === 401 && !options.open && options.token === undefined && !renewed) {
        renewed = true;
        if ((await this.wire.token(token)) === null) throw result;
        continue;
      }
      const after = result.problem?.retry_after_s ?? null;
      let pause: number | null;
      if (status === 423) {
        pause = lockPauseMs(waited, patience.lockWaitMaxMs, after, patience.random());
        if (pause === null) throw result;
        waited += pause + Date.now() - began; // the server has waited, too
        const { holder = null, until = null } = result.problem!;
        this.progress({ phase: "waiting", holder, until, ms: pause });
      } else if (status === undefined || RETRIED.includes(status)) {
        pause = pauseMs(++failed, patience.attemptsMax, after, patience.random());
        if (pause === null) throw result;
        this.progress({ phase: "retrying", attempt: failed, reason: result.message, ms: pause });
      } else {
        throw result;
      }
      this.repeats++;
      await patience.pause(pause, this.signal);
    }
  }

  /** Sends a request once. Returns a problem for the caller to decide about a retry. */
  private async attempt(
    method: string,
    path: string,
    token: string | null,
    content: Content,
    identity: { [name: string]: string },
  ): Promise<JsonResponse | RollcallError> {
    this.requests++;
    const headers = { ...content.headers, ...identity };
    const response = await send(this.wire, method, path, token, { ...content, headers }, this.signal);
    const header = (name: string) => response.headers.get(name);
    const assigned = assignedInstallation(identity, header);
    if (assigned) await this.wire.adopt(identity, assigned);
    const body = readJson(await response.text());
    if (response.status >= 400) return problemOf(response.status, header, body);
    const epoch = header("sync-epoch");
    if (epoch !== null) this.epoch = Number(epoch);
    return { status: response.status, header, body };
  }

  private async read<T>(method: string, path: string, make?: (failed: number) => Content, options?: CallOptions): Promise<T> {
    const { body } = await this.call(method, path, make, options);
    if (!body || typeof body !== "object") throw garbled(`${method} ${path}`);
    return body as T;
  }

  limits(): Promise<{ rows_max: number; get_keys_max: number; body_bytes_max: number; time_precision: "seconds" | "milliseconds" }> {
    return this.read("GET", "/limits", undefined, { open: true });
  }

  /** Returns the user and owner of a token; null from a server without `GET /me`. */
  async me(token?: string): Promise<Me | null> {
    try {
      const me = await this.read<Me>("GET", "/me", undefined, { unbound: true, ...(token === undefined ? {} : { token }) });
      if (typeof me.user !== "string" || typeof me.owner !== "string") throw garbled("GET /me");
      return { user: me.user, owner: this.wire.owner ?? me.owner };
    } catch (error) {
      if (error instanceof RollcallError && (error.status === 404 || error.status === 405)) return null;
      throw error;
    }
  }

  /** Returns the headers `Sync-For` and `Sync-Device`. Binds the store first if it is not bound yet. */
  async identity(): Promise<{ [name: string]: string }> {
    const known = await this.wire.identity();
    if (known || Date.now() < this.wire.olderUntil) return known ?? {};
    const me = await this.me();
    if (!me) {
      this.wire.olderUntil = Date.now() + OLDER_MS; // such a server ignores these headers
      return {};
    }
    // The token may have changed since `me`. `Sync-For` makes sure that the seed is that of the same owner.
    const headers = { "Sync-For": boundTo(me) };
    await this.wire.bind(me, async () => (await this.read<{ seed: string }>("GET", about(this.wire, "/digests"), () => ({ headers }), { unbound: true })).seed);
    return (await this.wire.identity()) ?? {};
  }

  digests(): Promise<{ seed: string } & Digests> {
    return this.read("GET", about(this.wire, "/digests"));
  }

  /** Fetches all pages of the manifest, under the lock. After the error `version_moved` the caller begins again. */
  async fetch(declared: readonly Declared[], known: string | undefined): Promise<Manifest> {
    let path = `/fetch?tables=${declared.map(({ name }) => name).join(",")}`;
    const tables = new Map(declared.map(({ name }) => [name, new Map<string, number>()]));
    let first: Manifest | undefined;
    for (;;) {
      const headers: { [name: string]: string } = { Prefer: `wait=${LOCK_WAIT_S}` };
      // A 304 for the first page means that all pages are unchanged.
      if (known && !first) headers["If-None-Match"] = known;
      const { status, header, body } = await this.call("GET", about(this.wire, path), () => ({ headers }));
      this.holding = true;
      const version = Number(header("sync-version") ?? NaN);
      if (!Number.isSafeInteger(version)) throw garbled("GET /fetch");
      first ??= { tables: null, version, fence: header("sync-lock"), etag: header("etag") };
      if (status === 304) return first;
      for (const { name, key } of declared) {
        for (const entry of ((body ?? {}) as unknown as Rows)[name] ?? []) {
          const [id, at] = [readKey(entry[key]), parseTime(entry["last_update"])];
          if (id === null || at === null) throw garbled("GET /fetch");
          tables.get(name)!.set(id, at);
        }
      }
      const query = nextQuery(header("link"));
      if (!query) return { ...first, tables };
      path = `/fetch?${query}`;
    }
  }

  /**
   * `body` makes the body of each attempt, with its time of sending. A repeated attempt omits the fence: the first may
   * have been processed, and have released the lock. `divisible`: after an attempt that took too long the caller sends
   * a smaller request instead of a repeat.
   */
  async synchronise(key: string, fence: string | null, divisible: boolean, body: () => Json): Promise<SyncResponse> {
    const response = await this.read<SyncResponse>("POST", about(this.wire, "/synchronise"), (failed) => {
      const headers: { [name: string]: string } = { Prefer: `wait=${LOCK_WAIT_S}`, "Idempotency-Key": key };
      if (fence && failed === 0) headers["Sync-Lock"] = fence;
      return { headers, body: body() };
    }, { divisible });
    if (!Number.isSafeInteger(response.version)) throw garbled("POST /synchronise");
    return response;
  }

  async changes(since: number | null, next?: string): Promise<Changes> {
    const query = next !== undefined ? `?next=${encodeURIComponent(next)}` : since !== null ? `?since=${since}` : "";
    const page = await this.read<Changes>("GET", about(this.wire, `/changes${query}`));
    if (!Number.isSafeInteger(page.version)) throw garbled("GET /changes");
    return page;
  }

  /** Releases the lock after a failure. Errors are ignored: a lease expires by itself. */
  async releaseLock(): Promise<void> {
    if (!this.holding) return;
    try {
      const headers = (await this.wire.identity()) ?? {};
      await send(this.wire, "DELETE", about(this.wire, "/lock"), await this.wire.token(null), { headers }, undefined);
    } catch {
      // the lease expires
    }
  }
}

const garbled = (call: string) => new RollcallError("garbled", `the server's response to ${call} cannot be read`);

/** The query of a `Link` to the next page. Its path is ignored, since a proxy may serve the API under another one. */
export function nextQuery(link: string | null): string | null {
  for (const part of link?.split(", <") ?? []) {
    const found = /^<?[^>?]*\?([^>]*)>.*rel="next"/.exec(part);
    if (found) return found[1]!;
  }
  return null;
}
