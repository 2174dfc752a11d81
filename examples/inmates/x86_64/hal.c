/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PC hardware as QEMU's microvm, pc and q35 machines have it: 16550 UART (COM1, IRQ 4), 8259 PIC, and the three ports
 * by which an inmate tells the host how it ended. Built twice: 64 bit (PVH) and 32 bit (multiboot).
 */
#include "../hal.h"

#define COM1 0x3f8
#define UART_IER (COM1 + 1)
#define UART_IIR (COM1 + 2)
#define UART_LCR (COM1 + 3)
#define UART_MCR (COM1 + 4)
#define UART_LSR (COM1 + 5)
#define IER_RX 0x01
#define IER_TX_EMPTY 0x02
#define IIR_NONE 0x01
#define LSR_RX_READY 0x01
#define LSR_TX_EMPTY 0x20
#define LSR_TX_IDLE 0x40

#define PIC1 0x20
#define PIC2 0xa0
#define PIC_EOI 0x20
#define IRQ_BASE 0x20
#define UART_IRQ 4
#define LAPIC_SPURIOUS 0xfee000f0u
#define LAPIC_LINT0 0xfee00350u
#define LAPIC_ENABLE 0x1ff
#define LAPIC_EXTINT 0x700

#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
#define PCI_ENABLE 0x80000000u
#define MICROVM_ECAM 0xe0000000u /* with pcie=on; microvm has no PCI ports */

#define EXIT_CODE_PORT 0x4f0
#define EXIT_PORT 0xf4
#define PVPANIC_PORT 0x505
#define PVPANIC_PANICKED 0x01

#ifdef __x86_64__
const char hal_name[] = "x86_64 (PVH)";
#else
const char hal_name[] = "x86_64 (multiboot, 32 bit)";
#endif

struct gate {
	uint16_t offset_low;
	uint16_t selector;
	uint8_t ist;
	uint8_t type;
	uint16_t offset_middle;
#ifdef __x86_64__
	uint32_t offset_high;
	uint32_t reserved;
#endif
};

struct __attribute__((packed)) table_pointer {
	uint16_t limit;
	uintptr_t base;
};

extern void irq_entry(void);   /* start-*.S: saves the registers and calls hal_irq */
extern void fault_entry(void); /* start-*.S: calls hal_fault */
extern const uint16_t code_selector;

static struct gate idt[IRQ_BASE + 16];
static struct ring received;
static volatile uint8_t interrupts; /* the value of UART_IER */

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint32_t inl(uint16_t port)
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void write_register(uintptr_t address, uint32_t value)
{
	*(volatile uint32_t *)address = value;
}

static inline void irq_off(void)
{
	__asm__ volatile("cli" : : : "memory");
}

static inline void irq_on(void)
{
	__asm__ volatile("sti" : : : "memory");
}

/* Sleeps until an interrupt; none is lost between the caller's look (interrupts off) and the hlt. */
static inline void irq_wait(void)
{
	__asm__ volatile("sti; hlt; cli" : : : "memory");
}

static void set_gate(unsigned int vector, void (*entry)(void))
{
	uintptr_t address = (uintptr_t)entry;

	idt[vector].offset_low = (uint16_t)address;
	idt[vector].selector = code_selector;
	idt[vector].type = 0x8e;
	idt[vector].offset_middle = (uint16_t)(address >> 16);
#ifdef __x86_64__
	idt[vector].offset_high = (uint32_t)(address >> 32);
#endif
}

static void set_interrupts(uint8_t value)
{
	interrupts = value;
	outb(UART_IER, value);
}

void hal_init(void)
{
	struct table_pointer pointer = { sizeof(idt) - 1, (uintptr_t)idt };

	for (unsigned int i = 0; i < IRQ_BASE; i++)
		set_gate(i, fault_entry);
	for (unsigned int i = IRQ_BASE; i < IRQ_BASE + 16; i++)
		set_gate(i, irq_entry);
	__asm__ volatile("lidt %0" : : "m"(pointer));

	outb(PIC1, 0x11);
	outb(PIC2, 0x11);
	outb(PIC1 + 1, IRQ_BASE);
	outb(PIC2 + 1, IRQ_BASE + 8);
	outb(PIC1 + 1, 4);
	outb(PIC2 + 1, 2);
	outb(PIC1 + 1, 1);
	outb(PIC2 + 1, 1);
	outb(PIC1 + 1, (uint8_t)~(1 << UART_IRQ));
	outb(PIC2 + 1, 0xff);

	/* the PIC reaches the processor through LINT0, which not every firmware opens */
	write_register(LAPIC_SPURIOUS, LAPIC_ENABLE);
	write_register(LAPIC_LINT0, LAPIC_EXTINT);

	/* The FIFOs stay off: switching them on throws away a byte that was sent before the inmate ran. */
	outb(UART_LCR, 0x03); /* 8n1; the speed means nothing to QEMU */
	outb(UART_MCR, 0x0b); /* OUT2 lets the interrupt through on a PC */
	set_interrupts(IER_RX);
	irq_on();
}

