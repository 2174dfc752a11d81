/* SPDX-License-Identifier: Apache-2.0 */
/* The demo inmate: a command line on the UART, the same on every machine. README.md lists the commands. */
#include "channel.h"

#define CTRL_U 0x15
#define LINE_SIZE 1024

static char line[LINE_SIZE];

/* gcc calls these two of its own accord, also in freestanding code */
void *memcpy(void *to, const void *from, size_t len)
{
	uint8_t *t = to;
	const uint8_t *f = from;

	while (len--)
		*t++ = *f++;
	return to;
}

void *memset(void *to, int value, size_t len)
{
	uint8_t *t = to;

	while (len--)
		*t++ = (uint8_t)value;
	return to;
}

size_t length(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

static void print(const char *s)
{
	hal_write(s, length(s));
}

/* The argument when `text` is the command `name`, else NULL. */
const char *argument(const char *text, const char *name)
{
	while (*name)
		if (*text++ != *name++)
			return NULL;
	if (*text == '\0')
		return text;
	return *text == ' ' ? text + 1 : NULL;
}

uint32_t number(const char *s)
{
	uint32_t n = 0;

	while (*s == ' ')
		s++;
	if (s[0] == '0' && s[1] == 'x') {
		for (s += 2;; s++) {
			char c = *s | 0x20;

			if (*s >= '0' && *s <= '9')
				n = n << 4 | (uint32_t)(*s - '0');
			else if (c >= 'a' && c <= 'f')
				n = n << 4 | (uint32_t)(c - 'a' + 10);
			else
				return n;
		}
	}
	while (*s >= '0' && *s <= '9')
		n = n * 10 + (uint32_t)(*s++ - '0');
	return n;
}

static void spam(uint32_t count)
{
	char text[] = "line 0000000\r\n";

	for (uint32_t i = 0; i < count; i++) {
		for (int digit = 11; digit >= 5 && ++text[digit] > '9'; digit--)
			text[digit] = '0';
		hal_write(text, sizeof(text) - 1);
		if (hal_peek() == CTRL_C)
			return; /* the line editor prints the ^C */
	}
}

static void raw(void)
{
	print("raw: every byte is echoed, ctrl-d ends\r\n");
	for (;;) {
		char c = (char)hal_getc();

		if (c == CTRL_D)
			break;
		hal_write(&c, 1);
	}
	print("\r\n");
}

static void help(void)
{
	print("help        this text\r\n"
	      "echo TEXT   print TEXT\r\n"
	      "spam N      print N numbered lines (ctrl-c stops it)\r\n"
	      "raw         echo every byte untouched until ctrl-d\r\n"
	      "chan ...    shared-memory channels: list, use N, write TEXT, read, echo, spam N,\r\n"
	      "            poke OFFSET VALUE, open, close\r\n"
	      "exit N      end with exit code N\r\n"
	      "crash       panic\r\n"
	      "hang        stop answering for ever\r\n"
	      "reset       reset the machine\r\n");
}

static void run(const char *text)
{
	const char *arg;

	if (*text == '\0')
		return;
	if (argument(text, "help")) {
		help();
	} else if ((arg = argument(text, "echo"))) {
		print(arg);
		print("\r\n");
	} else if ((arg = argument(text, "spam"))) {
		spam(number(arg));
	} else if (argument(text, "raw")) {
		raw();
	} else if ((arg = argument(text, "chan"))) {
		int found = channel_command(arg);

		if (found < 0)
			print(found == -1 ? "no channel\r\n" : "unknown command, try help\r\n");
	} else if ((arg = argument(text, "exit"))) {
		hal_exit((int)(number(arg) & 0xff));
	} else if (argument(text, "crash")) {
		print("crashing\r\n");
		hal_crash();
	} else if (argument(text, "hang")) {
		print("hanging\r\n");
		hal_hang();
	} else if (argument(text, "reset")) {
		print("resetting\r\n");
		hal_reset();
	} else {
		print("unknown command, try help\r\n");
	}
}

/* One line without its end; empty after ctrl-c. */
static const char *read_line(void)
{
	static char last;
	size_t len = 0;

	for (;;) {
		char c = (char)hal_getc();
		char before = last;

		last = c;
		if (c == '\n' && before == '\r')
			continue; /* the second half of CR LF */
		if (c == '\r' || c == '\n') {
			print("\r\n");
			break;
		}
		if (c == CTRL_C) {
			print("^C\r\n");
			len = 0;
			break;
		}
		if (c == '\b' || c == 0x7f) {
			if (len > 0) {
				len--;
				print("\b \b");
			}
		} else if (c == CTRL_U) {
			for (; len > 0; len--)
				print("\b \b");
		} else if ((uint8_t)c < ' ') {
			continue;
		} else if (len == LINE_SIZE - 1) {
			print("\a");
		} else {
			line[len++] = c;
			hal_write(&c, 1);
		}
	}
	line[len] = '\0';
	return line;
}

_Noreturn void main(void)
{
	print("runPHI demo inmate, ");
	print(hal_name);
	print("\r\n");
	hal_init();
	for (;;) {
		print("> ");
		run(read_line());
	}
}
