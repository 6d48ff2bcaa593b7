// The measure of capture and replay: what one thread of C does with the same system calls.
//
//     reference capture FILE ID...
//         reads these maps with BPF_MAP_LOOKUP_BATCH, 4096 items a call, and writes their keys and values to FILE
//     reference twice FILE ID
//         the same, with each call made twice: tries are read so, because a walk may miss items
//     reference drain FILE ID
//         pops all of a queue, writes it to FILE, and pushes it again
//     reference replay FILE FOLDER MAPS OUTER TYPE KEY_SIZE VALUE_SIZE FLAGS MAX_ENTRIES COUNT
//         creates MAPS maps, fills each from its part of FILE with BPF_MAP_UPDATE_BATCH, 4096 items a call (queues: one by
//         one), puts them into a map of maps of type OUTER unless that is 0, and pins all in FOLDER
//     reference into FILE PIN COUNT
//         fills the map that is pinned at PIN, whose max_entries are COUNT
//     reference 2 capture … | replay …
//         the same by two threads, which have one half of a map each: of a hash, that of its buckets
//
// Nothing is converted, checked, synced or told: less cannot be done by these calls.
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BATCH = 4096, MOST_THREADS = 2 };
static uint32_t threads = 1;

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

static int open_map(uint32_t id, struct bpf_map_info *info) {
	union bpf_attr attr = {.map_id = id};
	int map = bpf(BPF_MAP_GET_FD_BY_ID, &attr);
	if (map < 0) fail("BPF_MAP_GET_FD_BY_ID");
	*info = (struct bpf_map_info){0};
	attr = (union bpf_attr){.info = {.bpf_fd = map, .info_len = sizeof(*info), .info = (uintptr_t)info}};
	if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)) fail("BPF_OBJ_GET_INFO_BY_FD");
	return map;
}

// The bytes of a whole value: per-CPU maps have one for each possible CPU.
static size_t whole_size(uint32_t type, size_t value_size) {
	if (type != BPF_MAP_TYPE_PERCPU_HASH && type != BPF_MAP_TYPE_PERCPU_ARRAY) return value_size;
	int last = 0;
	FILE *possible = fopen("/sys/devices/system/cpu/possible", "r");
	if (!possible || fscanf(possible, "%*d-%d", &last) < 0) fail("/sys/devices/system/cpu/possible");
	fclose(possible);
	return (value_size + 7) / 8 * 8 * (last + 1);
}