/*
 * The PIC sees edges: the UART's line must be low when this returns, so every cause is served or switched off.
 */
void hal_irq(void)
{
	while (!(inb(UART_IIR) & IIR_NONE)) {
		while ((inb(UART_LSR) & LSR_RX_READY) && !ring_full(&received))
			ring_put(&received, inb(COM1));
		set_interrupts(ring_full(&received) ? 0 : IER_RX);
	}
	outb(PIC1, PIC_EOI);
}

/* The host takes no more for now: sleep until the UART says otherwise. */
static void wait_for_room(void)
{
	irq_off();
	while (!(inb(UART_LSR) & LSR_TX_EMPTY)) {
		set_interrupts(interrupts | IER_TX_EMPTY);
		irq_wait();
	}
	irq_on();
}

void hal_write(const char *data, size_t len)
{
	while (len-- > 0) {
		while (!(inb(UART_LSR) & LSR_TX_EMPTY))
			wait_for_room();
		outb(COM1, (uint8_t)*data++);
	}
}

static void drain(void)
{
	while (!(inb(UART_LSR) & LSR_TX_IDLE))
		__asm__ volatile("pause");
}

int hal_peek(void)
{
	return ring_peek(&received);
}

int hal_getc(void)
{
	int byte;

	irq_off();
	while ((byte = ring_peek(&received)) < 0)
		irq_wait();
	received.tail++;
	if (!(interrupts & IER_RX))
		set_interrupts(interrupts | IER_RX); /* the ring was full */
	irq_on();
	return byte;
}

void hal_relax(void)
{
	__asm__ volatile("pause");
}

/* microvm gives its PCI devices no addresses; pc and q35 have a firmware that does */
const uint32_t hal_pci_window = 0xc0000000u;

/* A PC has PCI's ports, microvm the memory-mapped configuration space; returns that word of it, or NULL. */
static volatile uint32_t *pci_select(unsigned int device, unsigned int offset)
{
	outl(PCI_ADDRESS, PCI_ENABLE | device << 11 | offset);
	if (inl(PCI_ADDRESS) == (PCI_ENABLE | device << 11 | offset))
		return NULL;
	return (volatile uint32_t *)(uintptr_t)(MICROVM_ECAM + (device << 15) + offset);
}

uint32_t hal_pci_read(unsigned int device, unsigned int offset)
{
	volatile uint32_t *mapped = pci_select(device, offset);

	return mapped ? *mapped : inl(PCI_DATA);
}

void hal_pci_write(unsigned int device, unsigned int offset, uint32_t value)
{
	volatile uint32_t *mapped = pci_select(device, offset);

	if (mapped)
		*mapped = value;
	else
		outl(PCI_DATA, value);
}

_Noreturn void hal_hang(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

_Noreturn void hal_exit(int code)
{
	drain();
	outb(EXIT_CODE_PORT, (uint8_t)code);
	outl(EXIT_PORT, 0);
	hal_hang();
}

/* A triple fault: the one reset every PC has. */
_Noreturn void hal_reset(void)
{
	struct table_pointer none = { 0, 0 };

	drain();
	__asm__ volatile("lidt %0; int3" : : "m"(none));
	hal_hang();
}

/* To the host a triple fault looks like a wanted reset, so the panic device is told first. */
_Noreturn void hal_crash(void)
{
	drain();
	outb(PVPANIC_PORT, PVPANIC_PANICKED);
	hal_reset();
}

_Noreturn void hal_fault(void)
{
	static const char text[] = "\r\nprocessor exception\r\n";

	for (size_t i = 0; i < sizeof(text) - 1; i++) {
		drain();
		outb(COM1, (uint8_t)text[i]);
	}
	hal_crash();
}
