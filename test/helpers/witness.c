/*
 * A process that holds BPF objects as it is told, and tells what it sees of them through its own file descriptors.
 *
 *   witness DIR
 *
 * On SIGUSR1 it reads commands, one per line, from DIR/PID.in and writes their answers, a JSON array with a member for
 * each, to DIR/PID.out, which appears whole. Between two such signals it has no file of its own open and waits, so
 * CRIU finds nothing in it but what a test put there. The numbers of bpf(2) are its own: no libbpf, any kernel's headers.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_OBJECTS 512
#define MAX_VALUE (1 << 16)
#define LISTED_ITEMS 64
#define KCMP_FILE 0

enum { HASH = 1, LPM_TRIE = 11, ARRAY_OF_MAPS = 12, HASH_OF_MAPS = 13, QUEUE = 22, STACK = 23 };

struct object {
	char name[32];
	int fd;
	void *mapped;
	size_t mapped_size;
};

static struct object objects[MAX_OBJECTS];
static FILE *out;
static int cpus;
static unsigned char key[MAX_VALUE], next_key[MAX_VALUE];
static unsigned char value[MAX_VALUE * 8];

static long bpf(int cmd, union bpf_attr *attr)
{
	return syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

/* Objects by name */

static struct object *find(const char *name)
{
	for (int i = 0; i < MAX_OBJECTS; i++)
		if (!strcmp(objects[i].name, name))
			return &objects[i];
	return NULL;
}

static int fd_of(const char *name)
{
	struct object *object = name && *name ? find(name) : NULL;

	return object ? object->fd : -1;
}

static void keep(const char *name, int fd)
{
	struct object *free_one = find("");

	if (fd < 0 || !free_one) {
		fprintf(out, "{\"error\":\"%s\"}", strerror(errno));
		return;
	}
	snprintf(free_one->name, sizeof(free_one->name), "%s", name);
	free_one->fd = fd;
	fprintf(out, "{\"fd\":%d}", fd);
}

/* Words of a command: "map m type=1 key=4" */

static char *words[64];
static int word_count;

static const char *word(int i)
{
	return i < word_count ? words[i] : "";
}

static const char *option(const char *name)
{
	size_t length = strlen(name);

	for (int i = 0; i < word_count; i++)
		if (!strncmp(words[i], name, length) && words[i][length] == '=')
			return words[i] + length + 1;
	return "";
}

static unsigned long long number(const char *name, unsigned long long otherwise)
{
	const char *text = option(name);

	return *text ? strtoull(text, NULL, 0) : otherwise;
}

static size_t from_hex(const char *text, unsigned char *to, size_t room)
{
	size_t size = 0;

	for (; text[0] && text[1] && size < room; text += 2) {
		unsigned int byte;

		sscanf(text, "%2x", &byte);
		to[size++] = byte;
	}
	return size;
}

static void print_hex(FILE *to, const unsigned char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		fprintf(to, "%02x", bytes[i]);
}

/* "rw", "ro", "wo" as flags of an open file */
static unsigned int mode_flags(const char *mode)
{
	return !strcmp(mode, "ro") ? BPF_F_RDONLY : !strcmp(mode, "wo") ? BPF_F_WRONLY : 0;
}

/* The kernel's side of a map */

static int map_info(int fd, struct bpf_map_info *info)
{
	union bpf_attr attr = { 0 };

	memset(info, 0, sizeof(*info));
	attr.info.bpf_fd = fd;
	attr.info.info_len = sizeof(*info);
	attr.info.info = (uintptr_t)info;
	return bpf(BPF_OBJ_GET_INFO_BY_FD, &attr);
}

static int open_map(uint32_t id, unsigned int flags)
{
	union bpf_attr attr = { 0 };

	attr.map_id = id;
	attr.open_flags = flags;
	return bpf(BPF_MAP_GET_FD_BY_ID, &attr);
}

static int per_cpu(uint32_t type)
{
	return type == 5 || type == 6 || type == 10;
}

static int keyless(uint32_t type)
{
	return type == QUEUE || type == STACK;
}

static size_t value_room(const struct bpf_map_info *info)
{
	return per_cpu(info->type) ? (size_t)(info->value_size + 7) / 8 * 8 * cpus : info->value_size;
}

