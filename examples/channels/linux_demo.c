/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A channel from a Linux guest: sends what comes on stdin, prints what comes by the channel, as a small netcat would.
 *
 *     gcc -static -O2 -Wall -Wextra -o channel-demo linux_demo.c
 *     channel-demo            lists the channels
 *     channel-demo telemetry  joins one; ends with stdin, when everything is sent
 *
 * Needs root, sysfs on /sys and a kernel that lets PCI memory be mapped (CONFIG_PCI, CONFIG_SYSFS; no lockdown).
 */
#include "runphi_channel.h"

#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned long number(const char *directory, const char *file)
{
	char path[300], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	if (fd >= 0)
		close(fd);
	return strtoul(text, NULL, 0);
}

/* Maps the memory of one device: write-combined where that is offered, as arm64 wants it for memory. */
static void *map(const char *directory, size_t *size)
{
	static const char *const names[] = { "resource2_wc", "resource2" };
	char path[300];
	struct stat status;
	void *memory = MAP_FAILED;

	for (int i = 0; i < 2 && memory == MAP_FAILED; i++) {
		snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
		int fd = open(path, O_RDWR | O_CLOEXEC);

		if (fd < 0)
			continue;
		if (fstat(fd, &status) == 0)
			memory = mmap(NULL, *size = (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
	}
	return memory;
}

static int talk(struct rpch *c)
{
	struct pollfd in = { .fd = STDIN_FILENO, .events = POLLIN };
	char out[4096], news[4096];
	int32_t at = 0, left = 0, sent, got;

	rpch_open(c);
	while (left > 0 || in.fd >= 0) {
		if (left == 0 && poll(&in, 1, 1) > 0) { /* a millisecond's rest while nothing is to be sent */
			at = 0;
			left = (int32_t)read(in.fd, out, sizeof(out));
			if (left <= 0)
				in.fd = -1, left = 0;
		}
		sent = rpch_write(c, out + at, (uint32_t)left);
		got = rpch_read(c, news, sizeof(news));
		if (sent < 0 || got < 0 || write(STDOUT_FILENO, news, (size_t)got) != got)
			return 1;
		at += sent;
		left -= sent;
	}
	rpch_close(c);
	return 0;
}

int main(int argc, char **argv)
{
	glob_t found;

	if (glob("/sys/bus/pci/devices/*", 0, NULL, &found))
		return fprintf(stderr, "no PCI devices in /sys/bus/pci\n"), 1;
	for (size_t i = 0; i < found.gl_pathc; i++) {
		const char *directory = found.gl_pathv[i];
		char name[RPCH_NAME_SIZE + 1] = "";
		struct rpch c;
		size_t size = 0;
		void *memory;

		if (number(directory, "vendor") != RPCH_PCI_VENDOR || number(directory, "device") != RPCH_PCI_DEVICE)
			continue;
		if ((memory = map(directory, &size)) == MAP_FAILED || rpch_attach(&c, memory, (uint32_t)size, 0))
			continue;
		memcpy(name, c.header->name, RPCH_NAME_SIZE);
		if (argc < 2)
			printf("%s  %s  %zu bytes\n", directory, name, size);
		else if (strcmp(name, argv[1]) == 0)
			return talk(&c);
	}
	return argc < 2 ? 0 : (fprintf(stderr, "no channel %s\n", argv[1]), 1);
}
