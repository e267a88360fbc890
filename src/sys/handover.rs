//! Descriptors that a program hands to the one that it becomes by exec.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// `MFD_EXEC` (memfd_create(2), since Linux 6.3): the file may be mapped executable.
const MFD_EXEC: u32 = 0x10;

/// A file in memory that holds `content` and may be mapped as code.
///
/// # Errors
///
/// The kernel's reason; `EACCES` where the sysctl `vm.memfd_noexec` is 2.
pub fn executable_memory(name: &std::ffi::CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(MFD_EXEC);
    let file = match memfd_create(name, flags) {
        // A kernel before 6.3 does not know the flag and needs none.
        Err(Errno::EINVAL) => memfd_create(name, MFdFlags::MFD_CLOEXEC),
        other => other,
    }?;
    let mut file = std::fs::File::from(file);
    file.write_all(content)?;
    Ok(file.into())
}

/// Moves a descriptor to a number that is not below `least`: 0, 1 and 2 are free where the caller
/// has closed them and have to stay free.
///
/// # Errors
///
/// `EMFILE` or `EINVAL` where no such number is left.
pub fn at_least(descriptor: OwnedFd, least: RawFd) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() >= least {
        return Ok(descriptor);
    }
    let number = fcntl(&descriptor, FcntlArg::F_DUPFD_CLOEXEC(least))?;
    Ok(super::own(number))
}

/// Lets a descriptor survive the next exec.
///
/// # Errors
///
/// The kernel's reason.
pub fn keep_over_exec(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::executable_memory;

    #[test]
    fn memory_files_hold_what_they_were_made_with() {
        let file = executable_memory(c"test", b"content").expect("memfd_create works here");
        let mut file = std::fs::File::from(file);
        let mut text = String::new();
        file.rewind().expect("a memory file can be rewound");
        file.read_to_string(&mut text).expect("a memory file can be read");
        assert_eq!(text, "content");
    }
}
