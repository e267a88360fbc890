//! A run by CRIU itself: the script is a child of ours, restored by `criu swrk`, and we stay with it.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::Pid;
use restore_plan::{PROTECT, SOURCE_FILE, SOURCE_IMAGE};

use super::orders::{Message, Orders, free_number};
use crate::criu::restore::{Content, Copied, FilesError, Part, Restore};
use crate::criu::{self, Criu, CriuError, Worker};
use crate::image::{Archive, Image, ImageError};
use crate::native::view::PlanView;
use crate::process::PAGE;
use crate::sys::Explain;
use crate::sys::caller::{
    Caller, inherited_descriptors, let_go, lift_descriptor_limit, working_directory,
};
use crate::sys::inherited::environment;
use crate::sys::keeper::{Isolation, Keeper, KeeperError};
use crate::sys::numbers::Numbers;
use crate::sys::spawn::end_child;
use crate::sys::supervise::{Held, end_alike, supervise};
use crate::sys::witness::Witness;

/// The descriptor that a frozen process waits at (`snapshot::target::ORDERS`).
const FROZEN_ORDERS: u32 = 202;
/// How often other numbers are tried where somebody else has taken ours.
const ATTEMPTS: usize = 5;
/// Where private directories on a tmpfs can be.
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
    /// The caller may not restore processes.
    #[error("a restore by CRIU needs root or CAP_CHECKPOINT_RESTORE")]
    NotAllowed,
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
            Self::System { .. } => {
                "look at the limits on processes (ulimit -u), descriptors and memory".into()
            }
            Self::NotAllowed => "run it as root or with CAP_CHECKPOINT_RESTORE, or leave \
                                 --engine criu out: the native engine needs neither"
                .into(),
            Self::Files(_) => {
                "see that /dev/shm has room; `preloaded-criu inspect --verify` checks the image"
                    .into()
            }
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
    let criu = criu::find(None)?;
    let archive = launch.image.criu_files()?;
    let mut attempt = 1;
    let (script, orders) = loop {
        match restore(launch, &criu, &archive, &caller, &inherited) {
            // Somebody has taken a number in the moment between.
            Err(error) if attempt < ATTEMPTS && is_race(&error) => attempt += 1,
            other => break other?,
        }
    };
    // Where the script has ended already, its status says more.
    let _ = orders.send();
    let_go(&inherited);
    let status = supervise(script, &mut witness, &held).map_err(system("wait for the script"))?;
    drop(witness);
    Ok(end_alike(status, held))
}

fn is_race(error: &ThroughCriuError) -> bool {
    let ThroughCriuError::Criu(CriuError::NotRestored(reason)) = error else { return false };
    ["File exists", "Can't fork for", "Pid "].iter().any(|part| reason.text.contains(part))
}

