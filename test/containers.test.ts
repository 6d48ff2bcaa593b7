/**
 * The plugin in containers of runc, crun and podman, in a root folder of Debian 13. `npm run test:containers` runs all of
 * test/containers/cases.ts, other runs only a part.
 */
import { spawnSync } from 'node:child_process';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { TOP } from './helpers/command.js';
import { skipWithoutMaps } from './helpers/kernel-live.js';
import { patience, required } from './helpers/needs.js';

/** All of it may take this long, on a busy machine. */
const SECONDS = 900;

const all = process.env.BPFIMG_CONTAINERS === 'all';

/** The root folder, or why there is none. Where CRIU can be had, so can this. */
async function getRoot(): Promise<{ readonly root: string } | { readonly skip: string }> {
  const skip = await skipWithoutMaps();
  if (skip !== false) return { skip };
  const { status, stdout, stderr, error } = spawnSync(path.join(TOP, '.ci/containers'), ['--once'], {
    encoding: 'utf8',
  });
  if (status === 0) return { root: stdout.trim() };
  const why = error?.message ?? stderr.trim();
  if (all || required('criu')) throw new Error(why);
  return { skip: why };
}

const got = await getRoot();
if ('skip' in got) t.pass('containers', { skip: got.skip });
else {
  t.setTimeout(patience(SECONDS * 1000));
  const cases = fileURLToPath(new URL('./containers/cases.js', import.meta.url));
  const enter = path.join(TOP, 'test/containers/enter');
  const args = [got.root, process.execPath, process.execPath, cases, ...(all ? ['all'] : [])];
  await t.spawn(enter, args, { cwd: TOP, env: { ...process.env, TAP_TIMEOUT: `${SECONDS}` } }, 'containers');
}
