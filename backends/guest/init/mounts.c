// SPDX-License-Identifier: Apache-2.0
/*
 * The container's mounts, one after the other, as runphi_async/partition/mounts.py decided. Destinations are looked up
 * here, where the rootfs is the root: no link of the image can lead anywhere else. Types:
 *   bind        SOURCE names a directory or file in the share
 *   remount     what init has mounted there itself; only its flags are set
 *   tmpfs-copy  a tmpfs that begins with what the image has there
 *   any other   a file system of the guest's kernel
 */
#define _GNU_SOURCE
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define LINKS_MAX 8
/* Those a mount point has for itself; the others belong to the file system. */
#define POINT_FLAGS \
	(MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME)

static int make_part(const char *path, bool directory)
{
	int fd;

	if (directory)
		return mkdir(path, 0755);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	return fd < 0 ? -1 : close(fd);
}

/* Puts what a link names in front of what is left of a path. */
static int follow(const char *link, char *left, char *done)
{
	char target[PATH_MAX * 2];
	ssize_t len = readlink(link, target, PATH_MAX - 1);

	if (len < 0)
		return -1;
	target[len] = '\0';
	if (target[0] == '/')
		done[0] = '\0';
	if ((size_t)len + 1 + strlen(left) >= PATH_MAX) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcat(target, "/");
	strcat(target, left);
	strcpy(left, target);
	return 0;
}

/*
 * Finds the mount point and makes what is missing of it, also behind links that lead into nowhere yet, as runc does.
 * `point` gets its path without links.
 */
static int make_point(const char *path, bool directory, char point[PATH_MAX])
{
	char left[PATH_MAX * 2], name[NAME_MAX + 1], next[PATH_MAX];
	struct stat status;
	int links = 0;

	snprintf(left, sizeof(left), "%s", path);
	point[0] = '\0';
	for (;;) {
		size_t skip = strspn(left, "/"), len = strcspn(left + skip, "/");
		bool last = left[skip + len + strspn(left + skip + len, "/")] == '\0';

		if (len == 0)
			return 0;
		if (len > NAME_MAX || strlen(point) + len + 2 > PATH_MAX) {
			errno = ENAMETOOLONG;
			return -1;
		}
		snprintf(name, sizeof(name), "%.*s", (int)len, left + skip);
		memmove(left, left + skip + len, strlen(left + skip + len) + 1);
		if (strcmp(name, ".") == 0)
			continue;
		if (strcmp(name, "..") == 0) {
			char *slash = strrchr(point, '/');

			if (slash)
				*slash = '\0';
			continue;
		}
		strcpy(next, point);
		strcat(next, "/");
		strcat(next, name);
		if (lstat(next, &status) < 0) {
			if (errno != ENOENT || make_part(next, directory || !last) < 0)
				return -1;
		} else if (S_ISLNK(status.st_mode)) {
			if (links++ == LINKS_MAX) {
				errno = ELOOP;
				return -1;
			}
			if (follow(next, left, point) < 0)
				return -1;
			continue;
		}
		strcpy(point, next);
	}
}

static int set_flags(const char *destination, unsigned long flags)
{
	flags &= POINT_FLAGS;
	return flags ? mount(NULL, destination, NULL, MS_BIND | MS_REMOUNT | flags, NULL) : 0;
}

static int make_bind(const struct mount_record *record, int share)
{
	char source[64], point[PATH_MAX];
	struct stat status;

	snprintf(source, sizeof(source), "/proc/self/fd/%d/%s", share, record->source);
	if (stat(source, &status) < 0 || make_point(record->destination, S_ISDIR(status.st_mode), point) < 0 ||
	    mount(source, point, NULL, MS_BIND, NULL) < 0)
		return -1;
	return set_flags(point, record->flags);
}

static int copy_tree(int from, int to);

static int copy_entry(int from, int to, const char *name)
{
	struct stat status;
	char target[PATH_MAX];
	int source = -1, copy = -1, failed = -1;

	if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
		return -1;
	if (S_ISLNK(status.st_mode)) {
		ssize_t len = readlinkat(from, name, target, sizeof(target) - 1);

		if (len < 0)
			return -1;
		target[len] = '\0';
		failed = symlinkat(target, to, name);
	} else if (S_ISDIR(status.st_mode)) {
		source = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (source >= 0 && (mkdirat(to, name, 0700) == 0 || errno == EEXIST))
			copy = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		failed = copy < 0 ? -1 : copy_tree(source, copy);
	} else if (S_ISREG(status.st_mode)) {
		source = openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
		copy = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		failed = source < 0 || copy < 0 ? -1 : 0;
		for (ssize_t n = 1; !failed && n > 0;) {
			n = sendfile(copy, source, NULL, 1 << 20);
			failed = n < 0;
		}
	} else {
		failed = mknodat(to, name, status.st_mode, status.st_rdev);
	}
	if (!failed)
		failed = fchownat(to, name, status.st_uid, status.st_gid, AT_SYMLINK_NOFOLLOW);
	if (!failed && !S_ISLNK(status.st_mode))
		failed = fchmodat(to, name, status.st_mode & 07777, 0);
	if (source >= 0)
		close(source);
	if (copy >= 0)
		close(copy);
	return failed ? -1 : 0;
}

static int copy_tree(int from, int to)
{
	int again = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), failed = 0;
	DIR *directory = again >= 0 ? fdopendir(again) : NULL;
	struct dirent *entry;

	if (!directory)
		return -1;
	while (!failed && (entry = readdir(directory)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			failed = copy_entry(from, to, entry->d_name);
	closedir(directory);
	return failed;
}

static int make_copy(const struct mount_record *record, const char *point, const char *data)
{
	int from = open(point, O_RDONLY | O_DIRECTORY | O_CLOEXEC), to, failed;

	if (from < 0 || mount("tmpfs", point, "tmpfs", record->flags & ~(unsigned long)MS_RDONLY, data) < 0)
		return -1;
	to = open(point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	failed = to < 0 ? -1 : copy_tree(from, to);
	close(from);
	if (to >= 0)
		close(to);
	return failed ? -1 : set_flags(point, record->flags);
}

static int make_one(const struct mount_record *record, int share)
{
	const char *data = strcmp(record->data, "-") == 0 ? NULL : record->data;
	char point[PATH_MAX];

	if (strcmp(record->type, "bind") == 0)
		return make_bind(record, share);
	if (strcmp(record->type, "remount") == 0)
		return set_flags(record->destination, record->flags);
	if (make_point(record->destination, true, point) < 0)
		return -1;
	if (strcmp(record->type, "tmpfs-copy") == 0)
		return make_copy(record, point, data);
	return mount(record->type, point, record->type, record->flags, data);
}

const char *mounts_make(const struct conf *conf, int share)
{
	static char what[PATH_MAX + 16];

	for (size_t i = 0; i < conf->mount_count; i++) {
		if (make_one(&conf->mounts[i], share) < 0) {
			int why = errno;

			snprintf(what, sizeof(what), "mount %s", conf->mounts[i].destination);
			errno = why;
			return what;
		}
	}
	return NULL;
}
