//! The operating system behind small safe types: with the crates that run inside the interpreter,
//! the only place with `unsafe`.
#![allow(unsafe_code, reason = "sys")]

pub mod access;
pub mod caller;
pub mod capabilities;
mod entry;
mod explain;
pub mod handover;
pub mod inherited;
pub mod interrupts;
pub mod keeper;
pub mod locale;
pub mod lookup;
mod namespaces;
pub mod numbers;
pub mod observe;
pub mod places;
pub mod private;
pub mod probe;
pub mod procfs;
pub mod spawn;
mod startup;
pub mod supervise;
mod vdso;
pub mod way;
pub mod witness;

pub use explain::{Explain, FILE_LIMITS, MOUNT_PROC, PROCESS_LIMITS, limits};
pub use startup::{fail_at_writes, fill_standard_descriptors, null_device, survive_failed_writes};
pub use vdso::{vdso, vdso_lengths};

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor that a system call has just made.
pub(crate) fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: every caller passes the result of a call that makes a new descriptor, once.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
