/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's virt machine: PL011 UART, GICv2 (used only to wake the processor), PSCI by HVC for a reset, semihosting for
 * the exit code.
 */
#include "../hal.h"

#define UART 0x09000000u
#define UART_DR (UART + 0x000)
#define UART_FR (UART + 0x018)
#define UART_CR (UART + 0x030)
#define UART_IMSC (UART + 0x038)
#define FR_RX_EMPTY 0x10
#define FR_TX_FULL 0x20
#define CR_ENABLE 0x301 /* UART, transmitter, receiver */
#define IMSC_RX 0x10

#define GICD 0x08000000u
#define GICD_CTLR (GICD + 0x000)
#define GICD_ISENABLER1 (GICD + 0x104)
#define GICD_ITARGETSR (GICD + 0x800)
#define GICC 0x08010000u
#define GICC_CTLR (GICC + 0x000)
#define GICC_PMR (GICC + 0x004)
#define UART_IRQ 33

/* configuration space of PCI: above 4 GiB, or below with highmem=off */
#define ECAM_HIGH 0x4010000000u
#define ECAM_LOW 0x3f000000u

#define PSCI_SYSTEM_RESET 0x84000009u
#define SYS_EXIT_EXTENDED 0x20
#define STOPPED_APPLICATION_EXIT 0x20026
#define CRASH_CODE 134 /* 128 + SIGABRT, what a shell shows of a program that aborted */

const char hal_name[] = "aarch64";

static struct ring received;

extern uint32_t probe32(uintptr_t address); /* start.S: the word there, all ones where nothing answers */

static inline uint32_t read32(uintptr_t address)
{
	return *(volatile uint32_t *)address;
}

static inline void write32(uintptr_t address, uint32_t value)
{
	*(volatile uint32_t *)address = value;
}

/*
 * Interrupts stay masked in the processor: a pending one ends wfi all the same, so no handler is needed. The UART holds
 * its interrupt line for as long as it has a byte, so none is missed.
 */
void hal_init(void)
{
	write32(UART_CR, CR_ENABLE);
	write32(UART_IMSC, IMSC_RX);
	*(volatile uint8_t *)(uintptr_t)(GICD_ITARGETSR + UART_IRQ) = 1;
	write32(GICD_ISENABLER1, 1u << (UART_IRQ - 32));
	write32(GICD_CTLR, 1);
	write32(GICC_PMR, 0xff);
	write32(GICC_CTLR, 1);
}

static void take_input(void)
{
	while (!(read32(UART_FR) & FR_RX_EMPTY) && !ring_full(&received))
		ring_put(&received, (uint8_t)read32(UART_DR));
}

void hal_write(const char *data, size_t len)
{
	while (len-- > 0) {
		while (read32(UART_FR) & FR_TX_FULL)
			__asm__ volatile("yield");
		write32(UART_DR, (uint8_t)*data++);
	}
}

int hal_peek(void)
{
	take_input();
	return ring_peek(&received);
}

int hal_getc(void)
{
	int byte;

	while ((byte = hal_peek()) < 0)
		__asm__ volatile("wfi" : : : "memory");
	received.tail++;
	return byte;
}

void hal_relax(void)
{
	__asm__ volatile("yield");
}

const uint32_t hal_pci_window = 0x10000000u;

static volatile uint32_t *pci_word(unsigned int device, unsigned int offset)
{
	static uintptr_t ecam;

	if (!ecam)
		ecam = probe32(ECAM_HIGH) != ~0u ? ECAM_HIGH : ECAM_LOW;
	return (volatile uint32_t *)(ecam + (device << 15) + offset);
}

uint32_t hal_pci_read(unsigned int device, unsigned int offset)
{
	return probe32((uintptr_t)pci_word(device, offset));
}

void hal_pci_write(unsigned int device, unsigned int offset, uint32_t value)
{
	*pci_word(device, offset) = value;
}

_Noreturn void hal_hang(void)
{
	write32(GICC_CTLR, 0);
	for (;;)
		__asm__ volatile("wfi");
}

/* Ends QEMU with this exit code, if it runs with -semihosting-config enable=on; else the processor takes a fault. */
static void semihosting_exit(int code)
{
	uint64_t arguments[2] = { STOPPED_APPLICATION_EXIT, (uint64_t)code };
	register uint64_t operation __asm__("x0") = SYS_EXIT_EXTENDED;
	register uint64_t *pointer __asm__("x1") = arguments;

	__asm__ volatile("hlt #0xf000" : "+r"(operation) : "r"(pointer) : "memory");
}

_Noreturn void hal_exit(int code)
{
	semihosting_exit(code);
	hal_hang();
}

_Noreturn void hal_reset(void)
{
	register uint64_t function __asm__("x0") = PSCI_SYSTEM_RESET;

	__asm__ volatile("hvc #0" : "+r"(function) : : "memory");
	hal_hang();
}

/* The virt machine has no panic port: an exit code says it. The access runs into the vectors, then hal_fault. */
_Noreturn void hal_crash(void)
{
	__asm__ volatile("udf #0");
	hal_hang();
}

_Noreturn void hal_fault(void)
{
	static const char text[] = "\r\nprocessor exception\r\n";
	static int again;

	if (again++)
		hal_hang();
	hal_write(text, sizeof(text) - 1);
	hal_exit(CRASH_CODE);
}
