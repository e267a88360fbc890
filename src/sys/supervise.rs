//! The launcher's life beside a process that is the script: signals are passed on, stops and ends are
//! taken over.

#![allow(unsafe_code, reason = "sys")]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::unistd::Pid;

use super::inherited::ignored_signals;
use super::spawn;
use super::witness::Witness;

/// All signals, held back from us from now on.
#[derive(Debug)]
pub struct Held {
    before: SigSet,
    ignored: u64,
}

impl Held {
    /// Holds them back; their actions are the default ones, for one that is ignored is never seen.
    ///
    /// # Errors
    ///
    /// None that the kernel is known to give.
    pub fn hold() -> io::Result<Self> {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let held = Self { before, ignored: ignored_signals() };
        for signal in 1..=64 {
            // SIGKILL, SIGSTOP and the C library's own cannot be changed and are as they have to be.
            let _ = spawn::default_action(signal);
        }
        Ok(held)
    }
}

/// Signals that end nobody, whatever the program does about them (signal(7)): it goes on, or stops; and
/// SIGXFSZ, which comes of our own writing.
const HARMLESS: [i32; 9] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGXFSZ,
];

impl Held {
    /// A signal that has come since, and that ends a program which has only just been executed: the caller
    /// has neither blocked nor ignored it. None for the first process of a container, which no signal
    /// ends.
    #[must_use]
    pub fn fatal(&self) -> Option<i32> {
        if std::process::id() == 1 {
            return None;
        }
        let pending = pending();
        (1..=64).find(|signal| {
            is_in(&pending, *signal)
                && !is_in(self.before.as_ref(), *signal)
                && self.ignored & 1 << (signal - 1) == 0
                && !HARMLESS.contains(signal)
                && !OURS.contains(signal)
        })
    }
}

impl Held {
    /// Whether a signal has come that stops processes, or lets stopped ones go on. Sent to the group, it
    /// has reached whoever else is in it.
    #[must_use]
    pub fn has_been_stopped(&self) -> bool {
        let pending = pending();
        let stopping = [libc::SIGCONT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        stopping.iter().any(|signal| is_in(&pending, *signal))
    }
}

fn pending() -> libc::sigset_t {
    let mut pending = *SigSet::empty().as_ref();
    // SAFETY: the set is writable.
    unsafe { libc::sigpending(&raw mut pending) };
    pending
}

fn is_in(set: &libc::sigset_t, signal: i32) -> bool {
    // SAFETY: the set is a valid one.
    unsafe { libc::sigismember(set, signal) == 1 }
}

impl Drop for Held {
    fn drop(&mut self) {
        // What has come of our own writing, which has failed, is not to end us: this discards it.
        // SAFETY: no handler is installed.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let _ = spawn::default_action(libc::SIGXFSZ);
        for signal in (1..=64).filter(|signal| self.ignored & 1 << (signal - 1) != 0) {
            // SAFETY: no handler is installed; the signal was ignored before.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        // The mask was valid when it was read.
        let _ = self.before.thread_set_mask();
    }
}

/// Signals that the kernel sends to whoever did something wrong, or that are about our own children:
/// never the script's business.
const OURS: [i32; 3] = [libc::SIGCHLD, libc::SIGPIPE, libc::SIGURG];

/// Gives the script the signals that its caller had blocked and left pending: a program that is executed
/// has them from its first instruction on (execve(2)). It must block them too and not have begun.
pub fn hand_down(script: Pid, witness: &mut Witness, held: &Held) {
    static NOW: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut set = held.before;
    for signal in OURS.into_iter().filter_map(|signal| Signal::try_from(signal).ok()) {
        set.remove(signal);
    }
    loop {
        // SAFETY: set and time are valid; nothing is asked about the signal.
        let signal =
            unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &raw const NOW) };
        match signal {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return,
            signal if witness.has_seen(signal) => {}
            signal => pass_on(script, signal),
        }
    }
}

/// Stays with the script until it ends; returns how.
///
/// # Errors
///
/// The kernel's reason; `ECHILD` where there is no such child.
pub fn supervise(script: Pid, witness: &mut Witness, _held: &Held) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = look(script, witness.process())? {
            if let Some(signal) = status.stopped_signal() {
                stop(signal);
                continue;
            }
            return Ok(status);
        }
        let signal = next_signal()?;
        settle(signal);
        if !OURS.contains(&signal) && !witness.has_seen(signal) {
            pass_on(script, signal);
        }
    }
}

/// A change of the script's, if there is one. Other children (of a script that is the first process
/// of a container) are reaped on the way.
fn look(script: Pid, witness: Pid) -> io::Result<Option<ExitStatus>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is writable.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED) } {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(io::Error::last_os_error()),
            0 => return Ok(None),
            pid if pid == script.as_raw() => return Ok(Some(ExitStatus::from_raw(status))),
            pid => debug_assert!(pid != witness.as_raw() || libc::WIFSTOPPED(status)),
        }
    }
}

/// Waits for a signal; all of them are blocked.
fn next_signal() -> io::Result<i32> {
    let set = SigSet::all();
    loop {
        // SAFETY: the set is valid, and nothing is asked about the signal.
        let signal = unsafe { libc::sigwaitinfo(set.as_ref(), std::ptr::null_mut()) };
        match signal {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(io::Error::last_os_error()),
            signal => return Ok(signal),
        }
    }
}

/// A signal for us and at once one for our group (timeout(1) sends both) is one signal to a process
/// that has not yet had the time to take the first: it is to be one to the script too.
fn settle(signal: i32) {
    /// As long as a sender takes between two system calls.
    static MOMENT: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let mut only = SigSet::empty();
    let Ok(signal) = Signal::try_from(signal) else { return };
    if signal == Signal::SIGCHLD {
        return;
    }
    only.add(signal);
    // SAFETY: set and time are valid. Whether it comes again is all the same.
    unsafe { libc::sigtimedwait(only.as_ref(), std::ptr::null_mut(), &raw const MOMENT) };
}

fn pass_on(script: Pid, signal: i32) {
    // SAFETY: takes no address. The script is ours until it is reaped; it may be of another user, who
    // cannot be sent anything.
    let _ = unsafe { libc::kill(script.as_raw(), signal) };
}

/// Stops as the script has, so that whoever waits for us sees it; returns when somebody has us
/// continue, with SIGCONT pending.
fn stop(signal: i32) {
    let Ok(signal) = Signal::try_from(signal) else { return };
    let this = nix::unistd::getpid();
    let _ = kill(this, signal);
    if signal != Signal::SIGSTOP {
        let mut only = SigSet::empty();
        only.add(signal);
        // It comes now. In an orphaned group the kernel drops it, and then nobody could continue us.
        let _ = only.thread_unblock();
        let _ = only.thread_block();
    }
}

/// Ends as the script has ended: returns the status where it left by itself.
#[must_use]
pub fn end_alike(status: ExitStatus, held: Held) -> i32 {
    if let Some(code) = status.code() {
        return code;
    }
    let Some(signal) = status.signal() else { return 0 };
    let nothing = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let mut only = SigSet::empty();
    if let Ok(signal) = Signal::try_from(signal) {
        only.add(signal);
    }
    // SAFETY: `nothing` is readable; a core dump is the script's alone. The signal comes at once, or
    // not at all: to the first process of a container.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::setrlimit(libc::RLIMIT_CORE, &raw const nothing);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::kill(libc::getpid(), signal);
    }
    let _ = only.thread_unblock();
    drop(held);
    128 + signal
}
