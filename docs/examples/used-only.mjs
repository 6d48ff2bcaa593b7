// A map-type plugin: captures only those items of hash maps whose value is not all zero. Replay is bpfimg's own.
//
//     bpfimg capture -L docs/examples --name counters -D dump

/** @param {import('bpfimg').Toolkit} bpfimg functions that read and fill maps */
export default function plugin({ readBuckets, fillHash }) {
  return {
    name: 'used-only',
    types: [{ number: 1, name: 'hash', since: '3.19', key: 'bytes' }],

    async capture(map, sink, work) {
      let left = 0;
      const sieve = {
        get count() {
          return sink.count;
        },
        async put(keys, values, count) {
          let kept = 0;
          for (let i = 0; i < count; i++) {
            const value = values.subarray(i * map.valueStride, (i + 1) * map.valueStride);
            if (value.every((byte) => byte === 0)) continue;
            keys.copyWithin(kept * map.keySize, i * map.keySize, (i + 1) * map.keySize);
            values.copyWithin(kept * map.valueStride, i * map.valueStride, (i + 1) * map.valueStride);
            kept++;
          }
          left += count - kept;
          await sink.put(keys, values, kept);
        },
      };
      const report = await readBuckets(map, sieve, work);
      if (left === 0) return report;
      return { kind: 'partial', why: `left out ${left} whose value is zero` };
    },

    replay: fillHash,
  };
}
