/** The calls of the protocol, each repeated as long as that is right. */
import { lockPauseMs, pauseMs } from "./decide.js";
import { RollcallError, type Problem } from "./error.js";
import { boundTo, named, type Installation, type Me } from "./identity.js";
import { readKey } from "./key.js";
import { parseTime } from "./time.js";
import type { Declared } from "./held.js";
import type { Digests, Json, Patience, Progress, Row, Traffic, Verdict } from "./types.js";

/** What became of one row that was sent. Its key is under the table's key column. */
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

/** The answer of `POST /synchronise`. */
export interface Answered {
  readonly add?: { readonly [table: string]: VerdictItem[] };
  readonly update?: { readonly [table: string]: VerdictItem[] };
  readonly delete?: { readonly [table: string]: VerdictItem[] };
  readonly get?: Rows;
  readonly missing?: { readonly [table: string]: string[] };
  readonly version: number;
  readonly changes?: Changes;
  readonly digests?: Digests;
}

/** What the roll call told. */
export interface RollCall {
  /** Null if nothing changed since the `ETag` that was named. */
  readonly tables: Map<string, Map<string, number>> | null;
  readonly version: number;
  readonly fence: string | null;
  readonly etag: string | null;
}

interface Answer {
  readonly status: number;
  readonly header: (name: string) => string | null;
  readonly body: Json | undefined;
}

interface Ask {
  readonly headers?: { [name: string]: string };
  readonly body?: Json | undefined;
}

/** How a call is made. */
interface Manner {
  /** Without a token. */
  readonly open?: boolean;
  /** With this token, whatever others there are; it is not bound to the store yet. */
  readonly token?: string;
  /** Without saying whose rows the store holds: this call finds that out. */
  readonly unbound?: boolean;
  /** Not to be repeated after it took too long: the caller can ask for less. */
  readonly divisible?: boolean;
}

/** No answer came within the client's own time, or the connection broke after a long while. */
class TimedOut extends RollcallError {}

/** Whether a request took too long for the line or for the server, so that a smaller one may not. */
export const tookTooLong = (error: unknown): error is RollcallError =>
  error instanceof TimedOut ||
  (error instanceof RollcallError && (error.status === 408 || error.status === 504 || (error.status === 503 && error.code === "timeout")));

/** How a client reaches its server. */
export interface Wire {
  readonly url: string;
  readonly fetch: typeof globalThis.fetch;
  readonly patience: Patience;
  /** The token to use; another one than `refused`, if the server refused that. Null if there is none. */
  token(refused: string | null): Promise<string | null>;
  /** What each call says beside its token: whose rows the store holds, which installation it is. Null: not known yet. */
  identity(): Promise<{ [name: string]: string } | null>;
  /** Binds the store to what the server says of a token. `seed`: asks for the owner's. Throws `other_user`. */
  bind(me: Me, seed: () => Promise<string>): Promise<void>;
  /** Until then the server counts as one that does not know `GET /me`, ms since 1970. */
  olderUntil: number;
  /** Takes over what the server calls this installation. */
  adopt(sent: { [name: string]: string }, made: Installation): Promise<void>;
  traffic(traffic: Traffic): void;
  listening(): boolean;
  online(online: boolean): void;
}

/** How long a server that does not say who the caller is counts as such, ms. */
const OLDER_MS = 3_600_000;
/** A connection that breaks after so long broke for the length of the request, for all that the client can see, ms. */
const SLOW_MS = 10_000;
/** How long the server may wait for the lock before it answers 423, s. */
const LOCK_WAIT_S = 10;
const RETRIED = [408, 429, 500, 502, 503, 504];

let requests = 0;
const bytes = (text: string | undefined) => (text ? new TextEncoder().encode(text).length : 0);
const readJson = (text: string): Json | undefined => {
  try {
    return text ? (JSON.parse(text) as Json) : undefined;
  } catch {
    return undefined;
  }
};

/** Hides what an inspector must not show. */
const hidden = (body: Json | undefined): Json | undefined => {
  if (!body || typeof body !== "object" || Array.isArray(body)) return body;
  const secret = ["password", "token", "seed"].filter((name) => name in body);
  return secret.length ? { ...body, ...Object.fromEntries(secret.map((name) => [name, "…"])) } : body;
};

