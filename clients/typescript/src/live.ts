/** Syncs promptly: after edits, and when the server tells that others wrote (`GET /events`). */
import { Calls, problemOf, send, type Wire } from "./calls.js";
import { RollcallError } from "./error.js";
import { pause, webLocks } from "./turn.js";
import type { Json, LiveOptions, Status, Store } from "./types.js";

/** The server sends something every 15 s; whoever hears nothing for so long asks again, ms. */
const SILENCE_MAX_MS = 40_000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MAX_MS = 60_000;
/** Between a sync and the next try of a row that the server rejected for the time being, ms: a timer holds no more. */
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 2 ** 31 - 1;
/** What trying again does not mend. */
const FINAL = ["unauthorized", "forbidden", "not_logged_in", "other_user", "mass_delete", "aborted"];

/** What `live` needs of its client. */
export interface Lively {
  readonly store: Store;
  readonly wire: Wire;
  sync(): Promise<unknown>;
  /** Whether a sync would have anything to do, for a device that heard of this version. */
  behind(version: number | null): Promise<boolean>;
  /** In how many ms a rejected row may be sent once more; null: none. */
  retryAt(): Promise<number | null>;
  state(live: Status["live"]): void;
  lock(lock: Status["lock"]): void;
}

export class Live {
  private readonly control = new AbortController();
  private failed = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private running = false;
  /** Why to sync: the version that the server told of; null: whatever it holds. */
  private due: { version: number | null } | undefined;
  private readonly wake = () => this.poke(0);

  constructor(
    private readonly client: Lively,
    private readonly options: LiveOptions,
  ) {
    globalThis.addEventListener?.("online", this.wake);
    void this.listen();
    this.poke(0);
  }

  /** The user changed something here. */
  edited(): void {
    this.poke(this.options.debounceMs ?? 100);
  }

  stop(): void {
    this.control.abort();
    clearTimeout(this.timer);
    clearTimeout(this.retry);
    globalThis.removeEventListener?.("online", this.wake);
    this.client.state("off");
  }

  private get stopped(): boolean {
    return this.control.signal.aborted;
  }

  /** Syncs in `ms`; what is to be synced by then goes along. */
  private poke(ms: number, version: number | null = null): void {
    if (this.stopped) return;
    this.due = { version };
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.work(), ms);
  }

  private async work(): Promise<void> {
    if (this.running) return; // whoever runs looks at `due` again
    this.running = true;
    try {
      while (this.due && !this.stopped) {
        const { version } = this.due;
        this.due = undefined;
        if (version === null || (await this.client.behind(version))) await this.client.sync();
        this.failed = 0;
      }
      const ms = await this.client.retryAt();
      clearTimeout(this.retry);
      if (ms !== null && !this.stopped) this.retry = setTimeout(() => this.poke(0), Math.min(ms + RETRY_MIN_MS, RETRY_MAX_MS));
    } catch (error) {
      if (!(error instanceof RollcallError && FINAL.includes(error.code))) this.poke(this.backoff());
    } finally {
      this.running = false;
    }
  }

  private backoff(): number {
    const most = Math.min(BACKOFF_FIRST_MS * 2 ** this.failed++, BACKOFF_MAX_MS);
    return most / 2 + (this.client.wire.patience.random() * most) / 2;
  }

  /** Listens in one tab for all; the others wait until it closes. */
  private async listen(): Promise<void> {
    const { signal } = this.control;
    const locks = webLocks(this.client.store);
    try {
      if (!locks) return await this.follow();
      this.client.state("waiting");
      await locks.request(`rollcall ${this.client.store.name} live`, { signal }, () => this.follow());
    } catch {
      // stopped while it waited
    }
  }

  private async follow(): Promise<void> {
    const { signal } = this.control;
    let failed = 0;
    while (!this.stopped) {
      this.client.state("connecting");
      let heard = false;
      try {
        if (!(await this.stream(() => (heard = true)))) {
          this.client.state("polling");
          await pause(this.options.pollMs ?? 15_000, signal);
          this.poke(0);
          continue;
        }
      } catch {
        // asked again below
      }
      if (this.stopped) return;
      this.client.state("connecting");
      failed = heard ? 0 : failed + 1;
      const most = Math.min(BACKOFF_FIRST_MS * 2 ** failed, BACKOFF_MAX_MS);
      await pause(most / 2 + (this.client.wire.patience.random() * most) / 2, signal).catch(() => {});
    }
  }

  /** Follows the events until they end. False if they cannot be had here. */
  private async stream(heard: () => void): Promise<boolean> {
    const { wire } = this.client;
    const token = await wire.token(null);
    const control = new AbortController();
    const abort = () => control.abort();
    this.control.signal.addEventListener("abort", abort);
    let silence: ReturnType<typeof setTimeout> | undefined;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(abort, SILENCE_MAX_MS);
    };
    try {
      const mine = await new Calls(wire, control.signal, () => {}).identity();
      const headers = { Accept: "text/event-stream", ...mine };
      const answer = await send(wire, "GET", "/events", token, { headers }, control.signal, true);
      if (answer.status === 404 || (answer.ok && !answer.body)) return false; // an older server, or React Native
      if (!answer.ok) {
        if (answer.status === 401) await wire.token(token);
        throw problemOf(answer.status, (name) => answer.headers.get(name), undefined);
      }
      this.client.state("listening");
      this.poke(0); // what was written before the first event
      const reader = answer.body!.getReader();
      const decoder = new TextDecoder();
      let text = "";
      for (;;) {
        alive();
        const { done, value } = await reader.read();
        if (done) return true;
        text += decoder.decode(value, { stream: true });
        const events = text.split(/\r?\n\r?\n/);
        text = events.pop()!;
        for (const event of events) if (this.take(event)) heard();
      }
    } finally {
      clearTimeout(silence);
      abort();
      this.control.signal.removeEventListener("abort", abort);
    }
  }

  private take(event: string): boolean {
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
    if (type === "version" && typeof data["version"] === "number") this.poke(0, data["version"]);
    if (type === "lock") this.client.lock(data as unknown as Status["lock"]);
    return type !== "";
  }
}
