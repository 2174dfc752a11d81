// SPDX-License-Identifier: Apache-2.0
/*
 * Serves the process while it runs: bytes between the console port and the process, lines on the control port, dead
 * children. Nothing is read before there is room for it, so a host that does not read slows the process down and loses
 * nothing.
 */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* The port's driver takes at most this much in one write. */
#define CHUNK 32768
/* How every word on a cell's console begins; the mark and a colon follow. */
#define WORD_BEGIN "\033_runphi:"
#define WORD_BEGIN_MAX 80
/* A lone ESC may be a key or the beginning of a word, whose next byte is here long before that. */
#define KEY_MS 50

struct buffer {
	char data[CHUNK];
	size_t start, end;
};

static bool poweroff_wanted;

struct relay {
	const struct ports *ports;
	struct process *process;
	bool tty;
	bool alive; /* the process, not yet reaped */
	bool eof;   /* the host closed the process's input ... */
	unsigned long long eof_at; /* ... after this many bytes; 0 = after what is there */
	unsigned long long received, written;
	int code;
	struct buffer input, output;
	char line[256];
	size_t line_len;
	char begin[WORD_BEGIN_MAX]; /* of a word among the input, empty: there are none */
	size_t begun;               /* so many bytes of it were here last */
	bool in_word;
};

static bool empty(const struct buffer *buffer)
{
	return buffer->start == buffer->end;
}

/* Returns false when there will never be more to read. Room is left for what may be given back. */
static bool fill(struct buffer *buffer, int fd, unsigned long long *total)
{
	ssize_t n = read(fd, buffer->data, sizeof(buffer->data) - WORD_BEGIN_MAX);

	if (n > 0) {
		buffer->start = 0;
		buffer->end = (size_t)n;
		*total += (unsigned long long)n;
	}
	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

/* Returns false when nobody will ever take more. */
static bool empty_into(struct buffer *buffer, int fd)
{
	ssize_t n = write(fd, buffer->data + buffer->start, buffer->end - buffer->start);

	if (n > 0)
		buffer->start += (size_t)n;
	if (n >= 0 || errno == EAGAIN || errno == EINTR)
		return true;
	buffer->start = buffer->end;
	return false;
}

static void close_input(struct relay *r)
{
	if (r->process->input >= 0 && r->process->input != r->process->output)
		close(r->process->input);
	r->process->input = -1;
	r->input.start = r->input.end;
}

void control_send(int control, const char *format, ...)
{
	char line[512];
	va_list arguments;
	int len;

	va_start(arguments, format);
	len = vsnprintf(line, sizeof(line) - 1, format, arguments);
	va_end(arguments);
	if (len < 0 || control < 0)
		return;
	if ((size_t)len > sizeof(line) - 2)
		len = sizeof(line) - 2;
	line[len++] = '\n';
	for (int sent = 0; sent < len;) {
		struct pollfd room = { .fd = control, .events = POLLOUT };
		ssize_t n = write(control, line + sent, (size_t)(len - sent));

		if (n > 0)
			sent += (int)n;
		else if (errno != EAGAIN && errno != EINTR)
			return;
		else
			poll(&room, 1, -1);
	}
}

static void command(struct relay *r, const char *line)
{
	unsigned int first, second;

	if (strcmp(line, "poweroff") == 0)
		poweroff_wanted = true;
	else if (strncmp(line, "echo ", 5) == 0)
		control_send(r->ports->control, "%s", line);
	else if (!r->alive)
		return;
	else if (sscanf(line, "winsize %u %u", &first, &second) == 2) {
		struct winsize size = { .ws_row = (unsigned short)first, .ws_col = (unsigned short)second };

		if (r->tty)
			ioctl(r->process->output, TIOCSWINSZ, &size);
	} else if (sscanf(line, "signal %u", &first) == 1) {
		kill(r->process->pid, (int)first);
	} else if (strncmp(line, "eof", 3) == 0 && !r->tty) {
		r->eof = true;
		r->eof_at = strtoull(line + 3, NULL, 10);
	}
}

static char held[1024];
static size_t held_len;

void control_hold(const char *line)
{
	size_t len = strlen(line) + 1;

	if (len <= sizeof(held) - held_len) {
		memcpy(held + held_len, line, len);
		held_len += len;
	}
}

static void read_commands(struct relay *r)
{
	char data[256];
	ssize_t n;

	while ((n = read(r->ports->control, data, sizeof(data))) > 0) {
		for (ssize_t i = 0; i < n; i++) {
			if (data[i] != '\n') {
				if (r->line_len < sizeof(r->line) - 1)
					r->line[r->line_len++] = data[i];
				continue;
			}
			r->line[r->line_len] = '\0';
			r->line_len = 0;
			command(r, r->line);
		}
	}
}

/* Returns whether a byte of the input is the process's; a word's bytes are kept until it is whole. */
static bool is_plain(struct relay *r, char byte)
{
	if (!r->in_word)
		return true;
	if (byte == '\\' && r->line_len && r->line[r->line_len - 1] == '\033') {
		r->line[r->line_len - 1] = '\0';
		command(r, r->line);
		r->in_word = false;
	} else if (r->line_len < sizeof(r->line) - 1) {
		r->line[r->line_len++] = byte;
	} else {
		r->in_word = false; /* it lost its end */
	}
	return false;
}

/* Takes the host's words out of what was read; a beginning that was none is given back in front of what follows. */
static void take_words(struct relay *r)
{
	static char plain[CHUNK];
	size_t size = 0;

	for (size_t i = r->input.start; i < r->input.end; i++) {
		char byte = r->input.data[i];

		if (!is_plain(r, byte))
			continue;
		if (byte != r->begin[r->begun] && r->begun) {
			memcpy(plain + size, r->begin, r->begun);
			size += r->begun;
			r->begun = 0;
		}
		if (byte != r->begin[r->begun]) {
			plain[size++] = byte;
		} else if (!r->begin[++r->begun]) {
			r->begun = r->line_len = 0;
			r->in_word = true;
		}
	}
	memcpy(r->input.data, plain, size);
	r->input.start = 0;
	r->input.end = size;
}

/* Nothing came behind what could have been the beginning of a word: it was typed. */
static void give_back(struct relay *r)
{
	if (!r->begun || !empty(&r->input))
		return;
	memcpy(r->input.data, r->begin, r->begun);
	r->input.start = 0;
	r->input.end = r->begun;
	r->begun = 0;
}

void control_wait_poweroff(int control)
{
	/* r outlives this call and points to them */
	static struct ports ports = { .console = -1 };
	static struct relay r;
	struct pollfd more = { .fd = control, .events = POLLIN };

	ports.control = control;
	r.ports = &ports;
	while (control >= 0 && !poweroff_wanted) {
		poll(&more, 1, -1);
		read_commands(&r);
	}
}

static void reap(struct relay *r)
{
	pid_t pid;
	int status;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid != r->process->pid)
			continue;
		r->alive = false;
		r->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		/* it is the container: what it left behind ends with it, and the last writer's end of our pipe closes */
		kill(-1, SIGKILL);
	}
}

