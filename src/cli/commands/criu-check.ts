import { checkTree, type HeldObject, type Outcome, type TreeCheck } from '../../criu/check.js';
import { type CriuHost, inspectCriu } from '../../criu/criu-program.js';
import { BpfimgError, EXIT, oneLine } from '../../errors.js';
import { openSys, type Sys } from '../../kernel/sys.js';
import { mapFlagNames } from '../../maptype.js';
import { type Colours, colours, nameText, plural, sizeText, table } from '../../render.js';
import { version } from '../../version.js';
import type { Command, Given } from '../command.js';
import { coloured, type Io } from '../io.js';
import { json as jsonOption, string } from '../options.js';
import { mapTypes } from '../plugins.js';
import { unseenText } from '../unseen.js';
import { printLines, written } from '../written.js';

const takes = {
  words: { pid: { type: 'string', demandOption: true, describe: 'the process to check' } },
  options: {
    criu: { ...string, value: 'FILE', group: 'Source', describe: 'the CRIU program, if it is not in PATH' },
    json: jsonOption,
  },
} as const;

/** What yargs makes of the command line. */
export type CriuCheckArguments = Given<typeof takes>;

export const command: Command = {
  name: 'criu check',
  summary: 'check whether CRIU can dump this process and its descendants',
  ...takes,
  examples: [
    ['criu check 4711', 'what a dump would do with each BPF object of a process'],
    ['criu check 4711 --criu /opt/criu/sbin/criu', 'with a CRIU that is not in PATH'],
    ['criu check 4711 --json', 'for scripts'],
  ],
  exits: { 0: 'a dump will work', 1: 'something blocks it' },
  run,
};

/**
 * @param sys the kernel; tests have their own
 * @param etc folder of CRIU's configuration files; tests have their own
 */
export async function run(args: CriuCheckArguments, io: Io, sys?: Sys, etc?: string): Promise<number> {
  const { criu: program } = args;
  const pid = /^\d{1,10}$/.test(args.pid) ? Number(args.pid) : 0;
  if (pid < 1 || pid > 0x7fff_ffff)
    throw new BpfimgError('usage', 'expected a process id', { subject: `criu check ${args.pid}` });
  const host = inspectCriu({ env: io.env, program, version, ...(etc === undefined ? {} : { etc }) });
  const types = await mapTypes(host.config.libdir, io);
  const check = await checkTree(sys ?? (await openSys(types)), pid, types, host);
  const unseen = unseenText({ ...check.unseen, types: 0 });
  if (unseen !== '') io.say(`bpfimg: ${unseen}`);
  await written(undefined, io, async (out) => {
    if (args.json) {
      out.text(json(check, host));
      return;
    }
    const look = colours(coloured(io, args.color));
    printLines(out, lines(check, host, look));
  });
  return check.dumps ? EXIT.ok : EXIT.failed;
}

function outcomeText(outcome: Outcome): string {
  return outcome.kind === 'full' ? outcome.kind : `${outcome.kind}: ${outcome.why}`;
}

// ---------------------------------------------------------------------------------------------------
// JSON

/** One line per process. */
function json({ pid, dumps, processes, blocked, blocks, warnings }: TreeCheck, host: CriuHost): string {
  const rows = processes.map(({ pid, parent, command, objects }) => {
    return `\n  ${JSON.stringify({ pid, parent: parent ?? null, command, objects: objects.map(members) })}`;
  });
  const { plugin, folder, others, config, configFile } = host;
  const criu = {
    program: host.program ?? null,
    version: host.version ?? null,
    libbpf: host.libbpf ?? null,
    libdir: folder === undefined ? null : { path: folder.path, from: folder.from },
    plugin: plugin ?? null,
    other_plugins: others,
    config: configFile,
    take_over: config.takeOver,
  };
  const rest = { criu, blocks: [...blocked, ...blocks], warnings };
  return `{"pid":${pid},"dumps":${dumps},"processes":[${rows.join(',')}],\n${JSON.stringify(rest).slice(1, -1)}}\n`;
}

