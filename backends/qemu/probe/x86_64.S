/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest that proves an accelerator of x86_64: it does what kernels do and looks at every result.
 *
 * It speaks on port 0xe9: the name of each step when the step begins, so whoever listens knows in which one a machine
 * hangs or dies; `wrong` behind the name when a result is not what it must be, `trap` when an exception comes that
 * nobody asked for, and then it ends QEMU by isa-debug-exit. When all was right its last step is a triple fault: the
 * reset that ends a guest under -no-reboot. How long `stretch` takes is measured outside, by the host's clock.
 *
 * bin/build-probe makes x86_64.elf of it; backends/qemu/accel/proof.py runs that.
 */
#define DEBUGCON 0xe9
#define EXIT_PORT 0xf4
#define EXIT_WRONG 0x15

/* Virtual addresses whose page table (pt) the guest changes: 4 KiB pages from here on. */
#define WINDOW 0x200000
#define USER_CODE (WINDOW + 0x1000)
#define USER_STACK (WINDOW + 0x2000)
#define USER_TICKS (WINDOW + 0x3000)

#define KERNEL_CS 0x08
#define KERNEL_DS 0x10
#define USER_DS 0x23
#define USER_CS 0x2b
#define TSS_SELECTOR 0x30

#define APIC 0xfee00000
#define VECTOR_PIT 0x20
#define VECTOR_APIC 0x30
#define VECTOR_SYSTEM 0x80

#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_SFMASK 0xc0000084
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102

/* How often the quick steps are done: enough to meet what is remembered wrongly, too few to take time. */
#define ROUNDS 50
/* Turns of the timed loop: some 50 to 150 ms in software, 3 to 10 ms on a CPU. */
#define TURNS 10000000

	/* Says that a step begins; in 32-bit code as in 64-bit code. Changes rsi, rcx, rdx. */
	.macro step name
	.pushsection .rodata.names, "a", @progbits
.Lname\@:
	.ascii "\name\n"
	.set .Lsize\@, . - .Lname\@
	.popsection
	movl $.Lname\@, %esi
	movl $.Lsize\@, %ecx
	movl $DEBUGCON, %edx
	rep outsb
	.endm

	/* Says which exception comes next, and what is done about it. */
	.macro expect vector, error, address, action
	movq $\vector, expected_vector
	movq $\error, expected_error
	movq $\address, expected_address
	movq $\action, expected_action
	.endm

	.macro unexpect
	cmpq $0, expected_action
	jne wrong
	.endm

	/* Writes edx:eax into a model specific register. */
	.macro write_msr number, low, high
	movl $\number, %ecx
	movl $\low, %eax
	movl $\high, %edx
	wrmsr
	.endm

	.section .note.Xen, "a", @note
	.align 4
	.long 4			/* size of the name */
	.long 4			/* size of the value */
	.long 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long start

	.section .text.start, "ax", @progbits
	.code32
	.globl start
start:
	cli
	cld
	movl $stack_top, %esp
	step start

	/* The first 2 MiB one to one, the window behind them by the page table, and the page of the local APIC. */
	movl $pdpt + 7, pml4
	movl $pd + 7, pdpt
	movl $pd_apic + 3, pdpt + 3 * 8
	movl $0x83, pd
	movl $pt + 7, pd + 8
	movl $(APIC | 0x9b), pd_apic + ((APIC >> 21) & 511) * 8

	step long-mode
	movl %cr4, %eax
	orl $0xa0, %eax		/* PAE, PGE */
	movl %eax, %cr4
	movl $pml4, %eax
	movl %eax, %cr3
	movl $MSR_EFER, %ecx
	rdmsr
	orl $0x101, %eax	/* LME, SCE */
	wrmsr
	movl %cr0, %eax
	andl $~0x4, %eax	/* not EM */
	orl $0x80010003, %eax	/* PG, WP, MP, PE */
	movl %eax, %cr0
	lgdt gdt_pointer
	ljmp $KERNEL_CS, $long_mode

	.code64
