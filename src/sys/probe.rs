//! Trying what a restore needs of the kernel, in a process that may die of it.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MRemapFlags, MapFlags, ProtFlags, mmap, mmap_anonymous, mremap};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, write};

use super::vdso;

const PAGE: usize = 4096;
/// `MFD_EXEC` (memfd_create(2), since Linux 6.3).
const MFD_EXEC: u32 = 0x10;
/// What a child that was refused without a reason ends with.
const NO_REASON: i32 = Errno::EIO as i32;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It works.
    Works,
    /// The kernel, or a filter, refused it.
    Refused(Errno),
    /// A filter killed who tried it.
    Killed,
}

/// Files in memory that can be mapped as code: the restorer is one.
#[must_use]
pub fn executable_memory() -> Attempt {
    attempt(|| {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(MFD_EXEC);
        let file = match memfd_create(c"probe", flags) {
            // A kernel before 6.3 does not know the flag and needs none.
            Err(Errno::EINVAL) => memfd_create(c"probe", MFdFlags::MFD_CLOEXEC),
            other => other,
        }?;
        write(&file, &[0; PAGE])?;
        map_executable(&file)
    })
}

/// Whether a file can be mapped as code: not where its file system is mounted with noexec.
///
/// # Errors
///
/// The kernel's reason.
pub fn maps_as_code(file: &std::fs::File) -> std::io::Result<()> {
    Ok(map_executable(file)?)
}

fn map_executable(file: impl AsFd) -> nix::Result<()> {
    let length = NonZeroUsize::new(PAGE).ok_or(Errno::EINVAL)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
    // SAFETY: a new mapping where the kernel finds room, never read and never executed.
    let mapped = unsafe { mmap(None, length, protection, MapFlags::MAP_PRIVATE, file, 0) }?;
    // SAFETY: the mapping that was just made.
    unsafe { nix::sys::mman::munmap(mapped, PAGE) }
}

/// Setting what `/proc` says of a process's memory (prctl(2), `PR_SET_MM_MAP`).
#[must_use]
pub fn memory_map_fields() -> Attempt {
    const PR_SET_MM_MAP_SIZE: libc::c_ulong = 15;
    attempt(|| {
        let mut size: libc::c_uint = 0;
        // SAFETY: the kernel writes the size of its structure to `size` and changes nothing.
        let result = unsafe {
            libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP_SIZE, &raw mut size, 0_u64, 0_u64)
        };
        Errno::result(result).map(drop)
    })
}

/// Moving the vDSO to where the frozen process had it (mremap(2); sealed on some kernels).
#[must_use]
pub fn movable_vdso() -> Attempt {
    let Some(code) = vdso() else { return Attempt::Refused(Errno::ENOENT) };
    let length = code.len().next_multiple_of(PAGE);
    let address = NonNull::from(code).cast::<c_void>();
    attempt(|| {
        let room = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        // SAFETY: a new mapping where the kernel finds room.
        let target =
            unsafe { mmap_anonymous(None, room, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }?;
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        // SAFETY: the target is ours. The vDSO is gone from its place afterwards, in a child that
        // ends without another call that would use it.
        unsafe { mremap(address, length, length, flags, Some(target)) }.map(drop)
    })
}

/// Tries something in a child. What is tried must be nothing but system calls: the child may have
/// been forked by one thread of many.
fn attempt(what: impl FnOnce() -> nix::Result<()>) -> Attempt {
    // SAFETY: the child only makes system calls and ends without running anything of the parent's.
    match unsafe { fork() } {
        Err(reason) => Attempt::Refused(reason),
        Ok(ForkResult::Child) => {
            let status = what().err().map_or(0, |reason| reason as i32);
            // SAFETY: ends the process.
            unsafe { libc::_exit(status) }
        }
        Ok(ForkResult::Parent { child }) => loop {
            match waitpid(child, None) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, 0)) => return Attempt::Works,
                Ok(WaitStatus::Exited(_, reason)) => {
                    return Attempt::Refused(Errno::from_raw(reason));
                }
                Ok(WaitStatus::Signaled(..)) => return Attempt::Killed,
                Ok(_) | Err(_) => return Attempt::Refused(Errno::from_raw(NO_REASON)),
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[test]
    fn what_this_machine_can_do_works() {
        assert_eq!(executable_memory(), Attempt::Works);
        assert_eq!(memory_map_fields(), Attempt::Works);
        assert_eq!(movable_vdso(), Attempt::Works);
        maps_as_code(&std::fs::File::open("/proc/self/exe").unwrap()).unwrap();
        // The vDSO that was moved was the child's.
        assert!(std::time::Instant::now().elapsed().as_secs() < 60);
    }

    #[test]
    fn a_refusal_and_a_death_are_told_apart() {
        assert_eq!(attempt(|| Err(Errno::EACCES)), Attempt::Refused(Errno::EACCES));
        assert_eq!(attempt(|| raise(Signal::SIGKILL)), Attempt::Killed);
    }
}
