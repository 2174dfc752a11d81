/* SPDX-License-Identifier: Apache-2.0 */
/* Channels for an inmate, in under 100 lines: find them on PCI, open them, send and take bytes. chan.c uses it. */
#include "channel.h"

#define BAR (0x10 + 4 * RPCH_PCI_BAR)
#define COMMAND 0x04
#define COMMAND_MEMORY 0x2

struct rpch channels[MAX_CHANNELS];

/* Size of the memory behind the BAR; gives it a place where the firmware gave none. */
static uint32_t map(unsigned int device, uintptr_t *base)
{
	static uint32_t next;
	uint32_t low = hal_pci_read(device, BAR), high = hal_pci_read(device, BAR + 4), size;

	hal_pci_write(device, BAR, ~0u);
	size = ~(hal_pci_read(device, BAR) & ~0xfu) + 1;
	if ((low & ~0xfu) == 0 && high == 0) { /* power of two: align the next free place to it */
		next = next ? next : hal_pci_window;
		low = (next + size - 1) & ~(size - 1);
		next = low + size;
	}
	hal_pci_write(device, BAR, low);
	hal_pci_write(device, BAR + 4, high);
	hal_pci_write(device, COMMAND, hal_pci_read(device, COMMAND) | COMMAND_MEMORY);
	*base = (uintptr_t)(low & ~0xfu);
	return high ? 0 : size; /* above 4 GiB is beyond our page tables */
}

/* Opens every channel there is; how many. */
int channels_find(void)
{
	int count = 0;

	for (unsigned int device = 0; device < 32 && count < MAX_CHANNELS; device++) {
		uintptr_t base;
		uint32_t size;

		if (hal_pci_read(device, 0) != (RPCH_PCI_DEVICE << 16 | RPCH_PCI_VENDOR))
			continue;
		size = map(device, &base);
		if (size && rpch_attach(&channels[count], (void *)base, size, 0) == 0)
			rpch_open(&channels[count++]);
	}
	return count;
}

/* Sends all of it, waiting for the host to make room; -1: given up by ctrl-c, or the host's index does not fit. */
int channel_put(struct rpch *c, const char *data, uint32_t len)
{
	while (len) {
		int32_t sent = rpch_write(c, data, len);

		if (sent < 0 || hal_peek() == CTRL_C)
			return -1;
		data += sent;
		len -= (uint32_t)sent;
		if (!sent)
			hal_relax(); /* full: the host reads */
	}
	return 0;
}

/* Sends back every byte until ctrl-d comes by the channel or ctrl-c by the console. */
void channel_echo(struct rpch *c)
{
	char data[512];

	for (;;) {
		int32_t got = rpch_read(c, data, sizeof(data));

		if (got < 0 || hal_peek() == CTRL_C)
			return;
		for (int32_t i = 0; i < got; i++)
			if (data[i] == CTRL_D) {
				channel_put(c, data, (uint32_t)i);
				return;
			}
		if (channel_put(c, data, (uint32_t)got) < 0)
			return;
		if (!got)
			hal_relax();
	}
}