static int element(int cmd, int fd, void *k, void *v, uint64_t flags)
{
	union bpf_attr attr = { 0 };

	attr.map_fd = fd;
	attr.key = (uintptr_t)k;
	attr.value = (uintptr_t)v;
	attr.flags = flags;
	return bpf(cmd, &attr);
}

/* Item number `i` of those that `fill` makes */
static void make_item(const struct bpf_map_info *info, uint32_t i, uint32_t seed)
{
	size_t stride = (info->value_size + 7) / 8 * 8;

	if (info->type == LPM_TRIE) {
		uint32_t bits = (info->key_size - 4) * 8 - i % 5;

		memset(key, 0, info->key_size);
		memcpy(key, &bits, 4);
		for (size_t at = 4; at < info->key_size; at++)
			key[at] = at < 8 ? i >> (8 * (at - 4)) : 0;
		key[info->key_size - 1] &= 0xff << (i % 5);
	} else {
		for (size_t at = 0; at < info->key_size; at++)
			key[at] = at < 4 ? i >> (8 * at) : at * 7;
	}
	memset(value, 0, value_room(info));
	for (int cpu = 0; cpu < (per_cpu(info->type) ? cpus : 1); cpu++)
		for (size_t at = 0; at < info->value_size; at++)
			value[cpu * stride + at] = seed + i * 17 + (i >> 8) * 5 + cpu * 53 + at * 13 + 1;
}

static uint64_t fnv(uint64_t hash, const unsigned char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3ull;
	return hash;
}

#define FNV_START 0xcbf29ce484222325ull

static void print_content(int fd, const struct bpf_map_info *info);

/* For an inner map, its contents replace its id, because a restore changes the id. */
static void print_inner(uint32_t id)
{
	struct bpf_map_info info;
	int fd = open_map(id, BPF_F_RDONLY);

	if (fd < 0 || map_info(fd, &info)) {
		fprintf(out, "{\"error\":\"%s\"}", strerror(errno));
	} else {
		fprintf(out, "{\"id\":%u,\"type\":%u,\"name\":\"%s\",\"max\":%u", id, info.type, info.name, info.max_entries);
		print_content(fd, &info);
		fprintf(out, "}");
	}
	if (fd >= 0)
		close(fd);
}

static int compare_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Items in an order of their own: their number, a sum over all of them, and each of them where they are few. */
static void print_content(int fd, const struct bpf_map_info *info)
{
	uint64_t count = 0, sum = 0;
	char *listed[LISTED_ITEMS];
	size_t size = value_room(info);
	int inner = info->type == ARRAY_OF_MAPS || info->type == HASH_OF_MAPS;
	unsigned char own_key[64];
	void *previous = NULL;

	if (inner)
		fprintf(out, ",\"inner\":{");
	for (;;) {
		unsigned char *at = inner ? own_key : next_key;

		if (keyless(info->type) || element(BPF_MAP_GET_NEXT_KEY, fd, previous, at, 0))
			break;
		if (previous == NULL)
			previous = inner ? own_key + 32 : key;
		memcpy(previous, at, info->key_size);
		if (element(BPF_MAP_LOOKUP_ELEM, fd, previous, value, 0))
			continue; /* no map in this slot, or the item is gone */
		if (inner) {
			fprintf(out, "%s\"", count ? "," : "");
			print_hex(out, previous, info->key_size);
			fprintf(out, "\":");
			print_inner(*(uint32_t *)value);
		} else {
			sum += fnv(fnv(FNV_START, previous, info->key_size), value, size);
			if (count < LISTED_ITEMS) {
				size_t length;
				FILE *line = open_memstream(&listed[count], &length);

				print_hex(line, previous, info->key_size);
				fprintf(line, "=");
				print_hex(line, value, size);
				fclose(line);
			}
		}
		count++;
	}
	if (inner) {
		fprintf(out, "}");
	} else {
		fprintf(out, ",\"sum\":\"%016llx\",\"items\":[", (unsigned long long)sum);
		qsort(listed, count < LISTED_ITEMS ? count : LISTED_ITEMS, sizeof(char *), compare_text);
		for (uint64_t i = 0; i < count && i < LISTED_ITEMS; i++) {
			if (count <= LISTED_ITEMS)
				fprintf(out, "%s\"%s\"", i ? "," : "", listed[i]);
			free(listed[i]);
		}
		fprintf(out, "]");
	}
	fprintf(out, ",\"count\":%llu", (unsigned long long)count);
}

