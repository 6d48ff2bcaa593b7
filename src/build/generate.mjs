// Makes src/image/schema.gen.ts from images/: the messages as plain tables and as types, and the kinds of image, so
// that neither protobufjs nor the .proto text is needed (or paid for at start-up) when bpfimg runs.
import * as fs from 'node:fs';
import { createRequire } from 'node:module';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import Ajv_ from 'ajv';
import standalone_ from 'ajv/dist/standalone/index.js';
import protobuf from 'protobufjs';

const Ajv = Ajv_.default ?? Ajv_;
const standalone = standalone_.default ?? standalone_;

const top = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const images = path.join(top, 'images');

const root = new protobuf.Root();
root.resolvePath = (_origin, target) =>
  target.startsWith('google/')
    ? path.join(path.dirname(createRequire(import.meta.url).resolve('protobufjs/package.json')), target)
    : path.join(images, path.basename(target));
const files = fs
  .readdirSync(images)
  .filter((name) => name.endsWith('.proto') && name !== 'opts.proto')
  .sort();
root.loadSync(files, { keepCase: true });
root.resolveAll();

const messages = {};
const enums = {};
for (const item of root.nestedArray) {
  if (item instanceof protobuf.Type) {
    if (item.name === 'CRIU_Opts') continue;
    messages[item.name] = item.fieldsArray
      .map((field) => {
        const shown = {};
        for (const [key, value] of Object.entries(field.options ?? {})) {
          const match = /^\(criu\)\.(\w+)$/.exec(key);
          if (match) shown[match[1]] = value;
        }
        const of = field.resolvedType;
        const row = {
          no: field.id,
          name: field.name,
          type: of ? (of instanceof protobuf.Enum ? 'enum' : 'message') : field.type,
          label: field.repeated ? 'repeated' : field.required ? 'required' : 'optional',
        };
        if (of) row.of = of.name;
        if (field.repeated && field.packed) row.packed = true;
        if (Object.keys(shown).length > 0) row.show = shown;
        return row;
      })
      .sort((a, b) => a.no - b.no);
  } else if (item instanceof protobuf.Enum) {
    enums[item.name] = item.values;
  }
}

/** Writes a file only when it changes, so that builds stay quick. */
function write(file, text) {
  const target = path.join(top, file);
  fs.mkdirSync(path.dirname(target), { recursive: true });
  if (!fs.existsSync(target) || fs.readFileSync(target, 'utf8') !== text) fs.writeFileSync(target, text);
}

const kinds = JSON.parse(fs.readFileSync(path.join(images, 'kinds.json'), 'utf8'));

/** `bpfmap_data_entry` as a type: `BpfmapDataEntry`. */
const typeName = (message) => message.replaceAll(/(?:^|_)(.)/g, (_, letter) => letter.toUpperCase());

/** How a decoded field looks in TypeScript. */
function fieldType({ type, of }) {
  if (type === 'message') return typeName(of);
  // A value that has no name in the enum is a number.
  if (type === 'enum') return 'string | number';
  if (type === 'bool') return 'boolean';
  if (type === 'string' || type === 'bytes') return 'string';
  return type.endsWith('64') ? 'number | bigint' : 'number';
}

function messageType([name, fields]) {
  const members = fields.map((field) => {
    const type = fieldType(field);
    const shown = field.label !== 'repeated' ? type : type.includes(' ') ? `(${type})[]` : `${type}[]`;
    return `  ${field.name}${field.label === 'required' ? '' : '?'}: ${shown};\n`;
  });
  // See src/image/wire.ts.
  return `export type ${typeName(name)} = {\n${members.join('')}  $raw?: string;\n};\n`;
}

/** A field as the call that makes it: `required(1, 'id', 'uint32')`. */
function fieldCall({ no, name, type, label, ...more }) {
  const rest = Object.keys(more).length === 0 ? '' : `, ${JSON.stringify(more)}`;
  return `${label}(${no}, '${name}', '${type}'${rest})`;
}

write(
  'src/image/schema.gen.ts',
  `// Made from images/ by src/build/generate.mjs. Do not edit.
import type { MessageField } from './message.js';
import type { KindRow } from './kinds.js';

const field =
  (label: MessageField['label']) =>
  (no: number, name: string, type: string, more?: Pick<MessageField, 'of' | 'packed' | 'show'>): MessageField => ({
    no,
    name,
    type,
    label,
    ...more,
  });
const [required, optional, repeated] = [field('required'), field('optional'), field('repeated')];

${Object.entries(messages).map(messageType).join('\n')}
/** The message of an entry of each kind of image. */
export interface KindMessages {
${kinds.decoded.map(({ name, message }) => `  ${name}: ${typeName(message)};\n`).join('')}}

export const kinds: Readonly<Record<keyof KindMessages, KindRow>> = {
${kinds.decoded.map(({ name, magic, ...row }) => `  ${name}: ${JSON.stringify({ magic: Number(magic), ...row })},\n`).join('')}};

export const otherKinds = (): readonly { readonly name: string; readonly magic: number; readonly crit?: false }[] => [
${kinds.others.map((row) => `  ${JSON.stringify({ ...row, magic: Number(row.magic) })},\n`).join('')}];

// Functions, because a command needs few of them.
export const messages: Readonly<Record<string, () => readonly MessageField[]>> = {
${Object.entries(messages)
  .map(([name, fields]) => `  ${name}: () => [\n${fields.map((field) => `    ${fieldCall(field)},\n`).join('')}  ],\n`)
  .join('')}};

export const enums: Readonly<Record<string, () => Readonly<Record<string, number>>>> = {
${Object.entries(enums)
  .map(([name, values]) => `  ${name}: () => (${JSON.stringify(values)}),\n`)
  .join('')}};
`,
);

