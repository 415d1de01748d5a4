/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A boot sector that checks its own memory. In 32-bit mode it walks over memory from 1 MiB to the
 * end, one byte of each page: every page must hold the number of the last pass, and gets the next.
 * On the serial port: 'A' at the start, 'B' after every pass (of 2^n), 'X' for ever if a page was wrong.
 * The parameters at `params` are patched by build.py. */

    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7c00, %sp
    inb $0x92, %al          /* A20 */
    orb $2, %al
    outb %al, $0x92
    lgdt gdt_desc
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $8, $flat

    .code32
flat:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x7000, %esp
    movw $0x3f8, %dx
    movb $'A', %al
    outb %al, %dx
    xorb %bl, %bl           /* what the pages hold */
    /* The first pass sets them all to 0: the firmware may have left something. */
    movl $0x100000, %edi
1:  movb $0, (%edi)
    addl step, %edi
    cmpl end, %edi
    jb 1b

pass:
    movl $0x100000, %edi
2:  cmpb %bl, (%edi)
    jne wrong
    incb (%edi)
    movl delay, %ecx
    jecxz 4f
3:  loop 3b
4:  addl step, %edi
    cmpl end, %edi
    jb 2b
    incb %bl
    movb $'B', %al
    outb %al, %dx
    jmp pass

wrong:
    movb $'X', %al
    outb %al, %dx
    jmp wrong

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff
    .quad 0x00cf92000000ffff
gdt_desc:
    .word 23
    .long gdt

    .org 0x1e0
params:
    .ascii "VCSC"
end:
    .long 0x2000000
step:
    .long 4096
delay:
    .long 0
    .org 510
    .word 0xaa55
