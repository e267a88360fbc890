//! What a program inherits from its caller and a restored process has to be given: identity,
//! capabilities, limits, priority, signals, descriptors.

#![allow(unsafe_code, reason = "sys")]

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use caps::{CapSet, CapsHashSet};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{getgroups, getpgrp, getresgid, getresuid, getsid};

use super::inherited::ignored_signals;

/// Number of resource limits (getrlimit(2)).
const LIMITS: u32 = 16;

/// The caller as the kernel sees it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Real, effective, saved and file system user.
    pub users: [u32; 4],
    /// Real, effective, saved and file system group.
    pub groups: [u32; 4],
    /// Supplementary groups.
    pub supplementary: Vec<u32>,
    /// Capabilities that a program of the caller's has, as sets of bits (capabilities(7)).
    pub capabilities: Capabilities,
    /// `PR_GET_SECUREBITS` of prctl(2).
    pub secure_bits: u32,
    /// `PR_GET_NO_NEW_PRIVS` of prctl(2).
    pub no_new_privileges: bool,
    /// `PR_GET_THP_DISABLE` of prctl(2): its memory is never made of huge pages.
    pub no_huge_pages: bool,
    /// Mask of file modes (umask(2)).
    pub umask: u32,
    /// Soft and hard limit of each resource, in the order of their numbers (getrlimit(2)).
    pub limits: Vec<(u64, u64)>,
    /// Nice value (getpriority(2)).
    pub nice: i32,
    /// Scheduling policy and its priority (sched(7)).
    pub scheduling: (u32, u32),
    /// Blocked signals, bit N-1 for signal N.
    pub mask: u64,
    /// Ignored signals, likewise; the C library's own two among them.
    pub ignored: u64,
    /// What is left of the interval timers, in microseconds: until the next signal, and between the
    /// ones after it (setitimer(2)); real, virtual and profiling time.
    pub timers: [(u64, u64); 3],
    /// Session and process group.
    pub session: u32,
    /// Process group.
    pub group: u32,
}

/// Sets of capabilities, bit N for capability N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Permitted and effective.
    pub permitted: u64,
    /// Inheritable.
    pub inheritable: u64,
    /// Ambient.
    pub ambient: u64,
}

impl Caller {
    /// Asks for everything; to be called before anything of it is changed. The timers are taken: they
    /// are the script's from now on.
    ///
    /// # Errors
    ///
    /// The kernel's reason.
    pub fn look() -> io::Result<Self> {
        let (users, groups) = (getresuid()?, getresgid()?);
        // SAFETY: no identity has the number -1, so nothing is changed (setfsuid(2)).
        let (fs_user, fs_group) = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
        let mask = umask(Mode::empty());
        umask(mask);
        Ok(Self {
            users: [
                users.real.as_raw(),
                users.effective.as_raw(),
                users.saved.as_raw(),
                fs_user.cast_unsigned(),
            ],
            groups: [
                groups.real.as_raw(),
                groups.effective.as_raw(),
                groups.saved.as_raw(),
                fs_group.cast_unsigned(),
            ],
            supplementary: getgroups()?.into_iter().map(nix::unistd::Gid::as_raw).collect(),
            capabilities: capabilities(users.effective.is_root())?,
            secure_bits: control(libc::PR_GET_SECUREBITS)?.cast_unsigned(),
            no_new_privileges: control(libc::PR_GET_NO_NEW_PRIVS)? != 0,
            no_huge_pages: control(libc::PR_GET_THP_DISABLE)? != 0,
            umask: mask.bits(),
            limits: (0..LIMITS).map(limit).collect::<io::Result<_>>()?,
            nice: nice()?,
            scheduling: scheduling()?,
            mask: blocked()?,
            ignored: ignored_signals() | ignored_by_the_library(),
            timers: [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF].map(take_timer),
            session: getsid(None)?.as_raw().cast_unsigned(),
            group: getpgrp().as_raw().cast_unsigned(),
        })
    }
}

/// What a program that this user starts has (capabilities(7), "Transformation of capabilities during
/// execve()"): not what our own file's capabilities have given to us.
fn capabilities(is_root: bool) -> io::Result<Capabilities> {
    let read = |set| caps::read(None, set).map(|set| bits(&set)).map_err(io::Error::other);
    let ambient = read(CapSet::Ambient)?;
    Ok(Capabilities {
        permitted: if is_root { read(CapSet::Permitted)? } else { ambient },
        inheritable: read(CapSet::Inheritable)?,
        ambient,
    })
}

/// Signals 32 and 33, of which the C library lets nobody speak (nptl(7)). A program that was started by
/// posix_spawn(3) can have them ignored.
fn ignored_by_the_library() -> u64 {
    (32..=33).filter(|signal| is_ignored(*signal)).fold(0, |set, signal| set | 1 << (signal - 1))
}

