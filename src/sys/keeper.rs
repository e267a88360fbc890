//! A helper process that starts the programs of a snapshot, inside namespaces where that is asked
//! for, and leaves nothing of them when the snapshot ends, however it ends.
//!
//! The keeper holds one end of a socket pair and we the other. When ours goes (because the work is
//! done, because of an error, because we were killed), the keeper kills everything that it started
//! and everything that these have started, removes the directories and files that it was told, and ends.
//!
//! In namespaces of its own the keeper is two processes: the outer one watches and sweeps, the
//! inner one is the first process of the process namespace, so that killing it ends all others.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write, stdin};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    recvmsg, sendmsg, shutdown, socketpair,
};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, setsid};
use serde::{Deserialize, Serialize};

use super::namespaces::{self, Refused, Step};
use super::procfs::ProcessDirectory;
use super::spawn::{self, Spawn};
use super::{Explain, PROCESS_LIMITS, limits, null_device, own, private};

/// Where the programs are started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Isolation {
    /// In the namespaces that we are in.
    Host,
    /// In a user, mount and process namespace of their own; the mounts are the caller's but for
    /// `/proc`.
    UserNamespace,
}

/// What went wrong with the keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// It cannot be what it has to be.
    #[error("cannot {step}")]
    Refused {
        /// What was refused.
        step: Step,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// It cannot execute a program.
    #[error("cannot execute {}", program.display())]
    Execute {
        /// The program.
        program: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// It has ended, or does not make sense any more.
    #[error("the helper process that starts the programs is gone")]
    Gone(#[source] io::Error),
}

impl Explain for KeeperError {
    fn hint(&self) -> String {
        match self {
            // Before it makes a process, this one looks at its threads.
            Self::Refused { step: Step::Fork, source }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                "mount /proc (`mount -t proc proc /proc`, as root)".to_owned()
            }
            Self::Refused { step: Step::Fork | Step::Session, .. } => PROCESS_LIMITS.to_owned(),
            Self::Refused { .. } => "in a container, give it `--cap-add CHECKPOINT_RESTORE \
                 --security-opt seccomp=unconfined`; on a machine that does not let ordinary users \
                 make user namespaces, take the snapshot as root (sudo), or let an administrator \
                 allow them (`preloaded-criu doctor snapshot` says what restricts them)"
                .to_owned(),
            Self::Execute { source, .. } => {
                limits(source).unwrap_or("see that the file exists and can be executed").to_owned()
            }
            Self::Gone(_) => "it was killed from outside (out of memory?); try again".to_owned(),
        }
    }
}

/// What the keeper says.
#[derive(Debug, Deserialize, Serialize)]
enum Report {
    /// It is where it shall be.
    Ready,
    /// It cannot be there; the number is the kernel's.
    Refused(Step, i32),
    /// The program runs; the message carries its directory of `/proc`.
    Started(i32),
    /// The program cannot be executed; the number is the kernel's.
    NotStarted(i32),
    /// A program has ended; the second number is what wait(2) gives.
    Ended(i32, i32),
}

/// A program that the keeper has started.
#[derive(Debug)]
pub struct Started {
    /// Its number as the programs of the keeper see it, and as CRIU does.
    pub pid: i32,
    /// What `/proc` says of it; for where its number is another one.
    pub directory: ProcessDirectory,
}

/// A program of the keeper's that has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ended {
    /// Its number, as in [`Started::pid`].
    pub pid: i32,
    /// How it ended.
    pub status: ExitStatus,
}

/// The longest message; a spawn's description travels in a file.
const MESSAGE: usize = 256;
/// The most descriptors that one message carries.
const DESCRIPTORS: usize = 16;
/// Errors of the kernel that have no number here are "input/output error".
const UNKNOWN: i32 = Errno::EIO as i32;

/// The keeper as we see it. When this goes, so does everything that the keeper has started.
#[derive(Debug)]
pub struct Keeper {
    control: OwnedFd,
    process: Pid,
    ended: Vec<Ended>,
}

