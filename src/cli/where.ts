/**
 * `--where`: a condition on items, such as `value.state == "TCP_CLOSE" && value.bytes > 1e6`. jsep parses it; this file
 * gives it its meaning, and nothing of it is ever run as code.
 */
import jsep from 'jsep';
import type { Item } from '../dump/items.js';
import { BpfimgError } from '../errors.js';
import type { Json } from '../value.js';

/**
 * Whether an item is chosen.
 * @param readable makes the same item as people read it, with addresses and times as text
 */
export type ItemTest = (item: Item, readable?: () => Item) => boolean;

/** What part of a condition is worth: undefined for what cannot be compared. */
export type Worth = Json | undefined;
/** Its worth for an item. */
export type Part = (item: Item, readable: () => Item) => Worth;

/** The names that a condition may use. */
const NAMES = ['key', 'value', 'values'] as const;

/**
 * The meaning of a condition.
 * @throws BpfimgError `usage`; the test throws it, too, for a member that an item does not have
 */
export function whereTest(text: string): ItemTest {
  const worth = expression('--where', text);
  return (item, readable = () => item) => truth(worth(item, readable));
}

/**
 * What an expression is worth for an item.
 * @param option that has it, for messages
 * @throws BpfimgError `usage`; the result throws it, too
 */
export function expression(option: string, text: string): Part {
  const bad = (what: string) => new BpfimgError('usage', what, { subject: `${option} ${text}` });
  let tree: jsep.Expression;
  try {
    tree = jsep(text);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    const { description = '', index } = error as { readonly description?: string; readonly index?: number };
    throw bad(index === undefined ? description : `${description}, character ${index + 1}`);
  }
  return compiled(tree, bad);
}

/** Some of the names that would be right. */
const oneOf = (names: readonly string[]) => `one of ${names.slice(0, 8).join(', ')}${names.length > 8 ? ', …' : ''}`;

const truth = (worth: Worth): boolean =>
  worth !== undefined && worth !== false && worth !== null && worth !== 0 && worth !== '';

type Bad = (what: string) => BpfimgError;

function compiled(tree: jsep.Expression, bad: Bad): Part {
  const of = (part: unknown) => compiled(part as jsep.Expression, bad);
  switch (tree.type) {
    case 'Literal': {
      const { value, raw } = tree as jsep.Literal;
      // A double would hold only a nearby number.
      const whole = typeof value === 'number' && /^\d+$/.test(raw) ? exact(BigInt(raw)) : value;
      if (typeof whole === 'object' && whole !== null) throw bad('expected no regular expression');
      return () => whole;
    }
    case 'Identifier': {
      const { name } = tree as jsep.Identifier;
      if (!NAMES.some((one) => one === name)) throw bad(`no ${name}, expected ${oneOf(NAMES)}`);
      return (item) => {
        const found = (item as { readonly [name: string]: Json | undefined })[name];
        if (found !== undefined) return found;
        throw bad(name === 'value' ? 'a per-CPU map has values[0], values[1], …' : 'only per-CPU maps have values');
      };
    }
    case 'MemberExpression': {
      const { object, property, computed } = tree as jsep.MemberExpression;
      const whole = of(object);
      const name: Part = computed ? of(property) : () => (property as jsep.Identifier).name;
      return (item, readable) => member(whole(item, readable), name(item, readable), bad);
    }
    case 'UnaryExpression': {
      const { operator, argument } = tree as jsep.UnaryExpression;
      const one = of(argument);
      if (operator === '!') return (...seen) => !truth(one(...seen));
      if (operator === '-') return (...seen) => calculated('-', 0, one(...seen));
      throw bad(`no operator ${operator}`);
    }
    case 'BinaryExpression':
    case 'LogicalExpression': {
      const { operator, left, right } = tree as jsep.BinaryExpression;
      const [a, b] = [of(left), of(right)];
      if (operator === '&&') return (...seen) => truth(a(...seen)) && truth(b(...seen));
      if (operator === '||') return (...seen) => truth(a(...seen)) || truth(b(...seen));
      const compare = COMPARE[operator];
      if (compare !== undefined) {
        // What is compared with text is the text that people see: an address.
        if (![left, right].some(isText)) return (...seen) => compare(order(a(...seen), b(...seen)));
        return (_, readable) => {
          const item = readable();
          return compare(order(a(item, readable), b(item, readable)));
        };
      }
      if (!['+', '-', '*', '/', '%', '&', '|'].includes(operator)) throw bad(`no operator ${operator}`);
      return (...seen) => calculated(operator, a(...seen), b(...seen));
    }
    default:
      throw bad('expected a condition, such as value.bytes > 1e6 && key.proto == 6');
  }
}

