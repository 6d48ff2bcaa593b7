/** Members by their paths. */
import { isObject, type Json } from '../value.js';

/** A value as people see it when its type has parts: each number or text by its path, as `set` takes it. */
export function* valuePaths(json: Json, path = ''): Generator<[path: string, value: Json]> {
  if (Array.isArray(json) && json.some((one) => typeof one === 'object' && one !== null)) {
    for (const [i, one] of json.entries()) yield* valuePaths(one, `${path}[${i}]`);
  } else if (isObject(json) && !('$kernel' in json)) {
    const { $raw, ...shown } = json;
    const entries = Object.entries(shown);
    if (entries.length === 0) yield [path, $raw === undefined ? json : { $raw }];
    for (const [name, one] of entries) yield* valuePaths(one, path === '' ? name : `${path}.${name}`);
  } else yield [path, json];
}
