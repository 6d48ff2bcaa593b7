/** Facts about a map that only bpfmap-meta.img has room for: as members of its message, and back. */
import type { Json, JsonObject } from '../image/message.js';
import type { MapFacts, ProgramFacts, Reference } from '../maptype.js';

/** Members with a value. */
function present(members: Readonly<Record<string, Json | undefined>>): JsonObject {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as JsonObject;
}

/** Bytes are base64 in a message's JSON. */
function base64(bytes: Uint8Array | undefined): string | undefined {
  return bytes && Buffer.from(bytes).toString('base64');
}

function bytesOf(value: Json | undefined): Uint8Array | undefined {
  return typeof value === 'string' ? Buffer.from(value, 'base64') : undefined;
}

/** The members of a bpfmap_meta_entry that keep `facts`. */
export function factMembers({ types, kernelType, template, references = [] }: MapFacts): JsonObject {
  const members: JsonObject = {};
  if (types !== undefined) {
    const { btf, key, value } = types;
    Object.assign(members, { btf_id: btf, btf_key_type_id: key, btf_value_type_id: value });
  }
  if (kernelType !== undefined) {
    members.btf_vmlinux_value_type_id = kernelType.id;
    if (kernelType.name !== undefined) members.btf_vmlinux_value_type = kernelType.name;
  }
  if (template !== undefined) {
    const { type, keySize, valueSize, maxEntries, flags } = template;
    members.inner = {
      map_type: type,
      key_size: keySize,
      value_size: valueSize,
      max_entries: maxEntries,
      map_flags: flags,
    };
  }
  if (references.length > 0) {
    members.references = references.map(({ key, program, ifindex, ifname, cookie, cgroup }) =>
      present({
        key: base64(key),
        program:
          program &&
          present({
            id: program.id,
            type: program.type,
            name: program.name,
            tag: base64(program.tag),
            pins: program.pins && program.pins.length > 0 ? [...program.pins] : undefined,
          }),
        ifindex,
        ifname,
        cookie,
        cgroup,
      }),
    );
  }
  return members;
}

/** The facts in a bpfmap_meta_entry, which was checked against its message's fields when it was read. */
export function factsOf(meta: JsonObject | undefined): MapFacts {
  const inner = meta?.inner as Record<string, number> | undefined;
  const references = (meta?.references ?? []) as JsonObject[];
  const btf = meta?.btf_id as number | undefined;
  const id = (member: string) => (meta?.[member] ?? 0) as number;
  const kernelType = id('btf_vmlinux_value_type_id');
  const name = meta?.btf_vmlinux_value_type as string | undefined;
  return {
    kernelType: kernelType === 0 ? undefined : { id: kernelType, name },
    types: btf === undefined ? undefined : { btf, key: id('btf_key_type_id'), value: id('btf_value_type_id') },
    template: inner && {
      type: inner.map_type as number,
      keySize: inner.key_size as number,
      valueSize: inner.value_size as number,
      maxEntries: inner.max_entries as number,
      flags: inner.map_flags as number,
    },
    references: references.map(referenceOf),
  };
}

function referenceOf(message: JsonObject): Reference {
  const program = message.program as JsonObject | undefined;
  const { cookie } = message;
  return {
    key: bytesOf(message.key) ?? new Uint8Array(0),
    program: program && programOf(program),
    ifindex: message.ifindex as number | undefined,
    ifname: message.ifname as string | undefined,
    cookie: cookie === undefined ? undefined : BigInt(cookie as number | bigint | string),
    cgroup: message.cgroup as string | undefined,
  };
}

function programOf(message: JsonObject): ProgramFacts {
  return {
    id: message.id as number | undefined,
    type: message.type as number | undefined,
    name: message.name as string | undefined,
    tag: bytesOf(message.tag),
    pins: message.pins as string[] | undefined,
  };
}
