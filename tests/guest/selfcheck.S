/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A boot sector that checks its own memory, and obeys. In 32-bit mode it walks over memory from 1 MiB
 * to the end, one byte of each page: every page must hold the number of the last pass, and gets the
 * next. On the serial port it says
 *   A at the start, B after every pass, X for ever if a page was wrong,
 *   W after each sector that it has written, E where the disk failed or had not kept the last one,
 * and there it is told to
 *   D write a sector of the second disk after every pass, N no longer do so,
 *   H rest, with memory and disk as they are, G go on,
 *   P power off, S suspend to RAM, R reset, C tell of a crash (needs -device pvpanic).
 * Sector n of the disk holds 256 words of the number n; before it writes one, it reads the last one.
 * The parameters at `params` are patched by build.py. */

    .set SERIAL, 0x3f8
    .set DISK, 0x1f0
    .set POWER, 0x604 /* PM1a control of the machine "pc", as its firmware places it */
    .set PVPANIC, 0x505

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
    movb $'A', %al
    call say
    xorl %ebx, %ebx         /* bl: what the pages hold; bh: whether to write to the disk */
    xorl %ebp, %ebp         /* the last sector that was written */
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
4:  call obey
    addl step, %edi
    cmpl end, %edi
    jb 2b
    incb %bl
    movb $'B', %al
    call say
    testb %bh, %bh
    jz pass
    call write
    call say
    jmp pass

wrong:
    movb $'X', %al
    call say
    jmp wrong

say:
    movw $SERIAL, %dx
    outb %al, %dx
    ret

/* Does what the letter says that has come, if one has. */
obey:
    movw $SERIAL + 5, %dx
    inb %dx, %al
    testb $1, %al
    jz 9f
    movw $SERIAL, %dx
    inb %dx, %al
    cmpb $'D', %al
    je 1f
    cmpb $'N', %al
    je 2f
    cmpb $'H', %al
    je rest
    cmpb $'P', %al
    je 3f
    cmpb $'S', %al
    je 4f
    cmpb $'R', %al
    je 5f
    cmpb $'C', %al
    jne 9f
    movw $PVPANIC, %dx
    movb $1, %al
    outb %al, %dx
    ret
1:  movb $1, %bh
    ret
2:  movb $0, %bh
    ret
3:  movw $0x2000, %ax
    jmp 6f
4:  movw $0x2400, %ax
6:  movw $POWER, %dx
    outw %ax, %dx
    ret
5:  movb $0xfe, %al
    outb %al, $0x64
9:  ret
rest:
    movw $SERIAL + 5, %dx
    inb %dx, %al
    testb $1, %al
    jz rest
    movw $SERIAL, %dx
    inb %dx, %al
    cmpb $'G', %al
    jne rest
    ret

/* Reads the last sector back, if there is one, and writes the next: al is W or E. */
write:
    testl %ebp, %ebp
    jz 2f
    movb $0x20, %al
    call command
    jc bad
    movl $256, %ecx
1:  inw %dx, %ax
    cmpw %bp, %ax
    jne bad
    loop 1b
2:  incl %ebp
    movb $0x30, %al
    call command
    jc bad
    movl $256, %ecx
    movl %ebp, %eax
3:  outw %ax, %dx
    loop 3b
    movb $0x80, %ah
    call ready
    jc bad
    movb $'W', %al
    ret
bad:
    movb $'E', %al
    ret

/* Gives the disk the command al for sector ebp; dx is the data port when it is ready for that. */
command:
    movb %al, %cl
    movw $DISK + 6, %dx
    movb $0xf0, %al         /* the slave, by sector number */
    outb %al, %dx
    movw $DISK + 2, %dx
    movb $1, %al
    outb %al, %dx
    incl %edx
    movl %ebp, %eax
    outb %al, %dx
    incl %edx
    movb %ah, %al
    outb %al, %dx
    incl %edx
    xorl %eax, %eax
    outb %al, %dx
    movw $DISK + 7, %dx
    movb %cl, %al
    outb %al, %dx
    movb $0x88, %ah
/* Until of the bits ah only "data" is there, or nothing; carry is set after an error. */
ready:
    movw $DISK + 7, %dx
1:  inb %dx, %al
    testb $0x80, %al
    jnz 1b
    testb $0x21, %al
    jnz 2f
    testb $0x40, %al        /* no disk */
    jz 2f
    testb $8, %ah
    jz 3f
    testb $8, %al
    jz 1b
3:  movw $DISK, %dx
    clc
    ret
2:  stc
    ret

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
