//! System calls without a C library (syscall(2), "Architecture calling conventions", x86-64).

use core::arch::asm;

pub(crate) const WRITE: usize = 1;
pub(crate) const OPEN: usize = 2;
pub(crate) const FSTAT: usize = 5;
pub(crate) const LSEEK: usize = 8;
pub(crate) const FCNTL: usize = 72;
pub(crate) const DUP3: usize = 292;
pub(crate) const CLOSE: usize = 3;
pub(crate) const MMAP: usize = 9;
pub(crate) const MPROTECT: usize = 10;
pub(crate) const MUNMAP: usize = 11;
pub(crate) const RT_SIGPROCMASK: usize = 14;
pub(crate) const PREAD64: usize = 17;
pub(crate) const MREMAP: usize = 25;
pub(crate) const MADVISE: usize = 28;
pub(crate) const EXECVE: usize = 59;
pub(crate) const GETRLIMIT: usize = 97;
pub(crate) const EXIT_GROUP: usize = 231;
pub(crate) const RSEQ: usize = 334;

/// Flags of open(2).
pub(crate) const O_NOCTTY: usize = 0o400;
pub(crate) const O_NONBLOCK: usize = 0o4000;
pub(crate) const O_CLOEXEC: usize = 0o2_000_000;

/// A negated errno value.
#[derive(Clone, Copy)]
pub(crate) struct Errno(pub(crate) usize);

impl Errno {
    pub(crate) const ENOMEM: usize = 12;
    pub(crate) const EEXIST: usize = 17;
}

/// Calls the kernel.
///
/// # Safety
///
/// As the system call: the caller answers for every address among the arguments and for what the
/// call does to the memory that Rust code relies on.
#[inline(always)]
pub(crate) unsafe fn call(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
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
    if (-4095..0).contains(&result) {
        Err(Errno(result.unsigned_abs()))
    } else {
        Ok(result.cast_unsigned())
    }
}