impl Keeper {
    /// Starts it. `sweep` are the private directories ([`private`]) and the files under such names to be
    /// removed at the end; they need not exist yet, and are left alone where they are somebody else's.
    ///
    /// # Errors
    ///
    /// [`KeeperError::Refused`] where namespaces are not to be had.
    pub fn start(isolation: Isolation, sweep: &[PathBuf]) -> Result<Self, KeeperError> {
        let refused = |source| KeeperError::Refused { step: Step::Fork, source };
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(|errno| refused(errno.into()))?;
        let Some(process) = spawn::fork().map_err(refused)? else {
            drop(ours);
            keep(theirs, isolation, sweep);
        };
        drop(theirs);
        let keeper = Self { control: ours, process, ended: Vec::new() };
        match keeper.receive()? {
            (Report::Ready, _) => Ok(keeper),
            (Report::Refused(step, number), _) => {
                Err(KeeperError::Refused { step, source: reason(step, number) })
            }
            (report, _) => Err(nonsense(&report)),
        }
    }

    /// Lets it start a program with these descriptors, which are numbered as `spawn` says.
    ///
    /// # Errors
    ///
    /// [`KeeperError::Execute`] where the program cannot be executed.
    pub fn spawn(
        &mut self,
        spawn: &Spawn,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Started, KeeperError> {
        self.order(spawn, descriptors).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => KeeperError::Gone(source),
            // It was not even asked.
            _ => KeeperError::Execute { program: spawn.program.clone(), source },
        })?;
        loop {
            match self.receive()? {
                (Report::Started(pid), Some(directory)) => {
                    return Ok(Started { pid, directory: ProcessDirectory::adopt(directory) });
                }
                (Report::NotStarted(number), _) => {
                    return Err(KeeperError::Execute {
                        program: spawn.program.clone(),
                        source: io::Error::from_raw_os_error(number),
                    });
                }
                (Report::Ended(pid, status), _) => self.note(pid, status),
                (report, _) => return Err(nonsense(&report)),
            }
        }
    }

    /// The next program that has ended; waits for one.
    ///
    /// # Errors
    ///
    /// [`KeeperError::Gone`].
    pub fn next_ended(&mut self) -> Result<Ended, KeeperError> {
        if !self.ended.is_empty() {
            return Ok(self.ended.remove(0));
        }
        match self.receive()? {
            (Report::Ended(pid, status), _) => {
                Ok(Ended { pid, status: ExitStatus::from_raw(status) })
            }
            (report, _) => Err(nonsense(&report)),
        }
    }

    /// How a program ended; waits for it.
    ///
    /// # Errors
    ///
    /// [`KeeperError::Gone`].
    pub fn wait(&mut self, pid: i32) -> Result<ExitStatus, KeeperError> {
        loop {
            if let Some(place) = self.ended.iter().position(|ended| ended.pid == pid) {
                return Ok(self.ended.remove(place).status);
            }
            match self.receive()? {
                (Report::Ended(pid, status), _) => self.note(pid, status),
                (report, _) => return Err(nonsense(&report)),
            }
        }
    }

    /// Keeps an end that was taken by [`Keeper::next_ended`] for a later [`Keeper::wait`].
    pub fn remember(&mut self, pid: i32, status: ExitStatus) {
        self.ended.push(Ended { pid, status });
    }

    fn note(&mut self, pid: i32, status: i32) {
        self.ended.push(Ended { pid, status: ExitStatus::from_raw(status) });
    }

    fn order(&self, spawn: &Spawn, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let flags = MFdFlags::MFD_CLOEXEC;
        let mut file = std::fs::File::from(memfd_create("order", flags)?);
        file.write_all(&serde_json::to_vec(spawn)?)?;
        let mut numbers = vec![file.as_raw_fd()];
        numbers.extend(descriptors.iter().map(AsRawFd::as_raw_fd));
        send(self.control.as_fd(), b"spawn", &numbers)
    }

    fn receive(&self) -> Result<(Report, Option<OwnedFd>), KeeperError> {
        let (message, mut descriptors) =
            receive(self.control.as_fd()).map_err(KeeperError::Gone)?;
        let report = serde_json::from_slice(&message)
            .map_err(|error| KeeperError::Gone(io::Error::other(error)))?;
        Ok((report, descriptors.pop()))
    }
}

