//! The files that the frozen process had open, under their numbers.

use restore_plan::{Descriptor, Header};

use crate::memory::table;
use crate::report::Failure;
use crate::syscall::{self, call};

const F_GETFD: usize = 1;
const O_CLOEXEC: usize = 0o2_000_000;

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
        let opened = call(syscall::OPEN, [path as usize, flags, 0, 0, 0, 0])
            .map_err(|errno| Failure::new("cannot open", errno))?;
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
