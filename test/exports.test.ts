/** What the library's declarations mention, it exports: a program can name every type that it is given or asked for. */
import { execFileSync } from 'node:child_process';
import * as path from 'node:path';
import t from 'tap';
import { TOP } from './helpers/command.js';

t.test('every type that an exported declaration mentions is exported', async (t) => {
  const script = path.join(TOP, 'test/helpers/unexported.mjs');
  const missing = execFileSync(process.execPath, [script, path.join(TOP, 'build/src/index.d.ts')]);
  t.same(JSON.parse(String(missing)), {});
});
