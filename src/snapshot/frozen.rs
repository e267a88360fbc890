//! A snapshot from the recipe to CRIU's files.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::error::SnapshotError;
use super::memory;
use super::progress::{Event, Progress};
use super::python::Interpreter;
use super::recipe::{Engines, Options, Recipe};
use super::refusal;
use super::scratch::Scratch;
use super::secrets::is_secret;
use super::target::{ORDERS, Target};
use crate::agent::{self, Job, Ready};
use crate::cpython::{CommandLine, Settings};
use crate::criu::{self, Criu, CriuError, Dump, Worker};
use crate::sys::interrupts::Interrupts;
use crate::sys::keeper::{Isolation, Keeper};
use crate::sys::procfs::ProcessDirectory;
use crate::sys::spawn::{Privileges, Spawn, expect_children};

/// The resident, to be preloaded into python (crate `resident`).
static RESIDENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libresident.so"));

/// A python that CRIU has frozen, as files. When this goes, so do they.
#[derive(Debug)]
pub struct Frozen {
    /// CRIU's files.
    pub directory: PathBuf,
    /// The process, by its number in those files.
    pub pid: i32,
    /// The descriptor that it waits at.
    pub orders: i32,
    /// What the agent has told.
    pub ready: Box<Ready>,
    /// The modules that were imported by name, with the seconds that each took.
    pub imported: Vec<(String, f64)>,
    /// `/proc/PID/smaps` when it was about to be frozen.
    pub smaps: String,
    /// The same of the processes that it has started, by their numbers in CRIU's files.
    pub others: Vec<(u32, String)>,
    /// Numbers of the pipes by which it spoke to us: processes that it has started may have them.
    pub pipes: Vec<u32>,
    /// `/proc/PID/auxv`, likewise.
    pub auxv: Vec<u8>,
    /// Its vDSO, whole pages; empty where it had none.
    pub vdso: Vec<u8>,
    /// The resident's file, which it has mapped.
    pub resident: PathBuf,
    /// The content of that file.
    pub resident_bytes: &'static [u8],
    /// The interpreter.
    pub interpreter: Interpreter,
    /// What python was started as, its name first.
    pub arguments: Vec<OsString>,
    /// The environment that python was started with, without what was added for us.
    pub environment: Vec<(OsString, OsString)>,
    /// Names of the caller's variables that were kept from it, because they look like secrets.
    pub withheld: Vec<String>,
    /// What of that cannot be changed any more.
    pub settings: Settings,
    /// The CRIU that has frozen it.
    pub criu: Criu,
    /// Where.
    pub isolation: Isolation,
    /// Which engines are to restore it.
    pub engines: Engines,
    // In the order in which they have to go: the keeper sweeps, then what it left is removed, then
    // a signal that was held back may end us.
    _keeper: Keeper,
    _scratch: Scratch,
    interrupts: Interrupts,
}

impl Frozen {
    /// Whether someone has asked to stop; to be asked now and then during long work.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Interrupted`].
    pub fn interrupted(&self) -> Result<(), SnapshotError> {
        self.interrupts.take().map_or(Ok(()), |signal| Err(SnapshotError::Interrupted(signal)))
    }
}

