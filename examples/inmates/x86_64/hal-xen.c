/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A Xen guest of type PVH or PV, without any emulated device: the PV console and XenStore are pages shared with dom0,
 * each with an event channel, and the end is a hypercall. Nothing interrupts: SCHEDOP_poll sleeps until an event.
 * Structures and numbers are those of xen/include/public.
 */
#include "../hal.h"

#define HYPERCALL_UPDATE_VA_MAPPING 14
#define HYPERCALL_MEMORY_OP 12
#define HYPERCALL_SCHED_OP 29
#define HYPERCALL_EVENT_CHANNEL_OP 32
#define HYPERCALL_HVM_OP 34

#define XENMEM_ADD_TO_PHYSMAP 7
#define SCHEDOP_SHUTDOWN 2
#define SCHEDOP_POLL 3
#define EVTCHNOP_SEND 4
#define HVMOP_GET_PARAM 1
#define HVM_PARAM_STORE_PFN 1
#define HVM_PARAM_STORE_EVTCHN 2
#define HVM_PARAM_CONSOLE_PFN 17
#define HVM_PARAM_CONSOLE_EVTCHN 18
#define DOMID_SELF 0x7ff0

#define CPUID_XEN 0x40000000u
#define PAGE 4096u
#define M2P ((const uint64_t *)0xffff800000000000ul) /* machine frame to ours, where Xen shows it to PV guests */
#define PTE_USABLE 7u

/* Xen took these shutdown reasons for itself; all others are the guest's. */
#define REASON_POWEROFF 0
#define REASON_REBOOT 1
#define REASON_CRASH 3
#define REASON_OWN_FIRST 6
#define REASON_OWN_LAST 254

#define XS_WRITE 11

const char hal_name[] = "x86_64 (Xen)";

struct start_info {
	char magic[32];
	uint64_t nr_pages, shared_info;
	uint32_t flags, pad;
	uint64_t store_mfn;
	uint32_t store_evtchn, pad2;
	uint64_t console_mfn;
	uint32_t console_evtchn;
};

struct console {
	char in[1024], out[2048];
	volatile uint32_t in_cons, in_prod, out_cons, out_prod;
};

struct store {
	char req[1024], rsp[1024];
	volatile uint32_t req_cons, req_prod, rsp_cons, rsp_prod;
};

/* From start-xen.S: 0 on PVH, where Xen gives no such thing. */
extern struct start_info *pv_start_info;
extern uint8_t hypercall_page[PAGE];

static uint8_t shared_page[PAGE] __attribute__((aligned(PAGE)));
static struct console *console;
static struct store *store;
static uint32_t console_port, store_port;

static inline void barrier(void)
{
	__asm__ volatile("" : : : "memory"); /* x86 keeps the order of stores and of loads */
}

static long hypercall(unsigned int number, uint64_t first, uint64_t second, uint64_t third)
{
	long result;

	/* rcx and r11 die with syscall, and the callee's own registers are not promised either */
	__asm__ volatile("call *%%rax"
			 : "=a"(result), "+D"(first), "+S"(second), "+d"(third)
			 : "0"(hypercall_page + number * 32)
			 : "rcx", "r8", "r9", "r10", "r11", "memory");
	return result;
}

static void notify(uint32_t port)
{
	hypercall(HYPERCALL_EVENT_CHANNEL_OP, EVTCHNOP_SEND, (uintptr_t)&port, 0);
}

/* Sleeps until one of the ports has an event, without a time limit. */
static void poll_ports(uint32_t *ports, uint32_t count)
{
	struct {
		uint32_t *ports;
		uint32_t count, pad;
		uint64_t timeout;
	} poll = { ports, count, 0, 0 };

	hypercall(HYPERCALL_SCHED_OP, SCHEDOP_POLL, (uintptr_t)&poll, 0);
}

/* Sleeps until an event came through the port since the last call; the caller looks at its ring first and after. */
static void wait_event(uint32_t port)
{
	volatile uint64_t *pending = (volatile uint64_t *)(shared_page + 2048);

	poll_ports(&port, 1);
	__atomic_and_fetch(&pending[port / 64], ~(1ul << (port % 64)), __ATOMIC_SEQ_CST);
}

static uint64_t hvm_param(uint32_t index)
{
	struct {
		uint16_t domid, pad;
		uint32_t index;
		uint64_t value;
	} param = { DOMID_SELF, 0, index, 0 };

	hypercall(HYPERCALL_HVM_OP, HVMOP_GET_PARAM, (uintptr_t)&param, 0);
	return param.value;
}

static void cpuid(uint32_t leaf, uint32_t *a, uint32_t *b)
{
	uint32_t c = 0, d;

	__asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "+c"(c), "=d"(d) : "0"(leaf));
}

