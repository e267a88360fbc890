//! Which CRIU of this machine is used.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use rust_criu::rust_criu_protobuf::rpc::{Criu_req, Criu_req_type};

use super::cache::has_probed;
use super::error::{CriuError, Reason, is_want};
use super::guard::guard;
use super::swrk::Worker;
use super::version::Version;
use crate::sys::capabilities::{exceeds_its_caller, may_administer, may_checkpoint};
use crate::sys::keeper::{Isolation, Keeper};
use crate::sys::spawn::{Privileges, Spawn};

/// Where the private prefix of `scripts/install-criu` has its program.
pub const PREFIX_BINARY: &str = "criu/bin/criu";
/// The private prefix that root makes.
const ROOT_PREFIX: &str = "/usr/local/lib/preloaded-criu";
/// CRIU answers what it is at once; this is for a machine that is very busy.
const PATIENCE_MS: u16 = 20_000;

/// A CRIU that can be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Criu {
    /// Its file.
    pub path: PathBuf,
    /// What it says that it is.
    pub version: Version,
}

/// Finds the CRIU to use: the one that was asked for, the one that `PRELOADED_CRIU_CRIU` names, the
/// first in `PATH` (and the folders of the administrator's programs) that works here, the one in the
/// private prefix.
///
/// # Errors
///
/// [`CriuError::NotFound`] with what is wrong with each one that there is; for the first two, what is
/// wrong with that one.
pub fn find(explicit: Option<&Path>) -> Result<Criu, CriuError> {
    if exceeds_its_caller() {
        return find_trusted();
    }
    let named = env::var_os("PRELOADED_CRIU_CRIU").filter(|name| !name.is_empty());
    if let Some(path) = explicit.map(Path::to_owned).or_else(|| named.map(PathBuf::from)) {
        let path = std::path::absolute(&path).unwrap_or(path);
        let version = ask_version(&path)?;
        return if version < Version::FLOOR {
            Err(CriuError::TooOld { path, version })
        } else {
            Ok(Criu { path, version })
        };
    }
    let mut passed = String::new();
    for candidate in Candidate::all() {
        match candidate.assess() {
            Ok(criu) => return Ok(criu),
            Err(Unfit::Untried(error)) => return Err(error),
            Err(Unfit::Told(reason)) => {
                let _ = write!(passed, "; {}: {reason}", candidate.path.display());
            }
        }
    }
    let text = match passed.strip_prefix("; ") {
        Some(passed) => format!("each one is of no use here: {passed}"),
        None => "there is none in PATH and none in the private prefix".to_owned(),
    };
    Err(CriuError::NotFound(Reason { text, errors: Vec::new(), log: None }))
}

/// For a program with capabilities of its file: a CRIU in the administrator's folders that nobody else
/// could have written, whatever the caller names.
fn find_trusted() -> Result<Criu, CriuError> {
    let private = Path::new(ROOT_PREFIX).join(PREFIX_BINARY);
    let usual = ["/usr/local/sbin/criu", "/usr/sbin/criu", "/usr/bin/criu"].map(PathBuf::from);
    let candidates = usual.into_iter().map(|path| (path, true)).chain([(private, false)]);
    for (path, untried) in candidates.filter(|(path, _)| is_executable(path) && is_roots(path)) {
        if let Ok(criu) = (Candidate { path, untried }).assess() {
            return Ok(criu);
        }
    }
    let text =
        "none of the administrator's folders has one that works; what the caller names is not \
                executed with capabilities"
            .to_owned();
    Err(CriuError::NotFound(Reason { text, errors: Vec::new(), log: None }))
}

/// Whether only root can have written a file, and the folders that lead to it.
fn is_roots(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    path.ancestors().all(|step| {
        step.metadata().is_ok_and(|found| found.uid() == 0 && found.mode() & 0o022 == 0)
    })
}

/// Why a file is not the CRIU to use.
#[derive(Debug)]
enum Unfit {
    /// What is wrong with it, as one sentence.
    Told(String),
    /// This process cannot start any.
    Untried(CriuError),
}

/// A file that may be a CRIU to use.
struct Candidate {
    path: PathBuf,
    /// Whether it is the machine's own, and nobody has tried it here.
    untried: bool,
}

impl Candidate {
    /// All files there are, in the order of preference.
    fn all() -> Vec<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut candidates: Vec<Self> = Vec::new();
        let machine = env::split_paths(&path)
            // An ordinary user's PATH often lacks the folder that distributions put CRIU in.
            .chain(["/usr/local/sbin", "/usr/sbin"].map(PathBuf::from))
            .map(|folder| (folder.join("criu"), true));
        let private = prefixes().into_iter().map(|prefix| (prefix.join(PREFIX_BINARY), false));
        for (path, untried) in machine.chain(private) {
            let known = candidates.iter().any(|candidate| candidate.path == path);
            if path.is_absolute() && !known && is_executable(&path) {
                candidates.push(Self { path, untried });
            }
        }
        candidates
    }

    fn assess(&self) -> Result<Criu, Unfit> {
        let version = ask_version(&self.path).map_err(|error| match error {
            CriuError::Execute { ref source, .. } if is_want(source) => Unfit::Untried(error),
            error => Unfit::Told(sentence(&error)),
        })?;
        if version < Version::FLOOR {
            return Err(Unfit::Told(format!("version {version} is older than {}", Version::FLOOR)));
        }
        let isolation = if may_checkpoint() { Isolation::Host } else { Isolation::UserNamespace };
        // The check takes longer than a restore.
        if self.untried && !has_probed(version, isolation) {
            check(&self.path).map_err(Unfit::Told)?;
        }
        Ok(Criu { path: self.path.clone(), version })
    }
}