fn is_ignored(signal: i32) -> bool {
    // The kernel's structure: handler, flags, restorer, mask (rt_sigaction(2)).
    let mut action = [0_u64; 4];
    // SAFETY: with a null action the call only asks; `action` is writable.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            std::ptr::null::<u64>(),
            action.as_mut_ptr(),
            size_of::<u64>(),
        )
    };
    asked == 0 && action[0] == libc::SIG_IGN as u64
}

fn take_timer(which: i32) -> (u64, u64) {
    // SAFETY: an itimerval of zeros is a valid one, which stops the timer.
    let mut left: libc::itimerval = unsafe { std::mem::zeroed() };
    let none = left;
    // SAFETY: one is read and the other written.
    unsafe { libc::setitimer(which as _, &raw const none, &raw mut left) };
    let microseconds =
        |time: libc::timeval| (time.tv_sec * 1_000_000 + time.tv_usec).unsigned_abs();
    (microseconds(left.it_value), microseconds(left.it_interval))
}

/// Lifts the soft limit on descriptors as far as it goes: CRIU and what is said to it need some high
/// numbers. The script gets the caller's.
pub fn lift_descriptor_limit(caller: &Caller) {
    if let Some((_, hard)) = caller.limits.get(libc::RLIMIT_NOFILE as usize) {
        let limit = libc::rlimit { rlim_cur: *hard, rlim_max: *hard };
        // SAFETY: `limit` is readable. Where it is refused, less is to be had.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

fn bits(set: &CapsHashSet) -> u64 {
    set.iter().fold(0, |bits, capability| bits | 1 << capability.index())
}

fn control(option: i32) -> io::Result<i32> {
    // SAFETY: no option that is asked for takes an address.
    let value = unsafe { libc::prctl(option, 0, 0, 0, 0) };
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn limit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    let result = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if result == 0 { Ok((limit.rlim_cur, limit.rlim_max)) } else { Err(io::Error::last_os_error()) }
}

fn nice() -> io::Result<i32> {
    Errno::clear();
    // SAFETY: takes no address.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // -1 is a nice value too.
    match Errno::last_raw() {
        0 => Ok(nice),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

fn scheduling() -> io::Result<(u32, u32)> {
    let mut parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameter` is writable.
    let (policy, got) =
        unsafe { (libc::sched_getscheduler(0), libc::sched_getparam(0, &raw mut parameter)) };
    if policy < 0 || got < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((policy.cast_unsigned(), parameter.sched_priority.cast_unsigned()))
}

fn blocked() -> io::Result<u64> {
    let set = SigSet::thread_get_mask()?;
    let raw: &libc::sigset_t = set.as_ref();
    let is_in = |signal: &i32| {
        // SAFETY: the set is a valid one.
        unsafe { libc::sigismember(raw, *signal) == 1 }
    };
    Ok((1..=64).filter(is_in).fold(0, |bits, signal| bits | 1 << (signal - 1)))
}

/// The descriptors that a program inherits, in ascending order: those that an exec does not close.
///
/// # Errors
///
/// The kernel's reason; `/proc` is needed.
pub fn inherited_descriptors() -> io::Result<Vec<RawFd>> {
    let mut numbers: Vec<RawFd> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    numbers.retain(|number| {
        // SAFETY: the descriptor is only asked for its flags, and may be closed: the directory's own.
        let descriptor = unsafe { BorrowedFd::borrow_raw(*number) };
        fcntl(descriptor, FcntlArg::F_GETFD)
            .is_ok_and(|flags| !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC))
    });
    numbers.sort_unstable();
    Ok(numbers)
}

/// An inherited descriptor, to be handed on.
#[must_use]
pub fn borrow_inherited<'a>(number: RawFd) -> BorrowedFd<'a> {
    // SAFETY: what the caller has left open belongs to nobody here, so nobody closes it but
    // [`let_go`], after which there is nothing to hand on.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Closes what was inherited, once another process has it: a pipe that the other one closes must not
/// stay open here. The standard descriptors become `/dev/null`.
pub fn let_go(numbers: &[RawFd]) {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    for number in numbers {
        match &null {
            // SAFETY: numbers only; nobody owns what is replaced.
            Ok(null) if *number <= 2 => unsafe {
                libc::dup2(std::os::fd::AsRawFd::as_raw_fd(null), *number);
            },
            // SAFETY: nobody owns it.
            _ => unsafe {
                libc::close(*number);
            },
        }
    }
}

/// The working directory, for another process to go to; none where it cannot be opened.
#[must_use]
pub fn working_directory() -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(".", flags, Mode::empty()).ok()
}