static void set_up_pvh(void)
{
	struct {
		uint16_t domid, size;
		uint32_t space;
		uint64_t index, frame;
	} place = { DOMID_SELF, 0, 0, 0, (uintptr_t)shared_page / PAGE };
	uint32_t pages, msr;

	cpuid(CPUID_XEN + 2, &pages, &msr);
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)(uintptr_t)hypercall_page), "d"(0) : "memory");
	hypercall(HYPERCALL_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, (uintptr_t)&place, 0);
	console = (struct console *)(hvm_param(HVM_PARAM_CONSOLE_PFN) * PAGE);
	console_port = (uint32_t)hvm_param(HVM_PARAM_CONSOLE_EVTCHN);
	store = (struct store *)(hvm_param(HVM_PARAM_STORE_PFN) * PAGE);
	store_port = (uint32_t)hvm_param(HVM_PARAM_STORE_EVTCHN);
}

/* Our memory begins at 0 for us, whatever frames Xen took for it. */
static void set_up_pv(const struct start_info *info)
{
	hypercall(HYPERCALL_UPDATE_VA_MAPPING, (uintptr_t)shared_page, info->shared_info | PTE_USABLE, 2);
	console = (struct console *)(M2P[info->console_mfn] * PAGE);
	console_port = info->console_evtchn;
	store = (struct store *)(M2P[info->store_mfn] * PAGE);
	store_port = info->store_evtchn;
}

static void set_up(void)
{
	if (console)
		return;
	if (pv_start_info)
		set_up_pv(pv_start_info);
	else
		set_up_pvh();
}

void hal_init(void)
{
	set_up();
}

/*
 * Tells dom0 of new output. It may take its time until it has taken what it was told of: dom0 looks at no more than 150
 * events a second from one guest. Before a sleep it must know all.
 */
static void announce(int all)
{
	static uint32_t told;

	if (console->out_prod != told && (all || (int32_t)(console->out_cons - told) >= 0)) {
		told = console->out_prod;
		notify(console_port);
	}
}

void hal_write(const char *data, size_t len)
{
	set_up();
	while (len > 0) {
		uint32_t at = console->out_prod;

		while (at - console->out_cons == sizeof(console->out)) {
			announce(1);
			wait_event(console_port);
		}
		while (len > 0 && at - console->out_cons < sizeof(console->out)) {
			console->out[at++ % sizeof(console->out)] = *data++;
			len--;
		}
		barrier();
		console->out_prod = at;
	}
	announce(0);
}

static void drain(void)
{
	set_up();
	announce(1);
	while (console->out_cons != console->out_prod)
		wait_event(console_port);
}

int hal_peek(void)
{
	uint32_t at = console->in_cons;

	return at == console->in_prod ? -1 : (uint8_t)console->in[at % sizeof(console->in)];
}

int hal_getc(void)
{
	int byte, full;

	while ((byte = hal_peek()) < 0) {
		announce(1);
		wait_event(console_port);
	}
	full = console->in_prod - console->in_cons == sizeof(console->in);
	barrier();
	console->in_cons++;
	if (full)
		notify(console_port); /* dom0 waits for room; each event it need not see makes it faster for all */
	return byte;
}

static _Noreturn void shut_down(uint32_t reason)
{
	drain();
	for (;;)
		hypercall(HYPERCALL_SCHED_OP, SCHEDOP_SHUTDOWN, (uintptr_t)&reason, 0);
}

static void put(const void *data, size_t len)
{
	const char *byte = data;

	while (len-- > 0) {
		store->req[store->req_prod % sizeof(store->req)] = *byte++;
		barrier();
		store->req_prod++;
	}
}

/* Says the exit code where a shutdown reason cannot: data/exit-code of our own part of XenStore. */
static void say_exit_code(int code)
{
	static const char path[] = "data/exit-code";
	char digits[3] = { (char)('0' + code / 100), (char)('0' + code / 10 % 10), (char)('0' + code % 10) };
	uint32_t header[4] = { XS_WRITE, 1, 0, sizeof(path) + sizeof(digits) };
	uint32_t before = store->rsp_prod;

	put(header, sizeof(header));
	put(path, sizeof(path));
	put(digits, sizeof(digits));
	notify(store_port);
	while (store->rsp_prod == before)
		wait_event(store_port);
}

_Noreturn void hal_exit(int code)
{
	set_up();
	if (code == 0 || (code >= REASON_OWN_FIRST && code <= REASON_OWN_LAST))
		shut_down((uint32_t)code);
	say_exit_code(code);
	shut_down(REASON_POWEROFF);
}

_Noreturn void hal_crash(void)
{
	shut_down(REASON_CRASH);
}

_Noreturn void hal_reset(void)
{
	shut_down(REASON_REBOOT);
}

void hal_relax(void)
{
	__asm__ volatile("pause");
}

/* There is no PCI: every device is absent. */
const uint32_t hal_pci_window = 0;

uint32_t hal_pci_read(unsigned int device, unsigned int offset)
{
	(void)device;
	(void)offset;
	return 0xffffffffu;
}

void hal_pci_write(unsigned int device, unsigned int offset, uint32_t value)
{
	(void)device;
	(void)offset;
	(void)value;
}

_Noreturn void hal_hang(void)
{
	for (;;)
		poll_ports(NULL, 0);
}
