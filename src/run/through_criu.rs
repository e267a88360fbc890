//! A run by CRIU itself: the script is a child of ours, restored by `criu swrk`, and we stay with it.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::criu_terms::{memory, yielding};
use super::orders::{Message, Orders, free_number};
use crate::criu::restore::{FilesError, Restore};
use crate::criu::{self, Criu, CriuError, Worker};
use crate::image::{Archive, Image, ImageError};
use crate::native::view::PlanView;
use crate::sys::Explain;
use crate::sys::caller::{
    Caller, inherited_descriptors, let_go, lift_descriptor_limit, working_directory,
};
use crate::sys::inherited::environment;
use crate::sys::keeper::{Isolation, Keeper, KeeperError};
use crate::sys::numbers::Numbers;
use crate::sys::places::by_descriptor;
use crate::sys::private::{Private, SAFE_PLACE};
use crate::sys::spawn::Orphans;
use crate::sys::supervise::{Held, end_alike, hand_down, supervise};
use crate::sys::way::Blocked;
use crate::sys::witness::Witness;

/// The descriptor that a frozen process waits at (`snapshot::target::ORDERS`).
const FROZEN_ORDERS: u32 = 202;
/// How often other numbers are tried where somebody else has taken ours.
const ATTEMPTS: usize = 5;
/// What CRIU says of a number that it cannot have, for a process (criu/cr-restore.c, `fork_with_pid`)
/// and for a thread (criu/pie/restorer.c, `__export_restore_task`; its own number format).
const TAKEN: [&str; 4] =
    ["File exists", "do not match expected", "Unable to create a thread: -17", "Unable to clone"];
/// What CRIU says of a process that it traces and that somebody has stopped or continued meanwhile: the
/// signal went to the group, as Ctrl-Z and `fg` do (criu/cr-restore.c, `sigchld_process`); and all that it
/// says where it ends its processes before one of them has come to say why.
const DISTURBED: [&str; 3] =
    ["stopped by signal 5:", "stopped by signal 19:", "killed by signal 9:"];
/// Where private directories in memory can be.
const PLACES: [&str; 2] = ["/run", "/dev/shm"];

/// Why an image was not restored by CRIU.
#[derive(Debug, thiserror::Error)]
pub enum ThroughCriuError {
    /// The kernel refused something that a restore needs.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// CRIU's files have no place where only this user and root could change them.
    #[error("cannot make a private directory in /dev/shm")]
    NoPlace(#[source] Blocked),
    /// The caller may not restore processes.
    #[error("a restore by CRIU needs root or CAP_CHECKPOINT_RESTORE")]
    NotAllowed,
    /// A descriptor of the caller's has a number that the frozen process knows as its own.
    #[error("descriptor {number} is open, and the image has something open under that number")]
    Descriptor {
        /// Its number.
        number: u32,
    },
    /// Opening it would wait for whoever writes to it.
    #[error("the image had a file open where there is a pipe now: {}", path.display())]
    Pipe {
        /// Its path.
        path: PathBuf,
    },
    /// What CRIU is to read cannot be written.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// CRIU's part.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// The process that cleans up.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl Explain for ThroughCriuError {
    fn hint(&self) -> String {
        match self {
            Self::System { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "mount /proc: the state of this process is read there".into()
            }
            Self::System { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::ReadOnlyFilesystem
                        | io::ErrorKind::StorageFull
                        | io::ErrorKind::PermissionDenied
                ) =>
            {
                "see that /run, /dev/shm or TMPDIR can be written to and has room".into()
            }
            Self::System { .. } => {
                "look at the limits on processes (ulimit -u; of a container: --pids-limit; sysctl kernel.pid_max), \
                 descriptors and memory"
                    .into()
            }
            Self::NoPlace(Blocked::Io(_)) => {
                "see that /dev/shm is there and has room, or set TMPDIR to a directory that can be written to".into()
            }
            Self::NoPlace(_) => SAFE_PLACE.into(),
            Self::NotAllowed => "run it as root or with CAP_CHECKPOINT_RESTORE (in a container: \
                                 --cap-add CHECKPOINT_RESTORE), or leave --engine criu out: the \
                                 native engine needs neither"
                .into(),
            Self::Descriptor { number } => format!("close it: `{number}<&-` in a shell"),
            Self::Pipe { .. } => "put the file back, or make the image anew".into(),
            Self::Files(FilesError::Write { .. }) => {
                "see that there is room for its files and descriptors (ulimit -n, -f), in /run, /dev/shm or \
                 the directory that TMPDIR names"
                    .into()
            }
            Self::Files(_) => "make the image again with `preloaded-criu snapshot --force`".into(),
            Self::Criu(error) => error.hint(),
            Self::Keeper(error) => error.hint(),
            Self::Image(error) => error.hint(),
        }
    }
}

/// What is to be run.
pub(super) struct Launch<'a> {
    pub(super) image: &'a Image,
    pub(super) view: &'a PlanView<'a>,
    /// The program's name first.
    pub(super) arguments: Vec<OsString>,
    /// `OPTION_` bits of the plan crate.
    pub(super) options: u64,
}