long_mode:
	movw $KERNEL_DS, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	xorl %eax, %eax
	movw %ax, %fs
	movw %ax, %gs
	movl $stack_top, %esp
	movl $MSR_EFER, %ecx
	rdmsr
	testl $0x400, %eax	/* LMA */
	jz wrong

	/* 64-bit numbers, all registers, strings */
	movabsq $0x123456789abcdef1, %rax
	movabsq $0xfedcba9876543211, %r15
	mulq %r15
	movabsq $0x347e9a0f6729e001, %rcx
	cmpq %rcx, %rax
	jne wrong
	divq %r15
	movabsq $0x123456789abcdef1, %rcx
	cmpq %rcx, %rax
	jne wrong
	testq %rdx, %rdx
	jnz wrong
	movl $frame1, %edi
	movl $512, %ecx
	movabsq $0x0123456789abcdef, %rax
	rep stosq
	movl $frame1, %esi
	movl $frame2, %edi
	movl $4096, %ecx
	rep movsb
	movl $frame1, %esi
	movl $frame2, %edi
	movl $4096, %ecx
	repe cmpsb
	jne wrong
	cmpq %rax, frame2 + 4088
	jne wrong

	/* Interrupt table: the stubs of exceptions lie 16 bytes apart. */
	step exceptions
	movl $stubs, %eax
	xorl %ebx, %ebx
1:	movl $0x8e, %edx
	call set_gate
	addl $16, %eax
	incl %ebx
	cmpl $32, %ebx
	jne 1b
	movl $pit_entry, %eax
	movl $VECTOR_PIT, %ebx
	call set_gate
	movl $apic_entry, %eax
	movl $VECTOR_APIC, %ebx
	call set_gate
	movl $system_entry, %eax
	movl $VECTOR_SYSTEM, %ebx
	movl $0xee, %edx	/* user mode may call it */
	call set_gate
	lidt idt_pointer

	movl $ROUNDS, %r12d
1:	expect 6, 0, 2f, skip
	movq $3f, resume_at
2:	ud2
	jmp wrong
3:	unexpect
	expect 0, 0, 2f, skip
	movq $3f, resume_at
	xorl %edx, %edx
	movl $1, %eax
	xorl %ecx, %ecx
2:	divl %ecx
	jmp wrong
3:	unexpect
	expect 3, 0, 3f, skip
	movq $3f, resume_at
	int3
3:	unexpect
	decl %r12d
	jnz 1b

	step page-tables
	movl $ROUNDS, %r12d
1:	movq %r12, %r13
	notq %r13
	leaq 1(%r12), %r14
	movq %r12, frame1
	movq %r13, frame2
	movq %r14, frame3
	movq $frame1 + 3, pt
	invlpg WINDOW
	cmpq %r12, WINDOW
	jne wrong
	movq $frame2 + 3, pt	/* another page, no rights changed: the old one must be forgotten */
	invlpg WINDOW
	cmpq %r13, WINDOW
	jne wrong
	testb $0x20, pt		/* accessed */
	jz wrong
	testb $0x40, pt		/* not dirty yet */
	jnz wrong
	movq %r14, WINDOW + 8
	testb $0x40, pt
	jz wrong
	cmpq %r14, frame2 + 8
	jne wrong
	expect 14, 0, WINDOW, map	/* nothing there: the handler puts the third page there */
	movq $frame3 + 3, fixed_entry
	movq $0, pt
	invlpg WINDOW
	cmpq %r14, WINDOW
	jne wrong
	unexpect
	expect 14, 3, WINDOW + 16, map	/* a write to what is read-only */
	movq $frame3 + 3, fixed_entry
	movq $frame3 + 1, pt
	invlpg WINDOW
	movq %r12, WINDOW + 16
	unexpect
	cmpq %r12, frame3 + 16
	jne wrong
	decl %r12d
	jnz 1b

	/* Another address space: its window shows another page. */
	step address-spaces
	movl $pdpt_b + 7, pml4_b
	movl $pd_b + 7, pdpt_b
	movl $pd_apic + 3, pdpt_b + 3 * 8
	movl $0x83, pd_b
	movl $pt_b + 7, pd_b + 8
	movq $frame1 + 3, pt
	movq $frame2 + 3, pt_b
	invlpg WINDOW
	movl $ROUNDS, %r12d
