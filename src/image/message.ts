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

/** The fields of message `name`, in ascending number. */
export function messageFields(name: string): readonly MessageField[] {
  const fields = messages[name];
  if (fields === undefined) throw new Error(`no message ${name} in images/*.proto`);
  return fields;
}

/** The values of enum `name`. */
export function enumOf(name: string): Readonly<Record<string, number>> {
  return enums[name] ?? {};
}
