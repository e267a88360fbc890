//! What the standard library does before `main`, for the commands that want it: this program has
//! an entry point of its own, because `run` must hand on what it was given.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};

use nix::fcntl::{OFlag, open};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::Mode;

/// Opens `/dev/null` for each standard descriptor that is closed, so that no file that is opened
/// later has its number.
pub fn fill_standard_descriptors() {
    // A new descriptor has the lowest free number (open(2)).
    while let Ok(descriptor) = open("/dev/null", OFlag::O_RDWR, Mode::empty()) {
        if descriptor.as_raw_fd() > 2 {
            break;
        }
        // It stays open as long as the program lives, as standard descriptors do.
        let _ = descriptor.into_raw_fd();
    }
}

/// Opens `/dev/null` for reading and writing.
///
/// # Errors
///
/// The kernel's reason, and where it is about the name, the name too: whoever is told of it would think
/// that something else is missing.
pub fn null_device() -> io::Result<File> {
    const NAME: &str = "/dev/null";
    File::options().read(true).write(true).open(NAME).map_err(|error| match error.kind() {
        kind @ (io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            io::Error::new(kind, format!("{NAME} cannot be opened: {error}"))
        }
        _ => error,
    })
}

/// From now on, writing to a pipe that nobody reads, or past the limit for the size of files, is an
/// error and not the end. It is inherited: programs that are started have to be given the defaults.
pub fn survive_failed_writes() {
    for failed in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        // SAFETY: no handler is installed, so no code can run at a bad time. The call fails only
        // for signals that cannot be ignored.
        let _ = unsafe { signal(failed, SigHandler::SigIgn) };
    }
}

/// Takes back what [`survive_failed_writes`] did, for a program that is started after all: `ignored`
/// are the signals that were ignored before it (bit N-1 for signal N).
pub fn fail_at_writes(ignored: u64) {
    for failed in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        if ignored & 1 << (failed as i32 - 1) == 0 {
            // SAFETY: as above; the default action has no handler either.
            let _ = unsafe { signal(failed, SigHandler::SigDfl) };
        }
    }
}
