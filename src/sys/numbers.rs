//! Process numbers that are kept until somebody takes them.

use std::io;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getpid, pause};

use super::spawn;

/// Numbers that the kernel has chosen, each held by a child that does nothing. Freed when this goes:
/// the kernel gives numbers in turn, so that one just freed is not given again soon.
#[derive(Debug)]
pub struct Numbers(Vec<Pid>);

impl Numbers {
    /// Takes so many.
    ///
    /// # Errors
    ///
    /// `EAGAIN` where there are no more processes to be had.
    pub fn take(count: usize) -> io::Result<Self> {
        let mut numbers = Self(Vec::with_capacity(count));
        let parent = getpid();
        for _ in 0..count {
            match spawn::fork()? {
                Some(child) => numbers.0.push(child),
                None => hold(parent),
            }
        }
        Ok(numbers)
    }

    /// The numbers.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|pid| pid.as_raw().cast_unsigned())
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        for pid in &self.0 {
            // Ours until it is reaped, whatever has ended it.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        for pid in &self.0 {
            let _ = spawn::reap(*pid);
        }
    }
}

/// The life of a child that holds a number.
fn hold(parent: Pid) -> ! {
    if spawn::end_with(parent).is_err() {
        spawn::leave();
    }
    let _ = SigSet::all().thread_set_mask();
    loop {
        pause();
    }
}
