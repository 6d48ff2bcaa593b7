// The measure of capture and replay: what one thread of C does with the same system calls.
//
//     reference capture ID FILE
//         reads map ID with BPF_MAP_LOOKUP_BATCH, 4096 items a call, and writes its keys and values to FILE
//     reference replay FILE TYPE KEY_SIZE VALUE_SIZE MAX_ENTRIES COUNT
//         creates a map and fills it from FILE with BPF_MAP_UPDATE_BATCH, 4096 items a call
//     reference into FILE PIN COUNT
//         does the same to the map that is pinned at PIN, whose max_entries are COUNT
//
// Nothing is converted, checked, synced or told: less cannot be done by these calls.
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BATCH = 4096 };

static long bpf(int command, union bpf_attr *attr) { return syscall(__NR_bpf, command, attr, sizeof(*attr)); }

static void fail(const char *what) {
	fprintf(stderr, "reference: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void whole(ssize_t (*call)(int, void *, size_t, off_t), int fd, void *bytes, size_t size, off_t at) {
	for (size_t done = 0; done < size;) {
		ssize_t part = call(fd, (char *)bytes + done, size - done, at + done);
		if (part <= 0) fail("file");
		done += part;
	}
}

static ssize_t write_at(int fd, void *bytes, size_t size, off_t at) { return pwrite(fd, bytes, size, at); }

static void capture(uint32_t id, const char *file) {
	union bpf_attr attr = {.map_id = id};
	int map = bpf(BPF_MAP_GET_FD_BY_ID, &attr);
	if (map < 0) fail("BPF_MAP_GET_FD_BY_ID");
	struct bpf_map_info info = {0};
	attr = (union bpf_attr){.info = {.bpf_fd = map, .info_len = sizeof(info), .info = (uintptr_t)&info}};
	if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)) fail("BPF_OBJ_GET_INFO_BY_FD");
	int out = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (out < 0) fail(file);
	size_t key_size = info.key_size, value_size = info.value_size, count = 0;
	off_t values_at = (off_t)info.max_entries * key_size;
	char *keys = malloc(BATCH * key_size), *values = malloc(BATCH * value_size);
	char *from = malloc(key_size < 4 ? 4 : key_size), *to = malloc(key_size < 4 ? 4 : key_size);
	for (int end = 0, first = 1; !end; first = 0) {
		attr = (union bpf_attr){.batch = {
			.map_fd = map, .count = BATCH, .keys = (uintptr_t)keys, .values = (uintptr_t)values,
			.in_batch = first ? 0 : (uintptr_t)from, .out_batch = (uintptr_t)to}};
		if (bpf(BPF_MAP_LOOKUP_BATCH, &attr)) {
			if (errno != ENOENT) fail("BPF_MAP_LOOKUP_BATCH");
			end = 1;
		}
		whole(write_at, out, keys, attr.batch.count * key_size, count * key_size);
		whole(write_at, out, values, attr.batch.count * value_size, values_at + count * value_size);
		count += attr.batch.count;
		char *other = from;
		from = to;
		to = other;
	}
	if (close(out)) fail(file);
}

static void fill(int map, const char *file, size_t key_size, size_t value_size, uint32_t max_entries, uint32_t count) {
	union bpf_attr attr;
	int in = open(file, O_RDONLY);
	if (in < 0) fail(file);
	char *keys = malloc((size_t)BATCH * key_size), *values = malloc((size_t)BATCH * value_size);
	for (uint32_t done = 0; done < count; done += BATCH) {
		uint32_t part = count - done < BATCH ? count - done : BATCH;
		whole(pread, in, keys, (size_t)part * key_size, (off_t)done * key_size);
		whole(pread, in, values, (size_t)part * value_size, (off_t)max_entries * key_size + (off_t)done * value_size);
		attr = (union bpf_attr){
			.batch = {.map_fd = map, .count = part, .keys = (uintptr_t)keys, .values = (uintptr_t)values}};
		if (bpf(BPF_MAP_UPDATE_BATCH, &attr)) fail("BPF_MAP_UPDATE_BATCH");
	}
	close(map);
}

static void replay(const char *file, char **numbers) {
	uint32_t type = atoi(numbers[0]), key_size = atoi(numbers[1]), value_size = atoi(numbers[2]);
	uint32_t max_entries = atoi(numbers[3]), count = atoi(numbers[4]);
	union bpf_attr attr = {
		.map_type = type, .key_size = key_size, .value_size = value_size, .max_entries = max_entries};
	int map = bpf(BPF_MAP_CREATE, &attr);
	if (map < 0) fail("BPF_MAP_CREATE");
	fill(map, file, key_size, value_size, max_entries, count);
}

static void into(const char *file, const char *pin, uint32_t count) {
	union bpf_attr attr = {.pathname = (uintptr_t)pin};
	int map = bpf(BPF_OBJ_GET, &attr);
	if (map < 0) fail("BPF_OBJ_GET");
	struct bpf_map_info info = {0};
	attr = (union bpf_attr){.info = {.bpf_fd = map, .info_len = sizeof(info), .info = (uintptr_t)&info}};
	if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)) fail("BPF_OBJ_GET_INFO_BY_FD");
	fill(map, file, info.key_size, info.value_size, count, count);
}

int main(int count, char **words) {
	if (count == 4 && !strcmp(words[1], "capture")) capture(atoi(words[2]), words[3]);
	else if (count == 8 && !strcmp(words[1], "replay")) replay(words[2], words + 3);
	else if (count == 5 && !strcmp(words[1], "into")) into(words[2], words[3], atoi(words[4]));
	else return 2;
	return 0;
}
