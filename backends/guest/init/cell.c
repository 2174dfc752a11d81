// SPDX-License-Identifier: Apache-2.0
/*
 * A Jailhouse cell has one stream of bytes each way and no control port. Words between init and the host stand in these
 * streams, as strings that a terminal would swallow (ECMA-48: ESC _ runphi:MARK:WORD ESC \). To the host:
 *   ready        the process runs: from now on nothing that is typed is lost
 *   error=TEXT   it cannot be run; an exit follows
 *   exit=N       the last word; nothing comes behind it
 * From the host, in relay.c: `winsize`, `signal` and `eof` as on a control port.
 * MARK is random for each container and known to init alone, so what a process prints cannot end its container.
 *
 * The communication region says the end in one bit, for whoever lost the stream: shut down = 0, failed = any other code.
 */
#define _GNU_SOURCE
#include "init.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#define PAGE 4096
#define MAGIC "JHCOMM"
/* Source: include/jailhouse/hypercall.h */
#define CELL_STATE 8
enum { CELL_SHUT_DOWN = 2, CELL_FAILED = 3 };
/* A record of the kernel's log has room for some more. Alerts are what the command line lets through. */
#define LINE_MAX 900
#define LEVEL "<1>"

static volatile uint8_t *region;
static int kernel_log = -1, lines = -1;
static pthread_t writer;

/*
 * The hypervisor sees the page through its caches, we do not: what it has not written back must not overwrite our word,
 * and it must not read what it had before.
 */
static void clean(volatile uint8_t *address)
{
#if defined(__aarch64__)
	__asm__ volatile("dc civac, %0\n\tdsb sy" : : "r"(address) : "memory");
#else
	(void)address;
#endif
}

static void map_region(unsigned long address)
{
	int fd = open("/dev/mem", O_RDWR | O_SYNC | O_CLOEXEC);
	void *page = MAP_FAILED;

	if (fd >= 0) {
		page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)address);
		close(fd);
	}
	if (page == MAP_FAILED)
		return;
	region = page;
	for (size_t i = 0; i < strlen(MAGIC); i++) /* byte by byte: to the CPU this is a device */
		if (region[i] != MAGIC[i]) {
			region = NULL;
			return;
		}
}

static void set_state(uint32_t state)
{
	if (!region)
		return;
	clean(region);
	*(volatile uint32_t *)(region + CELL_STATE) = state;
	clean(region);
}

static void log_line(const char *text, size_t size)
{
	char line[sizeof(LEVEL) + LINE_MAX];

	memcpy(line, LEVEL, strlen(LEVEL));
	memcpy(line + strlen(LEVEL), text, size);
	line[strlen(LEVEL) + size] = '\n'; /* without it the kernel waits for more before it shows the line */
	if (write(kernel_log, line, strlen(LEVEL) + size + 1) < 0)
		return; /* an odd byte that the log refuses: nobody else can be told either */
}

/* Makes lines of the kernel's log of what the process prints: the hypervisor's console takes nothing else. */
static void *write_log(void *unused)
{
	static char data[LINE_MAX];
	size_t have = 0;
	ssize_t n;

	(void)unused;
	while ((n = read(lines, data + have, sizeof(data) - have)) > 0) {
		char *end;

		have += (size_t)n;
		while ((end = memchr(data, '\n', have))) {
			size_t size = (size_t)(end - data);

			log_line(data, size);
			have -= size + 1;
			memmove(data, end + 1, have);
		}
		if (have == sizeof(data)) {
			log_line(data, have);
			have = 0;
		}
	}
	if (have)
		log_line(data, have);
	return NULL;
}

static int open_kernel_log(void)
{
	int pair[2];

	kernel_log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (kernel_log < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	lines = pair[1];
	fcntl(pair[0], F_SETFL, O_NONBLOCK);
	return pthread_create(&writer, NULL, write_log, NULL) == 0 ? pair[0] : -1;
}

static int open_terminal(const char *path)
{
	struct termios raw;
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && tcgetattr(fd, &raw) == 0) {
		cfmakeraw(&raw);
		raw.c_cflag |= CLOCAL | CREAD;
		tcsetattr(fd, TCSANOW, &raw);
	}
	return fd;
}

int cell_console(const struct conf *conf)
{
	if (conf->comm && !region)
		map_region(conf->comm);
	return strcmp(conf->console, "kmsg") == 0 ? open_kernel_log() : open_terminal(conf->console);
}

void cell_say(const struct conf *conf, int console, const char *word)
{
	char text[512];
	int size = snprintf(text, sizeof(text), "\033_runphi:%s:%.300s\033\\", conf->mark ? conf->mark : "", word);

	for (int sent = 0; console >= 0 && conf->mark && sent < size;) {
		struct pollfd room = { .fd = console, .events = POLLOUT };
		ssize_t n = write(console, text + sent, (size_t)(size - sent));

		if (n > 0)
			sent += (int)n;
		else if (poll(&room, 1, -1) < 0 || room.revents & (POLLERR | POLLHUP | POLLNVAL))
			return;
	}
}

_Noreturn void cell_end(const struct conf *conf, int console, int code)
{
	char word[16];

	snprintf(word, sizeof(word), "exit=%d", code);
	cell_say(conf, console, word);
	sync();
	if (kernel_log >= 0) {
		shutdown(console, SHUT_WR);
		pthread_join(writer, NULL);
	} else if (console >= 0) {
		tcdrain(console);
	}
	set_state(code == 0 ? CELL_SHUT_DOWN : CELL_FAILED);
	/* the hypervisor knows no power button: whoever watches the cell stops it */
	for (;;)
		pause();
}