/// An error and its causes on one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// The folders that `scripts/install-criu` may have used.
fn prefixes() -> Vec<PathBuf> {
    let set =
        |name| env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    if let Some(prefix) = set("PRELOADED_CRIU_PREFIX") {
        return vec![prefix];
    }
    let mut prefixes = Vec::new();
    if !geteuid().is_root() {
        let data = set("XDG_DATA_HOME").filter(|path| path.is_absolute());
        let home = || set("HOME").map(|home| home.join(".local/share"));
        prefixes.extend(data.or_else(home).map(|data| data.join("preloaded-criu")));
    }
    prefixes.push(ROOT_PREFIX.into());
    prefixes
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn ask_version(path: &Path) -> Result<Version, CriuError> {
    let silent = |source| CriuError::Silent { path: path.to_owned(), source };
    let (worker, running) = Worker::start(path)
        .map_err(|source| CriuError::Execute { path: path.to_owned(), source })?;
    let mut request = Criu_req::new();
    request.set_type(Criu_req_type::VERSION);
    let answer = worker.send(&request).and_then(|()| worker.receive_within(PATIENCE_MS));
    match answer {
        Ok(Some(answer)) if answer.success() && answer.version.is_some() => {
            Ok(Version::from(answer.version.get_or_default()))
        }
        Ok(Some(_)) => Err(silent(io::Error::other("it does not tell its version"))),
        // It has ended, for want of a library perhaps: its status says more than a broken pipe.
        Ok(None) => Err(silent(running.wait().map_or_else(
            |error| error,
            |status| io::Error::other(format!("it ended at once ({status})")),
        ))),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(silent(running.wait().map_or_else(
                |e| e,
                |status| io::Error::other(format!("it ended at once ({status})")),
            )))
        }
        Err(error) => Err(silent(error)),
    }
}

/// Where CRIU looks for its helpers (ip, iptables).
pub(super) fn search_path() -> OsString {
    let own = env::var_os("PATH").filter(|_| !exceeds_its_caller());
    own.unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into())
}

/// Whether [`check`] tells the truth here. With CAP_CHECKPOINT_RESTORE alone, as in a container, CRIU
/// misses a sysctl that it can write to (`kernel/ns_last_pid`), and never uses it since Linux 5.5 (clone3).
#[must_use]
pub fn can_check() -> bool {
    may_administer() || !may_checkpoint()
}

/// Lets CRIU look at this kernel with the rights that a dump would have. Where these are not to be
/// had, it is not CRIU's fault, and the dump will say so.
///
/// # Errors
///
/// What CRIU has against the kernel, or why it could not be asked, as one sentence.
pub fn check(path: &Path) -> Result<(), String> {
    if !can_check() {
        return Ok(());
    }
    let isolation = if may_checkpoint() { Isolation::Host } else { Isolation::UserNamespace };
    let Ok(mut keeper) = Keeper::start(isolation, &[]) else { return Ok(()) };
    let (mut reader, writer) = io::pipe().map_err(|error| error.to_string())?;
    let arguments = ["criu", "--no-default-config", "check", "--unprivileged"];
    let mut spawn = Spawn {
        program: path.to_owned(),
        arguments: arguments.into_iter().map(Into::into).collect(),
        environment: vec![("PATH".into(), search_path())],
        descriptors: vec![1, 2],
        privileges: Privileges::Checkpoint,
    };
    let guard = guard(&mut spawn).map_err(|error| error.to_string())?;
    let started = keeper
        .spawn(&spawn, &[writer.as_fd(), writer.as_fd(), guard.as_fd()])
        .map_err(|error| sentence(&error))?;
    drop(writer);
    let mut output = Vec::new();
    reader.read_to_end(&mut output).map_err(|error| error.to_string())?;
    let status = keeper.wait(started.pid).map_err(|error| sentence(&error))?;
    if status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output);
    Err(format!("`criu check` fails on this machine ({})", first_error(&output)))
}

fn first_error(output: &str) -> String {
    let line = output.lines().find(|line| line.contains("Error")).or_else(|| output.lines().next());
    let line = line.unwrap_or("it does not say why");
    line.split_once("): ").map_or(line, |(_, message)| message).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::{Candidate, CriuError, ask_version, find, first_error};

    fn script(folder: &std::path::Path, text: &str) -> std::path::PathBuf {
        let path = folder.join("criu");
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        path
    }

    #[test]
    fn a_program_that_is_no_criu_is_told_from_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = script(folder.path(), "#!/bin/sh\nexit 3\n");
        let error = ask_version(&path).expect_err("it is no CRIU");
        let CriuError::Silent { source, .. } = error else { panic!("{error:?}") };
        assert!(source.to_string().contains("exit status: 3"), "{source}");
        let candidate = Candidate { path, untried: true };
        assert!(candidate.assess().is_err());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = find(Some("/nonexistent/criu".as_ref())).expect_err("there is none");
        assert!(matches!(error, CriuError::Execute { .. }), "{error:?}");
        assert!(error.to_string().contains("/nonexistent/criu"));
    }

    #[test]
    fn the_reason_of_a_failed_check_is_its_first_error() {
        let output = "Warn  (criu/x.c:1): hm\nError (criu/y.c:2): no such thing\nError (a): b\n";
        assert_eq!(first_error(output), "no such thing");
        assert_eq!(first_error(""), "it does not say why");
    }
}