1:	movq %r12, frame1
	movq $-1, frame2
	movl $pml4_b, %eax
	movq %rax, %cr3
	cmpq $-1, WINDOW
	jne wrong
	movl $pml4, %eax
	movq %rax, %cr3
	cmpq %r12, WINDOW
	jne wrong
	decl %r12d
	jnz 1b

	/* Pages that hold no code, where CPUID promises them. */
	movl $0x80000001, %eax
	cpuid
	testl $1 << 20, %edx
	jz 1f
	step no-execute
	movl $MSR_EFER, %ecx
	rdmsr
	orl $0x800, %eax	/* NXE */
	wrmsr
	movabsq $1 << 63, %rbx
	movq %rbx, no_execute
	movb $0xc3, frame1	/* ret */
	expect 14, 0x11, WINDOW, map
	movq $frame1 + 1, fixed_entry
	leaq frame1 + 1(%rbx), %rax
	movq %rax, pt
	invlpg WINDOW
	movl $WINDOW, %eax
	call *%rax
	unexpect
1:

	step self-modified
	movb $0xb8, frame1	/* mov eax, number; ret */
	movb $0xc3, frame1 + 5
	movl $ROUNDS, %r12d
1:	movl %r12d, frame1 + 1
	movl $frame1, %eax
	call *%rax
	cmpl %r12d, %eax
	jne wrong
	movl %r12d, 2f + 1	/* the next instruction but one of ourselves */
	jmp 2f
2:	movl $0, %eax
	cmpl %r12d, %eax
	jne wrong
	decl %r12d
	jnz 1b

	step exchange
	movl $ROUNDS, %r12d
1:	xorl %eax, %eax
	movl %r12d, counter
	lock incl counter
	movl $3, %eax
	lock xaddl %eax, counter
	leal 1(%r12), %ecx
	cmpl %ecx, %eax
	jne wrong
	leal 4(%r12), %eax
	lock cmpxchgl %r12d, counter
	jne wrong
	lock btsl $31, counter
	jc wrong
	xchgl %eax, counter
	btrl $31, %eax
	cmpl %r12d, %eax
	jne wrong
	decl %r12d
	jnz 1b

	movl $1, %eax
	cpuid
	testl $1 << 13, %ecx	/* CX16 */
	jz 3f
	step exchange-16
	movl $pair, %edi
	call exchange_16
	movq $frame2 + 3, pt	/* and on a page that was never touched */
	invlpg WINDOW
	movl $WINDOW + 64, %edi
	call exchange_16
3:

	step sse
	movq %cr4, %rax
	orl $0x600, %eax	/* OSFXSR, OSXMMEXCPT */
	movq %rax, %cr4
	fninit
	movups floats, %xmm1
	movaps %xmm1, %xmm0
	mulps %xmm1, %xmm0
	addps %xmm1, %xmm0
	movups %xmm0, result
	movl $floats_answer, %esi
	movl $16, %ecx
	call compare
	movl $1764, %eax
	cvtsi2sdl %eax, %xmm2
	sqrtsd %xmm2, %xmm2
	cvttsd2si %xmm2, %eax
	cmpl $42, %eax
	jne wrong
	movdqu numbers, %xmm15
	paddd %xmm15, %xmm15
	pshufd $0x1b, %xmm15, %xmm3
	movdqu %xmm3, result
	movl $numbers_answer, %esi
	movl $16, %ecx
	call compare
	fldpi
	fxsave area
	xorps %xmm1, %xmm1
	fninit
	fxrstor area
	fistpl result
	cmpl $3, result
	jne wrong
	movups %xmm1, result
	movl $floats, %esi
	movl $16, %ecx
	call compare

	movl $1, %eax
	cpuid
	andl $1 << 26 | 1 << 28, %ecx	/* XSAVE, AVX */
	cmpl $1 << 26 | 1 << 28, %ecx
	jne no_avx
	step avx
	movq %cr4, %rax
	orl $1 << 18, %eax	/* OSXSAVE */
	movq %rax, %cr4
	movl $1, %eax
	cpuid
	testl $1 << 27, %ecx
	jz wrong
	xorl %ecx, %ecx
	xgetbv
	orl $7, %eax
	xsetbv
	xgetbv
	andl $7, %eax
	cmpl $7, %eax
	jne wrong
	vmovups floats, %ymm1
	vmulps %ymm1, %ymm1, %ymm9
	vaddps %ymm1, %ymm9, %ymm9
	vmovups %ymm9, result
	movl $floats_answer, %esi
	movl $32, %ecx
	call compare
	movl $7, %eax
	xorl %edx, %edx
	xsave area
	vxorps %ymm9, %ymm9, %ymm9
	vzeroall
	xrstor area
	vmovups %ymm9, result
	movl $floats_answer, %esi
	movl $32, %ecx
	call compare

	movl $7, %eax
	xorl %ecx, %ecx
	cpuid
	testl $1 << 5, %ebx
	jz 1f
	step avx2
	vmovdqu numbers, %ymm4
	vpaddd %ymm4, %ymm4, %ymm5
	vpshufd $0x1b, %ymm5, %ymm5
	vmovdqu %ymm5, result
	movl $numbers_answer, %esi
	movl $32, %ecx
	call compare