impl AsFd for Keeper {
    /// Readable when a program has ended, or the keeper itself has.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The end of our end tells the keeper to sweep; its own end tells us that it has.
        let _ = shutdown(self.control.as_raw_fd(), Shutdown::Both);
        let _ = spawn::reap(self.process);
    }
}

/// The kernel's reason, in the words of the case (unshare(2)).
fn reason(step: Step, number: i32) -> io::Error {
    if step == Step::Unshare && number == Errno::ENOSPC as i32 {
        return io::Error::other(
            "the limit on user namespaces (user.max_user_namespaces) is reached",
        );
    }
    io::Error::from_raw_os_error(number)
}

fn nonsense(report: &Report) -> KeeperError {
    KeeperError::Gone(io::Error::other(format!("it said {report:?} when it was not asked")))
}

fn send(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(message)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(()),
        }
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; MESSAGE];
    let mut rights = cmsg_space!([RawFd; DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(&mut message)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let (length, descriptors) = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut rights), flags) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(received) => {
                let mut descriptors = Vec::new();
                for control in received.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(numbers) = control {
                        descriptors.extend(numbers.into_iter().map(own));
                    }
                }
                break (received.bytes, descriptors);
            }
        }
    };
    if length == 0 {
        return Err(Errno::ECONNRESET.into());
    }
    message.truncate(length);
    Ok((message, descriptors))
}

/// The life of the keeper, in the process that has just been forked.
fn keep(control: OwnedFd, isolation: Isolation, sweep: &[PathBuf]) -> ! {
    // Without a way to speak there is nobody to be told why.
    if let Ok(control) = settle(control) {
        match isolation {
            Isolation::Host => {
                if or_tell(&control, reap_orphans()).is_some() {
                    serve(&control);
                }
                end_all();
            }
            Isolation::UserNamespace => watch(&control),
        }
        for path in sweep {
            // Most of them were never made.
            private::remove(path);
        }
    }
    spawn::leave()
}

/// Lets go of everything that belongs to the snapshot: its descriptors, its signals, its terminal.
fn settle(control: OwnedFd) -> io::Result<OwnedFd> {
    let moved = own(fcntl(&control, FcntlArg::F_DUPFD_CLOEXEC(3))?);
    drop(control);
    spawn::close_all_but(moved.as_raw_fd())?;
    let null = null_device()?;
    // The first free number is 0, so `null` is standard input already.
    let _ = null.into_raw_fd();
    dup2_stdout(stdin())?;
    dup2_stderr(stdin())?;
    spawn::default_signals()?;
    SigSet::all().thread_block()?;
    setsid()?;
    Ok(moved)
}

/// Makes this process the parent of every descendant whose own parent ends.
fn reap_orphans() -> Result<(), Refused> {
    prctl::set_child_subreaper(true).map_err(|errno| (Step::Session, errno.into()))
}

fn or_tell<T>(control: &OwnedFd, result: Result<T, Refused>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err((step, error)) => {
            tell(control, &Report::Refused(step, error.raw_os_error().unwrap_or(UNKNOWN)), &[]);
            None
        }
    }
}

fn tell(control: &OwnedFd, report: &Report, descriptors: &[RawFd]) {
    if let Ok(message) = serde_json::to_vec(report) {
        // That nobody listens any more is noticed where the keeper waits.
        let _ = send(control.as_fd(), &message, descriptors);
    }
}

/// The outer half of a keeper in namespaces: makes them, and ends the inner half.
fn watch(control: &OwnedFd) {
    let Ok(signals) = child_signals() else { return };
    let Some(()) = or_tell(control, namespaces::enter()) else { return };
    let forked = spawn::fork().map_err(|error| (Step::Fork, error));
    let Some(forked) = or_tell(control, forked) else { return };
    let Some(inner) = forked else {
        if or_tell(control, begin_inside()).is_some() {
            serve(control);
        }
        spawn::leave();
    };
    // Either the snapshot has ended or the inner half has.
    let _ = wait_for(control, PollFlags::empty(), &signals);
    let _ = kill(inner, Signal::SIGKILL);
    let _ = spawn::reap(inner);
}

