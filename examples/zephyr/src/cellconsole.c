/* SPDX-License-Identifier: Apache-2.0 */
/* Console output of a Jailhouse cell through the hypervisor: one hypercall a character, no serial port needed. */

#include <zephyr/init.h>

/* Zephyr's console drivers declare them so, too: the header that has them was moved between versions. */
extern void __printk_hook_install(int (*fn)(int));
extern void __stdout_hook_install(int (*fn)(int));

/* Jailhouse's hypercall interface on arm64: the number in x0, the argument in x1, the result in x0. */
#define HYPERCALL_DEBUG_CONSOLE_PUTC 8

static void hypervisor_putc(unsigned long c)
{
	register unsigned long number __asm__("x0") = HYPERCALL_DEBUG_CONSOLE_PUTC;
	register unsigned long argument __asm__("x1") = c;

	__asm__ volatile("hvc #0x4a48" : "+r"(number) : "r"(argument) : "x2", "x3", "memory");
}

static int console_out(int c)
{
	if (c == '\n') {
		hypervisor_putc('\r');
	}
	hypervisor_putc((unsigned char)c);
	return c;
}

static int cell_console_init(void)
{
	__printk_hook_install(console_out);
	__stdout_hook_install(console_out);
	return 0;
}

SYS_INIT(cell_console_init, PRE_KERNEL_1, 0);