function members(object: HeldObject): Record<string, unknown> {
  const { kind, fds, access, id, name, type, map, innerOf, mapping, candidates, outcome } = object;
  return {
    object: kind,
    fds,
    ...(access === undefined ? {} : { access }),
    ...(id === undefined ? {} : { id }),
    ...(name === undefined ? {} : { name }),
    ...(type === undefined ? {} : { type }),
    ...(map === undefined
      ? {}
      : {
          key_size: map.keySize ?? null,
          value_size: map.valueSize ?? null,
          max_entries: map.maxEntries ?? null,
          map_flags: map.flags === undefined ? null : mapFlagNames(map.flags),
          memlock: map.memlock ?? null,
          pins: map.pins,
        }),
    ...(innerOf === undefined ? {} : { inner_of: innerOf }),
    ...(mapping === undefined
      ? {}
      : {
          access: mapping.access,
          address: `0x${mapping.start.toString(16)}`,
          length: Number(mapping.end - mapping.start),
          offset: Number(mapping.offset),
          maps: candidates,
        }),
    report: outcomeText(outcome),
  };
}

// ---------------------------------------------------------------------------------------------------
// Text

const COLUMNS = [
  { title: 'FD' },
  { title: 'OBJECT' },
  { title: 'NAME' },
  { title: 'TYPE' },
  { title: 'KEY', right: true },
  { title: 'VALUE', right: true },
  { title: 'MAX', right: true },
  { title: 'MODE' },
  { title: 'REPORT' },
];

function* lines(check: TreeCheck, host: CriuHost, look: Colours): Generator<string> {
  const { processes, blocked, blocks, warnings, otherFiles } = check;
  for (const { pid, parent, command, objects } of processes) {
    if (objects.length === 0) continue;
    const child = parent === undefined ? '' : `, child of ${parent}`;
    yield look.bold(`process ${pid} (${nameText(command)})${child}`);
    yield* table(COLUMNS, objects.map(cells), look);
    yield '';
  }
  const without = processes.filter(({ objects }) => objects.length === 0);
  if (without.length > 0) {
    const names = without.map(({ pid, command }) => `${pid} (${nameText(command)})`);
    yield `without BPF objects: ${names.join(', ')}`;
    yield '';
  }
  yield* hostLines(host, look);
  yield '';
  for (const line of blocks) yield `${look.red('blocked:')} ${oneLine(line)}`;
  for (const line of warnings) yield `${look.yellow('warning:')} ${oneLine(line)}`;
  if (blocks.length + warnings.length > 0) yield '';
  yield verdict(blocked.length + blocks.length, warnings.length, otherFiles, look);
}

function verdict(blocks: number, warnings: number, otherFiles: number, look: Colours): string {
  if (blocks > 0)
    return look.red(`it will not dump: ${plural(blocks, 'line')} above ${blocks === 1 ? 'says' : 'say'} why`);
  if (otherFiles > 0) {
    return look.yellow('nothing of BPF blocks a dump, but CRIU may refuse other files: see the warnings');
  }
  return look.green(`it will dump${warnings === 0 ? '' : `, with ${plural(warnings, 'warning')}`}`);
}

function cells(object: HeldObject): string[] {
  const { kind, fds, access, id, name = '', type = '', map, innerOf = [], mapping, candidates = [] } = object;
  const size = (value: number | undefined) => (value === undefined ? '' : String(value));
  const report = oneLine(outcomeText(object.outcome));
  if (mapping !== undefined) {
    const of = candidates.length === 0 ? 'of a closed fd' : `of map ${candidates.join(' or ')}`;
    const where = `0x${mapping.start.toString(16)} ${sizeText(Number(mapping.end - mapping.start))}`;
    return ['', kind, where, of, '', '', '', mapping.access, report];
  }
  return [
    fds.length > 0 ? fds.join(',') : `in ${innerOf.join(',')}`,
    id === undefined ? kind : `${kind} ${id}`,
    nameText(name),
    type,
    size(map?.keySize),
    size(map?.valueSize),
    size(map?.maxEntries),
    access ?? '',
    report,
  ];
}

function* hostLines(host: CriuHost, look: Colours): Generator<string> {
  const { program, version: release, libbpf, folder, plugin, others, config, configFile } = host;
  const built = libbpf === undefined ? '' : libbpf ? ', built with libbpf' : ', built without libbpf';
  const rows: [string, string][] = [
    ['CRIU', program === undefined ? 'none' : `${program} ${release ?? ''}${built}`],
    ['plugins', folder === undefined ? 'unknown' : `${folder.path} (${folder.from})`],
    ['ours', plugin === undefined ? 'none' : `${plugin.path} ${plugin.version}, runs ${plugin.node} ${plugin.bpfimg}`],
    ['others', others.length === 0 ? 'none' : others.join(' ')],
    ['settings', `${configFile}${config.takeOver ? ': take-over yes' : ''}`],
  ];
  for (const [title, text] of rows) yield `${look.bold(title.padEnd(9))}${oneLine(text)}`;
}