1:	testl $1 << 16, %ebx
	jz no_avx
	movl $0xd, %eax
	xorl %ecx, %ecx
	cpuid
	andl $0xe0, %eax
	cmpl $0xe0, %eax
	jne no_avx
	step avx512
	xorl %ecx, %ecx
	xgetbv
	orl $0xe7, %eax
	xsetbv
	vmovdqu32 numbers, %zmm20
	vpaddd %zmm20, %zmm20, %zmm21
	vpshufd $0x1b, %zmm21, %zmm21
	vmovdqu32 %zmm21, result
	movl $numbers_answer, %esi
	movl $64, %ecx
	call compare
	vzeroupper
no_avx:

	/* The timer of old, by its interrupt controller: local APIC in the way that real firmware leaves it. */
	step timer-interrupt
	movl $APIC, %ebp
	movl $0x1ff, 0xf0(%rbp)	/* on; spurious vector 255 */
	movl $0x700, 0x350(%rbp)	/* LINT0: what the controller says */
	movb $0x11, %al
	outb %al, $0x20
	outb %al, $0xa0
	movb $VECTOR_PIT, %al
	outb %al, $0x21
	movb $VECTOR_PIT + 8, %al
	outb %al, $0xa1
	movb $4, %al
	outb %al, $0x21
	movb $2, %al
	outb %al, $0xa1
	movb $1, %al
	outb %al, $0x21
	outb %al, $0xa1
	movb $0xfe, %al
	outb %al, $0x21
	movb $0xff, %al
	outb %al, $0xa1
	movb $0x34, %al		/* channel 0, low and high byte, again and again */
	outb %al, $0x43
	movb $1193 & 0xff, %al	/* 1 kHz */
	outb %al, $0x40
	movb $1193 >> 8, %al
	outb %al, $0x40
1:	sti
	hlt
	cli
	cmpl $3, ticks
	jb 1b

	step apic-timer
	movl $0xb, 0x3e0(%rbp)		/* divide by one */
	movl $VECTOR_APIC, 0x320(%rbp)	/* once */
	movl $200000, 0x380(%rbp)
1:	sti
	hlt
	cli
	cmpl $0, apic_ticks
	je 1b
	cmpl $1, apic_ticks
	jne wrong

	/* User mode: there by iretq, back by syscall, by interrupt, by a fault and by the timer. */
	step user-mode
	movl $TSS_SELECTOR, %eax
	ltr %ax
	write_msr MSR_STAR, 0, 0x001b0008
	write_msr MSR_LSTAR, syscall_entry, 0
	write_msr MSR_SFMASK, 0x47700, 0
	write_msr MSR_GS_BASE, 0x5555, 0
	write_msr MSR_KERNEL_GS_BASE, percpu, 0
	movq no_execute, %rbx
	movq $user_code + 5, pt + 8
	leaq user_stack + 7(%rbx), %rax
	movq %rax, pt + 16
	leaq ticks + 5(%rbx), %rax
	movq %rax, pt + 24
	invlpg USER_CODE
	invlpg USER_STACK
	invlpg USER_TICKS
	expect 14, 5, 0x100000, skip	/* what it may not see; `skip` looks at the address of the fault */
	movq $USER_CODE + (user_resume - user_code), resume_at
	pushq $USER_DS
	pushq $USER_STACK + 0xff0
	pushq $0x202
	pushq $USER_CS
	pushq $USER_CODE
	iretq
user_done:
	movl $stack_top, %esp
	cmpl $0x600d, %edi
	jne wrong
	unexpect
	movl $MSR_KERNEL_GS_BASE, %ecx
	rdmsr
	cmpl $0x5555, %eax
	jne wrong
	movb $0xff, %al
	outb %al, $0x21		/* no more ticks */

	step stretch
	movl $TURNS, %ecx
