// SPDX-License-Identifier: GPL-2.0-only
/*
 * bpfimg.so: the plugin that CRIU loads to dump and restore BPF maps. `bpfimg criu build` compiles it.
 *
 * It reads neither maps nor images: it runs bpfimg's helpers, which do, and remembers which open file belongs to
 * which map. Dump: the first hook call for a map captures all maps of the frozen tasks. Restore: all maps are
 * created before CRIU creates the first task; a task's hook only opens one by its id.
 *
 * CRIU's side (its ABI since 2.0) is declared here, so that no header of CRIU is needed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <link.h>
#include <linux/bpf.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if !defined(VERSION) || !defined(NODE) || !defined(BPFIMG) || !defined(CONFIG)
#error "compiled by `bpfimg criu build`, which says where it is itself"
#endif

#define NAME "bpfimg"
#define TABLE "bpfimg-files.txt"

/* For `bpfimg criu check`, which reads this file without loading it. */
__attribute__((used)) static const char marker[] =
	"bpfimg-plugin\n" VERSION "\n" NODE "\n" BPFIMG "\n" CONFIG "\n";

/* ------------------------------------------------------------------ CRIU */

enum { DUMP = 0, RESTORE = 2 }; /* 1 is pre-dump, which dumps no files */
enum { LOG_ERROR = 1, LOG_WARNING, LOG_INFO };

/* Symbols that some releases of CRIU lack are weak: a missing one would make every dump on this host fail. */
#define WEAK __attribute__((weak))
extern int criu_get_image_dir(void);
extern void print_on_level(unsigned int level, const char *format, ...) WEAK;
extern int log_get_fd(void) WEAK;
extern int add_inventory_plugin(const char *name) WEAK;                          /* 4.1 */
extern bool check_and_remove_inventory_plugin(const char *name, size_t size) WEAK; /* 4.1 */
extern int __userns_call(const char *name, int (*call)(void *, int, pid_t), int flags, void *arg, size_t size,
			 int fd) WEAK;
#define FD_OUT 2 /* flag of __userns_call: `call` returns a file descriptor for the caller */

/* How CRIU dumps a kind of open file; two of them matter if CRIU is built with libbpf. */
struct dump_ops {
	unsigned int type;
	void *dump, *pre_dump;
};
extern struct dump_ops bpfmap_dump_ops WEAK, ext_dump_ops WEAK;
enum { TYPE_EXT = 16, TYPE_BPFMAP = 19 };

/* Writes a line to CRIU's log; returns -1, so that errors can return it. */
__attribute__((format(printf, 2, 3))) static int say(int level, const char *format, ...)
{
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (print_on_level)
		print_on_level(level, level == LOG_ERROR ? "Error (bpfimg): %s\n" : "bpfimg: %s\n", text);
	else
		fprintf(stderr, "bpfimg: %s\n", text);
	return -1;
}
#define error(...) say(LOG_ERROR, __VA_ARGS__)

/* -------------------------------------------------------------- settings */

/* Why root must not read or run a file, as text in `why`; NULL if it may. */
static const char *distrust(const struct stat *file, char why[64])
{
	if (geteuid() != 0 || (file->st_uid == 0 && (file->st_mode & (S_IWGRP | S_IWOTH)) == 0))
		return NULL;
	if (file->st_uid != 0)
		snprintf(why, 64, "it belongs to user %u", file->st_uid);
	else
		snprintf(why, 64, "others may write to it (mode %o)", file->st_mode & 07777);
	return why;
}

/* All settings and their values: words, seconds, or a path. src/criu/config.ts has the same table and grammar. */
static const struct {
	const char *name, *values;
} known[] = {
	{ "reuse", "yes, no" },
	{ "drain", "yes, no" },
	{ "partial", "warn, fail" },
	{ "unresolved", "fail, skip" },
	{ "percpu", "first, sum, spread" },
	{ "libdir", "an absolute path" },
	{ "take-over", "yes, no" },
	{ "keep-programs", "yes, no" },
	{ "dump-timeout", "seconds" },
	{ "restore-timeout", "seconds" },
	{ "restore-hook-arguments", "1, 2" },
};

static struct {
	bool take_over, keep_programs;
	int dump_timeout, restore_timeout; /* seconds without a sign of life */
	int hook_arguments;                /* number of arguments of the restore hook; 0: find out */
	char problem[512];                 /* what is wrong with the file; then no map is dumped or restored */
} settings;

static bool is_value(const char *value, const char *values)
{
	size_t size = strlen(value);

	if (strcmp(values, "an absolute path") == 0)
		return *value == '/';
	if (strcmp(values, "seconds") == 0)
		return size >= 1 && size <= 5 && *value != '0' && strspn(value, "0123456789") == size;
	for (const char *one = values; one; one = strstr(one, ", ") ? strstr(one, ", ") + 2 : NULL)
		if (size > 0 && strncmp(one, value, size) == 0 && (one[size] == ',' || one[size] == '\0'))
			return true;
	return false;
}

static void set(const char *name, const char *value)
{
	if (strcmp(name, "take-over") == 0)
		settings.take_over = strcmp(value, "yes") == 0;
	else if (strcmp(name, "keep-programs") == 0)
		settings.keep_programs = strcmp(value, "yes") == 0;
	else if (strcmp(name, "dump-timeout") == 0)
		settings.dump_timeout = atoi(value);
	else if (strcmp(name, "restore-timeout") == 0)
		settings.restore_timeout = atoi(value);
	else if (strcmp(name, "restore-hook-arguments") == 0)
		settings.hook_arguments = atoi(value);
}

/* Reads a line `NAME VALUE`; `#` starts a comment. Returns -1 if it is wrong, and says in `what` why. */
static int read_setting(char *line, char *what, size_t size)
{
	static const char space[] = " \t\r\v\f";
	char *rest, *name = strtok_r((line[strcspn(line, "#")] = '\0', line), space, &rest);
	char *value = name ? rest + strspn(rest, space) : NULL;

	if (!name)
		return 0;
	for (size_t i = strlen(value); i > 0 && strchr(space, value[i - 1]); i--)
		value[i - 1] = '\0';
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
		if (strcmp(known[i].name, name) != 0)
			continue;
		if (strpbrk(value, space) || !is_value(value, known[i].values)) {
			snprintf(what, size, "%s %s: expected %s", name, value, known[i].values);
			return -1;
		}
		set(name, value);
		return 0;
	}
	snprintf(what, size, "no setting is named %s", name);
	return -1;
}

