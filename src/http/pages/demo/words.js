// What passes over the wire, in a few words.

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
    for (const told of Object.values(set ?? {}).flat()) counts[told.verdict] = (counts[told.verdict] ?? 0) + 1;
  }
  return listed(counts);
}

function conflictsIn({ add, update, delete: deleted }) {
  return [add, update, deleted].flatMap((set) => Object.values(set ?? {}).flat()).filter((told) => told.conflict).length;
}

function news({ type, add, update, delete: deleted }) {
  const rows = rowsIn(add) + rowsIn(update);
  const gone = rowsIn(deleted);
  if (type === 'full') return `all ${counted(rows, 'row')}`;
  return [rows ? `${counted(rows, 'row')} changed` : null, gone ? `${gone} deleted` : null].filter(Boolean).join(', ') || 'no news';
}

/** What a request asks for. */
function asked({ method, path, requestBody: body }) {
  const place = path.split('?')[0].replace('.json', '');
  if (place === '/synchronise') {
    const sent = listed({ new: rowsIn(body?.add), edited: rowsIn(body?.update), deleted: rowsIn(body?.delete) });
    const wants = rowsIn(body?.get);
    const since = body?.pull ? (body.base ? `asks what changed since ${body.base}` : 'asks for news') : null;
    return [sent ? `sends ${sent}` : null, wants ? `asks for ${counted(wants, 'row')}` : null, since].filter(Boolean).join(', ') || 'ends the sync';
  }
  if (place === '/fetch') return 'calls the roll, and takes the lock';
  if (place === '/changes') return path.includes('since=') ? 'asks what changed' : 'asks for everything';
  if (place === '/lock') return { POST: 'takes the lock', DELETE: 'gives the lock back' }[method] ?? 'asks who has the lock';
  if (place === '/digests') return 'asks for the proof';
  if (place === '/login') return 'logs in';
  if (place === '/events') return 'listens for news';
  if (place.endsWith('/restore')) return 'brings a loser back';
  return '';
}

/** What an answer says. */
function answered({ path, status, body }) {
  if (status === 423) return `wait: ${body?.holder ?? 'another device'} has the lock`;
  if (status === 304) return 'nothing changed';
  if (status >= 400) return body?.detail ?? body?.code ?? 'refused';
  const place = path.split('?')[0].replace('.json', '');
  if (place === '/synchronise') {
    const conflicts = body ? conflictsIn(body) : 0;
    const parts = [
      body ? verdicts(body) : '',
      conflicts ? counted(conflicts, 'conflict') : '',
      body?.changes ? news(body.changes) : '',
      body?.version ? `version ${body.version}` : '',
    ];
    return parts.filter(Boolean).join(', ');
  }
  if (place === '/changes' && body) return `${news(body)}, version ${body.version}`;
  if (place === '/fetch' && body) return `${counted(rowsIn(body), 'row')} on the list`;
  if (place.endsWith('/restore')) return body?.verdict ?? 'done';
  return '';
}

/** One line for an exchange. */
export function summary(exchange) {
  if (exchange.kind === 'event') return eventWords(exchange);
  const question = asked(exchange);
  const open = { sent: '…', failed: exchange.error ?? 'no answer' }[exchange.phase];
  const answer = open ?? answered(exchange);
  return [question, answer].filter(Boolean).join(' → ');
}

function eventWords({ name, data }) {
  try {
    const told = JSON.parse(data);
    if (name === 'version') return `the server tells: version ${told.version}`;
    if (name === 'lock') return told.held ? `the server tells: ${told.device ?? 'a device'} has the lock` : 'the server tells: the lock is free';
  } catch {
    // Shown by its name alone.
  }
  return `the server tells: ${name}`;
}
