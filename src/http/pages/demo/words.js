// Describes an exchange of the wire inspector in one line.

import { counted } from '../shared/format.js';

const rowsIn = (set) =>
  Object.values(set ?? {}).reduce((all, rows) => all + (Array.isArray(rows) ? rows.length : 0), 0);

/** `1 added, 2 updated`, from an object of counts. */
const listed = (counts) =>
  Object.entries(counts)
    .filter(([, count]) => count > 0)
    .map(([name, count]) => `${count} ${name}`)
    .join(', ');

function verdicts({ add, update, delete: deleted }) {
  const counts = {};
  for (const set of [add, update, deleted]) {
    for (const { verdict } of Object.values(set ?? {}).flat()) counts[verdict] = (counts[verdict] ?? 0) + 1;
  }
  return listed(counts);
}

function conflictsIn({ add, update, delete: deleted }) {
  return [add, update, deleted].flatMap((set) => Object.values(set ?? {}).flat()).filter(({ conflict }) => conflict).length;
}

function changesIn({ type, add, update, delete: deleted }) {
  const rows = rowsIn(add) + rowsIn(update);
  const deletions = rowsIn(deleted);
  if (type === 'full') return `all ${counted(rows, 'row')}`;
  return [rows ? `${counted(rows, 'row')} changed` : null, deletions ? `${deletions} deleted` : null].filter(Boolean).join(', ') || 'no changes';
}

const pathOf = (path) => path.split('?')[0].replace('.json', '');

/** What a request does. */
function requestWords({ method, path, requestBody: body }) {
  const call = pathOf(path);
  if (call === '/synchronise') {
    const sent = listed({ new: rowsIn(body?.add), edited: rowsIn(body?.update), deleted: rowsIn(body?.delete) });
    const rows = rowsIn(body?.get);
    const pull = body?.pull ? (body.base ? `pulls the changes since ${body.base}` : 'pulls the changes') : null;
    return [sent ? `sends ${sent}` : null, rows ? `requests ${counted(rows, 'row')}` : null, pull].filter(Boolean).join(', ') || 'ends the sync';
  }
  if (call === '/fetch') return 'fetches the manifest, and takes the lock';
  if (call === '/changes') return path.includes('since=') ? 'fetches the changes' : 'fetches all rows';
  if (call === '/lock') return { POST: 'takes the lock', DELETE: 'releases the lock' }[method] ?? 'reads the lock';
  if (call === '/digests') return 'fetches the digests';
  if (call === '/login') return 'logs in';
  if (call === '/events') return 'follows the events';
  if (call.endsWith('/restore')) return 'restores a losing row';
  if (call === '/owners') return method === 'POST' ? 'makes an owner' : 'lists the user’s owners';
  if (call.endsWith('/invitations')) return 'makes an invitation';
  if (call.includes('/members')) return method === 'DELETE' ? 'takes a member out' : 'lists the members';
  return '';
}

/** What a response contains. */
function responseWords({ path, status, body }) {
  if (status === 423) return `wait: ${body?.holder ?? 'another device'} has the lock`;
  if (status === 304) return 'nothing changed';
  if (status >= 400) return body?.detail ?? body?.code ?? 'refused';
  const call = pathOf(path);
  if (call === '/synchronise') {
    const conflicts = body ? conflictsIn(body) : 0;
    const parts = [
      body ? verdicts(body) : '',
      conflicts ? counted(conflicts, 'conflict') : '',
      body?.changes ? changesIn(body.changes) : '',
      body?.version ? `version ${body.version}` : '',
    ];
    return parts.filter(Boolean).join(', ');
  }
  if (call === '/changes' && body) return `${changesIn(body)}, version ${body.version}`;
  if (call === '/fetch' && body) return `${counted(rowsIn(body), 'row')} in the manifest`;
  if (call.endsWith('/restore')) return body?.verdict ?? 'done';
  return '';
}

/** One line for an exchange. */
export function summary(exchange) {
  if (exchange.kind === 'event') return eventWords(exchange);
  const unanswered = { sent: '…', failed: exchange.error ?? 'no response' }[exchange.phase];
  return [requestWords(exchange), unanswered ?? responseWords(exchange)].filter(Boolean).join(' → ');
}

function eventWords({ name, data }) {
  try {
    const { version, held, device } = JSON.parse(data);
    if (name === 'version') return `the server is at version ${version}`;
    if (name === 'lock') return held ? `${device ?? 'a device'} has the lock` : 'the lock is free';
  } catch {
    // Without readable data only the name is shown.
  }
  return `the server sent ${name}`;
}