/* Commands */

static void do_map(void)
{
	union bpf_attr attr = { 0 };
	int inner = fd_of(option("inner")), btf = fd_of(option("btf"));

	attr.map_type = number("type", HASH);
	attr.key_size = number("key", 4);
	attr.value_size = number("value", 8);
	attr.max_entries = number("max", 16);
	attr.map_flags = number("flags", 0) | mode_flags(option("mode"));
	attr.map_extra = number("extra", 0);
	if (inner >= 0)
		attr.inner_map_fd = inner;
	if (btf >= 0) {
		attr.btf_fd = btf;
		attr.btf_key_type_id = number("btf_key", 0);
		attr.btf_value_type_id = number("btf_value", 0);
	}
	snprintf(attr.map_name, sizeof(attr.map_name), "%s", *option("name") ? option("name") : word(1));
	keep(word(1), bpf(BPF_MAP_CREATE, &attr));
}

static void done(int result)
{
	if (result < 0)
		fprintf(out, "{\"error\":\"%s\"}", strerror(errno));
	else
		fprintf(out, "{}");
}

static void do_fill(void)
{
	struct bpf_map_info info;
	int fd = fd_of(word(1)), result = map_info(fd, &info);
	uint32_t count = atoi(word(2)), seed = atoi(word(3));

	for (uint32_t i = 0; i < count && !result; i++) {
		make_item(&info, i, seed);
		result = element(BPF_MAP_UPDATE_ELEM, fd, keyless(info.type) ? NULL : key, value, 0);
	}
	done(result);
}

/* pair NAME: a socket, connected with another one of this process. */
static void do_pair(void)
{
	int fds[2] = { -1, -1 };

	keep(word(1), socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0 ? fds[0] : -1);
}

static void do_set(void)
{
	from_hex(word(2), key, sizeof(key));
	from_hex(word(3), value, sizeof(value));
	done(element(BPF_MAP_UPDATE_ELEM, fd_of(word(1)), key, value, 0));
}

static void do_get(void)
{
	struct bpf_map_info info;
	int fd = fd_of(word(1));

	from_hex(word(2), key, sizeof(key));
	if (map_info(fd, &info) || element(BPF_MAP_LOOKUP_ELEM, fd, key, value, 0)) {
		done(-1);
		return;
	}
	fprintf(out, "{\"value\":\"");
	print_hex(out, value, value_room(&info));
	fprintf(out, "\"}");
}

/* What a queue or stack gives, pop by pop */
static void do_drain(void)
{
	struct bpf_map_info info;
	int fd = fd_of(word(1));

	if (map_info(fd, &info)) {
		done(-1);
		return;
	}
	fprintf(out, "{\"values\":[");
	for (int i = 0; !element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, fd, NULL, value, 0); i++) {
		fprintf(out, "%s\"", i ? "," : "");
		print_hex(out, value, info.value_size);
		fprintf(out, "\"");
	}
	fprintf(out, "]}");
}

/* put OUTER KEY INNER */
static void do_put(void)
{
	uint32_t inner = fd_of(word(3));

	from_hex(word(2), key, sizeof(key));
	done(element(BPF_MAP_UPDATE_ELEM, fd_of(word(1)), key, &inner, 0));
}

static void do_freeze(void)
{
	union bpf_attr attr = { 0 };

	attr.map_fd = fd_of(word(1));
	done(bpf(BPF_MAP_FREEZE, &attr));
}

/* open NEW OLD MODE: once more, by the id; or a map of another process, of which OLD is the id */
static void do_open(void)
{
	struct bpf_map_info info = { .id = atoi(word(2)) };

	if (!info.id && map_info(fd_of(word(2)), &info))
		done(-1);
	else
		keep(word(1), open_map(info.id, mode_flags(word(3))));
}

/* dup NEW OLD [FD] */
static void do_dup(void)
{
	int to = atoi(word(3)), fd = fd_of(word(2));

	keep(word(1), to ? dup2(fd, to) : dup(fd));
}