/// Starts the python of the recipe, follows it to the sync point, and has CRIU freeze it.
///
/// # Errors
///
/// Everything that [`SnapshotError`] names. Nothing is left behind: no process, no mount, no file but
/// CRIU's log where CRIU has failed.
pub fn take(
    recipe: &Recipe,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Frozen, SnapshotError> {
    expect_children()
        .map_err(|source| SnapshotError::System { what: "wait for programs", source })?;
    let interpreter = Interpreter::find(recipe.python.as_deref())?;
    let criu = criu::find(options.criu.as_deref())?;
    let isolation = options.isolation.resolve();
    let interrupts = Interrupts::hold()
        .map_err(|source| SnapshotError::System { what: "watch for signals", source })?;
    let scratch = Scratch::new(options.output.as_deref());
    let mut sweep = scratch.directories();
    sweep.extend(options.temporary.clone());
    let mut keeper = Keeper::start(isolation, &sweep)?;
    let resident = scratch.resident(RESIDENT)?;

    let warm_up = recipe.warm_up.as_deref().map(|code| scratch.script(code)).transpose()?;

    let arguments: Vec<OsString> = std::iter::once(interpreter.path.clone().into_os_string())
        .chain(recipe.flags.iter().cloned())
        .collect();
    let (environment, withheld) = environment(recipe);
    let settings = settings(&recipe.flags, &environment);
    let preload = value(&environment, "LD_PRELOAD");
    let job = Job {
        agent: agent::SOURCE.to_owned(),
        imports: recipe.imports.clone(),
        exec: warm_up.iter().chain(&recipe.exec).map(|path| text(path.as_os_str())).collect(),
        argv0: text(interpreter.path.as_os_str()),
        preload: preload.map(text),
        lenient: options.engines == Engines::Criu,
    };
    let spawn = Spawn {
        program: interpreter.path.clone(),
        arguments: arguments.clone(),
        environment: with_resident(&environment, &resident),
        descriptors: Vec::new(),
        privileges: match isolation {
            Isolation::Host => Privileges::Traceable,
            Isolation::UserNamespace => Privileges::Ordinary,
        },
    };
    if !withheld.is_empty() {
        progress.event(Event::Withheld { variables: &withheld });
    }
    let mut target = Target::start(&mut keeper, &interrupts, progress, spawn, &job)?;
    let ready = target.follow().map_err(|error| error.without(&withheld))?;
    let seen = Seen::look(target.directory())?;
    let refusals = refusal::find(target.directory(), &seen.smaps, target.owners(), options.engines)
        .map_err(|source| SnapshotError::System { what: "look at python's descriptors", source })?;
    if !refusals.is_empty() {
        return Err(SnapshotError::Refused(refusals));
    }
    let smaps = seen.others.iter().map(|(_, smaps)| smaps).chain([&seen.smaps]);
    let bytes = smaps.map(|smaps| memory::to_be_dumped(smaps)).sum();
    let directory = scratch.dump(bytes)?;
    target.tell(Event::Dumping { bytes });
    let began = Instant::now();
    dump(&mut target, &criu, isolation, &directory)?;
    let seconds = began.elapsed().as_secs_f64();
    target.tell(Event::Dumped { bytes: size(&directory), seconds });
    let (pid, imported, pipes) = (target.pid(), target.imported(), target.pipes());
    drop(target);
    let Seen { smaps, others, auxv, vdso } = seen;
    Ok(Frozen {
        directory,
        pid,
        orders: ORDERS,
        ready,
        imported,
        smaps,
        others,
        pipes,
        auxv,
        vdso,
        resident,
        resident_bytes: RESIDENT,
        interpreter,
        arguments,
        environment,
        withheld,
        settings,
        criu,
        isolation,
        engines: options.engines,
        _keeper: keeper,
        _scratch: scratch,
        interrupts,
    })
}

/// What of a process is not in CRIU's files.
struct Seen {
    smaps: String,
    others: Vec<(u32, String)>,
    auxv: Vec<u8>,
    vdso: Vec<u8>,
}

impl Seen {
    fn look(process: &ProcessDirectory) -> Result<Self, SnapshotError> {
        let read = || -> io::Result<Self> {
            let smaps = process.text("smaps")?;
            let vdso = match vdso_range(&smaps) {
                Some((start, end)) => {
                    process.memory(start, usize::try_from(end - start).unwrap_or(0))?
                }
                None => Vec::new(),
            };
            let mut others = Vec::new();
            for (pid, other) in process.descendants()? {
                // It may have ended since.
                others.extend(other.text("smaps").ok().map(|smaps| (pid, smaps)));
            }
            Ok(Self { auxv: process.read("auxv")?, others, smaps, vdso })
        };
        read().map_err(|source| SnapshotError::System { what: "read python's memory map", source })
    }
}

fn vdso_range(smaps: &str) -> Option<(u64, u64)> {
    let line = smaps.lines().find(|line| line.ends_with(" [vdso]"))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (start < end).then_some((start, end))
}

fn dump(
    target: &mut Target<'_>,
    criu: &Criu,
    isolation: Isolation,
    directory: &Path,
) -> Result<(), SnapshotError> {
    let dump = Dump { pid: target.pid(), directory };
    let (worker, theirs) = Worker::connect().map_err(CriuError::Connection)?;
    let runtime = criu::runtime_directory(criu.version, isolation);
    let (program, guard) = Worker::program(&criu.path, runtime.as_deref())
        .map_err(|source| CriuError::Execute { path: criu.path.clone(), source })?;
    let files = fs::File::open(directory).map_err(CriuError::Connection)?;
    let descriptors = [theirs.as_fd(), files.as_fd(), guard.as_fd()];
    let started = target.keeper().spawn(&program, &descriptors)?;
    drop(theirs);
    let answer = match worker.send(&dump.request()) {
        Ok(()) => {
            let answered = target.wait_for(worker.as_fd(), started.pid)?;
            if answered { worker.receive() } else { Ok(None) }
        }
        // It has ended already: its status says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(error),
    };
    let answer = answer.map_err(CriuError::Connection)?;
    let status = match answer {
        Some(_) => None,
        None => Some(target.keeper().wait(started.pid)?),
    };
    Ok(dump.judge(answer, status)?)
}

/// The caller's environment with the recipe's variables, without what looks like a secret of the
/// caller's; and the names of that. All of it would be in the image: in the stack of the process, where
/// the kernel puts it, and in `os.environ`.
fn environment(recipe: &Recipe) -> (Vec<(OsString, OsString)>, Vec<String>) {
    let set = |name: &OsStr| recipe.environment.iter().any(|(other, _)| other == name);
    let callers = std::env::vars_os().filter(|(name, _)| !set(name));
    let (secret, mut environment): (Vec<_>, Vec<_>) =
        callers.partition(|(name, value)| is_secret(name.as_bytes(), value.as_bytes()));
    environment.extend(recipe.environment.iter().cloned());
    (environment, secret.iter().map(|(name, _)| text(name)).collect())
}

/// What the interpreter of a recipe is started with here that cannot be changed afterwards.
#[must_use]
pub fn settings_of(recipe: &Recipe) -> Settings {
    settings(&recipe.flags, &environment(recipe).0)
}

/// What the interpreter is started with that cannot be changed afterwards.
fn settings(flags: &[OsString], environment: &[(OsString, OsString)]) -> Settings {
    let variables = environment.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    Settings::new(&CommandLine::parse(flags), variables).with_encoding()
}

/// The environment that makes python load the resident: it takes these two out again before
/// anything of python runs.
fn with_resident(
    environment: &[(OsString, OsString)],
    resident: &Path,
) -> Vec<(OsString, OsString)> {
    let mut preload = OsString::from(resident);
    if let Some(users) = value(environment, "LD_PRELOAD").filter(|users| !users.is_empty()) {
        preload.push(":");
        preload.push(users);
    }
    let channels = super::target::DESCRIPTORS.map(|number| number.to_string()).join(",");
    let mut changed: Vec<_> =
        environment.iter().filter(|(name, _)| name != "LD_PRELOAD").cloned().collect();
    changed.push(("LD_PRELOAD".into(), preload));
    changed.push(("PRELOADED_CRIU_FREEZE".into(), channels.into()));
    changed
}

fn value<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsStr> {
    environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_os_str())
}

fn text(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

fn size(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{vdso_range, with_resident};

    #[test]
    fn the_resident_goes_before_what_the_user_preloads() {
        let found = |environment: &[(&str, &str)]| {
            let environment: Vec<_> =
                environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
            let changed = with_resident(&environment, Path::new("/t/resident.so"));
            super::value(&changed, "LD_PRELOAD").map(super::text)
        };
        assert_eq!(found(&[("A", "1")]).as_deref(), Some("/t/resident.so"));
        assert_eq!(
            found(&[("LD_PRELOAD", "libx.so liby.so")]).as_deref(),
            Some("/t/resident.so:libx.so liby.so")
        );
    }

    #[test]
    fn the_vdso_is_found_in_the_map() {
        let smaps = "7ffd1000-7ffd3000 r-xp 00000000 00:00 0                          [vdso]\n";
        assert_eq!(vdso_range(smaps), Some((0x7ffd_1000, 0x7ffd_3000)));
        assert_eq!(vdso_range("x-y r-xp [vdso]\n"), None);
        assert_eq!(vdso_range(""), None);
    }
}
