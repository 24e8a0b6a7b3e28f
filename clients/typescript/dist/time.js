const FORMAT = /^(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(Z|[+-]\d\d:?\d\d)?$/i;
export function parseTime(text) {
    const found = typeof text === "string" ? FORMAT.exec(text) : null;
    if (!found)
        return null;
    const [year, month, day, hour, minute, second] = found.slice(1, 7).map(Number);
    const at = new Date(0);
    at.setUTCFullYear(year, month - 1, day);
    at.setUTCHours(hour, minute, second, Number(((found[7] ?? "") + "000").slice(0, 3)));
    if (at.getUTCMonth() !== month - 1 || hour > 23 || minute > 59 || second > 60)
        return null;
    const zone = (found[8] ?? "Z").replace(":", "");
    if (/^z$/i.test(zone))
        return at.getTime();
    const offset = Number(zone.slice(1, 3)) * 60 + Number(zone.slice(3));
    return at.getTime() - (zone[0] === "-" ? -offset : offset) * 60000;
}
export function formatTime(ms, precision = "milliseconds") {
    const text = new Date(ms).toISOString();
    return precision === "seconds" ? text.slice(0, 19).replace("T", " ") : text;
}
