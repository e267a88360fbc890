//! Who may do what with a file, beyond its mode.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;

/// Whether a file has an access control list (acl(5)): then the group's bits of its mode are not about
/// its group.
///
/// # Errors
///
/// The kernel's reason.
pub fn has_access_list(file: BorrowedFd<'_>) -> io::Result<bool> {
    let name = c"system.posix_acl_access";
    // SAFETY: the name ends with a zero byte, and where no room is given nothing is written.
    let length = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), ptr::null_mut(), 0) };
    match Errno::result(length) {
        Ok(_) => Ok(true),
        // There is none, or the file system has none.
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
