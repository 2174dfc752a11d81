/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest that proves an accelerator of aarch64: it does what kernels do and looks at every result.
 *
 * It speaks by the PL011 of QEMU's `virt` machine: the name of each step when the step begins, so whoever listens knows
 * in which one a machine hangs or dies; `wrong` behind the name when a result is not what it must be, `trap` when an
 * exception comes that nobody asked for, and then it resets. When all was right its last step switches the machine off.
 * How long `stretch` takes is measured outside, by the host's clock.
 *
 * bin/build-probe makes aarch64.elf of it; backends/qemu/accel/proof.py runs that.
 */
	.arch armv8.1-a

#define UART 0x09000000
#define GICD 0x08000000
#define GICC 0x08010000
#define GICR 0x080a0000
#define SGI_FRAME (GICR + 0x10000)

/* Virtual addresses whose page table (level3) the guest changes: 4 KiB pages from here on. */
#define WINDOW 0x40200000
#define USER_CODE (WINDOW + 0x1000)
#define USER_STACK (WINDOW + 0x2000)
#define USER_TICKS (WINDOW + 0x3000)

/* Descriptors: normal memory, shareable, accessed; beside it who may do what. */
#define BLOCK 0x705
#define PAGE 0x707
#define ACCESSED (1 << 10)
#define ALSO_USER (1 << 6)
#define READ_ONLY (2 << 6)
#define NO_EXECUTE 0x0060000000000000
#define NO_KERNEL_EXECUTE 0x0020000000000000
#define DEVICE_BLOCK (NO_EXECUTE | 0x401)

/* Syndromes: class of the exception, whether it was a write, kind of the fault. */
#define ABORT_MASK 0xfc00007f
#define ABORT 0x94000000
#define USER_ABORT 0x90000000
#define FETCH_ABORT 0x84000000
#define WRITE 0x40
#define TRANSLATION 7
#define ACCESS_FLAG 0xb
#define PERMISSION 0xf
#define PERMISSION_BLOCK 0xe

#define TIMER 27
#define PSCI_VERSION 0x84000000
#define SYSTEM_OFF 0x84000008
#define SYSTEM_RESET 0x84000009

/* How often the quick steps are done: enough to meet what is remembered wrongly, too few to take time. */
#define ROUNDS 50
/* Turns of the timed loop: some 50 to 150 ms in software, 3 to 10 ms on a CPU. */
#define TURNS 10000000

	.macro address register, symbol
	adrp \register, \symbol
	add \register, \register, :lo12:\symbol
	.endm

	/* Any number of 64 bits. */
	.macro number register, value
	ldr \register, =\value
	.endm

	/* Says that a step begins. Changes x0 to x3. */
	.macro step name
	.pushsection .rodata.names, "a", %progbits
