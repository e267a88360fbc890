//! A look at a process at its very end, when its memory is still there.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollTimeout, poll};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getpid};

use super::null_device;
use super::spawn::{default_signals, end_with, fork, leave};

/// Milliseconds between two looks.
const STEP: u8 = 1;

/// A child that this process traces.
struct Traced(Pid);

impl Traced {
    /// What it does next that a tracer is told of; none when `deadline` is over.
    fn next(&self, deadline: Instant) -> io::Result<Option<WaitStatus>> {
        while Instant::now() < deadline {
            match waitpid(self.0, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    let _ = poll(&mut [], PollTimeout::from(STEP));
                }
                Err(Errno::EINTR) => {}
                status => return Ok(Some(status?)),
            }
        }
        Ok(None)
    }

    /// Lets it go on until it is about to end (ptrace(2), `PTRACE_EVENT_EXIT`).
    fn reaches_its_end(&self, deadline: Instant) -> io::Result<bool> {
        while let Some(status) = self.next(deadline)? {
            match status {
                WaitStatus::PtraceEvent(_, _, event) if event == libc::PTRACE_EVENT_EXIT => {
                    return Ok(true);
                }
                WaitStatus::Stopped(_, signal) => ptrace::cont(self.0, signal)?,
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(false),
                _ => ptrace::cont(self.0, None)?,
            }
        }
        Ok(false)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        loop {
            match waitpid(self.0, Some(WaitPidFlag::WNOHANG)) {
                // It has been waited for, and its number may be another's.
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                    return;
                }
                _ => {}
            }
            let _ = kill(self.0, Signal::SIGKILL);
            // At its end, it goes on only where it is told so.
            let _ = ptrace::cont(self.0, None);
            let _ = poll(&mut [], PollTimeout::from(STEP));
        }
    }
}

/// Starts a child with `/dev/null` as its standard descriptors, and `errors` for its errors, of which `turn`
/// makes another program, and looks at it when it is about to end, with its exit status if it ends by itself.
/// None if it does not come to that in time. The child is gone afterwards, and ends with us at the latest.
///
/// # Errors
///
/// The kernel's reason why there is no such child, or why it cannot be traced.
pub fn at_its_end<T>(
    patience: Duration,
    errors: &File,
    turn: impl FnOnce() -> Option<Infallible>,
    look: impl FnOnce(Pid, Option<i32>) -> T,
) -> io::Result<Option<T>> {
    let deadline = Instant::now() + patience;
    let parent = getpid();
    let Some(child) = fork()? else {
        if be_traced(parent, errors).is_ok() {
            turn();
        }
        leave()
    };
    let child = Traced(child);
    if !matches!(child.next(deadline)?, Some(WaitStatus::Stopped(_, Signal::SIGSTOP))) {
        return Ok(None);
    }
    // With the second, an exec is told as such and not as a signal.
    ptrace::setoptions(
        child.0,
        Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL,
    )?;
    ptrace::cont(child.0, None)?;
    if !child.reaches_its_end(deadline)? {
        return Ok(None);
    }
    let status = ExitStatus::from_raw(ptrace::getevent(child.0)?.try_into().unwrap_or_default());
    Ok(Some(look(child.0, status.code())))
}

fn be_traced(parent: Pid, errors: &File) -> io::Result<()> {
    // Whoever is the parent of an orphan does not know that it is to trace it.
    end_with(parent)?;
    let null = null_device()?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(errors)?;
    default_signals()?;
    ptrace::traceme()?;
    raise(Signal::SIGSTOP)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::read_link;

    use nix::unistd::execv;

    use super::*;
    use crate::sys::spawn;

    fn run(words: &[&str], patience: Duration) -> Option<(String, Option<i32>)> {
        let words: Vec<CString> = words.iter().map(|word| CString::new(*word).unwrap()).collect();
        let turn = || execv(&words[0], &words).ok();
        let look = |pid: Pid, status| {
            let program = read_link(format!("/proc/{pid}/exe")).unwrap();
            (program.file_name().unwrap().to_string_lossy().into_owned(), status)
        };
        at_its_end(patience, &null_device().unwrap(), turn, look).unwrap()
    }

    /// Runs a test alone: another thread must not hold what a child needs.
    fn alone(test: &str) -> bool {
        let name = format!("sys::observe::tests::{test}");
        let Some(output) = spawn::alone(&name, "yes".as_ref()) else { return true };
        assert!(output.status.success(), "{output:?}");
        false
    }

    #[test]
    fn a_child_is_seen_before_it_is_gone() {
        if alone("a_child_is_seen_before_it_is_gone") {
            let patience = Duration::from_secs(30);
            let (name, status) = run(&["/bin/sh", "-c", "exec sleep 0"], patience).unwrap();
            assert!((name == "sleep" || name == "coreutils") && status == Some(0));
            for (end, status) in [("exit 125", Some(125)), ("kill -9 $$", None)] {
                assert_eq!(run(&["/bin/sh", "-c", end], patience).unwrap().1, status);
            }
            assert_eq!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD));
        }
    }

    #[test]
    fn a_child_that_does_not_end_is_ended() {
        if alone("a_child_that_does_not_end_is_ended") {
            assert_eq!(run(&["/bin/sleep", "1000"], Duration::from_millis(100)), None);
            assert_eq!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD));
        }
    }
}