static void do_close(void)
{
	struct object *object = find(word(1));

	if (!object) {
		errno = ENOENT;
		done(-1);
		return;
	}
	done(close(object->fd));
	object->name[0] = 0;
}

static void do_cloexec(void)
{
	done(fcntl(fd_of(word(1)), F_SETFD, atoi(word(2)) ? FD_CLOEXEC : 0));
}

static void do_nonblock(void)
{
	int fd = fd_of(word(1));

	done(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK));
}

/* mmap NAME [BYTES] */
static void do_mmap(void)
{
	struct object *object = find(word(1));
	size_t size = *word(2) ? strtoul(word(2), NULL, 0) : 4096;
	void *at = object ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, object->fd, 0) : MAP_FAILED;

	if (at != MAP_FAILED) {
		object->mapped = at;
		object->mapped_size = size;
	}
	done(at == MAP_FAILED ? -1 : 0);
}

static void do_munmap(void)
{
	struct object *object = find(word(1));

	done(object ? munmap(object->mapped, object->mapped_size) : -1);
}

/* btf NAME HEX */
static void do_btf(void)
{
	union bpf_attr attr = { 0 };

	attr.btf_size = from_hex(word(2), value, sizeof(value));
	attr.btf = (uintptr_t)value;
	keep(word(1), bpf(BPF_BTF_LOAD, &attr));
}

/* prog NAME [type=T] [attach=A]: one that only returns 1 */
static void do_prog(void)
{
	struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr = { 0 };

	attr.prog_type = number("type", BPF_PROG_TYPE_SOCKET_FILTER);
	attr.expected_attach_type = number("attach", 0);
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = 2;
	attr.license = (uintptr_t) "GPL";
	snprintf(attr.prog_name, sizeof(attr.prog_name), "%s", word(1));
	keep(word(1), bpf(BPF_PROG_LOAD, &attr));
}

/* count NAME MAP: a program that adds 1 to the first value of an array, for each process that is made */
static void do_count(void)
{
	struct bpf_insn code[] = {
		{ .code = BPF_ST | BPF_MEM | BPF_W, .dst_reg = BPF_REG_10, .off = -4 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = BPF_REG_2, .src_reg = BPF_REG_10 },
		{ .code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = BPF_REG_2, .imm = -4 },
		{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = BPF_REG_1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = fd_of(word(2)) },
		{ .code = 0 },
		{ .code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_map_lookup_elem },
		{ .code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = BPF_REG_0, .off = 2 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_1, .imm = 1 },
		{ .code = BPF_STX | BPF_ATOMIC | BPF_DW, .dst_reg = BPF_REG_0, .src_reg = BPF_REG_1, .imm = BPF_ADD },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr = { 0 };

	attr.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = sizeof(code) / sizeof(*code);
	attr.license = (uintptr_t) "GPL";
	snprintf(attr.prog_name, sizeof(attr.prog_name), "%s", word(1));
	keep(word(1), bpf(BPF_PROG_LOAD, &attr));
}

/* attach NAME PROG: a link that runs it for each process that is made */
static void do_attach(void)
{
	union bpf_attr attr = { 0 };

	attr.raw_tracepoint.name = (uintptr_t) "sched_process_fork";
	attr.raw_tracepoint.prog_fd = fd_of(word(2));
	keep(word(1), bpf(BPF_RAW_TRACEPOINT_OPEN, &attr));
}

/* link NAME PROG: a program of type sk_lookup that lets everything pass, on the own network namespace */
static void do_link(void)
{
	union bpf_attr attr = { 0 };
	int net = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);

	attr.link_create.prog_fd = fd_of(word(2));
	attr.link_create.target_fd = net;
	attr.link_create.attach_type = BPF_SK_LOOKUP;
	keep(word(1), bpf(BPF_LINK_CREATE, &attr));
	close(net);
}

/* pin NAME PATH */
static void do_pin(void)
{
	union bpf_attr attr = { 0 };

	attr.bpf_fd = fd_of(word(1));
	attr.pathname = (uintptr_t)word(2);
	done(bpf(BPF_OBJ_PIN, &attr));
}

