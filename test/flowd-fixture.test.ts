/** fixtures/rebuild.sh makes the dump of fixtures/flowd, as far as a dump can be made again. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { TOP } from './helpers/command.js';
import { skipWithoutCriu } from './helpers/criu.js';
import { dumpImages } from './helpers/fixtures.js';

const skip = await skipWithoutCriu();

t.test('the same images and maps', { skip }, async (t) => {
  const folder = path.join(t.testdir(), 'flowd');
  // It ends with a diff of the two.
  const { status, stderr } = spawnSync(path.join(TOP, 'fixtures/rebuild.sh'), [folder], { encoding: 'utf8' });
  t.equal(status, 0, stderr);
  const kinds = (names: readonly string[]) => [...new Set(names.map((name) => name.replace(/-\d+/, '-N')))].sort();
  t.same(kinds(fs.readdirSync(folder)), kinds(dumpImages));
});
