/** The fields of messages: access to the tables generated from images/*.proto. */
import { enums, messages } from './schema.gen.js';

/** How crit displays a field, from the `(criu)` options of the .proto files. */
export interface FieldDisplay {
  readonly hex?: boolean;
  readonly flags?: string;
  readonly ipadd?: boolean;
  readonly dev?: boolean;
  readonly odev?: boolean;
  readonly dict?: string;
  readonly conv?: string;
}

/** One field of a message, as images/*.proto declares it. */
export interface MessageField {
  readonly no: number;
  readonly name: string;
  readonly type: string;
  readonly label: 'required' | 'optional' | 'repeated';
  /** Name of the message or enum of a field of that type. */
  readonly of?: string;
  readonly packed?: boolean;
  readonly show?: FieldDisplay;
}

const known = new Map<string, readonly MessageField[]>();

/** The fields of message `name`, in ascending number. */
export function messageFields(name: string): readonly MessageField[] {
  let fields = known.get(name);
  if (fields === undefined) {
    fields = messages[name]?.();
    if (fields === undefined) throw new Error(`no message ${name} in images/*.proto`);
    known.set(name, fields);
  }
  return fields;
}

/** The values of enum `name`. */
export function enumOf(name: string): Readonly<Record<string, number>> {
  return enums[name]?.() ?? {};
}
