//! Whether a signal was sent to this process alone, or to its whole process group.
//!
//! The kernel does not say. So a child of ours is a member of the group that blocks every signal:
//! what is pending there was sent to the group. A group's members get a signal newest first
//! (kernel/signal.c, `__kill_pgrp_info`; kernel/pid.c, `attach_pid`), so the witness has it before us.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::spawn;

/// A child that sees what the group is sent.
#[derive(Debug)]
pub struct Witness {
    process: Pid,
    line: UnixStream,
    /// Seen and not asked for, bit N-1 for signal N.
    seen: u64,
}

impl Witness {
    /// Starts it; all signals must be blocked.
    ///
    /// # Errors
    ///
    /// The kernel's reason, for want of processes or descriptors.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let Some(process) = spawn::fork()? else {
            drop(ours);
            watch(theirs)
        };
        Ok(Self { process, line: ours, seen: 0 })
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> Pid {
        self.process
    }

    /// Whether the group was sent this signal since the last question about it.
    pub fn has_seen(&mut self, signal: i32) -> bool {
        if self.is_stopped() {
            // We are not: what has continued us was for us alone, and it cannot answer.
            if let Ok(fresh) = Self::start() {
                *self = fresh;
            }
            return false;
        }
        let mut answer = [0; 8];
        let asked = self.line.write_all(&[0]).and_then(|()| self.line.read_exact(&mut answer));
        if asked.is_ok() {
            self.seen |= u64::from_le_bytes(answer);
        }
        let bit = 1_u64 << (signal - 1);
        let seen = self.seen & bit != 0;
        self.seen &= !bit;
        seen
    }
}

impl Witness {
    /// Field 3 of `/proc/PID/stat` (proc_pid_stat(5)), behind the name.
    fn is_stopped(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.process))
            .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It is ours until it is reaped.
        let _ = kill(self.process, Signal::SIGKILL);
        let _ = spawn::reap(self.process);
    }
}

/// The life of the witness: it answers as long as somebody asks.
fn watch(line: UnixStream) -> ! {
    let _ = answer(line);
    spawn::leave()
}

fn answer(mut line: UnixStream) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&line);
    spawn::close_all_but(number)?;
    SigSet::all().thread_set_mask()?;
    let signals =
        SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut question = [0];
    loop {
        line.read_exact(&mut question)?;
        let mut seen = 0_u64;
        while let Some(information) = signals.read_signal()? {
            seen |= 1 << (information.ssi_signo - 1);
        }
        line.write_all(&seen.to_le_bytes())?;
    }
}
