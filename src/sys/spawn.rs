//! Starting a program with exactly the descriptors, signals and capabilities that it shall have.

#![allow(unsafe_code, reason = "sys")]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getppid};
use serde::{Deserialize, Serialize};

use super::{capabilities, null_device, own};

/// A program to start; it gets the environment that is written here and nothing of ours.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Spawn {
    /// The file to execute.
    pub program: PathBuf,
    /// The arguments, the program's own name (`argv[0]`) first.
    pub arguments: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The number in the new program of each descriptor that it is given; standard descriptors that
    /// are not among them are `/dev/null`.
    pub descriptors: Vec<RawFd>,
    /// The capabilities that it keeps.
    pub privileges: Privileges,
}

/// The capabilities that a program is started with.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Privileges {
    /// What the kernel gives to any program of this user: none to an ordinary one, all to root.
    Ordinary,
    /// `Ordinary`, and any process of the same user may trace it, whatever Yama says
    /// (Documentation/admin-guide/LSM/Yama.rst of the kernel).
    Traceable,
    /// Those of the caller that CRIU can make use of, also for a user that is not root. Its files are
    /// this user's alone.
    Checkpoint,
}

/// The least number that a descriptor gets while they are being sorted: above every number that is
/// asked for.
const CLEAR: RawFd = 210;

impl Spawn {
    /// Starts it; the caller reaps it.
    ///
    /// # Errors
    ///
    /// The kernel's reason why the program cannot be executed, or that there are not as many
    /// descriptors as numbers for them.
    pub fn start(&self, descriptors: Vec<OwnedFd>) -> io::Result<Pid> {
        let (name, arguments) = self.arguments.split_first().ok_or(Errno::EINVAL)?;
        if descriptors.len() != self.descriptors.len() {
            return Err(Errno::EINVAL.into());
        }
        // While these are open, nothing that is made on the way gets a standard number.
        let fillers = fill_standard()?;
        let null = fillers.last().ok_or(Errno::EBADF)?;
        let mut moves = Vec::new();
        for standard in (0..=2).filter(|number| !self.descriptors.contains(number)) {
            moves.push((clear(null)?, standard));
        }
        for (descriptor, number) in descriptors.iter().zip(&self.descriptors) {
            moves.push((clear(descriptor)?, *number));
        }
        drop(descriptors);
        let mut command = Command::new(&self.program);
        command.arg0(name).args(arguments).env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        settle(&mut command, moves, self.privileges);
        let child = command.spawn()?;
        Ok(Pid::from_raw(child.id().cast_signed()))
    }
}