.Lname\@:
	.asciz "\name\n"
	.popsection
	address x0, .Lname\@
	bl say
	.endm

	/* Says which exception comes next, and what is done about it. Changes x0 and x1. */
	.macro expect syndrome, mask, where, action
	address x0, expected
	number x1, (\syndrome)
	str x1, [x0]
	number x1, (\mask)
	str x1, [x0, #8]
	number x1, (\where)
	str x1, [x0, #16]
	address x1, \action
	str x1, [x0, #24]
	.endm

	/* The exception has come. Changes x0. */
	.macro unexpect
	address x0, expected
	ldr x0, [x0, #24]
	cbnz x0, wrong
	.endm

	/* Where and how a fault is mended: the descriptor of the window's first page. Changes x0 and x1. */
	.macro mend page, rights
	address x0, expected
	address x1, \page
	number x2, (\rights)
	orr x1, x1, x2
	str x1, [x0, #40]
	.endm

	/* Maps a page of ours as the window's first. Changes x0 to x2. */
	.macro window page, rights
	address x1, \page
	number x2, (\rights)
	orr x1, x1, x2
	bl set_window
	.endm

	.section .text.start, "ax", %progbits
	.globl start
start:
	msr daifset, #0xf
	mov x29, #0
	number x0, UART
	mov w1, #0x301
	str w1, [x0, #0x30]	/* on */
	step start

	/* The first GiB is devices; of the second, 2 MiB one to one, the window behind them. */
	address x4, level1
	number x0, DEVICE_BLOCK
	str x0, [x4]
	address x5, level2
	orr x0, x5, #3
	str x0, [x4, #8]
	number x0, 0x40000000 | BLOCK
	str x0, [x5]
	address x6, level3
	orr x0, x6, #3
	str x0, [x5, #8]
	/* written without caches: nothing older may be found in them */
	dmb sy
	mrs x1, ctr_el0
	ubfx x1, x1, #16, #4
	mov x2, #4
	lsl x2, x2, x1
	address x0, tables
	address x1, tables_end
1:	dc ivac, x0
	add x0, x0, x2
	cmp x0, x1
	b.lo 1b
	dsb sy

	step translation
	number x0, 0xff04		/* 0: device, 1: normal */
	msr mair_el1, x0
	number x0, 0x803519		/* 39 bits by TTBR0, nothing by TTBR1 */
	mrs x1, id_aa64mmfr0_el1
	and x1, x1, #7
	cmp x1, #5
	mov x2, #5
	csel x1, x1, x2, ls
	orr x0, x0, x1, lsl #32
	msr tcr_el1, x0
	address x0, level1
	msr ttbr0_el1, x0
	isb
	tlbi vmalle1
	ic iallu
	dsb nsh
	isb
	mrs x0, sctlr_el1
	number x1, 0x1005		/* M, C, I */
	orr x0, x0, x1
	bic x0, x0, #1 << 19		/* what is writable may be executed */
	bic x0, x0, #2			/* no checks of alignment */
	msr sctlr_el1, x0
	isb
	mrs x0, sctlr_el1
	and x0, x0, x1
	cmp x0, x1
	b.ne wrong
	mrs x0, CurrentEL
	cmp x0, #4
	b.ne wrong
	address x0, stack_top
	mov sp, x0
	address x0, vectors
	msr vbar_el1, x0
	isb

	step exceptions
	mov x19, #ROUNDS
1:	expect 0xf0001234, 0xfc00ffff, 0, skip
	brk #0x1234
	unexpect
	expect 0x02000000, 0xfe000000, 0, skip
	udf #0
	unexpect
	subs x19, x19, #1
	b.ne 1b
	number x0, PSCI_VERSION
	hvc #0
	cmp w0, #2
	b.lt wrong

	step page-tables
	mov x19, #ROUNDS
	number x20, WINDOW
	address x21, frame1
	address x22, frame2
	address x23, frame3
1:	mvn x24, x19
	add x25, x19, #1
	str x19, [x21]
	str x24, [x22]
	str x25, [x23]
	window frame1, PAGE
	ldr x0, [x20]
	cmp x0, x19
	b.ne wrong
	window frame2, PAGE	/* another page: the old one must be forgotten */
	ldr x0, [x20]
	cmp x0, x24
	b.ne wrong
	str x25, [x20, #8]
	ldr x0, [x22, #8]
	cmp x0, x25
	b.ne wrong
	mend frame3, PAGE	/* nothing there: the handler puts the third page there */
	mov x1, #0
	bl set_window
	expect ABORT | TRANSLATION, ABORT_MASK, WINDOW, map
	ldr x2, [x20]
	cmp x2, x25
	b.ne wrong
	unexpect
	window frame3, PAGE | READ_ONLY
	expect ABORT | WRITE | PERMISSION, ABORT_MASK, WINDOW + 16, map
	str x19, [x20, #16]
	unexpect
	ldr x0, [x23, #16]
	cmp x0, x19
	b.ne wrong
	subs x19, x19, #1
	b.ne 1b
	window frame3, PAGE & ~ACCESSED
	mrs x0, tcr_el1
	tbnz x0, #39, 2f	/* the hardware sets it */
	expect ABORT | ACCESS_FLAG, ABORT_MASK, WINDOW, map
	ldr x2, [x20]
	unexpect
2:

	step no-execute
	number x0, 0xd65f03c0	/* ret */
	str w0, [x21]
	mov x0, x21
	bl publish
	mend frame1, PAGE | READ_ONLY
	window frame1, PAGE | NO_EXECUTE
	expect FETCH_ABORT | PERMISSION, ABORT_MASK & ~0x40, WINDOW, map
	blr x20
	unexpect

	step self-modified
	mov x19, #ROUNDS
	number x0, 0xd65f03c0
	str w0, [x21, #4]
1:	number x0, 0x52800000	/* mov w0, number */
	orr w0, w0, w19, lsl #5
	str w0, [x21]
	mov x0, x21
	bl publish
	mov w0, #0
	blr x21
	cmp w0, w19
	b.ne wrong
	subs x19, x19, #1
	b.ne 1b

	step exclusive
	address x20, pair
	mov x19, #ROUNDS
	mov x21, #1
	mov x22, #-1
	stp x21, x22, [x20]
	/* another write in between, or none at all: only the second may take effect */
1:	ldxp x0, x1, [x20]
	clrex
	stxp w2, xzr, xzr, [x20]
	cmp w2, #1
	b.ne wrong
2:	ldaxp x0, x1, [x20]
	cmp x0, x21
	b.ne wrong
	cmp x1, x22
	b.ne wrong
	add x3, x0, #1
	sub x4, x1, #1
	stlxp w2, x3, x4, [x20]
	cbnz w2, 2b
	mov x21, x3
	mov x22, x4
	ldp x0, x1, [x20]
	cmp x0, x21
	b.ne wrong
	cmp x1, x22
	b.ne wrong
3:	ldaxr w0, [x20]
	add w1, w0, #1
	stxr w2, w1, [x20]
	cbnz w2, 3b
	ldr w0, [x20]
	cmp w0, w1
	b.ne wrong
	sub w1, w1, #1
	stlr w1, [x20]
	subs x19, x19, #1
	b.ne 1b

	mrs x0, id_aa64isar0_el1
	ubfx x0, x0, #20, #4
	cmp x0, #2
	b.lo 2f
	step atomics
	mov x19, #ROUNDS
1:	ldp x2, x3, [x20]
	mov x0, x2
	mov x1, x3
	add x4, x2, #1
	sub x5, x3, #1
	caspal x0, x1, x4, x5, [x20]
	cmp x0, x2
	b.ne wrong
	cmp x1, x3
	b.ne wrong
	ldp x2, x3, [x20]
	cmp x2, x4
	b.ne wrong
	cmp x3, x5
	b.ne wrong
	mov x0, #0		/* what is not there: nothing changes, and we learn what is */
	mov x1, #0
	mov x6, #7
	mov x7, #7
	caspal x0, x1, x6, x7, [x20]
	cmp x0, x4
	b.ne wrong
	cmp x1, x5
	b.ne wrong
	ldp x2, x3, [x20]
	cmp x2, x4
	b.ne wrong
	cmp x3, x5
	b.ne wrong
	mov x0, #3
	ldaddal x0, x1, [x20]
	cmp x1, x4
	b.ne wrong
	ldr x1, [x20]
	sub x1, x1, #3
	cmp x1, x4
	b.ne wrong
	swpal x4, x1, [x20]
	ldr x1, [x20]
	cmp x1, x4
	b.ne wrong
	subs x19, x19, #1
	b.ne 1b
2:

	/* As kernels give it to those who use it: the first instruction traps. */
	step simd
	mrs x0, cpacr_el1
	bic x0, x0, #3 << 20
	msr cpacr_el1, x0
	isb
	expect 0x1c000000, 0xfc000000, 0, allow_simd
	fmov s0, #1.0
	unexpect
	address x4, floats
	ldp q1, q2, [x4]
	fmul v16.4s, v1.4s, v1.4s
	fadd v16.4s, v16.4s, v1.4s
	fmul v31.4s, v2.4s, v2.4s
	fadd v31.4s, v31.4s, v2.4s
	address x5, area
	stp q16, q31, [x5]
	movi v16.2d, #0
	movi v31.2d, #0
	ldp q16, q31, [x5]
	ldp q3, q4, [x4, #32]
	fcmeq v3.4s, v3.4s, v16.4s
	fcmeq v4.4s, v4.4s, v31.4s
	and v3.16b, v3.16b, v4.16b
	uminv s3, v3.4s
	fmov w0, s3
	cmn w0, #1
	b.ne wrong
	mov w0, #1764
	scvtf d5, w0
	fsqrt d5, d5
	fcvtzs w0, d5
	cmp w0, #42
	b.ne wrong
	movi v6.4s, #21
	add v6.4s, v6.4s, v6.4s
	addv s6, v6.4s
	fmov w0, s6
	cmp w0, #168
	b.ne wrong

	/* The generic timer, by whichever interrupt controller guests get here. */
	step timer-interrupt
	/* A GICv2 has nothing where a GICv3 says its version, which some machines answer by an abort. */
	expect ABORT | 0x10, ABORT_MASK, GICD + 0xffe8, skip_load
	number x4, GICD + 0xffe8
	ldr w5, [x4]
	address x0, expected
	str xzr, [x0, #24]
	and w5, w5, #0xf0
	number x4, GICD
	mov w7, #1 << TIMER
	cmp w5, #0x30
	b.lo 2f
	address x0, gic3
	mov x1, #1
	str x1, [x0]
	mrs x0, S3_0_C12_C12_5	/* ICC_SRE_EL1 */
	orr x0, x0, #1
	msr S3_0_C12_C12_5, x0
	isb
	mov w0, #0x12		/* affinity routing, group 1 */
	str w0, [x4]
	number x5, GICR
	ldr w0, [x5, #0x14]
	bic w0, w0, #2		/* awake */
	str w0, [x5, #0x14]
1:	ldr w0, [x5, #0x14]
	tbnz w0, #2, 1b
	number x5, SGI_FRAME
	mov w0, #-1
	str w0, [x5, #0x80]	/* all of group 1 */
	str w7, [x5, #0x100]
	mov x0, #0xf0
	msr S3_0_C4_C6_0, x0	/* ICC_PMR_EL1 */
	mov x0, #1
	msr S3_0_C12_C12_7, x0	/* ICC_IGRPEN1_EL1 */
	isb
	b 3f
2:	mov w0, #1
	str w0, [x4]
	str w7, [x4, #0x100]
	number x5, GICC
	mov w1, #0xf0
	str w1, [x5, #4]
	str w0, [x5]
3:	bl arm_timer
	mov x0, #1
	msr cntv_ctl_el0, x0
	isb
	address x4, ticks
4:	wfi
	msr daifclr, #2
	isb
	msr daifset, #2
	ldr w0, [x4]
	cmp w0, #3
	b.lo 4b

	/* User mode: there by eret, back by svc, by a fault and by the timer. */
	step user-mode
	number x20, NO_EXECUTE
	address x4, level3
	address x0, user_code
	number x1, PAGE | ALSO_USER | READ_ONLY | NO_KERNEL_EXECUTE
	orr x0, x0, x1
	str x0, [x4, #8]
	address x0, user_stack
	number x1, PAGE | ALSO_USER | NO_EXECUTE
	orr x0, x0, x1
	str x0, [x4, #16]
	address x0, ticks
	number x1, PAGE | ALSO_USER | READ_ONLY | NO_EXECUTE
	orr x0, x0, x1
	str x0, [x4, #24]
	dsb ish
	isb
	expect USER_ABORT | PERMISSION_BLOCK, ABORT_MASK, 0x40080000, skip
	mov x0, #0x77
	msr tpidr_el0, x0
	number x0, USER_STACK + 0xff0
	msr sp_el0, x0
	number x0, USER_CODE
	msr elr_el1, x0
	msr spsr_el1, xzr
	eret
user_done:
	address x4, stack_top
	mov sp, x4
	number x1, 0x600d
	cmp x0, x1
	b.ne wrong
	unexpect
	mrs x0, tpidr_el0
	cmp x0, #0x78
	b.ne wrong
	msr cntv_ctl_el0, xzr

	step stretch
	number x0, TURNS
1:	subs x0, x0, #1
	b.ne 1b
	step end-of-stretch

	step off
	number x0, SYSTEM_OFF
	hvc #0
1:	wfi
	b 1b

wrong:
	step wrong
	b 1f
unexpected:
	step trap
1:	number x0, SYSTEM_RESET
	hvc #0
2:	wfi
	b 2b

	/* x0: text, ended by a zero byte */
say:
	number x1, UART
1:	ldrb w2, [x0]
	add x0, x0, #1
	cbz w2, 3f
2:	ldr w3, [x1, #0x18]
	tbnz w3, #5, 2b		/* its FIFO is full */
	str w2, [x1]
	b 1b
3:	ret

	/* x1: the descriptor of the window's first page */
set_window:
	address x0, level3
	str xzr, [x0]		/* break before make */
	dsb ishst
	number x2, WINDOW >> 12
	tlbi vaae1is, x2
	dsb ish
	str x1, [x0]
	dsb ish
	isb
	ret

	/* x0: address of changed instructions */
publish:
	dc cvau, x0
	dsb ish
	ic ivau, x0
	dsb ish
	isb
	ret

	/* One millisecond from now. Changes x0 and x1. */
arm_timer:
	mrs x0, cntfrq_el0
	mov x1, #1000
	udiv x0, x0, x1
	msr cntv_tval_el0, x0
	ret

	.ltorg

	.balign 2048
vectors:
	.rept 4
	b unexpected
	.balign 128
	.endr
	b exception
	.balign 128
	b interrupt
	.balign 128
	.rept 2
	b unexpected
	.balign 128
	.endr
	b exception
	.balign 128
	b interrupt
	.balign 128
	.rept 6
	b unexpected
	.balign 128
	.endr

	.macro save
	sub sp, sp, #96
	stp x0, x1, [sp]
	stp x2, x3, [sp, #16]
	stp x4, x5, [sp, #32]
	stp x6, x7, [sp, #48]
	stp x8, x9, [sp, #64]
	stp x29, x30, [sp, #80]
	.endm

	.macro restore
	ldp x0, x1, [sp]
	ldp x2, x3, [sp, #16]
	ldp x4, x5, [sp, #32]
	ldp x6, x7, [sp, #48]
	ldp x8, x9, [sp, #64]
	ldp x29, x30, [sp, #80]
	add sp, sp, #96
	.endm

exception:
	save
	mrs x3, esr_el1
	lsr x1, x3, #26
	cmp x1, #0x15
	b.eq service
	address x4, expected
	ldr x5, [x4, #24]
	cbz x5, unexpected
	ldp x1, x2, [x4]
	and x3, x3, x2
	cmp x3, x1
	b.ne unexpected
	ldr x1, [x4, #16]
	cbz x1, 1f
	mrs x2, far_el1
	cmp x1, x2
	b.ne wrong
1:	str xzr, [x4, #24]
	blr x5
	restore
	eret

	/* svc: x8 says what; 0: one more than x0, anything else: the end. What the user had in x30 stays on the stack. */
service:
	cbnz x8, user_done
	mrs x1, spsr_el1
	mov x2, #0x3cf		/* it came from user mode, nothing masked */
	tst x1, x2
	b.ne wrong
	mrs x1, daif
	tst x1, #0x80
	b.eq wrong
	mrs x1, elr_el1
	number x2, USER_CODE
	sub x1, x1, x2
	lsr x1, x1, #12
	cbnz x1, wrong
	ldr x0, [sp]
	add x0, x0, #1
	str x0, [sp]
	restore
	eret

skip_load:
	str xzr, [sp, #40]	/* what x5 becomes */
	/* fall through */
skip:
	mrs x1, elr_el1
	add x1, x1, #4
	msr elr_el1, x1
	ret

map:
	mov x9, x30
	ldr x1, [x4, #40]
	bl set_window
	mov x30, x9
	ret

allow_simd:
	mrs x1, cpacr_el1
	orr x1, x1, #3 << 20
	msr cpacr_el1, x1
	isb
	ret

interrupt:
	save
	address x4, gic3
	ldr x4, [x4]
	cbz x4, 1f
	mrs x5, S3_0_C12_C12_0	/* ICC_IAR1_EL1 */
	b 2f
1:	number x6, GICC
	ldr w5, [x6, #0xc]
2:	and w7, w5, #0x3ff
	cmp w7, #1020
	b.hs 4f			/* it was withdrawn */
	cmp w7, #TIMER
	b.ne wrong
	address x6, ticks
	ldr w7, [x6]
	add w7, w7, #1
	str w7, [x6]
	bl arm_timer
	isb
	cbz x4, 3f
	msr S3_0_C12_C12_1, x5	/* ICC_EOIR1_EL1 */
	isb
	b 4f
3:	number x6, GICC
	str w5, [x6, #0x10]
4:	restore
	eret

	.ltorg

	/* What runs in user mode, at USER_CODE: it does not touch anything by its address in the image. */
	.balign 4096
user_code:
	mov x19, #ROUNDS
1:	mov x0, x19
	mov x8, #0
	str x19, [sp, #-16]!
	svc #0
	ldr x1, [sp], #16
	cmp x1, x19
	b.ne user_wrong
	add x1, x1, #1
	cmp x0, x1
	b.ne user_wrong
	subs x19, x19, #1
	b.ne 1b
	mrs x0, tpidr_el0
	add x0, x0, #1
	msr tpidr_el0, x0
	movz x1, #0x4008, lsl #16
	ldr x0, [x1]		/* the kernel's: the handler lets us go on behind it */
	movz x1, #(USER_TICKS >> 16), lsl #16
	movk x1, #(USER_TICKS & 0xffff)
	ldr w2, [x1]
	add w2, w2, #2
2:	yield
	ldr w3, [x1]
	cmp w3, w2
	b.lo 2b
	movz x0, #0x600d
	mov x8, #1
	svc #0
user_wrong:
	mov x0, #0
	mov x8, #1
	svc #0
	.balign 4096

	.section .rodata, "a", %progbits
	.asciz "runphi-probe"
	.balign 16
floats:
	.float 1, 2, 3, 4, 5, 6, 7, 8
	.float 2, 6, 12, 20, 30, 42, 56, 72

	.section .data, "aw", %progbits
	.balign 16
	/* syndrome, mask, address (0: any), action (0: none), unused, descriptor by which `map` mends */
expected:
	.quad 0, 0, 0, 0, 0, 0
gic3:	.quad 0

	.section .bss
	.balign 4096
tables:
level1:	.skip 4096
level2:	.skip 4096
level3:	.skip 4096
tables_end:
frame1:	.skip 4096
frame2:	.skip 4096
frame3:	.skip 4096
user_stack: .skip 4096
ticks:	.skip 4096
pair:	.skip 64
area:	.skip 64
	.skip 8192
	.balign 16
stack_top:

	.section .note.GNU-stack, "", %progbits