fn begin_inside() -> Result<(), Refused> {
    let session = |errno: Errno| (Step::Session, errno.into());
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(session)?;
    setsid().map_err(session)?;
    namespaces::mount_proc()
}

/// Starts what is asked for and reports what ends, until nobody asks any more.
fn serve(control: &OwnedFd) {
    let Ok(signals) = child_signals() else { return };
    let mut programs = Vec::new();
    tell(control, &Report::Ready, &[]);
    while let Ok(ready) = wait_for(control, PollFlags::POLLIN, &signals) {
        if ready.child {
            while matches!(signals.read_signal(), Ok(Some(_))) {}
            report_ended(control, &mut programs);
        }
        if ready.control {
            let Ok((_, descriptors)) = receive(control.as_fd()) else { return };
            carry_out(control, descriptors, &mut programs);
        }
    }
}

fn report_ended(control: &OwnedFd, programs: &mut Vec<Pid>) {
    while let Ok(Some((pid, status))) = spawn::reap_any() {
        // Others are orphans of those programs.
        if let Some(place) = programs.iter().position(|known| *known == pid) {
            programs.swap_remove(place);
            tell(control, &Report::Ended(pid.as_raw(), status.into_raw()), &[]);
        }
    }
}

fn carry_out(control: &OwnedFd, mut descriptors: Vec<OwnedFd>, programs: &mut Vec<Pid>) {
    if descriptors.is_empty() {
        return;
    }
    let given = descriptors.split_off(1);
    let started = read_order(descriptors).and_then(|order| {
        let pid = order.start(given)?;
        programs.push(pid);
        Ok((pid, ProcessDirectory::open(pid)?))
    });
    match started {
        Ok((pid, directory)) => {
            let directory = directory.into_descriptor();
            tell(control, &Report::Started(pid.as_raw()), &[directory.as_raw_fd()]);
        }
        Err(error) => {
            tell(control, &Report::NotStarted(error.raw_os_error().unwrap_or(UNKNOWN)), &[]);
        }
    }
}

fn read_order(descriptors: Vec<OwnedFd>) -> io::Result<Spawn> {
    let order = descriptors.into_iter().next().ok_or(Errno::EBADF)?;
    let mut file = std::fs::File::from(order);
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn child_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// What a wait has brought.
struct Ready {
    /// The snapshot asks for something.
    control: bool,
    /// A child has changed its state.
    child: bool,
}

/// Waits for either; an error where the snapshot has gone.
fn wait_for(control: &OwnedFd, events: PollFlags, signals: &SignalFd) -> nix::Result<Ready> {
    loop {
        let mut polled =
            [PollFd::new(control.as_fd(), events), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(_) => {}
        }
        let [control, child] = polled.map(|polled| polled.revents().unwrap_or(PollFlags::empty()));
        if control.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            return Err(Errno::ECONNRESET);
        }
        return Ok(Ready { control: !control.is_empty(), child: !child.is_empty() });
    }
}

