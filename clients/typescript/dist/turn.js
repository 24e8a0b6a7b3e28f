import { RollcallError } from "./error.js";
import { Held } from "./held.js";
import { newKey } from "./key.js";
const LEASE_MS = 15000;
const POLL_MS = 100;
const queues = { turn: new WeakMap(), login: new WeakMap() };
export const pause = (ms, signal) => new Promise((resolve, reject) => {
    const stop = () => {
        clearTimeout(timer);
        reject(new RollcallError("aborted", "the sync was cancelled"));
    };
    const timer = setTimeout(() => {
        signal?.removeEventListener("abort", stop);
        resolve();
    }, ms);
    if (signal?.aborted)
        stop();
    else
        signal?.addEventListener("abort", stop, { once: true });
});
export const webLocks = (store) => store.shared === "tabs" ? globalThis.navigator?.locks : undefined;
export async function inTurn(store, signal, work, kind = "turn") {
    const locks = webLocks(store);
    if (locks) {
        let began = false;
        const options = signal ? { signal } : {};
        const turn = locks.request(`rollcall ${store.name}${kind === "turn" ? "" : ` ${kind}`}`, options, () => ((began = true), work()));
        return turn.catch((error) => {
            if (began || !signal?.aborted)
                throw error;
            throw new RollcallError("aborted", "the sync was cancelled");
        });
    }
    const last = queues[kind].get(store) ?? Promise.resolve();
    const turn = last.then(() => (store.shared === "nobody" ? work() : underLease(store, signal, work, kind)));
    queues[kind].set(store, turn.catch(() => { }));
    return turn;
}
async function underLease(store, signal, work, kind) {
    const holder = newKey();
    const write = (change) => Held.write(store, new Map(), change).then(([result]) => result);
    const take = () => write(async (held) => {
        const known = await held.recall(kind);
        if (known && known.holder !== holder && known.until > Date.now())
            return false;
        await held.remember(kind, { holder, until: Date.now() + LEASE_MS });
        return true;
    });
    while (!(await take()))
        await pause(POLL_MS, signal);
    const renewal = setInterval(() => void take().catch(() => { }), LEASE_MS / 3);
    try {
        return await work();
    }
    finally {
        clearInterval(renewal);
        await write(async (held) => {
            if ((await held.recall(kind))?.holder === holder)
                await held.remember(kind, undefined);
        });
    }
}
export function openChannel(store, onTables) {
    if (store.shared !== "tabs" || typeof BroadcastChannel === "undefined")
        return { notify: () => { }, close: () => { } };
    const channel = new BroadcastChannel(`rollcall ${store.name}`);
    channel.onmessage = ({ data }) => onTables(data);
    return { notify: (tables) => channel.postMessage(tables), close: () => channel.close() };
}
