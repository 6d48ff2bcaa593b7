/** The map types a command knows: those of bpfimg's own plugins, and of those in `--libdir`. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { typeTable } from '../../plugins/index.js';
import { BpfimgError, errorText, ioError } from '../errors.js';
import { checkTrusted } from '../io/trusted.js';
import type { MapTypes, Plugin } from '../maptype.js';
import { toolkit } from '../toolkit.js';
import { importModule } from './import.js';
import type { Io } from './io.js';

/**
 * The map types of bpfimg and of the plugins in `folders` and in BPFIMG_LIBS_DIR.
 *
 * A plugin is a module (.js, .mjs, .cjs) whose default export is a {@link Plugin}, or a function that makes
 * one from the {@link toolkit}. If two serve one type, the later one wins; bpfimg's own come first.
 * @throws BpfimgError for a folder or module that cannot be loaded, is not a plugin, or must not be trusted by root
 */
export async function mapTypes(folders: readonly string[], io: Pick<Io, 'env'>): Promise<MapTypes> {
  const more = (io.env.BPFIMG_LIBS_DIR ?? '').split(':').filter((folder) => folder !== '');
  const found: Plugin[] = [];
  for (const folder of [...more, ...folders]) {
    for (const name of modules(folder)) found.push(await load(path.resolve(folder, name)));
  }
  return typeTable(found);
}

/** Names of the modules in a folder. */
function modules(folder: string): string[] {
  try {
    checkTrusted(folder, fs.statSync(folder));
    const names = fs.readdirSync(folder).filter((one) => /\.[cm]?js$/.test(one));
    for (const name of names) {
      const file = path.join(folder, name);
      const stat = fs.statSync(file);
      if (!stat.isFile()) throw new BpfimgError('io', 'no regular file', { subject: file });
      checkTrusted(file, stat);
    }
    return names.sort();
  } catch (error) {
    throw ioError(folder, 'read it', error);
  }
}

async function load(file: string): Promise<Plugin> {
  let exported: unknown;
  try {
    exported = ((await importModule(pathToFileURL(file).href)) as { default?: unknown }).default;
    if (typeof exported === 'function') exported = await exported(toolkit);
  } catch (error) {
    throw new BpfimgError('unsupported', `it cannot be loaded: ${errorText(error)}`, { subject: file, cause: error });
  }
  const problem = problemOf(exported);
  if (problem !== undefined) throw new BpfimgError('unsupported', `no plugin: ${problem}`, { subject: file });
  return guarded(exported as Plugin, file);
}

/** The plugin, with hooks whose errors name its file. */
function guarded(plugin: Plugin, file: string): Plugin {
  const named = (error: unknown): never => {
    if (error instanceof BpfimgError || !(error instanceof Error)) throw error;
    throw new BpfimgError('unsupported', error.message, { subject: file, cause: error });
  };
  const guard =
    (hook: (...args: unknown[]) => unknown) =>
    (...args: unknown[]) => {
      try {
        const result = hook.apply(plugin, args);
        return result instanceof Promise ? result.catch(named) : result;
      } catch (error) {
        return named(error);
      }
    };
  const members = Object.entries(plugin).map(([name, value]) => [name, HOOKS.includes(name) ? guard(value) : value]);
  return Object.fromEntries(members) as Plugin;
}

/** The hooks of a plugin; the compiler sees that none is missing. */
const HOOK: Readonly<Record<Exclude<keyof Plugin, 'name' | 'types'>, true>> = {
  attributes: true,
  create: true,
  capture: true,
  needs: true,
  foresee: true,
  replay: true,
  into: true,
  keyText: true,
  keyBytes: true,
};
const HOOKS = Object.keys(HOOK);
const KEYS = ['bytes', 'index', 'prefix', 'fd', 'none'];

/** Why `value` is not a plugin. */
function problemOf(value: unknown): string | undefined {
  if (typeof value !== 'object' || value === null) return 'expected an object as its default export';
  const { name, types, ...rest } = value as Record<string, unknown>;
  if (typeof name !== 'string' || name === '') return 'expected a name';
  if (!Array.isArray(types) || types.length === 0) return 'expected a list of map types';
  for (const type of types as unknown[]) {
    const row = (typeof type === 'object' ? type : undefined) as Record<string, unknown> | null | undefined;
    const { number, name: typeName, since, key, create, mapped } = row ?? {};
    if (!Number.isInteger(number) || (number as number) < 0 || (number as number) > 0xffff_ffff) {
      return 'a type without a number';
    }
    if (typeof typeName !== 'string' || typeof since !== 'string') return `type ${number}: expected name and since`;
    if (!KEYS.includes(key as string)) return `type ${number}: key must be one of ${KEYS.join(', ')}`;
    if (mapped !== undefined && typeof mapped !== 'function') return `type ${number}: mapped must be a function`;
    if (create !== undefined && !isCreateRule(create)) {
      return `type ${number}: create must have the ranges key, value and entries (min, max), flags, needs and btf`;
    }
  }
  for (const hook of HOOKS) {
    if (rest[hook] !== undefined && typeof rest[hook] !== 'function') return `${hook} must be a function`;
  }
  const odd = Object.keys(rest).find((member) => !HOOKS.includes(member));
  return odd === undefined ? undefined : `unknown member ${odd}`;
}

/** Whether `value` has the members of a rule for MAP_CREATE. */
function isCreateRule(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const { key, value: values, entries, flags, needs, btf } = value as Record<string, unknown>;
  const isRange = (range: unknown) => {
    const { min, max } = (range ?? {}) as Record<string, unknown>;
    return typeof min === 'number' && typeof max === 'number' && min <= max;
  };
  const numbers = typeof flags === 'number' && typeof needs === 'number';
  return [key, values, entries].every(isRange) && numbers && ['yes', 'no', 'required'].includes(btf as string);
}
