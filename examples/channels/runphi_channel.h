/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A byte-ring channel in shared memory, both sides, freestanding C11: nothing but <stdint.h> and <stddef.h>.
 * docs/reference/shared-memory.md draws the layout and states the rules.
 *
 * Each side writes only its own words. The writer of a ring copies the bytes first and then moves the head; the reader
 * looks at the head first, copies, and then moves the tail. The barriers between those steps are `rpch_load` (acquire)
 * and `rpch_store` (release): single aligned 32-bit accesses. On x86-64 they cost nothing, on arm64 they are ldar and
 * stlr. The memory must be mapped cacheable (write-back): the host maps it so.
 *
 * Both sides check what the other one wrote: an index that does not fit is answered with RPCH_BROKEN and nothing is
 * copied. Neither side ever reads or writes outside the rings.
 */
#ifndef RUNPHI_CHANNEL_H
#define RUNPHI_CHANNEL_H

#include <stddef.h>
#include <stdint.h>

#define RPCH_MAGIC 0x48435052u /* "RPCH" */
#define RPCH_VERSION 1u
#define RPCH_HEADER_SIZE 0x100u
#define RPCH_NAME_SIZE 32

/* How a Linux guest or an inmate finds it on PCI: QEMU's ivshmem device, memory in BAR 2. */
#define RPCH_PCI_VENDOR 0x1af4
#define RPCH_PCI_DEVICE 0x1110
#define RPCH_PCI_BAR 2

enum rpch_guest_state { RPCH_NONE = 0, RPCH_OPEN = 1, RPCH_CLOSED = 2 };

struct rpch_header {
	/* 0x00: set by the host, never changed; the magic last */
	uint32_t magic;
	uint32_t version;
	uint32_t size;
	uint32_t flags;
	uint32_t down_offset; /* ring to the guest */
	uint32_t down_size;   /* a power of two */
	uint32_t up_offset;   /* ring from the guest */
	uint32_t up_size;     /* a power of two */
	char name[RPCH_NAME_SIZE];
	/* 0x40: written by the host only */
	uint32_t host_generation; /* +1 whenever the host opens the channel */
	uint32_t down_head;       /* bytes ever written to the guest, modulo 2^32 */
	uint32_t up_tail;         /* bytes ever taken from the guest */
	uint32_t host_beat;       /* +1 whenever the host looks at the channel */
	uint32_t host_private[12];
	/* 0x80: written by the guest only */
	uint32_t guest_generation; /* +1 whenever the guest opens the channel */
	uint32_t up_head;          /* bytes ever written to the host */
	uint32_t down_tail;        /* bytes ever taken from the host */
	uint32_t guest_state;      /* enum rpch_guest_state */
	uint32_t guest_private[12];
	uint32_t reserved[16];
};

_Static_assert(sizeof(struct rpch_header) == RPCH_HEADER_SIZE, "layout");
_Static_assert(offsetof(struct rpch_header, host_generation) == 0x40, "layout");
_Static_assert(offsetof(struct rpch_header, guest_generation) == 0x80, "layout");

#define RPCH_BROKEN (-1) /* the other side's index does not fit */

/* One side's view. The sizes are copied here once: what lies in shared memory may change at any time. */
struct rpch {
	struct rpch_header *header;
	uint8_t *out, *in;             /* the ring we write, the ring we read */
	uint32_t out_size, in_size;
	uint32_t *out_head, *out_tail; /* ours, theirs */
	uint32_t *in_head, *in_tail;   /* theirs, ours */
	uint32_t wrote, took;          /* our own words: never read back */
};

static inline uint32_t rpch_load(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void rpch_store(uint32_t *word, uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline int rpch_ring_fits(uint32_t offset, uint32_t size, uint32_t memory)
{
	return size && !(size & (size - 1)) && offset >= RPCH_HEADER_SIZE && size <= memory && offset <= memory - size;
}

/* Fills in `c` when there is a channel in these `size` bytes; 0, or RPCH_BROKEN. Writes nothing there. */
static inline int rpch_attach(struct rpch *c, void *memory, uint32_t size, int is_host)
{
	struct rpch_header *h = memory;
	uint8_t *base = memory;
	uint32_t down, down_size, up, up_size;

	if (size < RPCH_HEADER_SIZE || rpch_load(&h->magic) != RPCH_MAGIC || rpch_load(&h->version) != RPCH_VERSION)
		return RPCH_BROKEN;
	down = rpch_load(&h->down_offset);
	down_size = rpch_load(&h->down_size);
	up = rpch_load(&h->up_offset);
	up_size = rpch_load(&h->up_size);
	if (!rpch_ring_fits(down, down_size, size) || !rpch_ring_fits(up, up_size, size))
		return RPCH_BROKEN;
	c->header = h;
	c->out = base + (is_host ? down : up);
	c->out_size = is_host ? down_size : up_size;
	c->in = base + (is_host ? up : down);
	c->in_size = is_host ? up_size : down_size;
	c->out_head = is_host ? &h->down_head : &h->up_head;
	c->out_tail = is_host ? &h->down_tail : &h->up_tail;
	c->in_head = is_host ? &h->up_head : &h->down_head;
	c->in_tail = is_host ? &h->up_tail : &h->down_tail;
	c->wrote = rpch_load(c->out_head);
	c->took = rpch_load(c->in_tail);
	return 0;
}

/* The guest takes part from here on. Indices that an earlier guest left in disorder are put right. */
static inline void rpch_open(struct rpch *c)
{
	uint32_t taken = rpch_load(c->out_tail), sent = rpch_load(c->in_head);

	if (c->wrote - taken > c->out_size)
		rpch_store(c->out_head, c->wrote = taken);
	if (sent - c->took > c->in_size)
		rpch_store(c->in_tail, c->took = sent);
	rpch_store(&c->header->guest_generation, rpch_load(&c->header->guest_generation) + 1);
	rpch_store(&c->header->guest_state, RPCH_OPEN);
}

/* The guest will write nothing more. */
static inline void rpch_close(struct rpch *c)
{
	rpch_store(&c->header->guest_state, RPCH_CLOSED);
}

/* Copies up to `len` bytes into the ring; how many it took (0: full), or RPCH_BROKEN. */
static inline int32_t rpch_write(struct rpch *c, const void *data, uint32_t len)
{
	const uint8_t *from = data;
	uint32_t used = c->wrote - rpch_load(c->out_tail);

	if (used > c->out_size)
		return RPCH_BROKEN;
	if (len > c->out_size - used)
		len = c->out_size - used;
	for (uint32_t i = 0; i < len; i++)
		c->out[(c->wrote + i) & (c->out_size - 1)] = from[i];
	c->wrote += len;
	rpch_store(c->out_head, c->wrote);
	return (int32_t)len;
}

/* Copies up to `len` bytes out of the ring; how many (0: empty), or RPCH_BROKEN. */
static inline int32_t rpch_read(struct rpch *c, void *data, uint32_t len)
{
	uint8_t *to = data;
	uint32_t waiting = rpch_load(c->in_head) - c->took;

	if (waiting > c->in_size)
		return RPCH_BROKEN;
	if (len > waiting)
		len = waiting;
	for (uint32_t i = 0; i < len; i++)
		to[i] = c->in[(c->took + i) & (c->in_size - 1)];
	c->took += len;
	rpch_store(c->in_tail, c->took);
	return (int32_t)len;
}

#endif