/* The helpers read the same file, and use more of it. */
static void read_settings(void)
{
	/* If it is a pipe, do not wait for a writer. */
	int fd = open(CONFIG, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
	char *line = NULL, what[256] = "", why[64];
	size_t room = 0;
	ssize_t got;
	struct stat stat;

	memset(&settings, 0, sizeof(settings));
	settings.dump_timeout = settings.restore_timeout = 60;
	if (!file) {
		if (errno != ENOENT)
			snprintf(settings.problem, sizeof(settings.problem), "%s: %s", CONFIG, strerror(errno));
		return;
	}
	if (fstat(fd, &stat) != 0 || !S_ISREG(stat.st_mode))
		snprintf(settings.problem, sizeof(settings.problem), "%s: not a regular file", CONFIG);
	else if (distrust(&stat, why))
		snprintf(settings.problem, sizeof(settings.problem), "%s: refused as root: %s", CONFIG, why);
	for (int number = 1; !*settings.problem && (got = getline(&line, &room, file)) >= 0; number++) {
		if (line[got - 1] == '\n')
			line[--got] = '\0';
		if (strlen(line) < (size_t)got)
			strcpy(what, "a NUL byte");
		else
			read_setting(line, what, sizeof(what));
		if (*what)
			snprintf(settings.problem, sizeof(settings.problem), "%s: line %d: %s", CONFIG, number, what);
	}
	free(line);
	fclose(file);
}

/* ---------------------------------------------------------------- tables */

/* What an open file of a BPF object is: its name in /proc/PID/fd, in the table, and the command that opens its id. */
static const struct kind {
	const char *link, *name;
	int command;
} kinds[] = {
	{ "anon_inode:bpf-map", "map", BPF_MAP_GET_FD_BY_ID },
	{ "anon_inode:bpf-prog", "prog", BPF_PROG_GET_FD_BY_ID },
	{ "anon_inode:bpf_link", "link", BPF_LINK_GET_FD_BY_ID },
	{ "anon_inode:btf", "btf", BPF_BTF_GET_FD_BY_ID },
};
#define MAP (&kinds[0])

/* An open file of a map, or of an object that is kept. */
struct file {
	const struct kind *kind;
	unsigned int id, map, flags; /* CRIU's id, the dumped object's, and fcntl(F_GETFL) */
	unsigned int fresh;          /* id of the map that replaces it now, or of the object */
	int fd;                      /* keeps that alive */
};
static struct file *files;
static size_t file_count;

/* A map that the helper was asked for, or has answered about. */
struct map {
	unsigned int id;
	char *problem; /* why it cannot be dumped */
};
static struct map *maps;
static size_t map_count;

/* The array with one more element, which is zeroed; NULL without memory. */
static void *longer(void **array, size_t *count, size_t size)
{
	char *more = realloc(*array, (*count + 1) * size);

	if (!more)
		return NULL;
	*array = more;
	return memset(more + (*count)++ * size, 0, size);
}

static struct map *find_map(unsigned int id)
{
	for (size_t i = 0; i < map_count; i++)
		if (maps[i].id == id)
			return &maps[i];
	return NULL;
}

static struct file *find_file(unsigned int id)
{
	for (size_t i = 0; i < file_count; i++)
		if (files[i].id == id)
			return &files[i];
	return NULL;
}

/* -------------------------------------------------------------- bpf(2) */

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

/* The start of struct bpf_map_info; the kernel writes as much as there is room for. */
struct info {
	__u32 type, id, key_size, value_size, max_entries, map_flags;
	char name[16];
};

static int map_info(int fd, struct info *info)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	memset(info, 0, sizeof(*info));
	attr.info.bpf_fd = fd;
	attr.info.info_len = sizeof(*info);
	attr.info.info = (unsigned long)info;
	return bpf(BPF_OBJ_GET_INFO_BY_FD, &attr);
}

/* Opens the object of a file with the access that the file had. It has the signature that __userns_call needs. */
static int open_object(void *arg, int unused_fd, pid_t unused_pid)
{
	const struct file *file = arg;
	union bpf_attr attr;

	(void)unused_fd;
	(void)unused_pid;
	memset(&attr, 0, sizeof(attr));
	attr.map_id = file->fresh; /* ids of all kinds are at the same offset */
	if (file->kind == MAP && (file->flags & O_ACCMODE) == O_RDONLY)
		attr.open_flags = BPF_F_RDONLY;
	else if (file->kind == MAP && (file->flags & O_ACCMODE) == O_WRONLY)
		attr.open_flags = BPF_F_WRONLY;
	return bpf(file->kind->command, &attr);
}

/* The kind of an open file, or NULL; `link` gets its name in /proc/PID/fd. */
static const struct kind *find_kind(int fd, char link[64])
{
	char path[64];
	ssize_t size;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	size = readlink(path, link, 63);
	link[size < 0 ? 0 : size] = '\0';
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (strcmp(kinds[i].link, link) == 0)
			return &kinds[i];
	return NULL;
}

/* What fdinfo says of an object: its id, and the hash of the instructions of a program. */
static int object_info(int fd, const struct kind *kind, unsigned int *id, char tag[17])
{
	char path[64], name[16], line[128];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	snprintf(name, sizeof(name), "%s_id: %%u", kind->name);
	strcpy(tag, "-");
	*id = 0;
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		sscanf(line, name, id);
		sscanf(line, "prog_tag: %16[0-9a-f]", tag);
	}
	if (file)
		fclose(file);
	return *id ? 0 : -1;
}

/* --------------------------------------------------------------- helpers */

/*
 * A process that works for us. It ends with CRIU at the latest, because only CRIU has the other end of `life`.
 *
 * One that starts before CRIU freezes the tasks is no child of CRIU, which would take it for one of the tasks. Others
 * are children, and have ended when the hook returns.
 */
struct helper {
	pid_t pid;
	int talk; /* socket: its standard input and output; -1 if it does not run */
	int life; /* pipe: it gets a signal when this is closed */
	bool child, ready, ended; /* the latter two are what it has said */
	int level;                /* of its problems in CRIU's log */
	char text[4096];          /* an answer that is not complete yet */
	size_t used;
};

/* The helper that waits for the first map. */
static struct helper early = { .talk = -1, .life = -1 };

