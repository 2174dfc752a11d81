/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entry, at EL1 with the MMU off: first byte of the flat image. Linked for 0x40080000, but the code does not depend on
 * its address: the flat image runs at any multiple of 4 KiB. Any exception but that of a probe goes to hal_fault.
 */
	.macro address register, symbol
	adrp \register, \symbol
	add \register, \register, :lo12:\symbol
	.endm

	.section .text.start, "ax", @progbits
	.globl start
start:
	msr daifset, #0xf
	mov x29, #0
	address x0, stack_top
	mov sp, x0
	address x0, vectors
	msr vbar_el1, x0
	isb
	/* a flat image does not bring zeroes for its .bss */
	address x0, bss_start
	address x1, bss_end
1:	cmp x0, x1
	b.hs 2f
	str xzr, [x0], #8
	b 1b
2:	bl main

	/* A word that may not be there: the exception of this one load is answered with all ones. */
	.globl probe32
probe32:
	ldr w0, [x0]
	ret

fault:
	mrs x16, elr_el1
	address x17, probe32
	cmp x16, x17
	b.ne hal_fault
	mov w0, #-1
	add x16, x16, #4
	msr elr_el1, x16
	eret

	.balign 2048
vectors:
	.rept 16
	b fault
	.balign 128
	.endr

	.section .bss
	.balign 16
	.skip 16384
stack_top:

	.section .note.GNU-stack, "", @progbits