/// Kills every descendant. Those whose parent goes first become our children.
fn end_all() {
    loop {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // It may have ended since.
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        if spawn::reap(Pid::from_raw(-1)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::os::fd::AsFd;
    use std::path::PathBuf;
    use std::process::Output;
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use tempfile::TempDir;

    use super::{Isolation, Keeper, KeeperError};
    use crate::sys::spawn::{self, ALONE, Privileges, Spawn};

    /// Runs a test again, alone in its process and with a directory that [`directory`] names; `None`
    /// where this is that process.
    fn alone(test: &str) -> Option<(Output, TempDir)> {
        let directory = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(directory.path().join(SWEPT)).expect("a folder");
        let name = format!("sys::keeper::tests::{test}");
        Some((spawn::alone(&name, directory.path().as_os_str())?, directory))
    }

    /// A folder in that directory, which the keeper is to remove.
    const SWEPT: &str = "swept/deep";

    fn directory() -> PathBuf {
        std::env::var_os(ALONE).map(PathBuf::from).expect("set by `alone`")
    }

    fn shell(script: &str) -> Spawn {
        Spawn {
            program: "/bin/sh".into(),
            arguments: ["sh", "-c", script].map(Into::into).to_vec(),
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            descriptors: vec![1],
            privileges: Privileges::Ordinary,
        }
    }

    fn passed(output: &Output) {
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{errors}");
    }

    fn gone(pid: i32) -> bool {
        // One that has ended and that its parent has not asked after is gone, too.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.is_empty() || status.contains("State:\tZ")
    }

    fn soon(condition: impl Fn() -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        while !condition() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// A program with a child that has left its session and an orphan; their numbers, as the program
    /// prints them.
    fn start_family(keeper: &mut Keeper) -> Vec<i32> {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let script = "sleep 600 & echo $!; (setsid sleep 600 & echo $!); echo $$; exec >&-; wait";
        keeper.spawn(&shell(script), &[writer.as_fd()]).expect("a shell");
        drop(writer);
        let mut text = String::new();
        let mut chunk = [0; 64];
        while text.lines().count() < 3 {
            let count = reader.read(&mut chunk).expect("it prints");
            text.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        text.lines().map(|line| line.parse().expect("a number")).collect()
    }

    #[test]
    fn programs_are_started_and_their_ends_reported() {
        if let Some((output, _)) = alone("programs_are_started_and_their_ends_reported") {
            return passed(&output);
        }
        let mut keeper = Keeper::start(Isolation::Host, &[]).expect("a keeper");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let script = "echo hello; exit 3";
        let started = keeper.spawn(&shell(script), &[writer.as_fd()]).expect("a shell");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("it prints");
        assert_eq!(text, "hello\n");
        let status = keeper.wait(started.pid).expect("it ends");
        assert_eq!(status.code(), Some(3));
        let mut missing = shell("");
        missing.program = "/no/such/program".into();
        missing.descriptors.clear();
        let error = keeper.spawn(&missing, &[]).expect_err("there is none");
        assert!(matches!(error, KeeperError::Execute { .. }), "{error:?}");
    }

    #[test]
    fn nothing_outlives_the_keeper() {
        if let Some((output, _)) = alone("nothing_outlives_the_keeper") {
            return passed(&output);
        }
        let swept = directory().join(SWEPT);
        let mut keeper =
            Keeper::start(Isolation::Host, std::slice::from_ref(&swept)).expect("a keeper");
        let family = start_family(&mut keeper);
        assert!(family.iter().all(|pid| !gone(*pid)));
        drop(keeper);
        assert!(family.iter().all(|pid| gone(*pid)));
        assert!(!swept.exists());
    }

    #[test]
    fn nothing_outlives_a_snapshot_that_is_killed() {
        if let Some((output, directory)) = alone("nothing_outlives_a_snapshot_that_is_killed") {
            let swept = directory.path().join(SWEPT);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let family: Vec<i32> = text
                .lines()
                .filter_map(|line| line.split_once("family ")?.1.parse().ok())
                .collect();
            assert_eq!(family.len(), 3, "{text}");
            assert!(soon(|| family.iter().all(|pid| gone(*pid)) && !swept.exists()));
            return;
        }
        let swept = directory().join(SWEPT);
        let mut keeper = Keeper::start(Isolation::Host, &[swept]).expect("a keeper");
        for pid in start_family(&mut keeper) {
            println!("family {pid}");
        }
        kill(Pid::this(), Signal::SIGKILL).expect("the end");
    }

    #[test]
    fn in_namespaces_the_programs_are_alone() {
        if let Some((output, _)) = alone("in_namespaces_the_programs_are_alone") {
            return passed(&output);
        }
        let mut keeper = match Keeper::start(Isolation::UserNamespace, &[]) {
            Err(KeeperError::Refused { .. }) => return,
            other => other.expect("a keeper"),
        };
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let script = "echo $$; ls -d /proc/[0-9]* | wc -l; id -u";
        let started = keeper.spawn(&shell(script), &[writer.as_fd()]).expect("a shell");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("it prints");
        let user = nix::unistd::getuid();
        assert_eq!(started.pid, 2);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[2]), ("2", user.to_string().as_str()), "{text}");
        // The keeper, the shell, and at most one for each part of its pipe.
        assert!(lines[1].parse::<u32>().is_ok_and(|count| count <= 4), "{text}");
        let status = keeper.wait(started.pid).expect("it ends");
        assert!(status.success());
    }
}