// ---------------------------------------------------------------------------------------------------
// JSON Schema of the messages, in the forms crit's JSON has (plain and --pretty).

const INTEGERS = {
  uint32: [0, 0xffffffff],
  fixed32: [0, 0xffffffff],
  int32: [-0x80000000, 0x7fffffff],
  sint32: [-0x80000000, 0x7fffffff],
  uint64: [0, 2 ** 64],
  fixed64: [0, 2 ** 64],
};

function valueSchema(field) {
  if (field.type === 'message') return { $ref: `#/$defs/${field.of}` };
  if (field.type === 'bool') return { type: 'boolean' };
  if (field.type === 'string') {
    const path = field.show?.conv === 'path';
    return path
      ? { type: 'string', description: 'UTF-8; other bytes, and a backslash, are \\xNN' }
      : { type: 'string' };
  }
  if (field.type === 'bytes') {
    return { type: 'string', description: field.show?.conv === 'unix_name' ? 'quoted-printable' : 'base64' };
  }
  if (field.type === 'enum') {
    return {
      type: ['string', 'integer'],
      description: `one of ${Object.keys(enums[field.of]).join(', ')}, or a number`,
    };
  }
  const [minimum, maximum] = INTEGERS[field.type];
  return { type: ['integer', 'string'], minimum, maximum };
}

function messageSchema(fields, more = {}) {
  const properties = {};
  for (const field of fields) {
    const value = valueSchema(field);
    properties[field.name] = field.label === 'repeated' ? { type: 'array', items: value } : value;
  }
  Object.assign(properties, more, { $raw: { $ref: '#/$defs/raw' } });
  const required = fields.filter((field) => field.label === 'required').map((field) => field.name);
  return { type: 'object', properties, required, additionalProperties: false };
}

const critDefs = {
  raw: {
    type: 'string',
    pattern: '^(?:[0-9a-fA-F][0-9a-fA-F])*$',
    description: 'the bytes of the message in hex, where the other members alone would not rebuild them',
  },
};
for (const [name, fields] of Object.entries(messages)) critDefs[name] = messageSchema(fields);
for (const { message, extra } of kinds.decoded) {
  if (extra) {
    critDefs[`${message}_with_extra`] = messageSchema(messages[message], {
      extra: { type: 'string', description: 'what follows the message, in base64; line ends are allowed' },
    });
  }
}
const DIALECT = 'http://json-schema.org/draft-07/schema#';
const head = { enum: ['none', 'common', 'service'], description: 'head of the file, where it is not the usual one' };
const crit = {
  $schema: DIALECT,
  $id: 'crit.schema.json',
  title: 'A CRIU image as crit prints it',
  description: 'Made from images/*.proto. Integers may also be text: decimal, 0x hex, or the names --pretty shows.',
  oneOf: kinds.decoded.map(({ name, message, extra }) => ({
    type: 'object',
    properties: {
      magic: { const: name },
      head,
      entries: { type: 'array', items: { $ref: `#/$defs/${message}${extra ? '_with_extra' : ''}` } },
    },
    required: ['magic', 'entries'],
    additionalProperties: false,
  })),
  $defs: critDefs,
};
write('docs/schema/crit.schema.json', `${JSON.stringify(crit, null, 2)}\n`);

// ---------------------------------------------------------------------------------------------------
// Validators: ajv compiles the schemas here, so that nothing is compiled when bpfimg starts.

const ajv = new Ajv({
  code: { source: true, esm: true, optimize: 2 },
  inlineRefs: false,
  allowUnionTypes: true,
  strict: true,
});
const read = (name) => JSON.parse(fs.readFileSync(path.join(top, 'docs/schema', name), 'utf8'));
ajv.addSchema(crit);
for (const name of ['items', 'ndjson', 'maps']) ajv.addSchema(read(`${name}.schema.json`));
const entryMessages = [...new Set(kinds.decoded.map(({ message }) => message))];
const validators = {
  ...Object.fromEntries(entryMessages.map((message) => [message, `crit.schema.json#/$defs/${message}`])),
  items_header: 'items.schema.json#/$defs/header',
  map_header: 'maps.schema.json#/$defs/header',
  item_types: 'maps.schema.json#/$defs/types',
  btf_object: 'maps.schema.json#/$defs/btf_object',
};
// A module for each, for a command needs few of them.
const made = '// Made from docs/schema/*.json by src/build/generate.mjs. Do not edit.\n';
for (const [name, schema] of Object.entries(validators)) {
  write(`src/json/validators/${name}.gen.ts`, `${made}// @ts-nocheck\n${standalone(ajv, ajv.getSchema(schema))}\n`);
}
const loaders = Object.keys(validators).map((name) => `  ${name}: () => import('./validators/${name}.gen.js'),\n`);
write('src/json/validators.gen.ts', `${made}export const validators = {\n${loaders.join('')}};\n`);

// ---------------------------------------------------------------------------------------------------
// What `bpfimg completion` prints.

const scripts = Object.fromEntries(
  ['bash', 'zsh', 'fish'].map((shell) => [
    shell,
    fs.readFileSync(path.join(top, `src/cli/completion/bpfimg.${shell}`), 'utf8'),
  ]),
);
const from = '// Made from src/cli/completion by src/build/generate.mjs. Do not edit.\n';
write('src/cli/completion.gen.ts', `${from}export const SCRIPTS = ${JSON.stringify(scripts, null, 2)} as const;\n`);