/* CRIU must not see that a child of ours ends. Returns the signal mask to set afterwards. */
static sigset_t hide_children(void)
{
	sigset_t child, before;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, &before);
	return before;
}

static int wait_for_exec(void *unused)
{
	(void)unused;
	while (pause() < 0)
		;
	return 0;
}

/* Node starts this many threads, and hangs if it cannot. Threads of ours last until execve. */
enum { THREADS = 12 };

static int count_threads(void)
{
	static char stacks[THREADS + 1][4096] __attribute__((aligned(16)));
	const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD;
	int count = 0;

	while (count < THREADS && clone(wait_for_exec, stacks[count + 1], flags, NULL) > 0)
		count++;
	return count;
}

/* Leaves a helper exactly its file descriptors, and none of CRIU's. */
__attribute__((noreturn)) static void become_helper(char *const *args, int stage, int talk, int life)
{
	enum { LIFE = 4, FILES };
	char path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	char *environment[] = { path, NULL };
	int log = log_get_fd ? log_get_fd() : -1;
	const int from[FILES] = { talk, talk, log >= 0 ? log : 2, criu_get_image_dir(), life };
	int fds[FILES], threads;
	sigset_t none;

	for (int signal = 1; signal < NSIG; signal++)
		sigaction(signal, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* First above their final numbers, because each may have the number of another. */
	for (int i = 0; i < FILES; i++)
		fds[i] = fcntl(from[i], F_DUPFD, 10);
	for (int i = 0; i < FILES; i++)
		if (dup2(fds[i], i) < 0 && i != 2)
			_exit(127);
	/* CRIU has files of the dumped tasks open, such as pipes, sockets and maps. */
	if (syscall(SYS_close_range, FILES, ~0U, 0) != 0)
		for (int fd = FILES; fd < 65536; fd++)
			close(fd);
	/* After SIGTERM it can still put back what it has taken out of queues. */
	fcntl(LIFE, F_SETOWN, getpid());
	fcntl(LIFE, F_SETSIG, stage == DUMP ? SIGTERM : SIGKILL);
	fcntl(LIFE, F_SETFL, O_ASYNC);
	if (poll(&(struct pollfd){ .fd = LIFE }, 1, 0) != 0)
		_exit(127);
	dprintf(1, "pid %d\n", (int)getpid());
	threads = count_threads();
	if (threads < THREADS)
		dprintf(1, "error bpfimg needs %d threads, but can start only %d: see pids.max of the cgroup\n", THREADS,
			threads);
	else if (fchdir(3) == 0 && execve(args[0], args, environment) != 0)
		dprintf(1, "error cannot run %s: %s\n", args[0], strerror(errno));
	_exit(127);
}

/* Refuses what root must not run: `program`, and files in its folder that may be part of it. */
static int check_program(const char *program, bool folder, int level)
{
	char why[64], *path = strdup(program);
	struct stat file;
	int failed = 0;

	for (int i = 0; path && !failed && i <= folder; i++) {
		/* If it does not exist, execve says so. */
		if (stat(path, &file) == 0 && distrust(&file, why))
			failed = say(level, "%s: refused as root: %s", path, why);
		if (strrchr(path, '/'))
			*strrchr(path, '/') = '\0';
	}
	free(path);
	return failed;
}

static int start(struct helper *helper, char *const *args, int stage, bool child, int level)
{
	int talk[2] = { -1, -1 }, life[2] = { -1, -1 };
	pid_t pid = -1;

	*helper = (struct helper){ .talk = -1, .life = -1, .child = child, .level = level };
	if (check_program(args[0], false, level) != 0 || check_program(args[1], true, level) != 0)
		return -1;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, talk) == 0 && pipe2(life, O_CLOEXEC) == 0)
		pid = fork();
	if (pid == 0) {
		close(life[1]);
		if (child || fork() == 0)
			become_helper(args, stage, talk[1], life[0]);
		_exit(0);
	}
	if (pid < 0)
		say(level, "%s: %s", args[2], strerror(errno));
	while (pid > 0 && !child && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	close(talk[1]);
	close(life[0]);
	*helper = (struct helper){ .pid = pid, .talk = talk[0], .life = life[1], .child = child, .level = level };
	return pid < 0 ? -1 : 0;
}

/* Lets go of a helper. If it has failed, or did not answer, it is made to end. */
static void stop(struct helper *helper, bool failed, int *status)
{
	struct pollfd one = { .fd = helper->talk, .events = POLLIN };
	char text[256];

	if (failed || !helper->child)
		close(helper->life);
	/* While it has its end of the socket it lives, and its pid is its own. */
	for (int i = 0; failed && helper->talk >= 0 && i <= 100; i++) {
		if (poll(&one, 1, 50) > 0 && recv(helper->talk, text, sizeof(text), MSG_DONTWAIT) <= 0)
			break;
		if (i == 100 && helper->pid > 0)
			kill(helper->pid, SIGKILL);
	}
	close(helper->talk);
	while (helper->child && helper->pid > 0 && waitpid(helper->pid, status, 0) < 0 && errno == EINTR)
		;
	if (!failed && helper->child)
		close(helper->life);
	helper->talk = helper->life = -1;
}

/* Handles lines that any helper may print; passes others to `line`, which returns 0 if they are right. */
static int take_line(struct helper *helper, char *text, int (*line)(char *))
{
	if (strncmp(text, "error ", 6) == 0)
		return say(helper->level, "%s", text + 6);
	if (strncmp(text, "warn ", 5) == 0)
		say(LOG_WARNING, "%s", text + 5);
	else if (strncmp(text, "info ", 5) == 0)
		say(LOG_INFO, "%s", text + 5);
	else if (strcmp(text, "ready") == 0)
		helper->ready = true;
	else if (strcmp(text, "end") == 0)
		/* Nothing more comes, so it may exit. */
		helper->ended = (shutdown(helper->talk, SHUT_WR), true);
	else if (strcmp(text, "busy") != 0 && sscanf(text, "pid %d", &helper->pid) != 1 && (!line || line(text) != 0))
		return say(helper->level, "unexpected answer: %s", text);
	return 0;
}

