/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both of Xen's ways in, for one ELF linked where its memory lies. PVH: 32-bit protected mode, paging off; start-pvh.S
 * has that one, which calls main. PV: 64-bit mode in user space, paged by Xen; rsi = start info.
 */

	.macro note type
	.long 4, 2f - 1f, \type
	.asciz "Xen"
1:
	.endm
	.macro note_end
2:	.balign 4
	.endm

	.section .note.Xen, "a", @note
	.align 4
	note 1			/* ENTRY */
	.quad pv_start
	note_end
	note 2			/* HYPERCALL_PAGE */
	.quad hypercall_page
	note_end
	note 3			/* VIRT_BASE: virtual and physical addresses are the same */
	.quad 0
	note_end
	note 4			/* PADDR_OFFSET */
	.quad 0
	note_end
	note 5			/* XEN_VERSION */
	.asciz "xen-3.0"
	note_end
	note 6			/* GUEST_OS */
	.asciz "runphi-demo"
	note_end
	note 8			/* LOADER */
	.asciz "generic"
	note_end
	note 9			/* PAE_MODE */
	.asciz "yes"
	note_end

	.section .text, "ax", @progbits
	.code64
pv_start:
	cld
	movl $pv_stack_top, %esp
	movq %rsi, pv_start_info
	call main

	/* start-pvh.S wants them; nothing interrupts a guest that only polls */
	.globl hal_irq, hal_fault
hal_irq:
	ret
hal_fault:
	jmp hal_crash

	.balign 4096
	.globl hypercall_page
hypercall_page:
	.skip 4096

	.data
	.balign 8
	.globl pv_start_info
pv_start_info:
	.quad 0

	.section .bss
	.balign 16
	.skip 16384
pv_stack_top:

	.section .note.GNU-stack, "", @progbits
