//! What is preloaded into each CRIU that we start: a kill(3) that does not end everybody.
//!
//! Where no process is to be had, CRIU (criu/vdso.c, `vdso_mmap_compat`, up to 4.2 at least) does not
//! notice that its helper was not forked, and ends "it" by the number that it was told: kill(-1, SIGKILL)
//! ends all processes of the caller, and root's ends those of the machine or the container.
#![no_std]
#![allow(unsafe_code, reason = "this crate stands before the C library")]

use core::arch::asm;

const SYS_KILL: isize = 62;
const ESRCH: i32 = 3;

unsafe extern "C" {
    fn __errno_location() -> *mut i32;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics.
    loop {}
}

/// As kill(2), but for the number that means everybody: there is no such process.
#[unsafe(no_mangle)]
extern "C" fn kill(process: i32, signal: i32) -> i32 {
    let mut result: isize = -(ESRCH as isize);
    if process != -1 {
        // SAFETY: the registers are those of the kernel's calling convention; the call takes no address.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") SYS_KILL => result,
                in("rdi") process as isize, in("rsi") signal as isize,
                lateout("rcx") _, lateout("r11") _,
                options(nostack),
            );
        }
    }
    if result >= 0 {
        return 0;
    }
    // SAFETY: the C library's own place for this thread's error.
    unsafe { *__errno_location() = -result as i32 };
    -1
}
