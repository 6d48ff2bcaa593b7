import { hex, ipv4Bytes, ipv4Text, ipv6Bytes, ipv6Text } from '../src/bytes.js';
import { FULL, type Plugin } from '../src/maptype.js';
import { toolkit } from '../src/toolkit.js';
import { ANY, FLAG, NUMA_RW, PROG, TYPES } from './rules.js';

/** Longest-prefix match. */
export const trie: Plugin = {
  name: 'trie',
  types: [
    {
      number: 11,
      name: 'lpm_trie',
      since: '4.11',
      key: 'prefix',
      counted: { by: 'member', struct: 'lpm_trie', member: 'n_entries' },
      create: {
        ...TYPES,
        key: { min: 5, max: 260 },
        value: { min: 1, max: 4_194_024 },
        entries: ANY,
        flags: FLAG.NO_PREALLOC | NUMA_RW | PROG,
        needs: FLAG.NO_PREALLOC,
        keyType: 'STRUCT',
      },
    },
  ],
  capture: toolkit.readPrefixes,

  /** The kernel refuses a prefix that is longer than the address after it. */
  async foresee({ items }) {
    const { findKey } = await import('../src/replay/items.js');
    const most = 8 * (items.keySize - 4);
    const key = await findKey(items, (key) => key.readUInt32LE() > most);
    if (key === undefined) return undefined;
    const what = `a prefix of ${key.readUInt32LE()} bits, expected at most ${most}`;
    return { problems: [`item ${hex(key)}: ${what}`], report: FULL };
  },

  replay: toolkit.fillInOrder,
  into: toolkit.mergeItems,
  keyText: prefixText,
  keyBytes: prefixBytes,
};

/** A prefix as an address, if the key has the right size: `10.1.0.0/16`. Bits after the prefix are shown, too. */
function prefixText(key: Uint8Array): string | undefined {
  const length = key.length < 4 ? 0 : new DataView(key.buffer, key.byteOffset).getUint32(0, true);
  const address = key.subarray(4);
  if (address.length === 4) return `${ipv4Text(address)}/${length}`;
  return address.length === 16 ? `${ipv6Text(address)}/${length}` : undefined;
}

/** The key of a prefix: `10.1.0.0/16`, or an address alone for all of its bits. */
function prefixBytes(text: string, size: number): Uint8Array | undefined {
  const [, address = '', digits] = /^([^/]+)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  const bytes = size === 8 ? ipv4Bytes(address) : size === 20 ? ipv6Bytes(address) : undefined;
  if (bytes === undefined) return undefined;
  const key = new Uint8Array(size);
  new DataView(key.buffer).setUint32(0, digits === undefined ? 8 * bytes.length : Number(digits), true);
  key.set(bytes, 4);
  return key;
}
