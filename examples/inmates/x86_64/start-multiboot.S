/* SPDX-License-Identifier: Apache-2.0 */
/* Entry of the 32-bit ELF: multiboot 1, the processor is in 32-bit protected mode, paging off. */

	.section .multiboot, "a", @progbits
	.align 4
	.long 0x1badb002
	.long 0			/* no flags: nothing is asked of the loader */
	.long -0x1badb002

	.section .text.start, "ax", @progbits
	.code32
	.globl start
start:
	cli
	movl $stack_top, %esp
	lgdt gdt_pointer
	ljmp $0x08, $1f
1:	movw $0x10, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %fs
	movw %ax, %gs
	movw %ax, %ss
	call main

	.globl irq_entry
irq_entry:
	pushal
	cld
	call hal_irq
	popal
	iret

	.globl fault_entry
fault_entry:
	cld
	call hal_fault

	.section .rodata
	.align 8
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff	/* code */
	.quad 0x00cf93000000ffff	/* data */
gdt_pointer:
	.word . - gdt - 1
	.long gdt
	.globl code_selector
code_selector:
	.word 0x08

	.section .bss
	.align 16
	.skip 16384
stack_top:

	.section .note.GNU-stack, "", @progbits