static void move_input(struct relay *r, short port_events, short process_events)
{
	bool more = true;

	if (empty(&r->input) && (port_events & POLLIN)) {
		more = fill(&r->input, r->ports->console, &r->received);
		if (*r->begin)
			take_words(r);
	}
	if (!empty(&r->input) && ((process_events & (POLLOUT | POLLERR)) || port_events & POLLIN) &&
	    !empty_into(&r->input, r->process->input))
		close_input(r);
	if (r->eof && empty(&r->input) &&
	    (!more || (r->eof_at ? r->received >= r->eof_at : !(port_events & POLLIN))))
		close_input(r);
}

/* Returns false at the end of the process's output. */
static bool move_output(struct relay *r, short process_events, short port_events)
{
	bool more = true;

	if (empty(&r->output) && (process_events & (POLLIN | POLLHUP | POLLERR)))
		more = fill(&r->output, r->process->output, &r->written);
	if (!empty(&r->output) && (process_events || port_events & POLLOUT))
		empty_into(&r->output, r->ports->console);
	return more;
}

int relay(const struct ports *ports, struct process *process, bool tty)
{
	static struct relay r;
	bool more_output = true;
	sigset_t children;
	int died;

	r.ports = ports;
	r.process = process;
	r.tty = tty;
	r.alive = true;
	if (ports->mark)
		snprintf(r.begin, sizeof(r.begin), WORD_BEGIN "%s:", ports->mark);
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	died = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK); /* main() blocked it before the first child */

	for (size_t at = 0; at < held_len; at += strlen(held + at) + 1)
		command(&r, held + at);
	while (r.alive || more_output || !empty(&r.output)) {
		/* of a cell also behind the end of the input: words may come */
		bool input_open = process->input >= 0 || *r.begin;
		struct pollfd fds[] = {
			{ .fd = died, .events = POLLIN },
			{ .fd = ports->control, .events = POLLIN },
			/* one entry an fd and direction: a port that has hung up must not keep poll() awake */
			{ .fd = input_open && empty(&r.input) ? ports->console : -1, .events = POLLIN },
			{ .fd = empty(&r.output) ? -1 : ports->console, .events = POLLOUT },
			{ .fd = empty(&r.input) ? -1 : process->input, .events = POLLOUT },
			{ .fd = more_output && empty(&r.output) ? process->output : -1, .events = POLLIN },
		};

		/* an `eof` without a number is over when the port has nothing more right now */
		bool look_only = r.eof && !r.eof_at && input_open && empty(&r.input);

		int wait = look_only ? 0 : r.begun ? KEY_MS : -1;
		int ready = poll(fds, sizeof(fds) / sizeof(fds[0]), wait);

		if (ready < 0 && errno != EINTR)
			break;
		if (ready == 0)
			give_back(&r);
		if (fds[0].revents) {
			struct signalfd_siginfo info;

			while (read(died, &info, sizeof(info)) > 0)
				;
			reap(&r);
		}
		if (fds[1].revents & POLLIN)
			read_commands(&r);
		if (poweroff_wanted && r.alive)
			kill(-1, SIGKILL);
		if (input_open)
			move_input(&r, fds[2].revents, fds[4].revents);
		if (!move_output(&r, fds[5].revents, fds[3].revents))
			more_output = false;
	}
	tcdrain(ports->console); /* a tty on Xen; a port has nothing to wait for */
	control_send(ports->control, "written %llu", r.written);
	return r.code;
}
