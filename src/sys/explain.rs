//! How an error tells its reader what to do.

use std::io;

use nix::errno::Errno;

/// An error that a user may see: its `Display` is one sentence of what failed, its sources say why,
/// and this says what to do about it.
pub trait Explain: std::error::Error {
    /// What to do, as one sentence; printed after `hint:`.
    fn hint(&self) -> String;
}

/// What to do where a process cannot be started.
pub const PROCESS_LIMITS: &str = "look at the limits on processes (ulimit -u; of a container: --pids-limit; \
                          sysctl kernel.pid_max) and on memory";

/// What to do where no more files can be opened, or none so large be written.
pub const FILE_LIMITS: &str = "raise the limits on open files (ulimit -n; CRIU needs about 250) and on the \
                               size of files (ulimit -f)";

/// What to do where `/proc` is missing.
pub const MOUNT_PROC: &str =
    "mount it (`mount -t proc proc /proc`, as root), and do not mask it in a container";

/// What to do about an error that is nobody's fault who is named beside it: this process lacks something.
#[must_use]
pub fn limits(error: &io::Error) -> Option<&'static str> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EMFILE | Errno::ENFILE | Errno::EFBIG => Some(FILE_LIMITS),
        // Room in memory.
        Errno::EAGAIN | Errno::ENOMEM | Errno::ENOSPC => Some(PROCESS_LIMITS),
        _ => None,
    }
}
