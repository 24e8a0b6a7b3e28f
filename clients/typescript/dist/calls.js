import { lockPauseMs, pauseMs } from "./decide.js";
import { RollcallError } from "./error.js";
import { boundTo, named } from "./identity.js";
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
const readJson = (text) => {
    try {
        return text ? JSON.parse(text) : undefined;
    }
    catch {
        return undefined;
    }
};
const hidden = (body) => {
    if (!body || typeof body !== "object" || Array.isArray(body))
        return body;
    const secret = ["password", "token", "seed"].filter((name) => name in body);
    return secret.length ? { ...body, ...Object.fromEntries(secret.map((name) => [name, "…"])) } : body;
};
export async function send(wire, method, path, token, { headers = {}, body }, signal, stream = false) {
    const id = ++requests;
    const text = body === undefined ? undefined : JSON.stringify(body);
    const said = { ...headers, ...(text === undefined ? {} : { "Content-Type": "application/json" }) };
    const traffic = { id, method, path, requestHeaders: said, requestBody: hidden(body), bytesSent: wire.listening() ? bytes(text) : 0 };
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
        const answer = await wire.fetch(wire.url + path, {
            method,
            headers: token === null ? said : { ...said, Authorization: `Bearer ${token}` },
            signal: control.signal,
            cache: "no-store",
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
            const told = {};
            answer.headers.forEach((value, name) => (told[name] = value));
            const parsed = hidden(readJson(came));
            wire.traffic({ ...traffic, phase: "answered", status: answer.status, headers: told, body: parsed, bytesReceived: bytes(came), ms: Date.now() - began });
        }
        const { status, headers: answerHeaders, ok } = answer;
        return { status, ok, headers: answerHeaders, text: async () => came };
    }
    catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        wire.traffic({ ...traffic, phase: "failed", error: why, ms: Date.now() - began });
        if (signal?.aborted)
            throw new RollcallError("aborted", "the sync was cancelled");
        wire.online(false);
        if (late)
            throw new TimedOut("offline", `the server did not answer within ${wire.patience.requestMaxMs} ms`);
        throw new (Date.now() - began > SLOW_MS ? TimedOut : RollcallError)("offline", `the server cannot be reached: ${why}`);
    }
    finally {
        clearTimeout(timer);
        if (!stream)
            signal?.removeEventListener("abort", abort);
    }
}
export function problemOf(status, header, body) {
    const said = (body && typeof body === "object" && !Array.isArray(body) ? body : {});
    const after = Number(header("retry-after") ?? NaN);
    const code = said.code ?? "unknown";
    const detail = said.detail ?? `HTTP ${status}`;
    const problem = { ...said, status, code, detail, ...(said.retry_after_s === undefined && after >= 0 ? { retry_after_s: after } : {}) };
    return new RollcallError(code, `the server refused (${status} ${code}): ${detail}`, problem);
}
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
    async ask(method, path, make = () => ({}), manner = {}) {
        const { patience } = this.wire;
        let [failed, waited, renewed] = [0, 0, false];
        for (;;) {
            if (this.signal?.aborted)
                throw new RollcallError("aborted", "the sync was cancelled");
            const mine = manner.open || manner.unbound ? {} : await this.identity();
            let problem;
            const began = Date.now();
            let token = null;
            try {
                token = manner.open ? null : (manner.token ?? (await this.wire.token(null)));
                if (!manner.open && token === null)
                    throw new RollcallError("not_logged_in", "this device has no token: log in first");
                const asked = make(failed);
                this.requests++;
                const answer = await send(this.wire, method, path, token, { ...asked, headers: { ...asked.headers, ...mine } }, this.signal);
                const header = (name) => answer.headers.get(name);
                const made = named(mine, header);
                if (made)
                    await this.wire.adopt(mine, made);
                const body = readJson(await answer.text());
                if (answer.status < 400) {
                    const epoch = header("sync-epoch");
                    if (epoch !== null)
                        this.epoch = Number(epoch);
                    return { status: answer.status, header, body };
                }
                problem = problemOf(answer.status, header, body);
            }
            catch (error) {
                if (!(error instanceof RollcallError) || error.code !== "offline")
                    throw error;
                problem = error;
            }
            if (manner.divisible && tookTooLong(problem))
                throw problem;
            let pause = null;
            const after = problem.problem?.retry_after_s ?? null;
            const status = problem.status;
            if (status === 401 && !manner.open && manner.token === undefined && !renewed) {
                renewed = true;
                if ((await this.wire.token(token)) === null)
                    throw problem;
                continue;
            }
            if (status === 423) {
                pause = lockPauseMs(waited, patience.lockWaitMaxMs, after, patience.random());
                if (pause === null)
                    throw problem;
                waited += pause + Date.now() - began;
                const { holder = null, until = null } = problem.problem;
                this.progress({ phase: "waiting", holder, until, ms: pause });
            }
            else if (status === undefined || RETRIED.includes(status)) {
                pause = pauseMs(++failed, patience.attemptsMax, after, patience.random());
                if (pause === null)
                    throw problem;
                this.progress({ phase: "retrying", attempt: failed, reason: problem.message, ms: pause });
            }
            else {
                throw problem;
            }
            this.repeats++;
            await patience.pause(pause, this.signal);
        }
    }
    async read(method, path, make, manner) {
        const { body } = await this.ask(method, path, make, manner);
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
            return me;
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
        await this.wire.bind(me, async () => (await this.read("GET", "/digests", () => ({ headers }), { unbound: true })).seed);
        return (await this.wire.identity()) ?? {};
    }
    digests() {
        return this.read("GET", "/digests");
    }
    async fetch(declared, known) {
        let path = `/fetch?tables=${declared.map(({ name }) => name).join(",")}`;
        const tables = new Map(declared.map(({ name }) => [name, new Map()]));
        let first;
        for (;;) {
            const headers = { Prefer: `wait=${LOCK_WAIT_S}` };
            if (known && !first)
                headers["If-None-Match"] = known;
            const { status, header, body } = await this.ask("GET", path, () => ({ headers }));
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
        const answer = await this.read("POST", "/synchronise", (failed) => {
            const headers = { Prefer: `wait=${LOCK_WAIT_S}`, "Idempotency-Key": key };
            if (fence && failed === 0)
                headers["Sync-Lock"] = fence;
            return { headers, body: body() };
        }, { divisible });
        if (!Number.isSafeInteger(answer.version))
            throw garbled("POST /synchronise");
        return answer;
    }
    async changes(since, next) {
        const query = next !== undefined ? `?next=${encodeURIComponent(next)}` : since !== null ? `?since=${since}` : "";
        const page = await this.read("GET", `/changes${query}`);
        if (!Number.isSafeInteger(page.version))
            throw garbled("GET /changes");
        return page;
    }
    async giveLockBack() {
        if (!this.holding)
            return;
        try {
            const headers = (await this.wire.identity()) ?? {};
            await send(this.wire, "DELETE", "/lock", await this.wire.token(null), { headers }, undefined);
        }
        catch {
        }
    }
}
const garbled = (call) => new RollcallError("garbled", `the server's answer to ${call} cannot be read`);
export function nextQuery(link) {
    for (const part of link?.split(", <") ?? []) {
        const found = /^<?[^>?]*\?([^>]*)>.*rel="next"/.exec(part);
        if (found)
            return found[1];
    }
    return null;
}
