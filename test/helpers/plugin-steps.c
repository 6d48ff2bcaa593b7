/*
 * The CRIU plugin without CRIU: its reader of settings, and what it does to a folder of images, killed at any step.
 *
 *   plugin-steps settings               prints what it has read of CONFIG, or what is wrong with it
 *   plugin-steps MODE FOLDER STEP       a dump into FOLDER; it ends at the STEPth change of a name, with exit status 9
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int steps_left = -1;

static void step(void)
{
	if (steps_left >= 0 && steps_left-- == 0)
		_exit(9);
}

static int stepped_renameat(int from, const char *name, int to, const char *other)
{
	step();
	return renameat(from, name, to, other);
}

static int stepped_mkdirat(int folder, const char *name, mode_t mode)
{
	step();
	return mkdirat(folder, name, mode);
}

static int stepped_unlinkat(int folder, const char *name, int flags)
{
	step();
	return unlinkat(folder, name, flags);
}

#define renameat stepped_renameat
#define mkdirat stepped_mkdirat
#define unlinkat stepped_unlinkat
#include "../../plugins/criu/bpfimg.c"
#undef mkdirat

static int folder = -1;

int criu_get_image_dir(void)
{
	return folder;
}

/* What a helper leaves. */
static void make_new(void)
{
	static const char *const names[] = { NEW "/bpfimg-data.img", NEW "/bpfimg-file.img" };

	helper_ran = true;
	if (mkdirat(folder, NEW, 0700) != 0)
		exit(2);
	for (int i = 0; i < 2; i++)
		if (write(openat(folder, names[i], O_CREAT | O_WRONLY, 0600), "n", 1) != 1)
			exit(2);
}

int main(int argc, char **argv)
{
	const char *mode = argv[1];

	if (argc == 2) {
		read_settings();
		if (*settings.problem)
			puts(settings.problem);
		else
			printf("take-over %s, dump-timeout %d, restore-timeout %d, restore-hook-arguments %d\n",
			       settings.take_over ? "yes" : "no", settings.dump_timeout, settings.restore_timeout,
			       settings.hook_arguments);
		return 0;
	}
	folder = open(argv[2], O_RDONLY | O_DIRECTORY);
	steps_left = atoi(argv[3]);
	if (strcmp(mode, "begins") == 0)
		return put_back() != 0;
	if (strcmp(mode, "has no maps") != 0) {
		if (put_back() != 0)
			return 1;
		make_new();
		if (strcmp(mode, "fails at once") != 0 && put_in_place() != 0)
			return 1;
		if (strcmp(mode, "captures twice") == 0) {
			make_new();
			if (put_in_place() != 0)
				return 1;
		}
	}
	end_dump(strncmp(mode, "fails", 5) == 0);
	return 0;
}