1:	decl %ecx
	jnz 1b
	step end-of-stretch

	step reset
	lidt no_idt
	int3
	cli
1:	hlt
	jmp 1b

	/* Something is not what it must be; esp may be anything. */
wrong:
	step wrong
	jmp end
unexpected:
	step trap
end:	movl $EXIT_WRONG, %eax
	movl $EXIT_PORT, %edx
	outl %eax, %dx
	cli
1:	hlt
	jmp 1b

	/* eax: the handler, ebx: the vector, dl: the kind of gate */
set_gate:
	movl %ebx, %ecx
	shll $4, %ecx
	movw %ax, idt(%rcx)
	movw $KERNEL_CS, idt + 2(%rcx)
	movb $0, idt + 4(%rcx)
	movb %dl, idt + 5(%rcx)
	movl %eax, %esi
	shrl $16, %esi
	movw %si, idt + 6(%rcx)
	movq $0, idt + 8(%rcx)
	ret

	/* Compares ecx bytes of `result` with what esi points to. */
compare:
	movl $result, %edi
	repe cmpsb
	jne wrong
	ret

	/* The locked exchange of 16 bytes at edi, as kernels take pages of memory: it must fail where it must. */
exchange_16:
	movq $1, (%rdi)
	movq $-1, 8(%rdi)
	movl $ROUNDS, %r12d
1:	movq (%rdi), %rax
	movq 8(%rdi), %rdx
	leaq 1(%rax), %rbx
	leaq -1(%rdx), %rcx
	lock cmpxchg16b (%rdi)
	jnz wrong
	cmpq %rbx, (%rdi)
	jne wrong
	cmpq %rcx, 8(%rdi)
	jne wrong
	movq %rbx, %r8
	movq %rcx, %r9
	xorl %eax, %eax		/* what is not there: nothing changes, and we learn what is */
	xorl %edx, %edx
	movl $7, %ebx
	movl $7, %ecx
	lock cmpxchg16b (%rdi)
	jz wrong
	cmpq %r8, %rax
	jne wrong
	cmpq %r9, %rdx
	jne wrong
	cmpq %r8, (%rdi)
	jne wrong
	cmpq %r9, 8(%rdi)
	jne wrong
	decl %r12d
	jnz 1b
	ret

	/* Exceptions: those that bring no error code get one, so that all frames are alike. */
	.balign 16, 0x90
stubs:
	.set vector, 0
	.rept 32
	.if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
	.else
	pushq $0
	.endif
	pushq $vector
	jmp exception
	.balign 16, 0x90
	.set vector, vector + 1
	.endr

	/* On the stack: nine registers, vector, error code, rip, cs, flags, rsp, ss. */
exception:
	pushq %rax
	pushq %rcx
	pushq %rdx
	pushq %rbx
	pushq %rsi
	pushq %rdi
	pushq %r8
	pushq %r9
	pushq %r10
	movq %rsp, %rdi
	movq expected_action, %rax
	testq %rax, %rax
	jz unexpected
	movq 72(%rdi), %rcx
	cmpq expected_vector, %rcx
	jne unexpected
	movq 80(%rdi), %rcx
	cmpq expected_error, %rcx
	jne wrong
	movq $0, expected_action
	call *%rax
	popq %r10
	popq %r9
	popq %r8
	popq %rdi
	popq %rsi
	popq %rbx
	popq %rdx
	popq %rcx
	popq %rax
	addq $16, %rsp
	iretq

	/* Goes on elsewhere; the address is of the instruction, or of the page fault. */
skip:
	movq 88(%rdi), %rcx
	cmpq $14, 72(%rdi)
	jne 1f
	movq %cr2, %rcx
1:	cmpq expected_address, %rcx
	jne wrong
	movq resume_at, %rcx
	movq %rcx, 88(%rdi)
	ret

	/* Answers a page fault in the window by an entry of the page table; the instruction is tried again. */
map:
	movq %cr2, %rcx
	cmpq expected_address, %rcx
	jne wrong
	movq fixed_entry, %rcx
	movq %rcx, pt
	invlpg WINDOW
	ret

pit_entry:
	pushq %rax
	incl ticks
	movb $0x20, %al
	outb %al, $0x20
	popq %rax
	iretq

apic_entry:
	pushq %rax
	incl apic_ticks
	movl $APIC + 0xb0, %eax
	movl $0, (%rax)		/* done with it */
	popq %rax
	iretq

	/* From user mode only, on the stack that the TSS names. */
