export const NO_STATE = 0;
const DROP = { local: null, contents: "mine" };
const of = (local, contents = "mine") => ({ local, contents });
export const unsure = (held) => ({ state: "clean", at: null, base: held, editedAt: null });
export const putBackOf = (held, at) => ({
    ...{ state: at === null ? "added" : "edited", at, base: held, editedAt: null },
});
export const isPutBack = ({ state, editedAt }) => (state === "added" || state === "edited") && editedAt === null;
export const heldOf = (local) => (isPutBack(local) ? local.base : (local.at ?? local.base));
export const clean = (at) => ({ state: "clean", at, base: null, editedAt: null });
export const goesWhole = (local) => local.state !== "edited" || local.at === null || isPutBack(local);
export const past = (known, now) => known && (known.epoch !== now.epoch || now.version < known.version) ? "earlier" : "same";
export function compare(theirs, mine, epoch, complete) {
    const plan = { add: [], update: [], delete: [], put_back: [], get: [], drop: [], note: [] };
    const send = (key, known, { local }) => {
        if (!local)
            return plan.drop.push(key);
        if (!same(local, known))
            plan.note.push([key, local]);
        if (isPutBack(local))
            return plan.put_back.push(key);
        if (local.state === "added")
            return plan.add.push(key);
        return local.state === "deleted" ? plan.delete.push(key) : plan.update.push(key);
    };
    for (const key of [...theirs.keys()].sort()) {
        const at = theirs.get(key);
        const local = mine.get(key);
        if (!local)
            plan.get.push(key);
        else if (isUsers(local))
            send(key, local, apply(local, at, epoch));
        else {
            const held = heldOf(local);
            if (held !== null && held > at)
                send(key, local, of(putBackOf(held, at)));
            else if (epoch === "earlier" || !same(local, clean(at))) {
                if (held === at && epoch === "earlier")
                    plan.note.push([key, unsure(held)]);
                plan.get.push(key);
            }
        }
    }
    if (complete) {
        for (const key of [...mine.keys()].sort())
            if (!theirs.has(key))
                send(key, mine.get(key), absent(mine.get(key), epoch));
    }
    plan.put_back.sort();
    return plan;
}
const same = (a, b) => a.state === b.state && a.at === b.at && a.base === b.base && a.editedAt === b.editedAt;
const isUsers = (local) => local.state !== "clean" && !isPutBack(local);
export function absent(local, epoch) {
    if (isPutBack(local) || (local.state === "clean" && epoch === "earlier"))
        return of(putBackOf(heldOf(local), null));
    return local.state === "clean" || local.state === "deleted" ? DROP : of({ ...local, at: null });
}
export function apply(local, at, epoch) {
    if (!local || !isUsers(local)) {
        if (at === null)
            return DROP;
        const held = local && heldOf(local);
        const mayBeLost = local !== null && (epoch === "earlier" || isPutBack(local));
        return mayBeLost && held !== null && held > at ? of(putBackOf(held, at)) : of(clean(at), "theirs");
    }
    if (local.state === "deleted" && at === null)
        return DROP;
    if (local.state === "added")
        return of({ ...local, at, state: "edited", base: local.base ?? NO_STATE });
    const doubtful = epoch === "earlier" || local.at === null;
    if (doubtful && local.state === "edited" && local.base === at)
        return of({ ...local, at: null });
    return of({ ...local, at });
}
export function applyVerdict(local, sent, { at, row, verdict }) {
    const deleted = local.state === "deleted";
    const settled = (base) => sent.editedSince
        ? of({ ...local, state: deleted ? "deleted" : "edited", at, base }, row ? "mine_over_theirs" : "mine")
        : of(clean(at), row ? "theirs" : "mine");
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
                return of(unsure(at));
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
            return deleted ? DROP : of({ ...local, state: "added", at: null, base: isPutBack(local) ? local.base : null });
        default:
            return of(local);
    }
}
export function retryWhen(code, timed) {
    if (timed)
        return "later";
    return code === "reference_missing" || code === "still_referenced" ? "with_others" : "edited";
}
export function cursorAfter(cursor, event) {
    if (event === "expired" || event === "compared")
        return null;
    if ("pushed" in event)
        return event.pushed.complete ? event.pushed.version : cursor;
    return event.page.more ? cursor : event.page.version;
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
    const least = retryAfterS * 1000;
    return least > RETRY_AFTER_MAX_MS ? null : least + Math.floor(random * SPREAD_MS);
}
export function lockPauseMs(waitedMs, waitMaxMs, retryAfterS, random) {
    const pause = Math.min((retryAfterS ?? 1) * 1000, RETRY_AFTER_MAX_MS) + Math.floor(random * SPREAD_MS);
    return waitedMs + pause <= waitMaxMs ? pause : null;
}
export { applyVerdict as obey, retryWhen as again };
