// SPDX-License-Identifier: Apache-2.0
/* Reads /runphi.conf, which backends/guest/initrd.py writes: records `key=value`, each ended by a NUL. */
#define _GNU_SOURCE
#include "init.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
	const char *name;
	int resource;
} rlimit_names[] = {
	{ "RLIMIT_AS", RLIMIT_AS },
	{ "RLIMIT_CORE", RLIMIT_CORE },
	{ "RLIMIT_CPU", RLIMIT_CPU },
	{ "RLIMIT_DATA", RLIMIT_DATA },
	{ "RLIMIT_FSIZE", RLIMIT_FSIZE },
	{ "RLIMIT_LOCKS", RLIMIT_LOCKS },
	{ "RLIMIT_MEMLOCK", RLIMIT_MEMLOCK },
	{ "RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE },
	{ "RLIMIT_NICE", RLIMIT_NICE },
	{ "RLIMIT_NOFILE", RLIMIT_NOFILE },
	{ "RLIMIT_NPROC", RLIMIT_NPROC },
	{ "RLIMIT_RSS", RLIMIT_RSS },
	{ "RLIMIT_RTPRIO", RLIMIT_RTPRIO },
	{ "RLIMIT_RTTIME", RLIMIT_RTTIME },
	{ "RLIMIT_SIGPENDING", RLIMIT_SIGPENDING },
	{ "RLIMIT_STACK", RLIMIT_STACK },
};

static char *read_all(const char *path, size_t *size)
{
	struct stat status;
	char *data = NULL;
	size_t have = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && fstat(fd, &status) == 0 && (data = malloc((size_t)status.st_size + 1))) {
		ssize_t n;

		while ((n = read(fd, data + have, (size_t)status.st_size - have)) > 0)
			have += (size_t)n;
		data[have] = '\0';
	}
	if (fd >= 0)
		close(fd);
	*size = have;
	return data;
}

static void parse_groups(struct conf *conf, char *value)
{
	for (char *part = strtok(value, ","); part && conf->group_count < MAX_GROUPS; part = strtok(NULL, ","))
		conf->groups[conf->group_count++] = (gid_t)strtoul(part, NULL, 10);
}

/* NAME:SOFT:HARD */
static void parse_rlimit(struct conf *conf, char *value)
{
	char *name = strtok(value, ":"), *soft = strtok(NULL, ":"), *hard = strtok(NULL, ":");

	if (!hard || conf->rlimit_count == MAX_RLIMITS)
		return;
	for (size_t i = 0; i < sizeof(rlimit_names) / sizeof(rlimit_names[0]); i++) {
		if (strcmp(name, rlimit_names[i].name) == 0) {
			struct rlimit_record *record = &conf->rlimits[conf->rlimit_count++];

			record->resource = rlimit_names[i].resource;
			record->limit.rlim_cur = strtoull(soft, NULL, 10);
			record->limit.rlim_max = strtoull(hard, NULL, 10);
		}
	}
}

/* FLAGS TYPE SOURCE DATA DESTINATION; the last may hold spaces */
static void parse_mount(struct conf *conf, char *value)
{
	struct mount_record *record = &conf->mounts[conf->mount_count];
	char *flags = strsep(&value, " ");

	record->type = strsep(&value, " ");
	record->source = strsep(&value, " ");
	record->data = strsep(&value, " ");
	record->destination = value;
	record->flags = strtoul(flags, NULL, 10);
	if (value)
		conf->mount_count++;
}

static void set(struct conf *conf, const char *key, char *value, size_t *args, size_t *env)
{
	if (strcmp(key, "arg") == 0)
		conf->args[(*args)++] = value;
	else if (strcmp(key, "env") == 0)
		conf->env[(*env)++] = value;
	else if (strcmp(key, "cwd") == 0)
		conf->cwd = value;
	else if (strcmp(key, "hostname") == 0)
		conf->hostname = value;
	else if (strcmp(key, "uid") == 0)
		conf->uid = (uid_t)strtoul(value, NULL, 10);
	else if (strcmp(key, "gid") == 0)
		conf->gid = (gid_t)strtoul(value, NULL, 10);
	else if (strcmp(key, "groups") == 0)
		parse_groups(conf, value);
	else if (strcmp(key, "rlimit") == 0)
		parse_rlimit(conf, value);
	else if (strcmp(key, "umask") == 0)
		conf->umask = atoi(value);
	else if (strcmp(key, "rows") == 0)
		conf->rows = atoi(value);
	else if (strcmp(key, "cols") == 0)
		conf->cols = atoi(value);
	else if (strcmp(key, "tty") == 0)
		conf->tty = atoi(value) != 0;
	else if (strcmp(key, "rootfs") == 0)
		conf->rootfs = value;
	else if (strcmp(key, "console") == 0)
		conf->console = value;
	else if (strcmp(key, "mark") == 0)
		conf->mark = value;
	else if (strcmp(key, "comm") == 0)
		conf->comm = strtoul(value, NULL, 0);
	else if (strcmp(key, "readonly") == 0)
		conf->readonly = atoi(value) != 0;
	else if (strcmp(key, "own-mounts") == 0)
		conf->own_mounts = atoi(value) != 0;
	else if (strcmp(key, "mount") == 0)
		parse_mount(conf, value);
	else if (strcmp(key, "net") == 0)
		conf->net = atoi(value) != 0;
}

void conf_read(struct conf *conf, const char *path)
{
	size_t size, records = 0, args = 0, env = 0;
	char *data = read_all(path, &size);

	*conf = (struct conf){ .cwd = "/", .umask = -1, .rootfs = "share" };
	for (size_t i = 0; i < size; i++)
		records += data[i] == '\0';
	/* one more for HOME, which process.c may add, one for the NULL */
	conf->args = calloc(records + 2, sizeof(char *));
	conf->env = calloc(records + 2, sizeof(char *));
	conf->mounts = calloc(records + 1, sizeof(*conf->mounts));
	for (char *record = data, *next; data && record < data + size; record = next) {
		char *value = strchr(record, '=');

		next = record + strlen(record) + 1;
		if (value) {
			*value = '\0';
			set(conf, record, value + 1, &args, &env);
		}
	}
}
