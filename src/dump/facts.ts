/** Converts the facts that only bpfmap-meta.img has room for to and from members of its message. */

import type { BpfmapMetaEntry, BpfmapProgram, BpfmapReference } from '../image/schema.gen.js';
import { FULL, type MapFacts, type ProgramFacts, parseReport, type Reference, type Report } from '../maptype.js';
import type { Json, JsonObject } from '../value.js';

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

/** How much of a map the capture saved. */
export function captureReport(meta: BpfmapMetaEntry | undefined): Report {
  return meta?.report === undefined ? FULL : parseReport(meta.report);
}

/** The members of a bpfmap_meta_entry that contain `facts`. */
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
      ...(template.types && { btf_key_type_id: template.types.key, btf_value_type_id: template.types.value }),
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

/** The facts in a bpfmap_meta_entry, whose fields were checked when it was read. */
export function factsOf(meta: BpfmapMetaEntry | undefined): MapFacts {
  const { inner, references = [], btf_id: btf, btf_key_type_id: key = 0, btf_value_type_id: value = 0 } = meta ?? {};
  const { btf_vmlinux_value_type_id: kernelType = 0, btf_vmlinux_value_type: name } = meta ?? {};
  return {
    kernelType: kernelType === 0 ? undefined : { id: kernelType, name },
    types: btf === undefined ? undefined : { btf, key, value },
    template: inner && {
      type: inner.map_type,
      keySize: inner.key_size,
      valueSize: inner.value_size,
      maxEntries: inner.max_entries,
      flags: inner.map_flags,
      types:
        btf === undefined || inner.btf_key_type_id === undefined
          ? undefined
          : { btf, key: inner.btf_key_type_id, value: inner.btf_value_type_id ?? 0 },
    },
    references: references.map(referenceOf),
  };
}

function referenceOf(message: BpfmapReference): Reference {
  const { program, cookie } = message;
  return {
    key: bytesOf(message.key) ?? new Uint8Array(0),
    program: program && programOf(program),
    ifindex: message.ifindex,
    ifname: message.ifname,
    cookie: cookie === undefined ? undefined : BigInt(cookie),
    cgroup: message.cgroup,
  };
}

function programOf(message: BpfmapProgram): ProgramFacts {
  return {
    id: message.id,
    type: message.type,
    name: message.name,
    tag: bytesOf(message.tag),
    pins: message.pins,
  };
}