static int compare_int(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* Whether `fd` may do `cmd`: the errno of a try that changes nothing, 0 or EINVAL or ENOENT where it may. */
static int tried(int cmd, int fd)
{
	memset(key, 0, 256);
	memset(value, 0, 256);
	/* No map takes these flags, but it looks at the open file first. */
	return element(cmd, fd, key, value, cmd == BPF_MAP_UPDATE_ELEM ? 0xff : 0) ? errno : 0;
}

static int is_frozen(int fd)
{
	char path[64], text[4096], *at;
	int file, size, frozen = -1;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = open(path, O_RDONLY | O_CLOEXEC);
	size = read(file, text, sizeof(text) - 1);
	close(file);
	text[size < 0 ? 0 : size] = 0;
	at = strstr(text, "\nfrozen:");
	if (at)
		sscanf(at, "\nfrozen: %d", &frozen);
	return frozen;
}

static void print_btf(const struct bpf_map_info *info)
{
	static unsigned char blob[1 << 20];
	struct bpf_btf_info btf = { 0 };
	union bpf_attr attr = { 0 };
	int fd;

	fprintf(out, ",\"btf_key\":%u,\"btf_value\":%u", info->btf_key_type_id, info->btf_value_type_id);
	if (!info->btf_id)
		return;
	attr.btf_id = info->btf_id;
	fd = bpf(BPF_BTF_GET_FD_BY_ID, &attr);
	btf.btf = (uintptr_t)blob;
	btf.btf_size = sizeof(blob);
	memset(&attr, 0, sizeof(attr));
	attr.info.bpf_fd = fd;
	attr.info.info_len = sizeof(btf);
	attr.info.info = (uintptr_t)&btf;
	if (fd < 0 || bpf(BPF_OBJ_GET_INFO_BY_FD, &attr))
		fprintf(out, ",\"btf\":\"%s\"", strerror(errno));
	else
		fprintf(out, ",\"btf\":\"%u bytes, %016llx\"", btf.btf_size,
			(unsigned long long)fnv(FNV_START, blob, btf.btf_size));
	if (fd >= 0)
		close(fd);
}

static void print_map(int fd)
{
	struct bpf_map_info info;
	int reader;

	if (map_info(fd, &info)) {
		fprintf(out, ",\"error\":\"%s\"", strerror(errno));
		return;
	}
	fprintf(out, ",\"id\":%u,\"type\":%u,\"key_size\":%u,\"value_size\":%u,\"max_entries\":%u,\"map_flags\":%u",
		info.id, info.type, info.key_size, info.value_size, info.max_entries, info.map_flags);
	fprintf(out, ",\"map_name\":\"%s\",\"map_extra\":\"%llu\",\"frozen\":%d", info.name,
		(unsigned long long)info.map_extra, is_frozen(fd));
	print_btf(&info);
	fprintf(out, ",\"lookup\":%d,\"update\":%d", tried(BPF_MAP_LOOKUP_ELEM, fd), tried(BPF_MAP_UPDATE_ELEM, fd));
	/* What this one may not read is read by the id. */
	reader = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY ? open_map(info.id, BPF_F_RDONLY) : fd;
	print_content(reader, &info);
	if (reader != fd)
		close(reader);
}

/* Every BPF object this process has open, by fd */
static void do_see(void)
{
	int fds[1024], count = 0;
	DIR *folder = opendir("/proc/self/fd");
	struct dirent *entry;

	while (folder && (entry = readdir(folder)) && count < 1024) {
		char link[64] = "";

		if (readlinkat(dirfd(folder), entry->d_name, link, sizeof(link) - 1) > 0 &&
		    (!strncmp(link, "anon_inode:bpf", 14) || !strcmp(link, "anon_inode:btf")))
			fds[count++] = atoi(entry->d_name);
	}
	if (folder)
		closedir(folder);
	qsort(fds, count, sizeof(int), compare_int);
	fprintf(out, "[");
	for (int i = 0; i < count; i++) {
		int fd = fds[i], same = 0;
		char path[64], link[64] = "";

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (readlink(path, link, sizeof(link) - 1) < 0)
			link[0] = 0;
		/* The first fd of the same struct file */
		while (syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fds[same], fd) != 0)
			same++;
		fprintf(out, "%s{\"fd\":%d,\"link\":\"%s\",\"flags\":%d,\"cloexec\":%d,\"same\":%d", i ? "," : "", fd, link,
			fcntl(fd, F_GETFL), fcntl(fd, F_GETFD) & FD_CLOEXEC, fds[same]);
		if (!strcmp(link, "anon_inode:bpf-map"))
			print_map(fd);
		fprintf(out, "}");
	}
	fprintf(out, "]");
}

