//! The files that the frozen process had open, under their numbers.

use core::mem::MaybeUninit;

use restore_plan::{Descriptor, Header};

use crate::memory::table;
use crate::report::Failure;
use crate::syscall::{self, O_CLOEXEC, O_NOCTTY, O_NONBLOCK, call};

const F_GETFD: usize = 1;
const F_SETFL: usize = 4;

/// Opens them all, while the process can still be given up without harm.
///
/// # Errors
///
/// A number that the caller uses, or a file that is gone.
pub(crate) fn open_all(plan: *const Header) -> Result<(), Failure> {
    // SAFETY: the checked plan.
    let (header, all) = unsafe {
        let header = &*plan;
        (header, table::<Descriptor>(plan, header.descriptors))
    };
    for one in all {
        // SAFETY: names are NUL-terminated strings within the plan.
        let path = unsafe { plan.cast::<u8>().add((header.names.offset + one.name) as usize) };
        open(one, path).map_err(|failure| Failure { path, ..failure })?;
    }
    Ok(())
}

fn open(one: &Descriptor, path: *const u8) -> Result<(), Failure> {
    let number = one.number as usize;
    // SAFETY: no memory is touched but the path, which is NUL-terminated.
    unsafe {
        if call(syscall::FCNTL, [number, F_GETFD, 0, 0, 0, 0]).is_ok() {
            return Err(Failure::plain(
                "the caller has a descriptor of the number that belongs to",
            ));
        }
        let flags = one.flags as usize;
        // Something else may have its name now: opening a pipe would wait for whoever writes to it.
        let opened =
            call(syscall::OPEN, [path as usize, flags | O_NONBLOCK | O_NOCTTY, 0, 0, 0, 0])
                .map_err(|errno| Failure::new("cannot open", errno))?;
        if is_pipe(opened) {
            return Err(Failure::plain("the image had a file open where there is a pipe now:"));
        }
        if flags & O_NONBLOCK == 0 {
            call(syscall::FCNTL, [opened, F_SETFL, flags, 0, 0, 0])
                .map_err(|errno| Failure::new("cannot open", errno))?;
        }
        if opened != number {
            call(syscall::DUP3, [opened, number, flags & O_CLOEXEC, 0, 0, 0])
                .map_err(|errno| Failure::new("cannot give its number to", errno))?;
            let _ = call(syscall::CLOSE, [opened, 0, 0, 0, 0, 0]);
        }
        if one.position != 0 {
            call(syscall::LSEEK, [number, one.position as usize, 0, 0, 0, 0])
                .map_err(|errno| Failure::new("cannot go on where it was read:", errno))?;
        }
    }
    Ok(())
}

/// Whether it is one (inode(7), `S_IFIFO`).
fn is_pipe(descriptor: usize) -> bool {
    /// `struct stat` (arch/x86/include/uapi/asm/stat.h): its length, and where the mode is in it, as words
    /// of four bytes.
    const LENGTH: usize = 36;
    const MODE: usize = 6;
    const KIND: u32 = 0o170_000;
    const FIFO: u32 = 0o010_000;
    let mut stat = MaybeUninit::<[u32; LENGTH]>::uninit();
    // SAFETY: the kernel writes as many bytes as the buffer has, or none and says so.
    unsafe {
        let looked = call(syscall::FSTAT, [descriptor, stat.as_mut_ptr() as usize, 0, 0, 0, 0]);
        let mode = stat.as_ptr().cast::<u32>().add(MODE);
        looked.is_ok() && mode.read() & KIND == FIFO
    }
}
