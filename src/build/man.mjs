// Makes the man pages, bpfimg.1 and one for each command, from the tables that help is made from.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { COMMANDS, GROUPS } from '../../build/src/cli/commands.js';
import { EXITS, PURPOSE, pageOf } from '../../build/src/cli/page.js';

const pageName = (command) => `bpfimg-${command.replaceAll(' ', '-')}`;

/** Text as roff prints it: no character is a request or an escape, and what people copy is plain ASCII. */
function roff(text) {
  const special = { '\\': '\\e', '-': '\\-', "'": '\\(aq', '"': '\\(dq', '^': '\\(ha', '~': '\\(ti', '`': '\\(ga' };
  const plain = text.replace(/[\\\-'"^~`]/g, (char) => special[char]);
  const ascii = plain.replace(/[^\x20-\x7e]/gu, (char) =>
    char === '…' ? '...' : `\\[u${char.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}]`,
  );
  return ascii.replace(/^\./, '\\&.');
}

const bold = (text) => `\\fB${roff(text)}\\fR`;

/** A term in bold, its values and brackets in italics and roman: `-o, --out FILE`. */
function term(text) {
  const parts = text.trim().split(/([A-Z][A-Z_=:]*(?:[.]{3}|…)?)/);
  return parts.map((part, i) => (part === '' ? '' : i % 2 ? `\\fI${roff(part)}\\fR` : bold(part))).join('');
}

const entries = (rows) => rows.flatMap(([name, meaning]) => ['.TP', term(name), roff(meaning)]);
const example = ([line, meaning]) => [
  `${roff(sentence(meaning))}:`,
  '.PP',
  '.RS 4',
  '.nf',
  bold(`bpfimg ${line}`),
  '.fi',
  '.RE',
  '.PP',
];
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const exitStatus = (rows) => ['.SH EXIT STATUS', ...entries(rows)];

/** Sections of others' pages. */
const SECTION = { criu: 8, bpftool: 8 };

function seeAlso(names) {
  const list = names.map((name) => `.BR ${roff(name)} (${SECTION[name] ?? 1})`);
  return ['.SH SEE ALSO', list.join(',\n')];
}

function head(name, summary, version, date) {
  return [
    `.TH ${roff(name.toUpperCase())} 1 ${date} "bpfimg ${version}" "bpfimg"`,
    '.\\" Made by src/build/man.mjs from the tables of the commands.',
    '.SH NAME',
    `${roff(name)} \\- ${roff(summary)}`,
  ];
}

function commandPage(page, see, version, date) {
  const { name, summary, synopsis, words, groups, notes, examples, exits } = page;
  return [
    ...head(pageName(name), summary, version, date),
    '.SH SYNOPSIS',
    `${bold(`bpfimg ${name}`)}${roff(synopsis.slice(name.length))}`,
    '.SH DESCRIPTION',
    ...[`${sentence(summary)}.`, ...(notes === undefined ? [] : [notes])]
      .flatMap((text) => ['.PP', roff(text)])
      .slice(1),
    ...entries(words),
    '.SH OPTIONS',
    ...groups.flatMap(([title, rows]) => [`.SS ${title}`, ...entries(rows)]),
    ...(examples.length === 0 ? [] : ['.SH EXAMPLES', ...examples.flatMap(example).slice(0, -1)]),
    ...exitStatus(exits),
    ...seeAlso(see),
  ];
}

function mainPage(pages, version, date) {
  return [
    ...head('bpfimg', PURPOSE, version, date),
    '.SH SYNOPSIS',
    `${bold('bpfimg')} ${roff('COMMAND [OPTIONS]')}`,
    '.br',
    `${bold('bpfimg help')} ${roff('[COMMAND]')}`,
    '.SH DESCRIPTION',
    roff('CRIU keeps the BPF maps of processes in image files.'),
    roff('bpfimg turns these into JSON and back, shows, checks and compares them,'),
    roff('and captures and replays live maps.'),
    roff('Every command reads dump folders, images, archives, JSON documents and live maps.'),
    '.SH COMMANDS',
    ...pages.flatMap(({ name, summary }) => ['.TP', bold(name), `${roff(sentence(summary))}.`]),
    ...exitStatus(Object.entries(EXITS)),
    ...seeAlso([...pages.map(({ name }) => pageName(name)), 'criu', 'bpftool']),
  ];
}

/** Writes the pages into `folder`; returns their names. */
export async function writeManPages(folder, version, date) {
  const pages = [];
  for (const load of Object.values(COMMANDS)) pages.push(pageOf((await load()).command));
  const group = (name) => Object.keys(GROUPS).find((one) => name.startsWith(`${one} `));
  const siblings = (name) =>
    pages.filter((other) => other.name !== name && group(name) !== undefined && group(other.name) === group(name));
  const texts = { bpfimg: mainPage(pages, version, date) };
  for (const page of pages) {
    const see = ['bpfimg', ...siblings(page.name).map(({ name }) => pageName(name))];
    texts[pageName(page.name)] = commandPage(page, see, version, date);
  }
  fs.mkdirSync(folder);
  for (const [name, lines] of Object.entries(texts))
    fs.writeFileSync(path.join(folder, `${name}.1`), `${lines.join('\n')}\n`);
  return Object.keys(texts).map((name) => `${name}.1`);
}