/* Reads a helper's lines until it has said what `until` records, or until it closes its output. */
static int listen_to(struct helper *helper, const bool *until, int timeout, int (*line)(char *))
{
	int failed = 0;

	while (!until || !*until) {
		struct pollfd one = { .fd = helper->talk, .events = POLLIN };
		int ready = poll(&one, 1, timeout * 1000);
		char *start = helper->text, *end = start + helper->used;
		ssize_t got = ready > 0 ? read(helper->talk, end, sizeof(helper->text) - helper->used) : ready;

		if (got < 0 && errno == EINTR)
			continue;
		if (ready == 0)
			return say(helper->level, "no sign of life for %d seconds", timeout);
		if (got < 0 && errno != ECONNRESET)
			return say(helper->level, "%s", strerror(errno));
		if (got <= 0)
			return failed;
		helper->used += got;
		while ((end = memchr(start, '\n', helper->text + helper->used - start))) {
			*end = '\0';
			failed |= take_line(helper, start, line);
			start = end + 1;
		}
		helper->used -= start - helper->text;
		if (helper->used == sizeof(helper->text))
			return say(helper->level, "an answer line is too long");
		memmove(helper->text, start, helper->used);
	}
	return failed;
}

/* Hands `words` to the helper that waits. False if none does, or if it ended meanwhile. */
static bool ask_early(char *const *words)
{
	bool sent = early.talk >= 0 && poll(&(struct pollfd){ .fd = early.talk, .events = POLLIN }, 1, 0) == 0;

	for (; sent && *words; words++) {
		sent = send(early.talk, *words, strlen(*words), MSG_NOSIGNAL) > 0;
		sent = sent && send(early.talk, words[1] ? " " : "\n", 1, MSG_NOSIGNAL) == 1;
	}
	if (!sent && early.talk >= 0) {
		say(LOG_WARNING, "the helper that waited has ended; starting another");
		stop(&early, true, NULL);
	}
	return sent;
}

/* Has the work done that `args` describe; the first four of them start a helper. */
static int run_helper(char *const *args, int stage, int timeout, int (*line)(char *))
{
	struct helper fresh, *helper = ask_early(args + 4) ? &early : &fresh;
	sigset_t before = hide_children();
	int status = 0, failed = helper == &fresh ? start(&fresh, args, stage, true, LOG_ERROR) : 0;
	bool started = !failed;

	failed = failed || listen_to(helper, helper->child ? NULL : &helper->ended, timeout, line) != 0 ? -1 : 0;
	stop(helper, failed, &status);
	if (failed)
		started ? error("%s failed", args[2]) : 0;
	else if (WIFSIGNALED(status))
		failed = error("%s: ended by signal %d", args[2], WTERMSIG(status));
	else if (WEXITSTATUS(status) != 0)
		failed = error("%s: exit status %d", args[2], WEXITSTATUS(status));
	else if (!helper->ended)
		failed = error("%s: it ended before it was done", args[2]);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return failed;
}

/* ------------------------------------------------- before the tasks freeze */

/* CRIU's record of a task (struct pstree_item, struct pid), as far as it has been the same since 3.0. */
struct task {
	void *parent, *children[2], *sibling[2];
	struct {
		void *task;
		pid_t real;
	} *pid;
};
extern struct task *root_item WEAK;

/* Copies from an address that may be wrong. */
static bool peek(const void *from, void *to, size_t size)
{
	struct iovec here = { to, size }, there = { (void *)from, size };

	return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == (ssize_t)size;
}

/* The process that is to be dumped, with its children; 0 if CRIU does not show it. */
static pid_t root_pid(void)
{
	struct task *root = &root_item ? root_item : NULL, task;
	pid_t pid = 0;

	if (root && peek(root, &task, sizeof(task)) && peek(&task.pid->real, &pid, sizeof(pid)) && pid > 0)
		return kill(pid, 0) == 0 || errno == EPERM ? pid : 0;
	return 0;
}

/* Whether a file descriptor of a process, or of a descendant, is a map. */
static bool has_map(pid_t pid)
{
	char path[320], link[32];
	struct dirent *entry;
	bool found = false;
	DIR *folder;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	folder = opendir(path);
	while (folder && !found && (entry = readdir(folder))) {
		ssize_t size = readlinkat(dirfd(folder), entry->d_name, link, sizeof(link));

		found = size == 18 && memcmp(link, "anon_inode:bpf-map", 18) == 0;
	}
	if (folder)
		closedir(folder);
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	folder = found ? NULL : opendir(path);
	while (folder && !found && (entry = readdir(folder))) {
		FILE *children;
		pid_t child;

		snprintf(path, sizeof(path), "/proc/%d/task/%s/children", pid, entry->d_name);
		children = fopen(path, "re");
		while (children && !found && fscanf(children, "%d", &child) == 1)
			found = has_map(child);
		if (children)
			fclose(children);
	}
	if (folder)
		closedir(folder);
	return found;
}

/* Whether an orphan of ours would become our own child. */
static bool adopts(void)
{
	int reaper = 0;

	return getpid() == 1 || prctl(PR_GET_CHILD_SUBREAPER, &reaper) != 0 || reaper;
}

/* -------------------------------------------------------- kept objects */

/*
 * Programs, links and BTF cannot be made again from images. They can stay in the kernel until the restore, on the same
 * host and in the same boot: a folder of this BPF file system has pins of them. The table names folder and objects, a
 * line `ID KIND OBJECT TAG FOLDER` each.
 */
#define KEPT "/sys/fs/bpf/bpfimg-kept"
#define KEPT_LINE "%x %4[a-z] %u %16[0-9a-f-] %32[0-9a-f-]%n"

/* Name of this dump's folder; empty if there is none. */
static char kept[33];

