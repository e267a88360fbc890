//! The signals that ask a program to end, taken as events instead of as a sudden end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::inherited::ignored_signals;

/// While this lives, Ctrl-C, SIGTERM, SIGHUP and SIGQUIT wait to be asked for; those that the caller
/// had ignored (`nohup`, a background job) stay ignored. What came and was not asked for ends the
/// program when this goes.
#[derive(Debug)]
pub struct Interrupts {
    descriptor: SignalFd,
    before: SigSet,
}

impl Interrupts {
    /// Holds the signals back from now on.
    ///
    /// # Errors
    ///
    /// The kernel's reason, for want of descriptors.
    pub fn hold() -> io::Result<Self> {
        let ignored = ignored_signals();
        let mut watched = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            if ignored & 1 << (signal as i32 - 1) == 0 {
                watched.add(signal);
            }
        }
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&watched, flags)?;
        let before = watched.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { descriptor, before })
    }

    /// The signal that has come, if one has.
    #[must_use]
    pub fn take(&self) -> Option<Signal> {
        let information = self.descriptor.read_signal().ok()??;
        Signal::try_from(information.ssi_signo.cast_signed()).ok()
    }
}

impl AsFd for Interrupts {
    /// Readable when a signal has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // The mask was valid when it was read.
        let _ = self.before.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::Interrupts;

    #[test]
    fn a_held_signal_is_an_event() {
        let interrupts = Interrupts::hold().expect("signals can be held");
        assert_eq!(interrupts.take(), None);
        raise(Signal::SIGTERM).expect("a signal to this thread");
        assert_eq!(interrupts.take(), Some(Signal::SIGTERM));
        assert_eq!(interrupts.take(), None);
    }
}
