export const NO_STATE = 0;
const DROP = { local: null, contents: "mine" };
const of = (local, contents = "mine") => ({ local, contents });
export const clean = (at) => ({ state: "clean", at, base: null, editedAt: null });
export const goesWhole = (local) => local.state !== "edited" || local.at === null;
export function compare(theirs, mine, epoch, complete) {
    const plan = { add: [], update: [], delete: [], get: [], drop: [], note: [] };
    const send = (key, known, { local }) => {
        if (!local)
            return plan.drop.push(key);
        if (!same(local, known))
            plan.note.push([key, local]);
        if (local.state === "added")
            return plan.add.push(key);
        return local.state === "deleted" ? plan.delete.push(key) : plan.update.push(key);
    };
    for (const key of [...theirs.keys()].sort()) {
        const at = theirs.get(key);
        const local = mine.get(key);
        if (!local)
            plan.get.push(key);
        else if (local.state !== "clean")
            send(key, local, apply(local, at, epoch));
        else if (local.at !== null && local.at > at)
            plan.update.push(key);
        else if (local.at !== at)
            plan.get.push(key);
        else if (epoch === "earlier") {
            plan.note.push([key, clean(null)]);
            plan.get.push(key);
        }
    }
    if (complete) {
        for (const key of [...mine.keys()].sort())
            if (!theirs.has(key))
                send(key, mine.get(key), absent(mine.get(key)));
    }
    return plan;
}
const same = (a, b) => a.state === b.state && a.at === b.at && a.base === b.base && a.editedAt === b.editedAt;
export function absent(local) {
    return local.state === "clean" || local.state === "deleted" ? DROP : of({ ...local, at: null });
}
export function apply(local, told, epoch) {
    if (!local || local.state === "clean")
        return told === null ? DROP : of(clean(told), "theirs");
    if (local.state === "deleted" && told === null)
        return DROP;
    if (local.state === "added")
        return of({ ...local, at: told, state: "edited", base: local.base ?? NO_STATE });
    const doubtful = epoch === "earlier" || local.at === null;
    if (doubtful && local.state === "edited" && local.base === told)
        return of({ ...local, at: null });
    return of({ ...local, at: told });
}
export function obey(local, sent, told) {
    const { at, row, verdict } = told;
    const deleted = local.state === "deleted";
    const settled = (base) => sent.editedSince
        ? of({ ...local, state: deleted ? "deleted" : "edited", at, base }, row ? "mine_over_theirs" : "mine")
        : of(clean(at), row ? "theirs" : "mine");
    if (verdict === "rejected" && local.state === "clean" && row)
        return of(clean(at), "theirs");
    if (verdict === "rejected")
        return of({ ...local, at: row ? at : null });
    if (verdict === "kept" && row)
        return settled(local.base ?? at);
    if (sent.operation === "delete") {
        if (verdict !== "deleted" && verdict !== "same" && verdict !== "gone" && verdict !== "absent")
            return of(local);
        return sent.editedSince ? of({ ...local, state: "added", at: null, base: at }) : DROP;
    }
    switch (verdict) {
        case "same":
            if (sent.operation === "add" && !row && !sent.complete && !sent.editedSince)
                return of(clean(null));
            return settled(at);
        case "added":
        case "updated":
        case "merged":
            return settled(at);
        case "gone":
            if (deleted || (sent.whole && !sent.editedSince))
                return DROP;
            return of({ ...local, state: "edited", at: null, base: local.base ?? NO_STATE });
        case "absent":
            return deleted ? DROP : of({ ...local, state: "added", at: null, base: null });
        default:
            return of(local);
    }
}
export function cursorAfter(cursor, heard) {
    if (heard === "expired" || heard === "compared")
        return null;
    if ("pushed" in heard)
        return heard.pushed.complete ? heard.pushed.version : cursor;
    return heard.page.more ? cursor : heard.page.version;
}
const PAUSE_FIRST_MS = 250;
const PAUSE_MAX_MS = 30000;
const RETRY_AFTER_MAX_MS = 60000;
const SPREAD_MS = 1000;
export function pauseMs(attempt, attemptsMax, retryAfterS, random) {
    if (attempt >= attemptsMax)
        return null;
    if (retryAfterS === null)
        return Math.floor(random * (Math.min(PAUSE_FIRST_MS * 2 ** attempt, PAUSE_MAX_MS) + 1));
    const asked = retryAfterS * 1000;
    return asked > RETRY_AFTER_MAX_MS ? null : asked + Math.floor(random * SPREAD_MS);
}
export function lockPauseMs(waitedMs, waitMaxMs, retryAfterS, random) {
    const pause = Math.min((retryAfterS ?? 1) * 1000, RETRY_AFTER_MAX_MS) + Math.floor(random * SPREAD_MS);
    return waitedMs + pause <= waitMaxMs ? pause : null;
}