/// Gives the program its signals, capabilities and descriptors, between fork and exec.
fn settle(command: &mut Command, moves: Vec<(OwnedFd, RawFd)>, privileges: Privileges) {
    let settle = move || {
        default_signals()?;
        if privileges == Privileges::Checkpoint {
            // What CRIU writes is the memory of a process.
            umask(Mode::S_IRWXG | Mode::S_IRWXO);
        }
        capabilities::reduce(privileges)?;
        for (descriptor, number) in &moves {
            // SAFETY: both are numbers; what `number` stood for is the child's copy of something that
            // is closed by the exec anyway.
            if unsafe { libc::dup2(descriptor.as_raw_fd(), *number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the program has one thread, so that no lock is held by a thread that is not there in
    // the child; and of what is called only malloc has locks, which glibc makes usable after a fork.
    unsafe { command.pre_exec(settle) };
}

/// Opens `/dev/null` until it gets a number above the standard ones.
fn fill_standard() -> io::Result<Vec<OwnedFd>> {
    let mut fillers: Vec<OwnedFd> = Vec::new();
    while fillers.last().is_none_or(|last| last.as_raw_fd() <= 2) {
        fillers.push(null_device()?.into());
    }
    Ok(fillers)
}

fn clear(descriptor: &OwnedFd) -> io::Result<OwnedFd> {
    match fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(CLEAR)) {
        // The limit on descriptors is below that number (fcntl(2)).
        Err(Errno::EINVAL) => Err(Errno::EMFILE.into()),
        moved => Ok(own(moved?)),
    }
}

/// Gives every signal its default action and blocks none: a program that is frozen must not keep
/// what the terminal, `nohup` or a shell's background job chose for us.
pub(super) fn default_signals() -> io::Result<()> {
    for signal in 1..=64 {
        // The C library refuses its own two signals, and the kernel SIGKILL and SIGSTOP: they are
        // as they have to be.
        let _ = default_action(signal);
    }
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Lets this process hear of its children's ends: whoever started us may have us ignore SIGCHLD, and
/// then the kernel keeps no statuses.
///
/// # Errors
///
/// None that the kernel is known to give.
pub fn expect_children() -> io::Result<()> {
    default_action(libc::SIGCHLD)
}

pub(super) fn default_action(signal: i32) -> io::Result<()> {
    // SAFETY: a sigaction of zeros is SIG_DFL with no flags and an empty mask.
    let result = unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &raw const action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A program that is ours alone: killed, if it still runs, and reaped when this goes.
#[derive(Debug)]
pub struct Running(Option<Pid>);

impl Running {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// As [`Spawn::start`].
    pub fn start(spawn: &Spawn, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        Ok(Self(Some(spawn.start(descriptors)?)))
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// `ECHILD` where it has been reaped already.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.0.take().map_or_else(|| Err(Errno::ECHILD.into()), reap)
    }
}

impl Running {
    /// A descriptor that can be read once it has ended (pidfd_open(2)); none where the kernel, or a
    /// filter of a container's, has no such thing.
    #[must_use]
    pub fn watch(&self) -> Option<OwnedFd> {
        let pid = self.0?.as_raw();
        // SAFETY: takes no address; the process is ours until it is reaped.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        RawFd::try_from(descriptor).ok().filter(|number| *number >= 0).map(own)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = self.0.take() {
            // It may have ended by itself; it stays ours to reap.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = reap(pid);
        }
    }
}

/// Waits for the end of a child.
///
/// # Errors
///
/// `ECHILD` where there is no such child.
pub(super) fn reap(pid: Pid) -> io::Result<ExitStatus> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is writable.
        match unsafe { libc::waitpid(pid.as_raw(), &raw mut status, 0) } {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok(ExitStatus::from_raw(status)),
        }
    }
}

/// As long as this is there, processes that our programs have started and not waited for become our
/// children when their parents end (prctl(2), `PR_SET_CHILD_SUBREAPER`).
#[derive(Debug)]
pub struct Orphans {
    /// Whether that was so before.
    before: bool,
    /// Children that we had before. Whoever has executed this program may have left us some.
    older: Vec<Pid>,
}

impl Orphans {
    /// Begins to take them. Processes of the numbers in `ours` are not older, whoever has them now.
    ///
    /// # Errors
    ///
    /// None that the kernel is known to give.
    pub fn adopt(ours: &[u32]) -> io::Result<Self> {
        let before = prctl::get_child_subreaper()?;
        prctl::set_child_subreaper(true)?;
        let mut older = children();
        older.retain(|pid| !ours.contains(&pid.as_raw().cast_unsigned()));
        Ok(Self { before, older })
    }

    /// Ends all children that have come since, and theirs.
    pub fn end(&self) {
        loop {
            let ended: Vec<Pid> =
                children().into_iter().filter(|pid| !self.older.contains(pid)).collect();
            if ended.is_empty() {
                return;
            }
            for pid in ended {
                // A child stays ours until it is reaped, whatever has ended it.
                let _ = kill(pid, Signal::SIGKILL);
                let _ = reap(pid);
            }
        }
    }
}

/// The children of this thread, which is the only one (proc(5), `/proc/PID/task/TID/children`).
fn children() -> Vec<Pid> {
    let list = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

impl Drop for Orphans {
    fn drop(&mut self) {
        let _ = prctl::set_child_subreaper(self.before);
    }
}

/// Reaps one child that has ended, if there is one.
pub(super) fn reap_any() -> io::Result<Option<(Pid, ExitStatus)>> {
    let mut status = 0;
    // SAFETY: `status` is writable.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some((Pid::from_raw(pid), ExitStatus::from_raw(status)))),
    }
}

/// Set where a test is the only one of its process.
pub(super) const ALONE: &str = "PRELOADED_CRIU_TEST_ALONE";

/// Runs a test again, by its whole name, alone in its process and with that variable set to `value`; `None`
/// where this is that process.
#[cfg(test)]
pub(super) fn alone(test: &str, value: &std::ffi::OsStr) -> Option<std::process::Output> {
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().expect("this test has a program"));
    command.args(["--exact", test, "--test-threads=1", "--nocapture"]);
    Some(command.env(ALONE, value).output().expect("it runs"))
}

/// Goes on as two processes; `None` is the child.
///
/// # Errors
///
/// The kernel's reason, or `EBUSY` in a program with several threads: what the others hold would be
/// held for ever in the child.
pub(super) fn fork() -> io::Result<Option<Pid>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    // A test that runs alone has one more, which waits for it and holds nothing.
    let allowed = if cfg!(test) && std::env::var_os(ALONE).is_some() { 2 } else { 1 };
    if threads > allowed {
        return Err(Errno::EBUSY.into());
    }
    // SAFETY: there is one thread that does anything.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child)),
        nix::unistd::ForkResult::Child => Ok(None),
    }
}

/// Has a child made by [`fork`] killed when its parent ends (prctl(2), `PR_SET_PDEATHSIG`).
///
/// # Errors
///
/// `ESRCH` where that has ended already: nobody is told of it any more.
pub(super) fn end_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
}

/// Ends a child made by [`fork`] without running what the parent registered for its own exit.
pub(super) fn leave() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// Closes every descriptor but one.
pub(super) fn close_all_but(descriptor: RawFd) -> io::Result<()> {
    let kept = descriptor.cast_unsigned();
    let below = kept.checked_sub(1).map(|last| (0, last));
    for (first, last) in below.into_iter().chain([(kept + 1, u32::MAX)]) {
        // SAFETY: the caller has just been forked and owns nothing that relies on a descriptor.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sends a signal to the process whose directory of `/proc` is open here
/// (pidfd_send_signal(2); immune to reuse of the number).
pub(super) fn signal_process(directory: &OwnedFd, signal: Signal) -> io::Result<()> {
    // SAFETY: a null siginfo stands for what kill(2) would send.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            directory.as_raw_fd(),
            signal as i32,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