static const struct kind *kind_named(const char *name)
{
	for (size_t i = 1; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (strcmp(kinds[i].name, name) == 0)
			return &kinds[i];
	return NULL;
}

static int make_kept(void)
{
	char path[96];
	unsigned int random = 0;

	if (*kept)
		return 0;
	syscall(SYS_getrandom, &random, sizeof(random), 0);
	snprintf(kept, sizeof(kept), "%x-%x", getpid(), random);
	snprintf(path, sizeof(path), KEPT "/%s", kept);
	if ((mkdir(KEPT, 0700) == 0 || errno == EEXIST) && mkdir(path, 0700) == 0)
		return 0;
	*kept = '\0';
	return error("keep-programs: %s: %s (a BPF file system is needed there)", path, strerror(errno));
}

/* A map with these types, because BTF itself cannot be pinned: -1 if they have no 32-bit number, or on failure. */
static int make_holder(int btf)
{
	union bpf_attr attr;

	for (unsigned int type = 1; type < 65536; type++) {
		int fd;

		memset(&attr, 0, sizeof(attr));
		attr.map_type = BPF_MAP_TYPE_ARRAY;
		attr.key_size = attr.value_size = 4;
		attr.max_entries = 1;
		attr.btf_fd = btf;
		attr.btf_key_type_id = attr.btf_value_type_id = type;
		strcpy(attr.map_name, "bpfimg_kept");
		fd = bpf(BPF_MAP_CREATE, &attr);
		if (fd >= 0 || errno != EINVAL)
			return fd;
	}
	return -1;
}

static int pin(int fd, const struct kind *kind, unsigned int id)
{
	bool types = kind->command == BPF_BTF_GET_FD_BY_ID;
	int target = types ? make_holder(fd) : fd, failed = -1;
	char path[128];
	union bpf_attr attr;

	snprintf(path, sizeof(path), KEPT "/%s/%s_%u", kept, kind->name, id);
	memset(&attr, 0, sizeof(attr));
	attr.pathname = (unsigned long)path;
	attr.bpf_fd = target;
	/* It is there already if the object was opened twice. */
	if (target >= 0 && (bpf(BPF_OBJ_PIN, &attr) == 0 || errno == EEXIST))
		failed = 0;
	if (failed)
		error("keep-programs: %s: %s", path, strerror(errno));
	if (types && target >= 0)
		close(target);
	return failed;
}

static void unpin(const char *folder)
{
	char path[96];
	DIR *pins;
	struct dirent *entry;

	snprintf(path, sizeof(path), KEPT "/%s", folder);
	pins = opendir(path);
	while (pins && (entry = readdir(pins)))
		unlinkat(dirfd(pins), entry->d_name, 0);
	if (pins)
		closedir(pins);
	rmdir(path);
	rmdir(KEPT); /* if it was the last */
}

/* Lets go of what a table keeps, which is about to be removed. */
static void forget(int folder, const char *name)
{
	int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC), at;
	FILE *from = fd < 0 ? NULL : fdopen(fd, "r");
	char line[128], kind[5], tag[17], place[33];
	unsigned int id, object;

	while (from && fgets(line, sizeof(line), from)) {
		at = 0;
		if (sscanf(line, KEPT_LINE, &id, kind, &object, tag, place, &at) == 5 && line[at] == '\n')
			unpin(place);
	}
	if (from)
		fclose(from);
}

/* ---------------------------------------------------------------- images */

/*
 * A dump replaces the images of an earlier dump in the same folder, and puts them back if it fails. The new ones
 * must have their names before the last hook returns, because CRIU's post-dump script may copy the folder; but
 * whether the dump failed is known only in exit(), which comes later. So the old images move to folders whose names
 * say how far the change has come, even if CRIU is killed:
 *
 *   NEW     the helper's images, complete; while it exists, those in the dump's folder belong to several dumps
 *   MOVING  some of the old images; the others are still in the dump's folder
 *   OLD     all of the old images; the dump's folder has new ones or none
 */
#define NEW ".bpfimg-new"
#define MOVING ".bpfimg-moving"
#define OLD ".bpfimg-old"
#define ASIDE "." NEW ".bpfimg-" /* start of names without meaning: unfinished work of the helper */

/* State of this run. */
static bool helper_ran, in_place;

