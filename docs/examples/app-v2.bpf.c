// The program of docs/upgrade.md: counts packets by their length.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct counts {
	__u64 packets;
	__u64 octets;
	__u32 limit;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct counts);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

SEC("socket")
int count(struct __sk_buff *packet)
{
	__u32 length = packet->len;
	struct counts first = { .limit = 100 }, *counts;

	bpf_map_update_elem(&flows, &length, &first, BPF_NOEXIST);
	counts = bpf_map_lookup_elem(&flows, &length);
	if (counts && counts->packets < counts->limit) {
		counts->packets += 1;
		counts->octets += length;
	}
	return 0;
}

char _license[] SEC("license") = "GPL";
