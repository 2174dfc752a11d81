/* SPDX-License-Identifier: Apache-2.0 */
/* The `chan` commands of the demo inmate. */
#include "channel.h"

static int count = -1, current;

/* Copies the name out of shared memory, where it may change under our hands. */
static void print_name(const struct rpch *c)
{
	char name[RPCH_NAME_SIZE];
	size_t len = 0;

	while (len < sizeof(name) - 1 && (name[len] = ((volatile char *)c->header->name)[len]))
		len++;
	hal_write(name, len);
}

static void spam(struct rpch *c, uint32_t lines)
{
	char text[] = "line 0000000\r\n";

	for (uint32_t i = 0; i < lines; i++) {
		for (int digit = 11; digit >= 5 && ++text[digit] > '9'; digit--)
			text[digit] = '0';
		if (channel_put(c, text, sizeof(text) - 1) < 0)
			break;
	}
}

static void show(struct rpch *c)
{
	char data[512];
	int32_t got;

	while ((got = rpch_read(c, data, sizeof(data))) > 0)
		hal_write(data, (size_t)got);
	hal_write("\r\n", 2);
}

/* Writes any word of the channel, as a guest gone mad would: `chan poke 0x84 0xdeadbeef`. */
static void poke(struct rpch *c, const char *text)
{
	uint32_t offset = number(text);

	while (*text && *text != ' ')
		text++;
	if (offset < RPCH_HEADER_SIZE && !(offset & 3))
		*(volatile uint32_t *)((uint8_t *)c->header + offset) = number(text);
}

int channel_command(const char *text)
{
	struct rpch *c = &channels[current];
	const char *arg;

	if (count < 0)
		count = channels_find();
	if (*text == '\0') {
		for (int i = 0; i < count; i++) {
			hal_write(i == current ? "* " : "  ", 2);
			print_name(&channels[i]);
			hal_write("\r\n", 2);
		}
		return 0;
	}
	if (count == 0)
		return -1;
	if ((arg = argument(text, "use")) && number(arg) < (uint32_t)count) {
		current = (int)number(arg);
	} else if ((arg = argument(text, "write"))) {
		channel_put(c, arg, (uint32_t)length(arg));
		channel_put(c, "\n", 1);
	} else if (argument(text, "read")) {
		show(c);
	} else if (argument(text, "echo")) {
		channel_echo(c);
	} else if ((arg = argument(text, "spam"))) {
		spam(c, number(arg));
	} else if ((arg = argument(text, "poke"))) {
		poke(c, arg);
	} else if (argument(text, "open")) {
		rpch_open(c);
	} else if (argument(text, "close")) {
		rpch_close(c);
	} else {
		return -2;
	}
	return 0;
}