/* kcmp PID FD: whether our fd is the same struct file as that of another process */
static void do_kcmp(void)
{
	long result = syscall(SYS_kcmp, getpid(), atoi(word(1)), KCMP_FILE, atoi(word(2)), atoi(word(2)));

	if (result < 0)
		done(-1);
	else
		fprintf(out, "{\"same\":%s}", result == 0 ? "true" : "false");
}

static const char *dir;

/* Answers appear whole: written aside, then renamed. */
static void answer(const char *text, size_t size)
{
	char aside[4096], path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%d.out", dir, getpid());
	snprintf(aside, sizeof(aside), "%s/%d.new", dir, getpid());
	file = fopen(aside, "we");
	if (!file || fwrite(text, 1, size, file) != size || fclose(file) || rename(aside, path))
		_exit(3);
}

/* Set in a forked child: the commands being answered are its parent's. */
static int forked;

/* The child continues like its parent, under its own pid. */
static void do_fork(void)
{
	int pid = fork();

	if (pid == 0)
		forked = 1;
	else
		fprintf(out, "{\"pid\":%d}", pid);
}

static const struct {
	const char *name;
	void (*run)(void);
} commands[] = {
	{ "map", do_map },     { "fill", do_fill },   { "set", do_set },	 { "get", do_get },
	{ "drain", do_drain }, { "put", do_put },     { "freeze", do_freeze },   { "open", do_open },
	{ "dup", do_dup },     { "close", do_close }, { "cloexec", do_cloexec }, { "nonblock", do_nonblock },
	{ "mmap", do_mmap },   { "munmap", do_munmap }, { "btf", do_btf },	 { "prog", do_prog },
	{ "count", do_count }, { "attach", do_attach }, { "link", do_link },   { "pin", do_pin },     { "see", do_see },	 { "kcmp", do_kcmp },
	{ "fork", do_fork },   { "pair", do_pair },
};

static void run_command(char *line)
{
	word_count = 0;
	for (char *w = strtok(line, " "); w && word_count < 64; w = strtok(NULL, " "))
		words[word_count++] = w;
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (!strcmp(commands[i].name, word(0))) {
			commands[i].run();
			return;
		}
	}
	fprintf(out, "{\"error\":\"no command %s\"}", word(0));
}

static void run_commands(void)
{
	char path[4096], *line = NULL, *text;
	size_t room = 0, size;
	FILE *in;
	int first = 1;

	snprintf(path, sizeof(path), "%s/%d.in", dir, getpid());
	in = fopen(path, "re");
	if (!in)
		_exit(4);
	out = open_memstream(&text, &size);
	fprintf(out, "[");
	while (!forked && getline(&line, &room, in) > 0) {
		line[strcspn(line, "\n")] = 0;
		fprintf(out, "%s", first ? "" : ",\n");
		run_command(line);
		first = 0;
	}
	fprintf(out, "]\n");
	fclose(out);
	fclose(in);
	if (forked)
		answer("[]", 2);
	else
		answer(text, size);
	forked = 0;
	free(text);
	free(line);
}

static int possible_cpus(void)
{
	FILE *file = fopen("/sys/devices/system/cpu/possible", "re");
	int from, to, count = 0;

	while (file && fscanf(file, "%d", &from) == 1) {
		int next = fgetc(file);

		to = from;
		if (next == '-' && fscanf(file, "%d", &to) == 1)
			fgetc(file);
		count += to - from + 1;
	}
	if (file)
		fclose(file);
	return count;
}

int main(int argc, char **argv)
{
	sigset_t set;

	if (argc != 2)
		return 2;
	dir = argv[1];
	cpus = possible_cpus();
	signal(SIGCHLD, SIG_IGN); /* children are not waited for */
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	answer("[]", 2);
	for (;;)
		if (sigwaitinfo(&set, NULL) == SIGUSR1)
			run_commands();
}
