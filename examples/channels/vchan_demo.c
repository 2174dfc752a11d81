/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A channel of libxenvchan from a Linux guest on Xen: sends what comes on stdin, prints what comes by the channel.
 *
 *     gcc -static -O2 -Wall -Wextra -o vchan-demo vchan_demo.c \
 *         -lxenvchan -lxenstore -lxengnttab -lxenevtchn -lxentoollog -lxentoolcore
 *     vchan-demo telemetry    serves it; ends with stdin, when everything is sent and taken
 *
 * Needs root, and the modules xen-gntalloc and xen-evtchn. Debian's libxen-dev has header and libraries.
 */
#include <libxenvchan.h>

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#define RING 65536

static bool print(const char *data, int length)
{
	while (length > 0) {
		ssize_t done = write(STDOUT_FILENO, data, length);

		if (done < 0)
			return false;
		data += done;
		length -= done;
	}
	return true;
}

int main(int argc, char **argv)
{
	char path[64], in[4096], out[4096];
	struct libxenvchan *channel;
	ssize_t held = 0, sent = 0;
	bool over = false;
	int count;

	/* relative to the guest's own part of XenStore; 0 is the domain that is served */
	if (argc != 2 || snprintf(path, sizeof(path), "data/vchan/0/%s", argv[1]) >= (int)sizeof(path)) {
		fprintf(stderr, "usage: vchan-demo NAME\n");
		return 2;
	}
	channel = libxenvchan_server_init(NULL, 0, path, RING, RING);
	if (!channel) {
		perror("vchan-demo: cannot serve");
		return 1;
	}
	channel->blocking = 0;
	/* the supervisor may be restarted: the rings and what is in them stay */
	channel->server_persist = 1;
	for (;;) {
		struct pollfd fds[] = {
			{ .fd = STDIN_FILENO, .events = POLLIN },
			{ .fd = libxenvchan_fd_for_select(channel), .events = POLLIN },
		};

		while ((count = libxenvchan_read(channel, in, sizeof(in))) > 0)
			if (!print(in, count))
				return 1;
		while (sent < held && (count = libxenvchan_write(channel, out + sent, held - sent)) > 0)
			sent += count;
		if (over && sent == held && libxenvchan_buffer_space(channel) == RING)
			break;
		if (over || sent < held)
			fds[0].fd = -1;
		if (poll(fds, 2, -1) < 0)
			return 1;
		if (fds[1].revents)
			libxenvchan_wait(channel);
		if (fds[0].fd >= 0 && fds[0].revents) {
			held = read(STDIN_FILENO, out, sizeof(out));
			sent = 0;
			if (held <= 0) {
				held = 0;
				over = true;
			}
		}
	}
	libxenvchan_close(channel);
	return 0;
}