/** Sends one request, once. Fails with `offline` if no answer comes, or with `aborted`. */
export async function send(
  wire: Wire,
  method: string,
  path: string,
  token: string | null,
  { headers = {}, body }: Ask,
  signal: AbortSignal | undefined,
  stream = false,
): Promise<Response & { text(): Promise<string> }> {
  const id = ++requests;
  const text = body === undefined ? undefined : JSON.stringify(body);
  const said = { ...headers, ...(text === undefined ? {} : { "Content-Type": "application/json" }) };
  const traffic = { id, method, path, requestHeaders: said, requestBody: hidden(body), bytesSent: wire.listening() ? bytes(text) : 0 };
  wire.traffic({ ...traffic, phase: "sent" });
  const began = Date.now();
  const control = new AbortController();
  const abort = () => control.abort();
  if (signal?.aborted) abort();
  signal?.addEventListener("abort", abort);
  let late = false;
  const timer = setTimeout(() => ((late = true), abort()), wire.patience.requestMaxMs);
  try {
    const answer = await wire.fetch(wire.url + path, {
      method,
      headers: token === null ? said : { ...said, Authorization: `Bearer ${token}` },
      signal: control.signal,
      cache: "no-store", // 304 is for us to hear, not for the browser
      credentials: "omit",
      ...(text === undefined ? {} : { body: text }),
    });
    if (stream && answer.ok && answer.body) {
      wire.traffic({ ...traffic, phase: "answered", status: answer.status, ms: Date.now() - began });
      wire.online(true);
      return answer;
    }
    const came = await answer.text();
    wire.online(true);
    if (wire.listening()) {
      const told: Record<string, string> = {};
      answer.headers.forEach((value, name) => (told[name] = value));
      const parsed = hidden(readJson(came));
      wire.traffic({ ...traffic, phase: "answered", status: answer.status, headers: told, body: parsed, bytesReceived: bytes(came), ms: Date.now() - began });
    }
    const { status, headers: answerHeaders, ok } = answer;
    return { status, ok, headers: answerHeaders, text: async () => came } as Response;
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    wire.traffic({ ...traffic, phase: "failed", error: why, ms: Date.now() - began });
    if (signal?.aborted) throw new RollcallError("aborted", "the sync was cancelled");
    wire.online(false);
    if (late) throw new TimedOut("offline", `the server did not answer within ${wire.patience.requestMaxMs} ms`);
    throw new (Date.now() - began > SLOW_MS ? TimedOut : RollcallError)("offline", `the server cannot be reached: ${why}`);
  } finally {
    clearTimeout(timer);
    if (!stream) signal?.removeEventListener("abort", abort);
  }
}

/** The problem that an answer is, also if a proxy wrote it. */
export function problemOf(status: number, header: (name: string) => string | null, body: Json | undefined): RollcallError {
  const said = (body && typeof body === "object" && !Array.isArray(body) ? body : {}) as Partial<Problem>;
  const after = Number(header("retry-after") ?? NaN);
  const code = said.code ?? "unknown";
  const detail = said.detail ?? `HTTP ${status}`;
  const problem: Problem = { ...said, status, code, detail, ...(said.retry_after_s === undefined && after >= 0 ? { retry_after_s: after } : {}) };
  return new RollcallError(code, `the server refused (${status} ${code}): ${detail}`, problem);
}

/** The calls of one sync. */
export class Calls {
  requests = 0;
  repeats = 0;
  /** The epoch of the data, as the last answer said that said it. */
  epoch: number | null = null;
  /** Whether this device may have the lock, so that it should be given back after a failure. */
  holding = false;

  constructor(
    private readonly wire: Wire,
    private readonly signal: AbortSignal | undefined,
    private readonly progress: (progress: Progress) => void,
  ) {}

  /** Asks until there is an answer that counts. `make` is given how many attempts have failed. */
  async ask(method: string, path: string, make: (failed: number) => Ask = () => ({}), manner: Manner = {}): Promise<Answer> {
    const { patience } = this.wire;
    let [failed, waited, renewed] = [0, 0, false];
    for (;;) {
      if (this.signal?.aborted) throw new RollcallError("aborted", "the sync was cancelled");
      const mine = manner.open || manner.unbound ? {} : await this.identity();
      let problem: RollcallError;
      const began = Date.now();
      let token: string | null = null;
      try {
        token = manner.open ? null : (manner.token ?? (await this.wire.token(null)));
        if (!manner.open && token === null) throw new RollcallError("not_logged_in", "this device has no token: log in first");
        const asked = make(failed);
        this.requests++;
        const answer = await send(this.wire, method, path, token, { ...asked, headers: { ...asked.headers, ...mine } }, this.signal);
        const header = (name: string) => answer.headers.get(name);
        const made = named(mine, header);
        if (made) await this.wire.adopt(mine, made);
        const body = readJson(await answer.text());
        if (answer.status < 400) {
          const epoch = header("sync-epoch");
          if (epoch !== null) this.epoch = Number(epoch);
          return { status: answer.status, header, body };
        }
        problem = problemOf(answer.status, header, body);
      } catch (error) {
        if (!(error instanceof RollcallError) || error.code !== "offline") throw error;
        problem = error;
      }
      if (manner.divisible && tookTooLong(problem)) throw problem;
      let pause: number | null = null;
      const after = problem.problem?.retry_after_s ?? null;
      const status = problem.status;
      if (status === 401 && !manner.open && manner.token === undefined && !renewed) {
        renewed = true;
        if ((await this.wire.token(token)) === null) throw problem;
        continue;
      }
      if (status === 423) {
        pause = lockPauseMs(waited, patience.lockWaitMaxMs, after, patience.random());
        if (pause === null) throw problem;
        waited += pause + Date.now() - began; // the server has waited, too
        const { holder = null, until = null } = problem.problem!;
        this.progress({ phase: "waiting", holder, until, ms: pause });
      } else if (status === undefined || RETRIED.includes(status)) {
        pause = pauseMs(++failed, patience.attemptsMax, after, patience.random());
        if (pause === null) throw problem;
        this.progress({ phase: "retrying", attempt: failed, reason: problem.message, ms: pause });
      } else {
        throw problem;
      }
      this.repeats++;
      await patience.pause(pause, this.signal);
    }
  }

