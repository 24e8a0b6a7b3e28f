/** Instants: ms since 1970, and the two formats of the wire. */

const FORMAT = /^(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(Z|[+-]\d\d:?\d\d)?$/i;

/** Reads RFC 3339 in any zone, or `YYYY-MM-DD HH:MM:SS`, which is UTC. Null if it is neither. */
export function parseTime(text: unknown): number | null {
  const found = typeof text === "string" ? FORMAT.exec(text) : null;
  if (!found) return null;
  const [year, month, day, hour, minute, second] = found.slice(1, 7).map(Number) as [number, number, number, number, number, number];
  const at = new Date(0);
  at.setUTCFullYear(year, month - 1, day); // Date.UTC reads the years 0 to 99 as 1900 to 1999
  at.setUTCHours(hour, minute, second, Number(((found[7] ?? "") + "000").slice(0, 3)));
  if (at.getUTCMonth() !== month - 1 || hour > 23 || minute > 59 || second > 60) return null;
  const zone = (found[8] ?? "Z").replace(":", "");
  if (/^z$/i.test(zone)) return at.getTime();
  const offset = Number(zone.slice(1, 3)) * 60 + Number(zone.slice(3));
  return at.getTime() - (zone[0] === "-" ? -offset : offset) * 60_000;
}

export type Precision = "seconds" | "milliseconds";

/** `2013-05-01T15:42:50.343Z`, or `2013-05-01 15:42:50`. */
export function formatTime(ms: number, precision: Precision = "milliseconds"): string {
  const text = new Date(ms).toISOString();
  return precision === "seconds" ? text.slice(0, 19).replace("T", " ") : text;
}