static int create(const char *file) {
	int out = open(file, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (out < 0) fail(file);
	return out;
}

// A thread's part of a map: buckets of a hash, or items, from one number to another.
struct part {
	int map, file, times;
	off_t at;
	size_t key_size, value_size;
	uint32_t max_entries, from, to;
	_Atomic uint32_t *count;
	pthread_t thread;
};

// Divides what is below end among the threads.
static void in_parts(void *(*work)(void *), struct part whole, uint32_t end) {
	struct part parts[MOST_THREADS];
	for (uint32_t i = 0; i < threads; i++) {
		parts[i] = whole;
		parts[i].from = (uint64_t)end * i / threads;
		parts[i].to = (uint64_t)end * (i + 1) / threads;
		if (i > 0 && pthread_create(&parts[i].thread, NULL, work, &parts[i])) fail("pthread_create");
	}
	work(&parts[0]);
	for (uint32_t i = 1; i < threads; i++) pthread_join(parts[i].thread, NULL);
}

static void *capture_part(void *argument) {
	struct part *part = argument;
	size_t key_size = part->key_size, value_size = part->value_size;
	off_t values_at = part->at + (off_t)part->max_entries * key_size;
	char *keys = malloc(BATCH * key_size), *values = malloc(BATCH * value_size);
	uint32_t *from = malloc(key_size < 4 ? 4 : key_size), *to = malloc(key_size < 4 ? 4 : key_size);
	*from = part->from;
	for (int end = 0, first = part->from == 0; !end && (threads == 1 || first || *from < part->to); first = 0) {
		union bpf_attr attr;
		for (int time = 0; time < part->times; time++) {
			attr = (union bpf_attr){.batch = {
				.map_fd = part->map, .count = BATCH, .keys = (uintptr_t)keys, .values = (uintptr_t)values,
				.in_batch = first ? 0 : (uintptr_t)from, .out_batch = (uintptr_t)to}};
			if (bpf(BPF_MAP_LOOKUP_BATCH, &attr)) {
				if (errno != ENOENT) fail("BPF_MAP_LOOKUP_BATCH");
				end = 1;
			}
		}
		uint32_t count = attr.batch.count, done = atomic_fetch_add(part->count, count);
		whole(write_at, part->file, keys, count * key_size, part->at + (off_t)done * key_size);
		whole(write_at, part->file, values, count * value_size, values_at + (off_t)done * value_size);
		uint32_t *other = from;
		from = to;
		to = other;
	}
	free(keys);
	free(values);
	free(from);
	free(to);
	return NULL;
}

// Writes the items to out from at on, keys before values; returns where they end.
static off_t capture(uint32_t id, int out, off_t at, int times) {
	struct bpf_map_info info;
	int map = open_map(id, &info);
	size_t value_size = whole_size(info.type, info.value_size);
	// Threads overrun their parts by a batch, for which there is room at the end.
	uint32_t buckets = 1, room = info.max_entries + (threads - 1) * BATCH;
	while (buckets < info.max_entries) buckets *= 2;
	_Atomic uint32_t count = 0;
	struct part part = {
		.map = map, .file = out, .times = times, .at = at, .key_size = info.key_size, .value_size = value_size,
		.max_entries = room, .count = &count};
	in_parts(capture_part, part, info.type == BPF_MAP_TYPE_HASH ? buckets : info.max_entries);
	close(map);
	return at + (off_t)room * (info.key_size + value_size);
}

static void drain(uint32_t id, int out) {
	struct bpf_map_info info;
	int map = open_map(id, &info);
	char *values = malloc((size_t)info.max_entries * info.value_size);
	uint32_t count = 0;
	for (;; count++) {
		union bpf_attr attr = {.map_fd = map, .value = (uintptr_t)values + (size_t)count * info.value_size};
		if (bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attr)) break;
	}
	if (errno != ENOENT) fail("BPF_MAP_LOOKUP_AND_DELETE_ELEM");
	whole(write_at, out, values, (size_t)count * info.value_size, 0);
	for (uint32_t i = 0; i < count; i++) {
		union bpf_attr attr = {.map_fd = map, .value = (uintptr_t)values + (size_t)i * info.value_size};
		if (bpf(BPF_MAP_UPDATE_ELEM, &attr)) fail("BPF_MAP_UPDATE_ELEM");
	}
}

static void *fill_part(void *argument) {
	struct part *part = argument;
	size_t key_size = part->key_size, value_size = part->value_size;
	char *keys = malloc(BATCH * key_size), *values = malloc(BATCH * value_size);
	off_t values_at = part->at + (off_t)part->max_entries * key_size;
	for (uint32_t done = part->from; done < part->to; done += BATCH) {
		uint32_t count = part->to - done < BATCH ? part->to - done : BATCH;
		whole(pread, part->file, keys, count * key_size, part->at + (off_t)done * key_size);
		whole(pread, part->file, values, count * value_size, values_at + (off_t)done * value_size);
		if (key_size == 0) {
			for (uint32_t i = 0; i < count; i++) {
				union bpf_attr attr = {.map_fd = part->map, .value = (uintptr_t)values + i * value_size};
				if (bpf(BPF_MAP_UPDATE_ELEM, &attr)) fail("BPF_MAP_UPDATE_ELEM");
			}
			continue;
		}
		union bpf_attr attr = {.batch = {
			.map_fd = part->map, .count = count, .keys = (uintptr_t)keys, .values = (uintptr_t)values}};
		if (bpf(BPF_MAP_UPDATE_BATCH, &attr)) fail("BPF_MAP_UPDATE_BATCH");
	}
	free(keys);
	free(values);
	return NULL;
}

// Fills a map with count items from in, at at, where keys have room for max_entries.
static void fill(int map, int in, off_t at, size_t key_size, size_t value_size, uint32_t max_entries, uint32_t count) {
	struct part part = {
		.map = map, .file = in, .at = at, .key_size = key_size, .value_size = value_size, .max_entries = max_entries};
	in_parts(fill_part, part, count);
}