/// One attempt.
fn restore(
    launch: &Launch<'_>,
    criu: &Criu,
    archive: &Archive,
    caller: &Caller,
    inherited: &[i32],
) -> Result<(Pid, Orders), ThroughCriuError> {
    let view = launch.view;
    let eager = launch.options & restore_plan::OPTION_EAGER != 0;
    let directory = place().map_err(system("make a private directory in /dev/shm"))?;
    // Removes the directory also where we are killed.
    let keeper = Keeper::start(Isolation::Host, std::slice::from_ref(&directory))?;
    let mut numbers =
        Some(Numbers::take(view.threads().count()).map_err(system("start a process"))?);
    let taken: Vec<u32> = inherited
        .iter()
        .filter_map(|number| u32::try_from(*number).ok())
        .chain(view.descriptors().filter_map(|one| u32::try_from(one.number).ok()))
        .collect();
    let number = free_number(FROZEN_ORDERS, &taken);
    let (orders, theirs) = Orders::prepare(Message {
        arguments: &strings(&launch.arguments)?,
        environment: &environment(),
        layout: view.header().layout,
        ignored: caller.ignored,
        options: launch.options,
        number,
        descriptors: inherited.to_vec(),
        directory: working_directory(),
    })
    .map_err(system("prepare the script's orders"))?;
    let plan = Restore {
        archive,
        image: launch.image.file(),
        image_path: fs::canonicalize(launch.image.path())
            .map_err(system("find the image's place"))?,
        parts: parts(view, eager),
        copies: copies(launch.image, view, eager)?,
        advice: view
            .advices()
            .filter(|advice| advice.call != PROTECT)
            .map(|advice| (advice.start..advice.start + advice.length, advice.value))
            .collect(),
        yielding: view
            .signals()
            .filter(|signal| signal.yields != 0)
            .fold(0, |set, signal| set | 1 << (signal.number - 1)),
        caller,
        numbers: numbers.iter().flat_map(Numbers::iter).collect(),
        frozen_orders: FROZEN_ORDERS,
        orders: number,
    };
    plan.write(&directory)?;
    let folder = File::open(&directory).map_err(system("open CRIU's directory"))?;
    let image = launch.image.file().try_clone().map_err(system("open the image again"))?;
    let runtime = criu::runtime_directory(criu.version, Isolation::Host);
    let files: [OwnedFd; 3] = [folder.into(), theirs, image.into()];
    let (worker, running) = Worker::restorer(&criu.path, runtime.as_deref(), files)
        .map_err(|source| CriuError::Execute { path: criu.path.clone(), source })?;
    let answer = match worker.send(&plan.request()) {
        Ok(()) => worker.receive_noting(|step| {
            if step == "pre-restore" {
                numbers.take();
            }
        }),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(error),
    }
    .map_err(CriuError::Connection)?;
    drop(worker);
    let status = running.wait().ok();
    let restored = criu::restore::judge(answer, status, &directory);
    drop(keeper);
    if let (Err(_), Some(first)) = (&restored, plan.numbers.first()) {
        // Half a process, where CRIU has ended in the middle.
        end_child(Pid::from_raw(first.cast_signed()));
    }
    Ok((Pid::from_raw(restored?), orders))
}

/// A new directory for this user alone, in memory where there is one.
fn place() -> io::Result<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = own.into_iter().filter(|path| path.is_absolute());
    let mut last = io::Error::from(Errno::ENOENT);
    let fallback = std::env::temp_dir();
    for place in places.chain(PLACES.map(PathBuf::from)).chain([fallback]) {
        match tempfile::Builder::new().prefix("preloaded-criu-").tempdir_in(&place) {
            Ok(directory) => return Ok(directory.keep()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn parts(view: &PlanView<'_>, eager: bool) -> Vec<Part> {
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned();
    let mut parts: Vec<Part> = view
        .sources()
        .flat_map(|source| {
            view.mappings_of(&source).map(move |mapping| Part {
                range: mapping.start..mapping.start + mapping.length,
                content: match source.kind {
                    SOURCE_IMAGE if eager => Content::Anonymous(anonymous),
                    SOURCE_IMAGE => Content::Image(mapping.offset),
                    SOURCE_FILE => Content::File(mapping.offset),
                    _ => Content::Anonymous(mapping.flags),
                },
            })
        })
        .collect();
    parts.sort_unstable_by_key(|part| part.range.start);
    parts
}

/// What is copied in a native restore too, but for the signal frames, which CRIU makes itself; and
/// the vDSO, which CRIU compares with the kernel's.
fn copies(
    image: &Image,
    view: &PlanView<'_>,
    eager: bool,
) -> Result<Vec<Copied>, ThroughCriuError> {
    let whole = |number: u64| number.is_multiple_of(PAGE);
    let mut copies: Vec<Copied> = view
        .copies()
        .filter(|copy| whole(copy.address) && whole(copy.length))
        .map(|copy| Copied { range: copy.address..copy.address + copy.length, offset: copy.offset })
        .collect();
    let of_image = view.sources().filter(|source| eager && source.kind == SOURCE_IMAGE);
    copies.extend(of_image.flat_map(|source| view.mappings_of(&source)).map(|mapping| Copied {
        range: mapping.start..mapping.start + mapping.length,
        offset: mapping.offset,
    }));
    let specials: Vec<_> = view.specials().collect();
    for run in image.pages()? {
        let is_special = |special: &restore_plan::Special| {
            (special.start..special.start + special.length).contains(&run.address)
        };
        if specials.iter().any(is_special) {
            let range = run.address..run.address + run.length;
            copies.push(Copied { range, offset: run.offset });
        }
    }
    copies.sort_unstable_by_key(|copy| copy.range.start);
    Ok(copies)
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
