// The program of docs/upgrade.md: loads an object file with its maps pinned in /sys/fs/bpf/app, gives three packets to
// the BPF program in it, and prints what the maps contain. With a second argument it stays until it is killed.
//
//     cc -o app app.c -lbpf
#include <stdio.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

// Prints a number or a structure of numbers.
static void print_value(const struct btf *btf, __u32 type, const char *bytes)
{
	const struct btf_type *t = btf__type_by_id(btf, btf__resolve_type(btf, type));

	if (btf_is_struct(t)) {
		const struct btf_member *member = btf_members(t);

		for (int i = 0; i < btf_vlen(t); i++) {
			const char *name = btf__name_by_offset(btf, member[i].name_off);

			printf("%s%s ", i ? ", " : "", name);
			print_value(btf, member[i].type, bytes + member[i].offset / 8);
		}
	} else if (t->size == 8) {
		printf("%llu", *(unsigned long long *)bytes);
	} else {
		printf("%u", *(unsigned int *)bytes);
	}
}

static void print_items(const struct bpf_map *map, const struct btf *btf, int fd)
{
	char key[64], value[256];

	for (void *last = NULL; bpf_map_get_next_key(fd, last, key) == 0; last = key) {
		if (bpf_map_lookup_elem(fd, key, value))
			continue;
		print_value(btf, bpf_map__btf_key_type_id(map), key);
		printf(": ");
		print_value(btf, bpf_map__btf_value_type_id(map), value);
		printf("\n");
	}
}

int main(int argc, char **argv)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .pin_root_path = "/sys/fs/bpf/app");
	char packet[60] = {};
	LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = packet, .data_size_in = sizeof(packet), .repeat = 3);
	struct bpf_object *object = bpf_object__open_file(argc > 1 ? argv[1] : "app.bpf.o", &options);
	struct bpf_map *map;

	if (!object || bpf_object__load(object))
		return 1;
	if (bpf_prog_test_run_opts(bpf_program__fd(bpf_object__next_program(object, NULL)), &run)) {
		perror("run");
		return 1;
	}
	bpf_object__for_each_map(map, object) {
		// Neither data sections nor maps of maps.
		if (bpf_map__btf_key_type_id(map) == 0)
			continue;
		printf("%s:\n", bpf_map__name(map));
		print_items(map, bpf_object__btf(object), bpf_map__fd(map));
	}
	fflush(stdout);
	if (argc > 2)
		pause();
	return 0;
}
