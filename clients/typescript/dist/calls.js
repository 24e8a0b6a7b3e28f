import { lockPauseMs, pauseMs } from "./decide.js";
import { RollcallError } from "./error.js";
import { assignedInstallation, boundTo } from "./identity.js";
import { readKey } from "./key.js";
import { parseTime } from "./time.js";
class TimedOut extends RollcallError {
}
export const tookTooLong = (error) => error instanceof TimedOut ||
    (error instanceof RollcallError && (error.status === 408 || error.status === 504 || (error.status === 503 && error.code === "timeout")));
const OLDER_MS = 3600000;
const SLOW_MS = 10000;
const LOCK_WAIT_S = 10;
const RETRIED = [408, 429, 500, 502, 503, 504];
let requests = 0;
const bytes = (text) => (text ? new TextEncoder().encode(text).length : 0);
export const readJson = (text) => {
    try {
        return text ? JSON.parse(text) : undefined;
    }
    catch {
        return undefined;
    }
};
const redacted = (body) => {
    if (!body || typeof body !== "object" || Array.isArray(body))
        return body;
    const secret = ["password", "token", "seed"].filter((name) => name in body);
    return secret.length ? { ...body, ...Object.fromEntries(secret.map((name) => [name, "…"])) } : body;
};
export async function send(wire, method, path, token, { headers: given = {}, body }, signal, stream = false) {
    const id = ++requests;
    const text = body === undefined ? undefined : JSON.stringify(body);
    const headers = { ...given, ...(text === undefined ? {} : { "Content-Type": "application/json" }) };
    const traffic = { id, method, path, requestHeaders: headers, requestBody: redacted(body), bytesSent: wire.listening() ? bytes(text) : 0 };
    wire.traffic({ ...traffic, phase: "sent" });
    const began = Date.now();
    const control = new AbortController();
    const abort = () => control.abort();
    if (signal?.aborted)
        abort();
    signal?.addEventListener("abort", abort);
    let late = false;
    const timer = setTimeout(() => ((late = true), abort()), wire.patience.requestMaxMs);
    try {
        const response = await wire.fetch(wire.url + path, {
            method,
            headers: token === null ? headers : { ...headers, Authorization: `Bearer ${token}` },
            signal: control.signal,
            cache: "no-store",
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
            const headers = {};
            response.headers.forEach((value, name) => (headers[name] = value));
            const body = redacted(readJson(received));
            wire.traffic({ ...traffic, phase: "answered", status: response.status, headers, body, bytesReceived: bytes(received), ms: Date.now() - began });
        }
        return { status: response.status, ok: response.ok, headers: response.headers, text: async () => received };
    }
    catch (error) {
        const reason = error instanceof Error ? error.message : String(error);
        wire.traffic({ ...traffic, phase: "failed", error: reason, ms: Date.now() - began });
        if (signal?.aborted)
            throw new RollcallError("aborted", "the sync was cancelled");
        wire.online(false);
        if (late)
            throw new TimedOut("offline", `the server did not respond within ${wire.patience.requestMaxMs} ms`);
        throw new (Date.now() - began > SLOW_MS ? TimedOut : RollcallError)("offline", `the server cannot be reached: ${reason}`);
    }
    finally {
        clearTimeout(timer);
        if (!stream)
            signal?.removeEventListener("abort", abort);
    }
}
export function problemOf(status, header, body) {
    const received = (body && typeof body === "object" && !Array.isArray(body) ? body : {});
    const after = Number(header("retry-after") ?? NaN);
    const { code = "unknown", detail = `HTTP ${status}`, retry_after_s } = received;
    const problem = { ...received, status, code, detail, ...(retry_after_s === undefined && after >= 0 ? { retry_after_s: after } : {}) };
    return new RollcallError(code, `the server refused (${status} ${code}): ${detail}`, problem);
}
const catchOffline = (work) => work().catch((error) => {
    if (error instanceof RollcallError && error.code === "offline")
        return error;
    throw error;
});
export const about = ({ owner }, path) => owner === null || /[?&]owner=/.test(path) ? path : `${path}${path.includes("?") ? "&" : "?"}owner=${owner}`;
export class Calls {
    constructor(wire, signal, progress) {
        this.wire = wire;
        this.signal = signal;
        this.progress = progress;
        this.requests = 0;
        this.repeats = 0;
        this.epoch = null;
        this.holding = false;
    }
    async call(method, path, make = () => ({}), options = {}) {
        const { patience } = this.wire;
        let [failed, waited, renewed] = [0, 0, false];
        for (;;) {
            if (this.signal?.aborted)
                throw new RollcallError("aborted", "the sync was cancelled");
            const identity = options.open || options.unbound ? {} : await this.identity();
            const began = Date.now();
            let token = null;
            const result = await catchOffline(async () => {
                token = options.open ? null : (options.token ?? (await this.wire.token(null)));
                if (!options.open && token === null)
                    throw new RollcallError("not_logged_in", "this device has no token: log in first");
                return this.attempt(method, path, token, make(failed), identity);
            });
            if (!(result instanceof RollcallError))
                return result;
            if (options.divisible && tookTooLong(result))
                throw result;
            const { status } = result;
            if (status === 401 && !options.open && options.token === undefined && !renewed) {
                renewed = true;
                if ((await this.wire.token(token)) === null)
                    throw result;
                continue;
            }
            const after = result.problem?.retry_after_s ?? null;
            let pause;
            if (status === 423) {
                pause = lockPauseMs(waited, patience.lockWaitMaxMs, after, patience.random());
                if (pause === null)
                    throw result;
                waited += pause + Date.now() - began;
                const { holder = null, until = null } = result.problem;
                this.progress({ phase: "waiting", holder, until, ms: pause });
            }
            else if (status === undefined || RETRIED.includes(status)) {
                pause = pauseMs(++failed, patience.attemptsMax, after, patience.random());
                if (pause === null)
                    throw result;
                this.progress({ phase: "retrying", attempt: failed, reason: result.message, ms: pause });
            }
            else {
                throw result;
            }
            this.repeats++;
            await patience.pause(pause, this.signal);
        }
    }
    async attempt(method, path, token, content, identity) {
        this.requests++;
        const headers = { ...content.headers, ...identity };
        const response = await send(this.wire, method, path, token, { ...content, headers }, this.signal);
        const header = (name) => response.headers.get(name);
        const assigned = assignedInstallation(identity, header);
        if (assigned)
            await this.wire.adopt(identity, assigned);
        const body = readJson(await response.text());
        if (response.status >= 400)
            return problemOf(response.status, header, body);
        const epoch = header("sync-epoch");
        if (epoch !== null)
            this.epoch = Number(epoch);
        return { status: response.status, header, body };
    }
    async read(method, path, make, options) {
        const { body } = await this.call(method, path, make, options);
        if (!body || typeof body !== "object")
            throw garbled(`${method} ${path}`);
        return body;
    }
    limits() {
        return this.read("GET", "/limits", undefined, { open: true });
    }
    async me(token) {
        try {
            const me = await this.read("GET", "/me", undefined, { unbound: true, ...(token === undefined ? {} : { token }) });
            if (typeof me.user !== "string" || typeof me.owner !== "string")
                throw garbled("GET /me");
            return { user: me.user, owner: this.wire.owner ?? me.owner };
        }
        catch (error) {
            if (error instanceof RollcallError && (error.status === 404 || error.status === 405))
                return null;
            throw error;
        }
    }
    async identity() {
        const known = await this.wire.identity();
        if (known || Date.now() < this.wire.olderUntil)
            return known ?? {};
        const me = await this.me();
        if (!me) {
            this.wire.olderUntil = Date.now() + OLDER_MS;
            return {};
        }
        const headers = { "Sync-For": boundTo(me) };
        await this.wire.bind(me, async () => (await this.read("GET", about(this.wire, "/digests"), () => ({ headers }), { unbound: true })).seed);
        return (await this.wire.identity()) ?? {};
    }
    digests() {
        return this.read("GET", about(this.wire, "/digests"));
    }
    async fetch(declared, known) {
        let path = `/fetch?tables=${declared.map(({ name }) => name).join(",")}`;
        const tables = new Map(declared.map(({ name }) => [name, new Map()]));
        let first;
        for (;;) {
            const headers = { Prefer: `wait=${LOCK_WAIT_S}` };
            if (known && !first)
                headers["If-None-Match"] = known;
            const { status, header, body } = await this.call("GET", about(this.wire, path), () => ({ headers }));
            this.holding = true;
            const version = Number(header("sync-version") ?? NaN);
            if (!Number.isSafeInteger(version))
                throw garbled("GET /fetch");
            first ?? (first = { tables: null, version, fence: header("sync-lock"), etag: header("etag") });
            if (status === 304)
                return first;
            for (const { name, key } of declared) {
                for (const entry of (body ?? {})[name] ?? []) {
                    const [id, at] = [readKey(entry[key]), parseTime(entry["last_update"])];
                    if (id === null || at === null)
                        throw garbled("GET /fetch");
                    tables.get(name).set(id, at);
                }
            }
            const query = nextQuery(header("link"));
            if (!query)
                return { ...first, tables };
            path = `/fetch?${query}`;
        }
    }
    async synchronise(key, fence, divisible, body) {
        const response = await this.read("POST", about(this.wire, "/synchronise"), (failed) => {
            const headers = { Prefer: `wait=${LOCK_WAIT_S}`, "Idempotency-Key": key };
            if (fence && failed === 0)
                headers["Sync-Lock"] = fence;
            return { headers, body: body() };
        }, { divisible });
        if (!Number.isSafeInteger(response.version))
            throw garbled("POST /synchronise");
        return response;
    }
    async changes(since, next) {
        const query = next !== undefined ? `?next=${encodeURIComponent(next)}` : since !== null ? `?since=${since}` : "";
        const page = await this.read("GET", about(this.wire, `/changes${query}`));
        if (!Number.isSafeInteger(page.version))
            throw garbled("GET /changes");
        return page;
    }
    async releaseLock() {
        if (!this.holding)
            return;
        try {
            const headers = (await this.wire.identity()) ?? {};
            await send(this.wire, "DELETE", about(this.wire, "/lock"), await this.wire.token(null), { headers }, undefined);
        }
        catch {
        }
    }
}
const garbled = (call) => new RollcallError("garbled", `the server's response to ${call} cannot be read`);
export function nextQuery(link) {
    for (const part of link?.split(", <") ?? []) {
        const found = /^<?[^>?]*\?([^>]*)>.*rel="next"/.exec(part);
        if (found)
            return found[1];
    }
    return null;
}
