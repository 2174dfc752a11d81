/* SPDX-License-Identifier: Apache-2.0 */
/* What main.c needs of a machine; x86_64/hal.c and aarch64/hal.c provide it. */
#ifndef HAL_H
#define HAL_H

#include <stddef.h>
#include <stdint.h>

/* hidden: nothing goes through a global offset table, so a flat image runs wherever it is loaded */
#pragma GCC visibility push(hidden)

extern const char hal_name[];

void hal_init(void);
void hal_write(const char *data, size_t len); /* waits while the host does not take more */
int hal_getc(void);                           /* waits, asleep, for a byte */
int hal_peek(void);                           /* the byte hal_getc would return now, or -1 */
void hal_relax(void);                         /* a moment's rest in a loop that polls */

/* PCI configuration space of function 0 of a device on bus 0; all ones where there is none */
uint32_t hal_pci_read(unsigned int device, unsigned int offset);
void hal_pci_write(unsigned int device, unsigned int offset, uint32_t value);
extern const uint32_t hal_pci_window; /* free addresses for BARs that the firmware left alone */

_Noreturn void hal_exit(int code);
_Noreturn void hal_crash(void);
_Noreturn void hal_hang(void);
_Noreturn void hal_reset(void);

#pragma GCC visibility pop

/* Shared by the HALs: the bytes received and not yet read, filled by the UART's interrupt. */
#define RING_SIZE 4096u

struct ring {
	uint8_t data[RING_SIZE];
	volatile uint32_t head; /* next to write */
	volatile uint32_t tail; /* next to read */
};

static inline int ring_full(const struct ring *r)
{
	return r->head - r->tail == RING_SIZE;
}

static inline void ring_put(struct ring *r, uint8_t byte)
{
	r->data[r->head % RING_SIZE] = byte;
	r->head++;
}

static inline int ring_peek(const struct ring *r)
{
	return r->head == r->tail ? -1 : r->data[r->tail % RING_SIZE];
}

#endif
