/** Python crit as a witness, where it is installed. */
import { execFileSync, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { enumOf, type MessageField } from '../../src/image/message.js';
import type { Choice } from './messages.js';
import { required } from './needs.js';

/** Where `tool` is on PATH. */
function which(tool: string): string | undefined {
  const folders = (process.env.PATH ?? '').split(path.delimiter);
  return folders.map((folder) => path.join(folder, tool)).find((file) => fs.existsSync(file));
}

/**
 * Why a test that needs `tool` should be skipped, or false when it should run. A tool named in
 * BPFIMG_REQUIRE (comma-separated) is not skipped: without it the test fails.
 */
export function skipWithout(tool: string): string | false {
  return which(tool) === undefined && !required(tool) ? `${tool} is not installed` : false;
}

/** What `crit decode`, or `crit show` (which is decode --pretty), prints for an image. */
export function crit(bytes: Uint8Array, command: 'decode' | 'show'): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-crit-'));
  try {
    const image = path.join(folder, 'x.img');
    fs.writeFileSync(image, bytes);
    const { status, stdout, stderr, error } = spawnSync(
      'crit',
      [command, ...(command === 'show' ? [] : ['-i']), image],
      { encoding: 'utf8', maxBuffer: 1 << 28 },
    );
    if (error) throw error;
    if (status !== 0) throw new Error(`crit ${command} ends with ${status}: ${stderr}`);
    return stdout;
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

interface Known {
  /** Magics that this crit decodes. */
  readonly kinds: readonly string[];
  /** Field numbers by message, value numbers by enum. */
  readonly messages: Readonly<Record<string, readonly number[]>>;
  readonly enums: Readonly<Record<string, readonly number[]>>;
}

const ASK = `
import json
from pycriu.images import images
messages, enums = {}, {}
def walk(message):
    if message.full_name in messages: return
    messages[message.full_name] = [field.number for field in message.fields]
    for field in message.fields:
        if field.message_type: walk(field.message_type)
        if field.enum_type: enums[field.enum_type.full_name] = [value.number for value in field.enum_type.values]
kinds = []
for kind, handler in images.handlers.items():
    if hasattr(handler, 'payload'):
        kinds.append(kind)
        walk(handler.payload.DESCRIPTOR)
print(json.dumps({'kinds': kinds, 'messages': messages, 'enums': enums}))
`;

/** What the installed crit knows: an old one drops fields of newer CRIU and stops at newer enum numbers. */
export function critKnows(): Choice & { readonly kinds: readonly string[] } {
  // Its own interpreter: another python3 may come before it in PATH, without crit's modules.
  const python = /^#!\s*(\S*python\S*)/.exec(fs.readFileSync(which('crit') ?? 'crit', 'utf8'))?.[1] ?? 'python3';
  const known = JSON.parse(execFileSync(python, ['-c', ASK], { encoding: 'utf8' })) as Known;
  return {
    kinds: known.kinds,
    fields: (message: string, field: MessageField) => known.messages[message]?.includes(field.no) === true,
    enums: (name) => known.enums[name] ?? Object.values(enumOf(name)),
    addresses: true,
  };
}
