/**
 * Checks JSON against the schemas in docs/schema, with the validators that ajv made of them at build time.
 *
 * The validators are large and only `encode` needs them, so each is loaded at its first use.
 */
import { PointerError } from '../errors.js';
import type { Json, JsonObject } from '../value.js';
import { validators } from './validators.gen.js';

interface SchemaError {
  readonly instancePath: string;
  readonly keyword: string;
  readonly params: Readonly<Record<string, unknown>>;
  readonly message?: string;
}
interface Validator {
  (data: unknown): boolean;
  readonly errors?: readonly SchemaError[] | null;
}

const loaded = new Map<string, Validator>();

/**
 * How `value` violates the schema; undefined if it does not.
 * @param schema name of a message in images/*.proto, `items_header` or `map_header`
 * @param hasBigint whether `value` may contain bigints, for which JSON Schema has no type
 */
export async function check(schema: string, value: Json, hasBigint: boolean): Promise<PointerError | undefined> {
  const validate = loaded.get(schema) ?? (await load(schema));
  if (validate(hasBigint ? withoutBigint(value) : value)) return undefined;
  const error = validate.errors?.[0];
  if (error === undefined) return new PointerError('', 'does not fit its schema');
  return new PointerError(error.instancePath, sentence(error));
}

async function load(schema: string): Promise<Validator> {
  const module = (validators as Readonly<Record<string, () => Promise<unknown>>>)[schema];
  if (module === undefined) throw new Error(`no schema ${schema}`);
  const { validate } = (await module()) as { validate: Validator };
  loaded.set(schema, validate);
  return validate;
}

function sentence({ keyword, params, message }: SchemaError): string {
  switch (keyword) {
    case 'required':
      return `member "${String(params.missingProperty)}" is missing`;
    case 'additionalProperties':
      return `unknown member "${String(params.additionalProperty)}"`;
    case 'type':
      return `must be ${[params.type].flat().map(TYPE_NAME).join(' or ')}`;
    case 'enum':
      return `must be one of ${(params.allowedValues as unknown[]).join(', ')}`;
    case 'pattern':
      return String(params.pattern).includes('a-fA-F') ? 'must be bytes in hex, two digits each' : `${message}`;
    default:
      return message ?? keyword;
  }
}

const TYPE_NAME = (type: unknown): string =>
  ({ integer: 'a whole number', string: 'text', array: 'a list', object: 'an object', boolean: 'true or false' })[
    String(type)
  ] ?? String(type);

/** The value with each bigint as the nearest number, for checks of type and approximate range. */
function withoutBigint(value: Json): Json {
  if (typeof value === 'bigint') return Number(value);
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(withoutBigint);
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, withoutBigint(member)])) as JsonObject;
}