  private async read<T>(method: string, path: string, make?: (failed: number) => Ask, manner?: Manner): Promise<T> {
    const { body } = await this.ask(method, path, make, manner);
    if (!body || typeof body !== "object") throw garbled(`${method} ${path}`);
    return body as T;
  }

  limits(): Promise<{ rows_max: number; get_keys_max: number; body_bytes_max: number; time_precision: "seconds" | "milliseconds" }> {
    return this.read("GET", "/limits", undefined, { open: true });
  }

  /** Whose rows a token leads to; null from a server that does not say. */
  async me(token?: string): Promise<Me | null> {
    try {
      const me = await this.read<Me>("GET", "/me", undefined, { unbound: true, ...(token === undefined ? {} : { token }) });
      if (typeof me.user !== "string" || typeof me.owner !== "string") throw garbled("GET /me");
      return me;
    } catch (error) {
      if (error instanceof RollcallError && (error.status === 404 || error.status === 405)) return null;
      throw error;
    }
  }

  /** What each call says beside its token. A store that is not bound yet is, before anything else is asked. */
  async identity(): Promise<{ [name: string]: string }> {
    const known = await this.wire.identity();
    if (known || Date.now() < this.wire.olderUntil) return known ?? {};
    const me = await this.me();
    if (!me) {
      this.wire.olderUntil = Date.now() + OLDER_MS; // it would not look at what we say
      return {};
    }
    // Whatever token is used by now: the seed is that of this user's owner, or not given.
    const headers = { "Sync-For": boundTo(me) };
    await this.wire.bind(me, async () => (await this.read<{ seed: string }>("GET", "/digests", () => ({ headers }), { unbound: true })).seed);
    return (await this.wire.identity()) ?? {};
  }

  digests(): Promise<{ seed: string } & Digests> {
    return this.read("GET", "/digests");
  }

  /** The whole roll call, under the lock, however many pages it has. Fails with `version_moved`: begin again. */
  async fetch(declared: readonly Declared[], known: string | undefined): Promise<RollCall> {
    let path = `/fetch?tables=${declared.map(({ name }) => name).join(",")}`;
    const tables = new Map(declared.map(({ name }) => [name, new Map<string, number>()]));
    let first: RollCall | undefined;
    for (;;) {
      const headers: { [name: string]: string } = { Prefer: `wait=${LOCK_WAIT_S}` };
      // Only the first page can be left out: the others are then as they were.
      if (known && !first) headers["If-None-Match"] = known;
      const { status, header, body } = await this.ask("GET", path, () => ({ headers }));
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
   * `body` gives the body of each attempt: it says when it was sent. A repeated attempt leaves the fence out:
   * the first may have been answered, and have given the lock back. `divisible`: after an attempt that took too long
   * the caller sends less, instead of the same again.
   */
  async synchronise(key: string, fence: string | null, divisible: boolean, body: () => Json): Promise<Answered> {
    const answer = await this.read<Answered>("POST", "/synchronise", (failed) => {
      const headers: { [name: string]: string } = { Prefer: `wait=${LOCK_WAIT_S}`, "Idempotency-Key": key };
      if (fence && failed === 0) headers["Sync-Lock"] = fence;
      return { headers, body: body() };
    }, { divisible });
    if (!Number.isSafeInteger(answer.version)) throw garbled("POST /synchronise");
    return answer;
  }

  async changes(since: number | null, next?: string): Promise<Changes> {
    const query = next !== undefined ? `?next=${encodeURIComponent(next)}` : since !== null ? `?since=${since}` : "";
    const page = await this.read<Changes>("GET", `/changes${query}`);
    if (!Number.isSafeInteger(page.version)) throw garbled("GET /changes");
    return page;
  }

  /** Whether it works does not matter: leases end by themselves. */
  async giveLockBack(): Promise<void> {
    if (!this.holding) return;
    try {
      const headers = (await this.wire.identity()) ?? {};
      await send(this.wire, "DELETE", "/lock", await this.wire.token(null), { headers }, undefined);
    } catch {
      // then it ends with its lease
    }
  }
}

const garbled = (call: string) => new RollcallError("garbled", `the server's answer to ${call} cannot be read`);

/** The query of a `Link` to the next page: the server does not know under which path a proxy shows it. */
export function nextQuery(link: string | null): string | null {
  for (const part of link?.split(", <") ?? []) {
    const found = /^<?[^>?]*\?([^>]*)>.*rel="next"/.exec(part);
    if (found) return found[1]!;
  }
  return null;
}
