//! The operating system behind small safe types: with the crates that run inside the interpreter,
//! the only place with `unsafe`.

mod entry;
mod explain;
pub mod handover;
pub mod inherited;

pub use explain::Explain;

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor that a system call has just made.
#[allow(unsafe_code, reason = "sys")]
pub(crate) fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: every caller passes the result of a call that makes a new descriptor, once.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
