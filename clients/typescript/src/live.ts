/** Syncs promptly: after edits, and when the server reports writes of other devices (`GET /events`). */
import { about, Calls, problemOf, readJson, send, type Wire } from "./calls.js";
import { RollcallError } from "./error.js";
import { pause, webLocks } from "./turn.js";
import type { Json, LiveOptions, Status, Store } from "./types.js";

/** The server sends something every 15 s. After this time without data the client connects again, ms. */
const SILENCE_MAX_MS = 40_000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MAX_MS = 60_000;
/** The least pause before a temporarily rejected row is sent again, and the most that a timer can hold, ms. */
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 2 ** 31 - 1;
/** Errors that a retry does not solve. */
const FINAL = ["unauthorized", "forbidden", "not_logged_in", "not_a_member", "other_user", "mass_delete", "aborted"];

/** The events of one owner, and those of all owners of the user. */
export const EVENTS = "/events";
export const ALL_EVENTS = "/events?owner=all";

/** What `live` needs from its client. */
export interface LiveContext {
  readonly store: Store;
  readonly wire: Wire;
  /** The path of the events to follow; null if another `Live` follows them and calls `moved`. */
  readonly events: string | null;
  /** Handles an event. Without it, an event is about the rows and the lock of this client. */
  onEvent?(type: string, data: { readonly [member: string]: Json }): void;
  sync(): Promise<unknown>;
  /** Whether a sync has anything to do, if the server is at this version. */
  isBehind(version: number | null): Promise<boolean>;
  /** In how many ms a rejected row may be sent again; null: no row waits for that. */
  retryInMs(): Promise<number | null>;
  setState(live: Status["live"]): void;
  setLock(lock: Status["lock"]): void;
}

export class Live {
  private readonly control = new AbortController();
  private failed = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private running = false;
  /** Set while a sync is due: the version that the server reported; null: sync in any case. */
  private due: { version: number | null } | undefined;
  private readonly wake = () => this.schedule(0);

  constructor(
    private readonly client: LiveContext,
    private readonly options: LiveOptions,
  ) {
    globalThis.addEventListener?.("online", this.wake);
    if (client.events !== null) void this.listen(client.events);
    this.schedule(0);
  }

  /** Notes that the server is at this version; null: sync in any case. */
  moved(version: number | null): void {
    this.schedule(0, version);
  }

  /** Notes an edit of the user. */
  edited(): void {
    this.schedule(this.options.debounceMs ?? 100);
  }

  stop(): void {
    this.control.abort();
    clearTimeout(this.timer);
    clearTimeout(this.retry);
    globalThis.removeEventListener?.("online", this.wake);
    this.client.setState("off");
  }

  private get stopped(): boolean {
    return this.control.signal.aborted;
  }

  /** Syncs in `ms`. Replaces a sync that was scheduled before. */
  private schedule(ms: number, version: number | null = null): void {
    if (this.stopped) return;
    this.due = { version };
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.work(), ms);
  }

  private async work(): Promise<void> {
    if (this.running) return; // the running call checks `due` again
    this.running = true;
    try {
      while (this.due && !this.stopped) {
        const { version } = this.due;
        this.due = undefined;
        if (version === null || (await this.client.isBehind(version))) await this.client.sync();
        this.failed = 0;
      }
      const ms = await this.client.retryInMs();
      clearTimeout(this.retry);
      if (ms !== null && !this.stopped) this.retry = setTimeout(() => this.schedule(0), Math.min(ms + RETRY_MIN_MS, RETRY_MAX_MS));
    } catch (error) {
      if (!(error instanceof RollcallError && FINAL.includes(error.code))) this.schedule(this.backoff(this.failed++));
    } finally {
      this.running = false;
    }
  }

  /** The pause after that many failures: exponential backoff with jitter, ms. */
  private backoff(failed: number): number {
    const most = Math.min(BACKOFF_FIRST_MS * 2 ** failed, BACKOFF_MAX_MS);
    return most / 2 + (this.client.wire.patience.random() * most) / 2;
  }

  /** Follows the events in one tab for all; the other tabs wait until it closes. */
  private async listen(events: string): Promise<void> {
    const { signal } = this.control;
    const locks = webLocks(this.client.store);
    try {
      if (!locks) return await this.follow(events);
      this.client.setState("waiting");
      await locks.request(`rollcall ${this.client.store.name} live${events === EVENTS ? "" : ` ${events}`}`, { signal }, () => this.follow(events));
    } catch {
      // stopped while it waited
    }
  }

  private async follow(events: string): Promise<void> {
    const { signal } = this.control;
    let failed = 0;
    while (!this.stopped) {
      this.client.setState("connecting");
      let received = false;
      try {
        if (!(await this.stream(events, () => (received = true)))) {
          this.client.setState("polling");
          await pause(this.options.pollMs ?? 15_000, signal);
          this.schedule(0);
          continue;
        }
      } catch {
        // retried below
      }
      if (this.stopped) return;
      this.client.setState("connecting");
      failed = received ? 0 : failed + 1;
      await pause(this.backoff(failed), signal).catch(() => {});
    }
  }

  /** Follows the events until the stream ends. Returns false if this server or platform cannot stream them. */
  private async stream(path: string, onEvent: () => void): Promise<boolean> {
    const { wire } = this.client;
    const token = await wire.token(null);
    const control = new AbortController();
    const abort = () => control.abort();
    this.control.signal.addEventListener("abort", abort);
    let silence: ReturnType<typeof setTimeout> | undefined;
    const restartTimer = () => {
      clearTimeout(silence);
      silence = setTimeout(abort, SILENCE_MAX_MS);
    };
    try {
      const identity = await new Calls(wire, control.signal, () => {}).identity();
      const headers = { Accept: "text/event-stream", ...identity };
      const response = await send(wire, "GET", about(wire, path), token, { headers }, control.signal, true);
      // An older server, or React Native.
      if (response.status === 404 || (response.status === 400 && path !== EVENTS) || (response.ok && !response.body)) return false;
      if (!response.ok) {
        if (response.status === 401) await wire.token(token);
        const problem = problemOf(response.status, (name) => response.headers.get(name), readJson(await response.text()));
        if (problem.code === "not_a_member") this.schedule(0); // the sync notes it
        throw problem;
      }
      this.client.setState("listening");
      this.schedule(0); // other devices may have written before the first event
      const reader = response.body!.getReader();
      const decoder = new TextDecoder();
      let text = "";
      for (;;) {
        restartTimer();
        const { done, value } = await reader.read();
        if (done) return true;
        text += decoder.decode(value, { stream: true });
        const events = text.split(/\r?\n\r?\n/);
        text = events.pop()!;
        for (const event of events) if (this.handle(event)) onEvent();
      }
    } finally {
      clearTimeout(silence);
      abort();
      this.control.signal.removeEventListener("abort", abort);
    }
  }

  /** Handles an event. Returns false for what is no event, such as a comment. */
  private handle(event: string): boolean {
    const field = (name: string) =>
      event
        .split(/\r?\n/)
        .filter((line) => line.startsWith(`${name}:`))
        .map((line) => line.slice(name.length + 1).trim())
        .join("\n");
    let data: { [member: string]: Json } = {};
    try {
      data = JSON.parse(field("data") || "{}") as typeof data;
    } catch {
      return false;
    }
    const type = field("event");
    if (this.client.onEvent) {
      this.client.onEvent(type, data);
      return type !== "";
    }
    if (type === "version" && typeof data["version"] === "number") this.schedule(0, data["version"]);
    if (type === "lock") this.client.setLock(data as unknown as Status["lock"]);
    return type !== "";
  }
}
