// Starts rollcall in a folder of its own, on a free port.
import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';

const PROGRAM = resolve(process.env.ROLLCALL ?? '../../target/debug/rollcall');

/** The wedding planner's tables. */
export const SCHEMA = resolve(process.env.SCHEMA ?? '../../fixtures/wedding/schema.toml');

/** Runs `rollcall` with these arguments until `stop()`. `url` is its address. */
export async function start(args, environment = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'rollcall-pages-'));
  const child = spawn(PROGRAM, [...args, '--listen', '127.0.0.1:0'], {
    cwd: folder,
    env: { ...process.env, ...environment },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const url = await new Promise((resolve, reject) => {
    child.once('error', reject);
    ended.then((code) => reject(new Error(`rollcall ended with ${code} before it listened`)));
    createInterface({ input: child.stdout }).on('line', (line) => {
      const found = line.match(/^listening on (\S+)$/);
      if (found) resolve(found[1]);
    });
  });
  return {
    url,
    folder,
    async stop() {
      child.kill('SIGTERM');
      await ended;
      await rm(folder, { recursive: true, force: true });
    },
  };
}
