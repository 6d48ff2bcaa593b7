/** Help for the terminal. */
import type { Command } from './command.js';
import { exitRows, type Page, PURPOSE, pageOf, type Row } from './page.js';

/** The text about one command, for lines of at most `width` columns. */
export function commandHelp(command: Command, width: number): string {
  const page: Page = pageOf(command);
  const terms = page.groups.flatMap(([, rows]) => rows).concat(page.words);
  const column = columnOf(terms, width);
  const rows = (list: readonly Row[]) => list.map((row) => rowText(row, column, width)).join('\n');
  const parts = [
    filled(`bpfimg ${page.name}: ${page.summary}`, width),
    filled(`Usage: bpfimg ${page.synopsis}`, width, 7),
    rows(page.words),
    ...page.groups.map(([title, list]) => `${title}:\n${rows(list)}`),
    page.notes === undefined ? '' : filled(page.notes, width),
    `Examples:\n${page.examples.map(([line, what]) => exampleText(line, what, width)).join('\n')}`,
    exitText(page.exits, width),
  ];
  return `${parts.filter((part) => part !== '').join('\n\n')}\n`;
}

/** The text about all commands, or those of a group such as `criu`. */
export function overview(commands: readonly Command[], group: string | undefined, width: number): string {
  const rows = commands.map(({ name, summary }): Row => [name, summary]);
  const column = columnOf(rows, width);
  const program = group === undefined ? 'bpfimg' : `bpfimg ${group}`;
  const parts = [
    group === undefined ? filled(`bpfimg: ${PURPOSE}; capture and replay live maps`, width) : '',
    `Usage: ${program} COMMAND [OPTIONS]`,
    rows.map((row) => rowText(row, column, width)).join('\n'),
    filled(
      `${program.replace('bpfimg', 'bpfimg help')} COMMAND explains a command and has examples; so does man bpfimg-COMMAND. ` +
        'bpfimg --version prints the version.',
      width,
    ),
    exitText(exitRows(), width),
  ];
  return `${parts.filter((part) => part !== '').join('\n\n')}\n`;
}

/** Where meanings begin: after most terms, but not beyond a third of the line. */
function columnOf(rows: readonly Row[], width: number): number {
  const most = Math.max(20, Math.floor(width / 3));
  const fitting = rows.map(([term]) => term.length + 4).filter((length) => length <= most);
  return Math.max(8, ...fitting);
}

function rowText([term, meaning]: Row, column: number, width: number): string {
  const text = filled(meaning, width, column, column);
  const head = `  ${term}`;
  return head.length + 2 <= column ? head.padEnd(column) + text.trimStart() : `${head}\n${text}`;
}

function exampleText(line: string, meaning: string, width: number): string {
  const command = `  bpfimg ${line}`;
  const beside = `${command.padEnd(44)}  # ${meaning}`;
  return beside.length <= width ? beside : `${filled(`# ${meaning}`, width, 2, 2)}\n${command}`;
}

function exitText(exits: readonly Row[], width: number): string {
  return filled(`Exit codes: ${exits.map(([code, meaning]) => `${code} ${meaning}`).join(', ')}`, width, 12);
}

/** Text in lines of at most `width` columns. Lines after the first begin at `indent`, the first at `start`. */
function filled(text: string, width: number, indent = 0, start = 0): string {
  const lines = [' '.repeat(start)];
  for (const word of text.split(' ')) {
    const line = lines.at(-1) as string;
    const bare = line.trim() === '';
    if (!bare && line.length + 1 + word.length > width) lines.push(' '.repeat(indent) + word);
    else lines[lines.length - 1] = bare ? line + word : `${line} ${word}`;
  }
  return lines.join('\n');
}
