//! System calls without the C library's wrappers: while the process is put together, nothing that
//! they rely on is in place.

use core::arch::asm;

pub(crate) const READ: usize = 0;
pub(crate) const CLOSE: usize = 3;
pub(crate) const MMAP: usize = 9;
pub(crate) const MPROTECT: usize = 10;
pub(crate) const MUNMAP: usize = 11;
pub(crate) const RT_SIGACTION: usize = 13;
pub(crate) const RT_SIGRETURN: usize = 15;
pub(crate) const IOCTL: usize = 16;
pub(crate) const PREAD: usize = 17;
pub(crate) const MREMAP: usize = 25;
pub(crate) const MADVISE: usize = 28;
pub(crate) const RECVMSG: usize = 47;
pub(crate) const CLONE: usize = 56;
pub(crate) const EXECVE: usize = 59;
pub(crate) const FCNTL: usize = 72;
pub(crate) const FCHDIR: usize = 81;
pub(crate) const PRCTL: usize = 157;
pub(crate) const ARCH_PRCTL: usize = 158;
pub(crate) const SET_TID_ADDRESS: usize = 218;
pub(crate) const EXIT_GROUP: usize = 231;
pub(crate) const OPENAT: usize = 257;
pub(crate) const FACCESSAT: usize = 269;
pub(crate) const SET_ROBUST_LIST: usize = 273;
pub(crate) const DUP3: usize = 292;
pub(crate) const RSEQ: usize = 334;
pub(crate) const WRITE: usize = 1;

/// Calls the kernel; a negative result is a negated errno.
///
/// # Safety
///
/// As the system call: the caller answers for every address among the arguments and for what the
/// call does to the memory that Rust code relies on.
#[inline(always)]
pub(crate) unsafe fn call(number: usize, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the registers are those of the kernel's calling convention; it clobbers rcx and r11
    // only, and memory effects are the caller's to answer for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number.cast_signed() => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}