const isText = (part: unknown) => typeof (part as { readonly value?: unknown }).value === 'string';

function member(whole: Worth, name: Worth, bad: Bad): Worth {
  if (Array.isArray(whole)) {
    const found = typeof name === 'number' ? whole[name] : undefined;
    if (found === undefined) throw bad(`no [${String(name)}], it has ${whole.length} elements`);
    return found;
  }
  if (typeof whole !== 'object' || whole === null)
    throw bad(`no ${String(name)}: types are not known, or it has no members`);
  // Bytes that are no text, a field of the kernel.
  if (Object.hasOwn(whole, String(name))) return whole[String(name)];
  throw bad(`no ${String(name)}, expected ${oneOf(Object.keys(whole).filter((one) => one !== '$raw'))}`);
}

const COMPARE: Readonly<Record<string, (order: number | undefined) => boolean>> = {
  '==': (order) => order === 0,
  '===': (order) => order === 0,
  '!=': (order) => order !== 0,
  '!==': (order) => order !== 0,
  '<': (order) => order !== undefined && order < 0,
  '<=': (order) => order !== undefined && order <= 0,
  '>': (order) => order !== undefined && order > 0,
  '>=': (order) => order !== undefined && order >= 0,
};

/** Negative, 0 or positive; undefined, and not equal, for what has no order. Large integers are compared exactly. */
export function order(a: Worth, b: Worth): number | undefined {
  const [x, y] = [numeric(a), numeric(b)];
  if (x !== undefined && y !== undefined && (typeof a !== 'string' || typeof b !== 'string'))
    return x < y ? -1 : x > y ? 1 : x === y || Number(x) === Number(y) ? 0 : undefined;
  if (typeof a === 'string' && typeof b === 'string') return a < b ? -1 : a > b ? 1 : 0;
  if (typeof a === 'boolean' || typeof b === 'boolean')
    return Number(a) - Number(b) || (Number(a) === Number(b) ? 0 : undefined);
  return JSON.stringify(a) === JSON.stringify(b) ? 0 : undefined;
}

const exact = (value: bigint): number | bigint => (value >= -(2n ** 53n) && value <= 2n ** 53n ? Number(value) : value);

/** A number, or an integer that JSON has as text because it is beyond 2^53 - 1. */
function numeric(worth: Worth): number | bigint | undefined {
  if (typeof worth === 'number' || typeof worth === 'bigint') return worth;
  if (typeof worth !== 'string' || !/^(-?\d{1,40}|0x[0-9a-f]{1,32})$/.test(worth)) return undefined;
  return worth.startsWith('-') ? exact(-BigInt(worth.slice(1))) : exact(BigInt(worth));
}

function calculated(operator: string, a: Worth, b: Worth): Worth {
  const [x, y] = [numeric(a), numeric(b)];
  if (x === undefined || y === undefined) return undefined;
  const whole = (one: number | bigint) => typeof one === 'bigint' || Number.isSafeInteger(one);
  if (whole(x) && whole(y) && operator !== '/' && !(operator === '%' && Number(y) === 0)) {
    const [m, n] = [BigInt(x), BigInt(y)];
    return exact(
      { '+': m + n, '-': m - n, '*': m * n, '%': n === 0n ? 0n : m % n, '&': m & n, '|': m | n }[operator] ?? 0n,
    );
  }
  const [m, n] = [Number(x), Number(y)];
  return { '+': m + n, '-': m - n, '*': m * n, '/': m / n, '%': m % n }[operator];
}
