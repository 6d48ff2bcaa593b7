// `npm run demo`: the main job on the real dump in fixtures/, in a temporary folder and without privilege.
// Prints each command as one would type it, and what it says; fails when any of them does not do its part.
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';

const top = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-demo-'));
const env = { ...process.env, PATH: `${path.join(top, 'dist')}:${process.env.PATH}` };
const [bold, faint, plain] =
  process.stdout.isTTY && !process.env.NO_COLOR ? ['\x1b[1m', '\x1b[2m', '\x1b[0m'] : ['', '', ''];

/** Runs a command line of the shell; `status` is the exit code it must have. */
function run(why, command, status = 0) {
  if (why !== '') process.stdout.write(`\n${faint}# ${why}${plain}\n`);
  process.stdout.write(`${bold}$ ${command}${plain}\n`);
  const done = spawnSync('sh', ['-c', command], { cwd: folder, env, encoding: 'utf8' });
  process.stdout.write(done.stdout + done.stderr);
  if (done.status !== status) throw new Error(`exit code ${done.status}, expected ${status}: ${command}`);
  return done.stdout;
}

try {
  fs.cpSync(path.join(top, 'fixtures/flowd'), path.join(folder, 'dump'), { recursive: true });
  run('What did CRIU dump of this process?', 'bpfimg show dump --map cfg --limit 4');
  run(
    'Its map data to JSON and back: the same image, byte for byte.',
    'bpfimg decode dump/bpfmap-data.img | bpfimg encode | cmp - dump/bpfmap-data.img && echo same',
  );
  run(
    'Let rule 2 deny: 616c6c6f77 is "allow", 64656e7920 is "deny ".',
    'bpfimg decode dump/bpfmap-data.img -o data.json',
  );
  run('', `sed -i '/"key":"02000000"/ s/616c6c6f77/64656e7920/' data.json`);
  run('Back to an image, as CRIU would have written it.', 'bpfimg encode data.json -o data.img');
  run('What is different now? That item, and nothing else.', 'bpfimg show dump/bpfmap-data.img --limit 0 >before.txt');
  run('', 'bpfimg show data.img --limit 0 >after.txt');
  const found = run('', 'diff before.txt after.txt', 1);
  if (found.match(/^[<>]/gm)?.length !== 2 || !found.includes('deny'))
    throw new Error('diff: expected one changed item');
} finally {
  fs.rmSync(folder, { recursive: true, force: true });
}