/// Runs it to its end; returns the exit status, or does not return where a signal has ended it.
pub(super) fn run(launch: &Launch<'_>) -> Result<i32, ThroughCriuError> {
    if !crate::sys::capabilities::may_checkpoint() {
        return Err(ThroughCriuError::NotAllowed);
    }
    let inherited =
        inherited_descriptors().map_err(system("look at the descriptors of this process"))?;
    let caller = Caller::look().map_err(system("look at the state of this process"))?;
    lift_descriptor_limit(&caller);
    // Nothing that is opened from here on gets a standard number.
    crate::sys::fill_standard_descriptors();
    let held = Held::hold().map_err(system("hold signals back"))?;
    let mut witness = Witness::start().map_err(system("start a process"))?;
    let restored = bring_back(launch, &caller, &inherited, &held).or_else(|error| {
        // CRIU ends of such a signal too, and what is said of that does not matter.
        held.fatal().map(Restored::Ended).ok_or(error)
    })?;
    let status = match restored {
        Restored::Ended(signal) => ExitStatus::from_raw(signal),
        Restored::Script(script, orders) => {
            hand_down(script, &mut witness, &held);
            match orders.send() {
                // Where the script has ended already, its status says more.
                Err(error) if !is_end(&error) => {
                    end(script);
                    return Err(system("give the script its orders")(error));
                }
                _ => {}
            }
            let_go(&inherited);
            supervise(script, &mut witness, &held).map_err(system("wait for the script"))?
        }
    };
    drop(witness);
    Ok(end_alike(status, held))
}

/// Whether the other end of a connection is gone.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Ends a script that waits for its orders.
fn end(script: Pid) {
    // It may have ended by itself.
    let _ = kill(script, Signal::SIGKILL);
    let _ = waitpid(script, None);
}

/// Finds CRIU and has it restore the process.
fn bring_back(
    launch: &Launch<'_>,
    caller: &Caller,
    inherited: &[i32],
    signals: &Held,
) -> Result<Restored, ThroughCriuError> {
    let criu = criu::find(None)?;
    let archive = launch.image.criu_files()?;
    let mut attempt = 1;
    loop {
        match restore(launch, &criu, &archive, caller, inherited, signals) {
            // Somebody has taken a number in the moment between, or stopped the process.
            Err(error) if attempt < ATTEMPTS && is_race(&error) => attempt += 1,
            other => return other,
        }
    }
}

fn is_race(error: &ThroughCriuError) -> bool {
    let reason = match error {
        ThroughCriuError::Criu(CriuError::NotRestored(reason)) => reason,
        ThroughCriuError::Criu(CriuError::Connection(error)) => return is_silence(error),
        _ => return false,
    };
    // Its processes write the log together, so the error that matters need not be among the first.
    let is_one = |error: &String| TAKEN.iter().chain(&DISTURBED).any(|part| error.contains(part));
    is_one(&reason.text) || reason.errors.iter().any(is_one)
}

/// Whether CRIU waits for ever: for a process that it traces, and of which it has missed that it stopped,
/// because somebody has stopped it or let it go on meanwhile.
fn is_silence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut
}

/// What came of an attempt.
enum Restored {
    /// The script waits for its orders.
    Script(Pid, Orders),
    /// A signal came that would have ended an interpreter that was starting: there is no script.
    Ended(i32),
}

