/** Anything JSON can say; integers beyond 2^53-1 are bigint here. */
export type Json = null | boolean | number | bigint | string | Json[] | JsonObject;

/**
 * Values that one entry may have, in an image as in JSON: enough for whatever CRIU writes in the largest message that is
 * read, and little enough for the memory that we have. A list or object counts for {@link VALUES_OF_WHOLE}.
 */
export const MAX_VALUES = 5.5 * 1024 * 1024;
/** How many values a list or object counts for: V8 needs more memory for an empty one than for a number. */
export const VALUES_OF_WHOLE = 8;

/** A JSON object. */
export interface JsonObject {
  [name: string]: Json;
}

/** Whether a value is an object and not a list. */
export function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