static bool is_there(const char *name)
{
	return faccessat(criu_get_image_dir(), name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static DIR *open_folder(const char *name)
{
	int fd = openat(criu_get_image_dir(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? NULL : fdopendir(fd);
}

static bool is_ours(const char *name)
{
	return strcmp(name, TABLE) == 0 || fnmatch("bpfimg-*.img", name, 0) == 0;
}

/* Moves our images from one folder to another; without another, removes them. The folder has no other files. */
static int move(const char *from, const char *to)
{
	DIR *source = open_folder(from), *target = to ? open_folder(to) : NULL;
	int failed = !source || (to && !target) ? error("%s: %s", source ? to : from, strerror(errno)) : 0;
	struct dirent *entry;
	struct stat file;

	while (!failed && (entry = readdir(source))) {
		const char *name = entry->d_name;

		if (!is_ours(name))
			continue;
		if (fstatat(dirfd(source), name, &file, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(file.st_mode))
			failed = error("%s: it is a folder", name);
		else if (!target && strcmp(name, TABLE) == 0)
			forget(dirfd(source), name);
		if (!failed &&
		    (target ? renameat(dirfd(source), name, dirfd(target), name) : unlinkat(dirfd(source), name, 0)))
			failed = error("%s: %s", name, strerror(errno));
	}
	if (source)
		closedir(source);
	if (target)
		closedir(target);
	return failed;
}

static int make_folder(const char *name)
{
	if (mkdirat(criu_get_image_dir(), name, 0700) == 0 || errno == EEXIST)
		return 0;
	return error("%s: %s", name, strerror(errno));
}

static int remove_folder(const char *name)
{
	if (!is_there(name))
		return 0;
	if (move(name, NULL) != 0)
		return -1;
	return unlinkat(criu_get_image_dir(), name, AT_REMOVEDIR) == 0 ? 0 : error("%s: %s", name, strerror(errno));
}

static int rename_folder(const char *from, const char *to)
{
	int folder = criu_get_image_dir();

	return renameat(folder, from, folder, to) == 0 ? 0 : error("%s: %s", from, strerror(errno));
}

/* Removes what the helper has made, and what a killed run did not get to remove. */
static int remove_new(void)
{
	DIR *folder = open_folder(".");
	struct dirent *entry, *file;

	while (folder && (entry = readdir(folder)))
		if (fnmatch(ASIDE "*", entry->d_name, 0) == 0) {
			DIR *part = open_folder(entry->d_name);

			while (part && (file = readdir(part))) {
				if (strcmp(file->d_name, TABLE) == 0)
					forget(dirfd(part), TABLE);
				unlinkat(dirfd(part), file->d_name, 0);
			}
			if (part)
				closedir(part);
			unlinkat(dirfd(folder), entry->d_name, AT_REMOVEDIR);
		}
	if (folder)
		closedir(folder);
	return remove_folder(NEW);
}

/* Puts the old images back, however far the change has come, and removes the new ones. */
static int put_back(void)
{
	if (is_there(OLD) && (make_folder(NEW) || move(".", NEW) || rename_folder(OLD, MOVING)))
		return -1;
	if (is_there(MOVING) && (move(MOVING, ".") || remove_folder(MOVING)))
		return -1;
	return remove_new();
}

/* Moves the old images away. */
static int make_place(void)
{
	if (!in_place && (make_folder(MOVING) || move(".", MOVING) || rename_folder(MOVING, OLD)))
		return -1;
	in_place = true;
	return 0;
}

/* Gives the helper's images their names. */
static int put_in_place(void)
{
	return make_place() || move(NEW, ".") || remove_folder(NEW);
}

/* After a dump. If it succeeded without maps, it removes those of an older dump, too. */
static void end_dump(bool failed)
{
	if (failed ? helper_ran || in_place : !in_place)
		put_back();
	if (!failed && !in_place)
		move(".", NULL);
	if (!failed && in_place && rename_folder(OLD, ASIDE "old") == 0)
		remove_new();
}

/* ------------------------------------------------------------------ dump */

static FILE *table;
/* The first file that we do not dump: an error unless another plugin does. */
static char foreign[64];

/* The images then go through a socket in the folder; what plugins write in the folder would be lost. */
static int check_stream(void)
{
	if (!is_there("streamer-capture.sock"))
		return 0;
	return error("BPF maps cannot be dumped with --stream: their images would not be in the stream");
}

/*
 * While the tasks are not frozen yet: starts node, which takes most of the time that a few maps need. If this fails,
 * the first map's hook starts another helper, which says why.
 */
static int start_early(void)
{
	enum { SECONDS = 5 };
	pid_t root = root_pid();
	char pid[16];
	char *const args[] = { NODE, BPFIMG, "criu-dump", CONFIG, pid, NULL };
	sigset_t before;

	snprintf(pid, sizeof(pid), "%d", root);
	if (*settings.problem || adopts() || (root && !has_map(root)))
		return 0;
	if (root && check_stream() != 0)
		return -1;
	before = hide_children();
	if (start(&early, args, DUMP, false, LOG_WARNING) == 0)
		listen_to(&early, &early.ready, SECONDS, NULL);
	if (early.talk >= 0 && !early.ready) {
		say(LOG_WARNING, "the helper is not ready: the tasks will be frozen longer");
		stop(&early, true, NULL);
	}
	early.level = LOG_ERROR;
	sigprocmask(SIG_SETMASK, &before, NULL);
	return 0;
}

static int dump_line(char *text)
{
	unsigned int id;
	int at = 0;
	struct map *map;

	if (sscanf(text, "map %u%n", &id, &at) != 1 && sscanf(text, "skip %u %n", &id, &at) != 1)
		return -1;
	map = find_map(id);
	if (!map && !(map = longer((void **)&maps, &map_count, sizeof(*maps))))
		return -1;
	map->id = id;
	free(map->problem);
	map->problem = *text == 's' ? strdup(text + at) : NULL;
	return 0;
}

/* Captures every map of the frozen tasks, and those that were requested so far. */
static int capture(unsigned int wanted)
{
	enum { PIDS = 4, IDS = 6 };
	char **args = calloc(map_count + IDS + 2, sizeof(*args));
	char (*numbers)[16] = calloc(map_count + 3, sizeof(*numbers));
	int failed = -1;

	if (args && numbers && (helper_ran || in_place || put_back() == 0)) {
		const char *fixed[] = { NODE, BPFIMG, "criu-dump", CONFIG };

		memcpy(args, fixed, sizeof(fixed));
		for (size_t i = 0; i < map_count + 3; i++)
			args[PIDS + i] = numbers[i];
		snprintf(args[PIDS], sizeof(*numbers), "%d", getpid());
		snprintf(args[PIDS + 1], sizeof(*numbers), "%d", root_pid());
		for (size_t i = 0; i <= map_count; i++)
			snprintf(args[IDS + i], sizeof(*numbers), "%u", i < map_count ? maps[i].id : wanted);
		helper_ran = true;
		failed = run_helper(args, DUMP, settings.dump_timeout, dump_line);
	}
	free(args);
	free(numbers);
	return failed;
}

static int open_table(void)
{
	int fd = openat(criu_get_image_dir(), TABLE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	table = fd < 0 ? NULL : fdopen(fd, "w");
	if (!table)
		return error("%s: %s", TABLE, strerror(errno));
	return 0;
}

/* Adds a line to the table. */
__attribute__((format(printf, 1, 2))) static int note(const char *format, ...)
{
	va_list args;
	int wrote;

	if (!table && open_table() != 0)
		return -1;
	va_start(args, format);
	wrote = vfprintf(table, format, args);
	va_end(args);
	if (wrote < 0 || fflush(table) != 0)
		return error("%s: %s", TABLE, strerror(errno));
	if (file_count++ == 0 && add_inventory_plugin && add_inventory_plugin(NAME) != 0)
		return error("CRIU failed to record that the dump needs the plugin");
	return 0;
}

static int dump_map(int fd, unsigned int id, const struct info *info)
{
	const struct map *map = find_map(info->id);

	if (*settings.problem)
		return error("%s", settings.problem);
	if (!map) {
		if (check_stream() != 0 || capture(info->id) != 0)
			return -1;
		map = find_map(info->id);
		if (!map)
			return error("the helper did not report on it");
		if (!map->problem && put_in_place() != 0)
			return -1;
	}
	if (map->problem)
		return error("%s", map->problem);
	return note("%x %u %#o\n", id, info->id, fcntl(fd, F_GETFL));
}

/* Keeps an object that no image can hold. */
static int keep(int fd, unsigned int id, const struct kind *kind)
{
	unsigned int object;
	char tag[17];

	if (*settings.problem)
		return error("%s", settings.problem);
	if (check_stream() != 0 || object_info(fd, kind, &object, tag) != 0)
		return -1;
	/* Old images first: they may include a table. */
	if ((!helper_ran && !in_place && put_back() != 0) || make_place() != 0)
		return -1;
	if (make_kept() != 0 || pin(fd, kind, object) != 0)
		return -1;
	return note("%x %s %u %s %s\n", id, kind->name, object, tag, kept);
}

static int dump_ext_file(int fd, int id)
{
	char link[64];
	const struct kind *kind = find_kind(fd, link);
	struct info info;

	if (kind == MAP && map_info(fd, &info) != 0)
		return error("a BPF map: %s", strerror(errno));
	if (kind == MAP)
		return dump_map(fd, id, &info) == 0 ?
			       0 :
			       error("BPF map %u (%.16s, type %u) was not dumped", info.id, info.name, info.type);
	if (kind && settings.keep_programs)
		return keep(fd, id, kind) == 0 ? 0 : error("%s was not kept", link);
	/* Another plugin may dump it: what else there is of BPF are iterators and tokens. */
	if (!*foreign && (kind || strncmp(link, "anon_inode:bpf", 14) == 0))
		strcpy(foreign, link);
	return -ENOTSUP;
}

/* ---------------------------------------------------------------- restore */

static int restore_line(char *text)
{
	unsigned int from, to;

	if (sscanf(text, "map %u %u", &from, &to) != 2)
		return -1;
	for (size_t i = 0; i < file_count; i++) {
		struct file *file = &files[i];

		if (file->map != from || file->kind != MAP)
			continue;
		file->fresh = to;
		/* Now, while the helper keeps it open. */
		file->fd = open_object(file, -1, 0);
		if (file->fd < 0)
			return error("map %u, created from map %u: %s", to, from, strerror(errno));
	}
	return 0;
}

/* Opens an object that was kept: its pin proves that it is the same. */
static int open_kept(struct file *file, const char *tag, const char *folder)
{
	unsigned int id = 0;
	char path[128], now[17];

	snprintf(path, sizeof(path), KEPT "/%s/%s_%u", folder, file->kind->name, file->map);
	file->fresh = file->map;
	if (access(path, F_OK) == 0)
		file->fd = open_object(file, -1, 0);
	if (file->fd >= 0 && object_info(file->fd, file->kind, &id, now) == 0 && strcmp(tag, now) == 0)
		return 0;
	return error("%s %u, which was kept in %s, is not there: kept for one boot of one host, until `criu forget`",
		     file->kind->name, file->map, path);
}

/* Reads a line of the table. Returns -1 if it is not one, 1 after another error. */
static int read_file(const char *line, struct file *file)
{
	char kind[5], tag[17], folder[33];
	int at = 0;

	file->kind = MAP;
	file->fd = -1;
	if (sscanf(line, "%x %u %o%n", &file->id, &file->map, &file->flags, &at) == 3 && line[at] == '\n')
		return 0;
	if (sscanf(line, KEPT_LINE, &file->id, kind, &file->map, tag, folder, &at) != 5 || line[at] != '\n')
		return -1;
	file->kind = kind_named(kind);
	return !file->kind ? -1 : open_kept(file, tag, folder) != 0 ? 1 : 0;
}

/* Reads the table; returns 1 if there is none. */
static int read_table(void)
{
	int fd = openat(criu_get_image_dir(), TABLE, O_RDONLY | O_CLOEXEC);
	FILE *from = fd < 0 ? NULL : fdopen(fd, "r");
	char line[128];

	if (!from)
		return errno == ENOENT ? 1 : error("%s: %s", TABLE, strerror(errno));
	while (fgets(line, sizeof(line), from)) {
		struct file *file = longer((void **)&files, &file_count, sizeof(*files));
		int read = file ? read_file(line, file) : -1;

		if (read != 0) {
			fclose(from);
			return read > 0 ? -1 : error("%s: line %zu: expected `ID MAP_ID FLAGS`", TABLE, file_count);
		}
	}
	fclose(from);
	return 0;
}

static int find_argument(struct dl_phdr_info *object, size_t size, void *found)
{
	/* CRIU got the hook of this name together with the second argument. */
	static const char sign[] = "cr_plugin_dump_devices_late";

	(void)size;
	for (int i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &object->dlpi_phdr[i];

		if (part->p_type == PT_LOAD && (part->p_flags & (PF_R | PF_W)) == PF_R &&
		    memmem((void *)(object->dlpi_addr + part->p_vaddr), part->p_filesz, sign, sizeof(sign) - 1))
			*(bool *)found = true;
	}
	return 1; /* the first object is the program; only that matters */
}

static int prepare_restore(void)
{
	char *args[] = { NODE, BPFIMG, "criu-restore", CONFIG, NULL };
	bool needed = !check_and_remove_inventory_plugin || check_and_remove_inventory_plugin(NAME, strlen(NAME));
	bool two = false, maps = false;
	int failed, missing = 0;

	if (!needed)
		return 0;
	if (is_there(NEW) || is_there(MOVING))
		return error("a dump into this folder was interrupted: its images are not all from one dump");
	failed = read_table();
	/* If CRIU has no list of plugins (before 4.1), it seems to need every plugin. */
	if (failed == 1 && !check_and_remove_inventory_plugin && !is_there("bpfimg-file.img"))
		return 0;
	if (failed)
		return failed == 1 ? error("%s is missing: it says which files of the dump are BPF maps", TABLE) : -1;
	if (*settings.problem)
		return error("%s", settings.problem);
	if (settings.hook_arguments == 0) {
		dl_iterate_phdr(find_argument, &two);
		settings.hook_arguments = two ? 2 : 1;
	}
	for (size_t i = 0; i < file_count; i++)
		maps |= files[i].kind == MAP;
	if (maps)
		failed = run_helper(args, RESTORE, settings.restore_timeout, restore_line);
	for (size_t i = 0; i < file_count; i++)
		if (files[i].kind == MAP && (failed || files[i].fd < 0))
			missing = error("BPF map %u (file 0x%x) was not restored", files[i].map, files[i].id);
	return failed | missing;
}

static int restore_ext_file(int id, bool *retry)
{
	struct file *file = find_file(id);
	int fd;

	if (!file && file_count == 0)
		say(LOG_WARNING, "file 0x%x: probably not a BPF map, but %s is missing", id, TABLE);
	if (!file)
		return -ENOTSUP;
	fd = open_object(file, -1, 0);
	if (fd < 0 && errno == EPERM && __userns_call) /* ids belong to the initial user namespace, where CRIU has a daemon */
		fd = __userns_call("bpfimg", open_object, FD_OUT, file, sizeof(*file), -1);
	if (fd < 0)
		return error("BPF %s %u, now %u: cannot be opened: %s", file->kind->name, file->map, file->fresh,
			     strerror(errno));
	if (file->flags & (O_APPEND | O_NONBLOCK))
		fcntl(fd, F_SETFL, file->flags & (O_APPEND | O_NONBLOCK));
	/*
	 * CRIU after 4.2 passes the address of an unset variable in its caller; CRIU up to 4.2 passes nothing, so that
	 * we get whatever the register contains. A variable of the caller is a little above our own.
	 */
	if (settings.hook_arguments == 2) {
		size_t above = (char *)retry - (char *)__builtin_frame_address(0);

		if (above < 4096)
			*retry = false;
	}
	return fd;
}

/* ---------------------------------------------------------------- plugin */

/* A CRIU with libbpf dumps two types of maps itself and refuses all others. This makes it ask us for all of them. */
static int take_over(void)
{
	size_t page = sysconf(_SC_PAGESIZE);
	char *from = (char *)((size_t)&bpfmap_dump_ops & ~(page - 1));
	size_t size = (char *)(&bpfmap_dump_ops + 1) - from;

	if (!&bpfmap_dump_ops || !&ext_dump_ops)
		return 0;
	if (bpfmap_dump_ops.type == TYPE_EXT)
		return 0;
	if (bpfmap_dump_ops.type != TYPE_BPFMAP || ext_dump_ops.type != TYPE_EXT)
		return error("take-over: this version of CRIU is not supported");
	if (mprotect(from, size, PROT_READ | PROT_WRITE) != 0)
		return error("take-over: %s", strerror(errno));
	memcpy(&bpfmap_dump_ops, &ext_dump_ops, sizeof(ext_dump_ops));
	mprotect(from, size, PROT_READ);
	say(LOG_INFO, "taking over from CRIU's own BPF support");
	return 0;
}

static int find_self(struct dl_phdr_info *object, size_t size, void *found)
{
	(void)size;
	for (int i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &object->dlpi_phdr[i];

		if (part->p_type == PT_LOAD && (size_t)marker - object->dlpi_addr - part->p_vaddr < part->p_memsz)
			return (*(const char **)found = object->dlpi_name, 1);
	}
	return 0;
}

static bool is_copy(int folder, const char *name)
{
	int fd = openat(folder, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	void *bytes = MAP_FAILED;
	struct stat file;
	bool found = false;

	if (fd >= 0 && fstat(fd, &file) == 0 && S_ISREG(file.st_mode) && file.st_size > 0)
		bytes = mmap(NULL, file.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (bytes != MAP_FAILED) {
		found = memmem(bytes, file.st_size, marker, strcspn(marker, "\n") + 1) != NULL;
		munmap(bytes, file.st_size);
	}
	if (fd >= 0)
		close(fd);
	return found;
}

/* CRIU loads every *.so in our folder. Two copies of us would each write some of the maps to the same images. */
static int check_alone(void)
{
	const char *self = NULL, *name;
	char path[PATH_MAX];
	struct dirent *entry;
	DIR *folder;
	int failed = 0;

	dl_iterate_phdr(find_self, &self);
	if (!self || !(name = strrchr(self, '/')))
		return 0;
	snprintf(path, sizeof(path), "%.*s", (int)(name++ - self), self);
	folder = opendir(path);
	while (folder && !failed && (entry = readdir(folder)))
		if (strcmp(entry->d_name, name) != 0 && fnmatch("*.so", entry->d_name, 0) == 0 &&
		    is_copy(dirfd(folder), entry->d_name))
			failed = error("%s has a second copy, %s/%s: remove one of them", self, path, entry->d_name);
	if (folder)
		closedir(folder);
	return failed;
}

/* An unfinished change of several images (src/io/journal.ts) would continue in the images of this dump. */
static int check_whole(void)
{
	char path[64], folder[PATH_MAX];
	ssize_t size;

	if (!is_there(".bpfimg-journal/plan"))
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", criu_get_image_dir());
	size = readlink(path, folder, sizeof(folder));
	return error("a change to the images was interrupted: `bpfimg verify %.*s` finishes it",
		     size < 0 ? 0 : (int)size, folder);
}

static int init(int stage)
{
	if (check_alone() != 0 || check_whole() != 0)
		return -1;
	read_settings();
	/* Then nobody knows whether we are to take over. */
	if (stage == DUMP && *settings.problem && &bpfmap_dump_ops)
		return error("%s", settings.problem);
	if (stage == DUMP)
		return settings.take_over && take_over() != 0 ? -1 : start_early();
	return stage == RESTORE ? prepare_restore() : 0;
}

/* The line with `wanted` in a task's file in /proc. */
static bool find_line(int pid, const char *name, const char *wanted, char line[512])
{
	char path[64];
	bool found = false;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	file = fopen(path, "re");
	while (file && !found && fgets(line, 512, file))
		found = strstr(line, wanted) != NULL;
	if (file)
		fclose(file);
	return found;
}

/* CRIU refuses a task that has mapped a map before it asks any plugin, and its message does not say so. */
static void tell_of_mappings(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char line[512];

	while (proc && (entry = readdir(proc))) {
		int pid = atoi(entry->d_name);

		if (pid > 0 && find_line(pid, "status", "TracerPid:", line) && atoi(line + 10) == getpid() &&
		    find_line(pid, "maps", "anon_inode:bpf-map", line))
			error("process %d has a BPF map mapped into its memory, which CRIU cannot dump: unmap it", pid);
	}
	if (proc)
		closedir(proc);
}

static void finish(int stage, int failed)
{
	if (table)
		fclose(table);
	table = NULL;
	if (early.talk >= 0)
		stop(&early, false, NULL);
	if (stage == DUMP)
		end_dump(failed);
	if (stage == DUMP && failed)
		tell_of_mappings();
	if (failed && *foreign)
		error("%s: of BPF objects, only maps can be dumped: close it before the dump", foreign);
	for (size_t i = 0; stage == RESTORE && i < file_count; i++)
		close(files[i].fd);
}

/* CRIU's table without the hooks after the fourth: CRIU accepts a shorter table, but not a longer one. */
__attribute__((visibility("default"))) struct {
	const char *name;
	int (*init)(int stage);
	void (*exit)(int stage, int failed);
	unsigned int version, max_hooks;
	void *hooks[4];
} CR_PLUGIN_DESC = {
	.name = NAME,
	.init = init,
	.exit = finish,
	.version = 0x000200,
	.max_hooks = 4,
	.hooks = { [2] = dump_ext_file, [3] = restore_ext_file },
};
