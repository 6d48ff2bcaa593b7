/** Anything JSON can say; integers beyond 2^53-1 are bigint here. */
export type Json = null | boolean | number | bigint | string | Json[] | JsonObject;

/** A JSON object. */
export interface JsonObject {
  [name: string]: Json;
}