static void pin(int map, const char *folder, int number) {
	char path[4096];
	snprintf(path, sizeof(path), "%s/map-%d", folder, number);
	union bpf_attr attr = {.pathname = (uintptr_t)path, .bpf_fd = map};
	if (bpf(BPF_OBJ_PIN, &attr)) fail("BPF_OBJ_PIN");
}

static int create_map(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t flags, uint32_t max_entries, int inner) {
	union bpf_attr attr = {
		.map_type = type, .key_size = key_size, .value_size = value_size, .max_entries = max_entries, .map_flags = flags,
		.inner_map_fd = inner};
	int map = bpf(BPF_MAP_CREATE, &attr);
	if (map < 0) fail("BPF_MAP_CREATE");
	return map;
}

static void replay(int in, const char *folder, char **words) {
	uint32_t numbers[8];
	for (int i = 0; i < 8; i++) numbers[i] = strtoul(words[i], NULL, 10);
	uint32_t maps = numbers[0], outer = numbers[1], type = numbers[2], key_size = numbers[3], value_size = numbers[4];
	uint32_t flags = numbers[5], max_entries = numbers[6], count = numbers[7];
	size_t whole_value = whole_size(type, value_size);
	int *fds = malloc(maps * sizeof(*fds)), *indexes = malloc(maps * sizeof(*indexes));
	off_t at = 0;
	for (uint32_t i = 0; i < maps; i++) {
		indexes[i] = i;
		fds[i] = create_map(type, key_size, value_size, flags, max_entries, 0);
		fill(fds[i], in, at, key_size, whole_value, max_entries, count);
		at += (off_t)max_entries * (key_size + whole_value);
	}
	if (outer) {
		int map = create_map(outer, 4, 4, 0, maps, fds[0]);
		for (uint32_t done = 0; done < maps; done += BATCH) {
			union bpf_attr attr = {.batch = {
				.map_fd = map, .count = maps - done < BATCH ? maps - done : BATCH, .keys = (uintptr_t)(indexes + done),
				.values = (uintptr_t)(fds + done)}};
			if (bpf(BPF_MAP_UPDATE_BATCH, &attr)) fail("BPF_MAP_UPDATE_BATCH");
		}
		pin(map, folder, maps);
	}
	for (uint32_t i = 0; i < maps; i++) pin(fds[i], folder, i);
}

static void into(int in, const char *path, uint32_t count) {
	union bpf_attr attr = {.pathname = (uintptr_t)path};
	int map = bpf(BPF_OBJ_GET, &attr);
	if (map < 0) fail("BPF_OBJ_GET");
	struct bpf_map_info info = {0};
	attr = (union bpf_attr){.info = {.bpf_fd = map, .info_len = sizeof(info), .info = (uintptr_t)&info}};
	if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)) fail("BPF_OBJ_GET_INFO_BY_FD");
	fill(map, in, 0, info.key_size, info.value_size, count, count);
}

int main(int count, char **words) {
	if (count > 1 && !strcmp(words[1], "2")) {
		threads = MOST_THREADS;
		words++;
		count--;
	}
	if (count < 4) return 2;
	const char *what = words[1], *file = words[2];
	int reads = !strcmp(what, "replay") || !strcmp(what, "into");
	int fd = reads ? open(file, O_RDONLY) : create(file);
	if (fd < 0) fail(file);
	off_t at = 0;
	if (!strcmp(what, "capture"))
		for (int i = 3; i < count; i++) at = capture(atoi(words[i]), fd, at, 1);
	else if (!strcmp(what, "twice")) capture(atoi(words[3]), fd, 0, 2);
	else if (!strcmp(what, "drain")) drain(atoi(words[3]), fd);
	else if (!strcmp(what, "replay") && count == 12) replay(fd, words[3], words + 4);
	else if (!strcmp(what, "into") && count == 5) into(fd, words[3], atoi(words[4]));
	else return 2;
	if (close(fd)) fail(file);
	return 0;
}