system_entry:
	cmpq $USER_CS, 8(%rsp)
	jne wrong
	cmpq $USER_DS, 32(%rsp)
	jne wrong
	cmpq $USER_STACK + 0xff0, 24(%rsp)
	jne wrong
	cmpq $interrupt_stack_top - 40, %rsp
	jne wrong
	leaq 2(%rdi), %rax
	iretq

syscall_entry:
	swapgs
	movq %rsp, %gs:8
	movq %gs:0, %rsp
	testl $0x200, %r11d	/* interrupts were allowed there … */
	jz wrong
	pushfq
	popq %r8
	testl $0x200, %r8d	/* … and are not here */
	jnz wrong
	testl %eax, %eax
	jnz user_done
	leaq 1(%rdi), %rax
	movq %gs:8, %rsp
	swapgs
	sysretq

	/* What runs in user mode, at USER_CODE: it does not touch anything by its address in the image. */
	.balign 4096, 0x90
user_code:
	movl $ROUNDS, %ebx
1:	movl %ebx, %edi
	xorl %eax, %eax
	syscall
	leal 1(%rbx), %edx
	cmpq %rdx, %rax
	jne user_wrong
	movl %ebx, %edi
	int $VECTOR_SYSTEM
	leal 2(%rbx), %edx
	cmpq %rdx, %rax
	jne user_wrong
	decl %ebx
	jnz 1b
	movl 0x100000, %eax
	jmp user_wrong
user_resume:
	movl USER_TICKS, %edx
	addl $2, %edx
1:	pause
	cmpl %edx, USER_TICKS
	jb 1b
	movl $0x600d, %edi
	movl $1, %eax
	syscall
user_wrong:
	xorl %edi, %edi
	movl $1, %eax
	syscall
	.balign 4096, 0x90

	.section .rodata, "a", @progbits
	.asciz "runphi-probe"
	.balign 16
gdt:
	.quad 0
	.quad 0x00af9b000000ffff	/* 08 kernel, code */
	.quad 0x00cf93000000ffff	/* 10 kernel, data */
	.quad 0				/* 18 where sysret looks for 32-bit code */
	.quad 0x00cff3000000ffff	/* 23 user, data */
	.quad 0x00affb000000ffff	/* 2b user, code */
	.word 103, tss_low, 0x8900 + tss_middle, 0	/* 30 TSS */
	.quad 0
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt, 0
idt_pointer:
	.word 4095
	.quad idt
no_idt:
	.word 0
	.quad 0
	.balign 16
floats:
	.float 1, 2, 3, 4, 5, 6, 7, 8
floats_answer:
	.float 2, 6, 12, 20, 30, 42, 56, 72
numbers:
	.long 1, 2, 3, 0x7fffffff, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
numbers_answer:
	.long 0xfffffffe, 6, 4, 2, 16, 14, 12, 10, 24, 22, 20, 18, 32, 30, 28, 26

	.section .data, "aw", @progbits
	.balign 16
	/* the stack of interrupts from user mode is at 4 */
	.globl tss
tss:	.long 0
	.quad interrupt_stack_top
	.skip 90
	.word 104
percpu:
	.quad syscall_stack_top, 0
expected_vector:
	.quad 0
expected_error:
	.quad 0
expected_address:
	.quad 0
expected_action:
	.quad 0
resume_at:
	.quad 0
fixed_entry:
	.quad 0
no_execute:
	.quad 0
counter:
	.long 0
apic_ticks:
	.long 0

	.section .bss
	.balign 4096
pml4:	.skip 4096
pdpt:	.skip 4096
pd:	.skip 4096
pt:	.skip 4096
pml4_b:	.skip 4096
pdpt_b:	.skip 4096
pd_b:	.skip 4096
pt_b:	.skip 4096
pd_apic: .skip 4096
idt:	.skip 4096
frame1:	.skip 4096
frame2:	.skip 4096
frame3:	.skip 4096
user_stack: .skip 4096
ticks:	.skip 4096
area:	.skip 4096
pair:	.skip 64
result:	.skip 64
	.skip 4096
stack_top:
	.skip 4096
interrupt_stack_top:
	.skip 4096
syscall_stack_top:

	.section .note.GNU-stack, "", @progbits
