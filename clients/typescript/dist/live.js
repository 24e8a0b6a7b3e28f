import { about, Calls, problemOf, readJson, send } from "./calls.js";
import { RollcallError } from "./error.js";
import { pause, webLocks } from "./turn.js";
const SILENCE_MAX_MS = 40000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MAX_MS = 60000;
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 2 ** 31 - 1;
const FINAL = ["unauthorized", "forbidden", "not_logged_in", "not_a_member", "other_user", "mass_delete", "aborted"];
export const EVENTS = "/events";
export const ALL_EVENTS = "/events?owner=all";
export class Live {
    constructor(client, options) {
        this.client = client;
        this.options = options;
        this.control = new AbortController();
        this.failed = 0;
        this.running = false;
        this.wake = () => this.schedule(0);
        globalThis.addEventListener?.("online", this.wake);
        if (client.events !== null)
            void this.listen(client.events);
        this.schedule(0);
    }
    moved(version) {
        this.schedule(0, version);
    }
    edited() {
        this.schedule(this.options.debounceMs ?? 100);
    }
    stop() {
        this.control.abort();
        clearTimeout(this.timer);
        clearTimeout(this.retry);
        globalThis.removeEventListener?.("online", this.wake);
        this.client.setState("off");
    }
    get stopped() {
        return this.control.signal.aborted;
    }
    schedule(ms, version = null) {
        if (this.stopped)
            return;
        this.due = { version };
        clearTimeout(this.timer);
        this.timer = setTimeout(() => void this.work(), ms);
    }
    async work() {
        if (this.running)
            return;
        this.running = true;
        try {
            while (this.due && !this.stopped) {
                const { version } = this.due;
                this.due = undefined;
                if (version === null || (await this.client.isBehind(version)))
                    await this.client.sync();
                this.failed = 0;
            }
            const ms = await this.client.retryInMs();
            clearTimeout(this.retry);
            if (ms !== null && !this.stopped)
                this.retry = setTimeout(() => this.schedule(0), Math.min(ms + RETRY_MIN_MS, RETRY_MAX_MS));
        }
        catch (error) {
            if (!(error instanceof RollcallError && FINAL.includes(error.code)))
                this.schedule(this.backoff(this.failed++));
        }
        finally {
            this.running = false;
        }
    }
    backoff(failed) {
        const most = Math.min(BACKOFF_FIRST_MS * 2 ** failed, BACKOFF_MAX_MS);
        return most / 2 + (this.client.wire.patience.random() * most) / 2;
    }
    async listen(events) {
        const { signal } = this.control;
        const locks = webLocks(this.client.store);
        try {
            if (!locks)
                return await this.follow(events);
            this.client.setState("waiting");
            await locks.request(`rollcall ${this.client.store.name} live${events === EVENTS ? "" : ` ${events}`}`, { signal }, () => this.follow(events));
        }
        catch {
        }
    }
    async follow(events) {
        const { signal } = this.control;
        let failed = 0;
        while (!this.stopped) {
            this.client.setState("connecting");
            let received = false;
            try {
                if (!(await this.stream(events, () => (received = true)))) {
                    this.client.setState("polling");
                    await pause(this.options.pollMs ?? 15000, signal);
                    this.schedule(0);
                    continue;
                }
            }
            catch {
            }
            if (this.stopped)
                return;
            this.client.setState("connecting");
            failed = received ? 0 : failed + 1;
            await pause(this.backoff(failed), signal).catch(() => { });
        }
    }
    async stream(path, onEvent) {
        const { wire } = this.client;
        const token = await wire.token(null);
        const control = new AbortController();
        const abort = () => control.abort();
        this.control.signal.addEventListener("abort", abort);
        let silence;
        const restartTimer = () => {
            clearTimeout(silence);
            silence = setTimeout(abort, SILENCE_MAX_MS);
        };
        try {
            const identity = await new Calls(wire, control.signal, () => { }).identity();
            const headers = { Accept: "text/event-stream", ...identity };
            const response = await send(wire, "GET", about(wire, path), token, { headers }, control.signal, true);
            if (response.status === 404 || (response.status === 400 && path !== EVENTS) || (response.ok && !response.body))
                return false;
            if (!response.ok) {
                if (response.status === 401)
                    await wire.token(token);
                const problem = problemOf(response.status, (name) => response.headers.get(name), readJson(await response.text()));
                if (problem.code === "not_a_member")
                    this.schedule(0);
                throw problem;
            }
            this.client.setState("listening");
            this.schedule(0);
            const reader = response.body.getReader();
            const decoder = new TextDecoder();
            let text = "";
            for (;;) {
                restartTimer();
                const { done, value } = await reader.read();
                if (done)
                    return true;
                text += decoder.decode(value, { stream: true });
                const events = text.split(/\r?\n\r?\n/);
                text = events.pop();
                for (const event of events)
                    if (this.handle(event))
                        onEvent();
            }
        }
        finally {
            clearTimeout(silence);
            abort();
            this.control.signal.removeEventListener("abort", abort);
        }
    }
    handle(event) {
        const field = (name) => event
            .split(/\r?\n/)
            .filter((line) => line.startsWith(`${name}:`))
            .map((line) => line.slice(name.length + 1).trim())
            .join("\n");
        let data = {};
        try {
            data = JSON.parse(field("data") || "{}");
        }
        catch {
            return false;
        }
        const type = field("event");
        if (this.client.onEvent) {
            this.client.onEvent(type, data);
            return type !== "";
        }
        if (type === "version" && typeof data["version"] === "number")
            this.schedule(0, data["version"]);
        if (type === "lock")
            this.client.setLock(data);
        return type !== "";
    }
}
