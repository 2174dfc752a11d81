// SPDX-License-Identifier: Apache-2.0
/*
 * The control port of a Xen guest: lines become nodes of XenStore, because a second console would need a device model.
 * A thread stands between init, which sees one end of a socket pair, and XenStore:
 *   data/runphi/to-host/NNNNNN   our lines, in order; they stay
 *   data/runphi/to-guest/NNNNNN  the host's lines, in order; removed as they are taken
 */
#define _GNU_SOURCE
#include "init.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define XENBUS "/dev/xen/xenbus"
#define TO_HOST "data/runphi/to-host"
#define TO_GUEST "data/runphi/to-guest"
#define TOKEN "control"

/* Source: xen/include/public/io/xs_wire.h */
enum { XS_DIRECTORY = 1, XS_READ = 2, XS_WATCH = 4, XS_WRITE = 11, XS_RM = 13, XS_WATCH_EVENT = 15, XS_ERROR = 16 };

#define PAYLOAD_MAX 4096

struct header {
	uint32_t type, request, transaction, length;
};

static int bus = -1, lines = -1;
static bool host_spoke;

static bool read_all(void *data, size_t size)
{
	for (size_t have = 0; have < size;) {
		ssize_t n = read(bus, (char *)data + have, size - have);

		if (n <= 0)
			return false;
		have += (size_t)n;
	}
	return true;
}

/* Reads one message; its payload ends with a NUL that is not counted. Returns its type, XS_ERROR when the bus fails. */
static uint32_t receive(char *payload, size_t *length)
{
	struct header header;

	*length = 0;
	if (!read_all(&header, sizeof(header)) || header.length > PAYLOAD_MAX || !read_all(payload, header.length))
		return XS_ERROR;
	payload[header.length] = '\0';
	*length = header.length;
	return header.type;
}

/* Asks and waits for the answer; the host may speak in between. Returns false when XenStore refuses. */
static bool ask(uint32_t type, const char *path, const char *value, size_t size, char *answer, size_t *length)
{
	char message[sizeof(struct header) + PAYLOAD_MAX];
	size_t path_size = strlen(path) + 1;
	struct header header = { type, 1, 0, (uint32_t)(path_size + size) };
	uint32_t got;

	memcpy(message, &header, sizeof(header));
	memcpy(message + sizeof(header), path, path_size);
	memcpy(message + sizeof(header) + path_size, value, size);
	if (write(bus, message, sizeof(header) + header.length) < 0)
		return false;
	while ((got = receive(answer, length)) == XS_WATCH_EVENT)
		host_spoke = true;
	return got == type;
}

static int by_name(const void *first, const void *second)
{
	return strcmp(*(char *const *)first, *(char *const *)second);
}

static void take_lines(void)
{
	static char names[PAYLOAD_MAX + 1], line[PAYLOAD_MAX + 2];
	char *found[256], path[64];
	size_t length, count = 0;

	host_spoke = false;
	if (!ask(XS_DIRECTORY, TO_GUEST, NULL, 0, names, &length))
		return;
	for (char *name = names; name < names + length && count < 256; name += strlen(name) + 1)
		found[count++] = name;
	qsort(found, count, sizeof(found[0]), by_name);
	for (size_t i = 0; i < count; i++) {
		snprintf(path, sizeof(path), TO_GUEST "/%.20s", found[i]);
		if (ask(XS_READ, path, NULL, 0, line, &length)) {
			line[length++] = '\n';
			if (write(lines, line, length) < 0)
				return;
		}
		ask(XS_RM, path, NULL, 0, line, &length);
	}
}

static void pass_lines_on(void)
{
	static char data[PAYLOAD_MAX], answer[PAYLOAD_MAX + 1];
	static size_t have;
	static unsigned int number;
	char path[64], *end;
	size_t length;
	ssize_t n = read(lines, data + have, sizeof(data) / 2 - have);

	if (n <= 0)
		return;
	have += (size_t)n;
	while ((end = memchr(data, '\n', have))) {
		size_t size = (size_t)(end - data);

		snprintf(path, sizeof(path), TO_HOST "/%06u", number++);
		ask(XS_WRITE, path, data, size, answer, &length);
		have -= size + 1;
		memmove(data, end + 1, have);
	}
	if (have == sizeof(data) / 2)
		have = 0; /* no line of ours is that long */
}

static void *serve(void *unused)
{
	static char payload[PAYLOAD_MAX + 1];
	size_t length;

	(void)unused;
	for (;;) {
		struct pollfd fds[] = { { .fd = bus, .events = POLLIN }, { .fd = lines, .events = POLLIN } };

		if (!host_spoke && poll(fds, 2, -1) < 0)
			continue;
		if (fds[0].revents & POLLIN && receive(payload, &length) == XS_WATCH_EVENT)
			host_spoke = true;
		if (fds[1].revents & POLLIN)
			pass_lines_on();
		if (host_spoke)
			take_lines();
	}
	return NULL;
}

int xen_control(void)
{
	char answer[PAYLOAD_MAX + 1];
	int pair[2];
	size_t length;
	pthread_t thread;

	bus = open(XENBUS, O_RDWR | O_CLOEXEC);
	if (bus < 0)
		return -1;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	lines = pair[1];
	fcntl(pair[0], F_SETFL, O_NONBLOCK);
	if (!ask(XS_WATCH, TO_GUEST, TOKEN, sizeof(TOKEN), answer, &length) ||
	    pthread_create(&thread, NULL, serve, NULL) != 0)
		return -1;
	return pair[0];
}