/// One attempt.
fn restore(
    launch: &Launch<'_>,
    criu: &Criu,
    archive: &Archive,
    caller: &Caller,
    inherited: &[i32],
    signals: &Held,
) -> Result<Restored, ThroughCriuError> {
    let view = launch.view;
    let is_pipe = |path: &&Path| fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
    if let Some(path) = view.descriptors().filter_map(|one| view.name(one.name)).find(is_pipe) {
        return Err(ThroughCriuError::Pipe { path: path.to_owned() });
    }
    let eager = launch.options & restore_plan::OPTION_EAGER != 0;
    let places = places();
    // Removes the directory also where we are killed, so it knows of it before it is there.
    let paths: Vec<PathBuf> = places.iter().map(Private::path).collect();
    let keeper = Keeper::start(Isolation::Host, &paths)?;
    let old = criu::restore::numbers(archive)?;
    let held = Numbers::take(old.len()).map_err(system("start a process"))?;
    let new: Vec<u32> = held.iter().collect();
    let mut held = Some(held);
    let frozen = criu::restore::descriptors(archive)?;
    let inherited_numbers = inherited.iter().filter_map(|number| u32::try_from(*number).ok());
    let mut taken: Vec<u32> = inherited_numbers.collect();
    let is_taken = |number: &&u32| **number != FROZEN_ORDERS && taken.contains(number);
    if let Some(number) = frozen.iter().find(is_taken) {
        return Err(ThroughCriuError::Descriptor { number: *number });
    }
    taken.extend(frozen.iter().filter(|number| **number != FROZEN_ORDERS));
    let number = free_number(FROZEN_ORDERS, &taken);
    let (orders, theirs) = Orders::prepare(Message {
        arguments: &strings(&launch.arguments)?,
        environment: &environment(),
        layout: view.header().layout,
        ignored: caller.ignored,
        options: launch.options,
        numbers: old.into_iter().zip(&new).map(|(old, new)| [old, *new]).collect(),
        number,
        descriptors: inherited.to_vec(),
        directory: working_directory(),
    })
    .map_err(system("prepare the script's orders"))?;
    let plan = Restore {
        archive,
        image: launch.image.file(),
        image_path: whereabouts(launch.image).map_err(system("find the image's place"))?,
        memory: memory(view, launch.image.pages()?, eager),
        yielding: yielding(view),
        caller,
        numbers: new,
        frozen_orders: FROZEN_ORDERS,
        orders: number,
    };
    let place = write(&plan, places)?;
    let directory = place.path();
    let folder = File::open(&directory).map_err(system("open CRIU's directory"))?;
    let image = launch.image.file().try_clone().map_err(system("open the image again"))?;
    let runtime = criu::runtime_directory(criu.version, Isolation::Host);
    let files: [OwnedFd; 3] = [folder.into(), theirs, image.into()];
    let orphans = Orphans::adopt(&plan.numbers).map_err(system("watch over CRIU's processes"))?;
    let (worker, running) = Worker::restorer(&criu.path, runtime.as_deref(), files)
        .map_err(|source| CriuError::Execute { path: criu.path.clone(), source })?;
    let ended = running.watch();
    let answer = match worker.send(&plan.request()) {
        Ok(()) => {
            let note = |step: &str| {
                if step == "pre-restore" {
                    held.take();
                }
            };
            let process = ended.as_ref().map(AsFd::as_fd);
            worker.receive_noting(process, note, &|| signals.has_been_stopped())
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(error),
    };
    drop(worker);
    // One that does not go on is ended.
    let status = if answer.as_ref().is_err_and(is_silence) {
        drop(running);
        None
    } else {
        running.wait().ok()
    };
    // What is sent to the group from here on, the script has itself; CRIU may have ended of it before.
    if let Some(signal) = signals.fatal() {
        held.take();
        orphans.end();
        return Ok(Restored::Ended(signal));
    }
    let restored = answer
        .map_err(CriuError::Connection)
        .and_then(|answer| criu::restore::judge(answer, status, &directory));
    drop(keeper);
    if restored.is_err() {
        held.take();
        // What CRIU was at when it ended: half a process, a probe of the kernel.
        orphans.end();
    }
    Ok(Restored::Script(Pid::from_raw(restored?), orders))
}

/// Writes CRIU's files to the first of these places that has room for them.
fn write(plan: &Restore<'_>, places: Vec<Private>) -> Result<Private, ThroughCriuError> {
    let mut failed = ThroughCriuError::NoPlace(Errno::ENOENT.into());
    for place in places {
        let written = place.make().map_err(ThroughCriuError::NoPlace).and_then(|directory| {
            plan.write(&directory)?;
            Ok(())
        });
        match written {
            Ok(()) => return Ok(place),
            // What was written there goes with it.
            Err(error @ ThroughCriuError::NoPlace(_)) => failed = error,
            Err(error) if is_full(&error) => failed = error,
            Err(error) => return Err(error),
        }
    }
    Err(failed)
}

fn is_full(error: &ThroughCriuError) -> bool {
    matches!(error, ThroughCriuError::Files(FilesError::Write { source, .. })
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// Where the image is, or was before somebody removed it or a directory above it: it is open.
fn whereabouts(image: &Image) -> io::Result<PathBuf> {
    fs::read_link(by_descriptor(image.file()))
}

/// Where a directory may be made, in memory first.
fn places() -> Vec<Private> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let own = own.into_iter().filter(|path| path.is_absolute());
    let in_memory =
        |place: &PathBuf| statfs(place).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC);
    let all = own.chain(PLACES.map(PathBuf::from)).filter(in_memory);
    all.chain([std::env::temp_dir()]).map(Private::new).collect()
}

fn strings(arguments: &[OsString]) -> Result<Vec<CString>, ThroughCriuError> {
    let strings = arguments.iter().map(|argument| CString::new(argument.clone().into_vec()));
    strings.collect::<Result<_, _>>().map_err(|_| ThroughCriuError::System {
        what: "hand the arguments on",
        source: Errno::EINVAL.into(),
    })
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ThroughCriuError {
    move |source| ThroughCriuError::System { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_to_be_written_wants_room() {
        let hint = |error: FilesError| ThroughCriuError::Files(error).hint();
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(hint(FilesError::Write { path: "x".into(), source: full }).contains("room"));
        for error in [FilesError::Missing("x".into()), FilesError::Threads(2)] {
            let hint = hint(error);
            assert!(hint.contains("snapshot --force") && !hint.contains("room"), "{hint}");
        }
    }
}
