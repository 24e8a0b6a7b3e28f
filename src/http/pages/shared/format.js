// Numbers and times for people.

const UNITS = ['B', 'KB', 'MB', 'GB', 'TB'];

/** Bytes, in the largest unit that leaves a whole number or one decimal. */
export function bytes(count) {
  if (!Number.isFinite(count)) return '–';
  let unit = 0;
  while (count >= 1000 && unit < UNITS.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${UNITS[unit]}`;
}

/** Milliseconds. */
export function ms(count) {
  if (!Number.isFinite(count)) return '–';
  if (count >= 1000) return `${(count / 1000).toFixed(1)} s`;
  return `${count < 10 ? count.toFixed(1) : Math.round(count)} ms`;
}

/** A count with its noun: `1 row`, `2,000 rows`. */
export function counted(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** A number with separators. */
export function number(count) {
  return Number.isFinite(count) ? count.toLocaleString('en') : '–';
}

/** The time of day of an instant in milliseconds. */
export function clock(at) {
  return new Date(at).toLocaleTimeString('en-GB');
}

/** How long ago an instant is, roughly. */
export function ago(at, now = Date.now()) {
  const seconds = Math.max(0, Math.round((now - at) / 1000));
  if (seconds < 2) return 'now';
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86_400)} days ago`;
}

/** The instant of a time in one of the server's formats: RFC 3339, or `2013-05-01 15:42:50` in UTC. */
export function instant(time) {
  return Date.parse(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/.test(time) ? `${time.replace(' ', 'T')}Z` : time);
}
