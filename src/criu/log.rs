//! CRIU's log: what it says about a failure.
//!
//! A line is `(00.012345) 123: Error (criu/cr-dump.c:1234): what happened`; the number of a process
//! stands there where it is not CRIU's main one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::places::{by_descriptor, make_directory, reason};

/// The name of the log in the directory of the image.
pub(super) const LOG: &str = "criu.log";

/// Errors that CRIU logs as such and goes on: it could not raise its own limit of open files, look
/// at the network or keep its cache.
const HARMLESS: [&str; 6] = [
    "rlimit:",
    "RLIMIT_NOFILE",
    "Can't set net",
    "iptables",
    "kdat cache",
    "Unable to get socket network namespace",
];
/// The last words of any failure, which say nothing.
const FINAL: [&str; 4] =
    ["Dumping FAILED", "Restoring FAILED", "Can't read request", "Unable to detach from"];

/// The errors of a log, in their order, each one once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Log {
    /// What happened, without time, place and number.
    pub errors: Vec<String>,
}

impl Log {
    /// Reads the log in a directory; without one there are no errors.
    #[must_use]
    pub fn read(directory: &Path) -> Self {
        let content = fs::read(directory.join(LOG)).unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&content))
    }

    fn parse(text: &str) -> Self {
        let mut errors: Vec<String> = Vec::new();
        for line in text.lines() {
            let Some((_, error)) = line.split_once("Error (") else { continue };
            let Some((_, message)) = error.split_once("): ") else { continue };
            let message = message.trim();
            let known = errors.iter().any(|error| error == message);
            if !message.is_empty() && !known {
                errors.push(message.to_owned());
            }
        }
        Self { errors }
    }

    /// The error to be told: the first one that CRIU did not survive, and the one after it where
    /// that says more about it; `None` where there is only what CRIU always says.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let fatal: Vec<&str> = self
            .errors
            .iter()
            .map(String::as_str)
            .filter(|error| !harmless(error) && !FINAL.iter().any(|end| error.contains(end)))
            .take(2)
            .collect();
        (!fatal.is_empty()).then(|| fatal.join("; "))
    }
}

/// Whether CRIU goes on after such an error.
pub(super) fn harmless(error: &str) -> bool {
    HARMLESS.iter().any(|part| error.contains(part))
}

/// Takes the log out of a directory that will be removed, to where it can be read later: our folder
/// of the user's state (XDG Base Directory Specification), which holds the last one only. Where others
/// could have led this way elsewhere, no log is kept.
///
/// # Errors
///
/// The kernel's reason; there is no log, or no home for it.
pub(super) fn keep(directory: &Path) -> io::Result<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    // A home that is not there is not for us to make.
    let home = || std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_dir());
    let state = state
        .filter(|path| path.is_absolute())
        .or_else(|| Some(home()?.join(".local/state")))
        .ok_or(io::ErrorKind::NotFound)?;
    keep_in(&state.join("preloaded-criu"), directory)
}

fn keep_in(folder: &Path, directory: &Path) -> io::Result<PathBuf> {
    let opened = make_directory(folder).map_err(reason)?;
    let inside = by_descriptor(&opened);
    let mut fresh = tempfile::NamedTempFile::new_in(&inside)?;
    io::copy(&mut fs::File::open(directory.join(LOG))?, &mut fresh)?;
    fresh.persist(inside.join(LOG))?;
    Ok(folder.join(LOG))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, lchown, symlink};

    use nix::unistd::geteuid;
    use proptest::prelude::*;

    use super::{LOG, Log, keep_in};

    const SOCKET: &str = "\
(00.000010) Version: 4.1.1 (gitid 0)
(00.000020) rlimit: RLIMIT_NOFILE unlimited for self
(00.000030) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.004611) Warn  (criu/kerndat.c:1110): $XDG_RUNTIME_DIR not set. Cannot find location for kerndat file
(00.042311) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.
(00.042311) 17: Error (criu/files.c:500): Can't dump file 7
(00.042312) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.
(00.042399) Error (criu/cr-dump.c:2134): Dumping FAILED.
";

    #[test]
    fn the_reason_is_what_criu_did_not_survive() {
        let log = Log::parse(SOCKET);
        assert_eq!(log.errors.len(), 4);
        assert_eq!(
            log.reason().as_deref(),
            Some(
                "inet: Connected TCP socket, consider using --tcp-established option.; \
                 Can't dump file 7"
            )
        );
    }

    #[test]
    fn a_log_that_says_nothing_gives_no_reason() {
        assert_eq!(Log::parse("").reason(), None);
        assert_eq!(Log::parse("(00.1) Error (criu/cr-dump.c:1): Dumping FAILED.\n").reason(), None);
        assert_eq!(Log::parse("(00.1) Error (\nError (x\n Error (x): \n").errors, [] as [&str; 0]);
    }

    #[test]
    fn the_log_is_kept_where_nobody_else_leads() {
        let folder = tempfile::tempdir().unwrap();
        let [from, home, victim] = ["from", "home", "victim"].map(|name| folder.path().join(name));
        for folder in [&from, &home, &victim] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(from.join(LOG), SOCKET).unwrap();
        let kept = keep_in(&home.join("state/preloaded-criu"), &from).unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), SOCKET);
        assert_eq!(fs::metadata(kept).unwrap().mode() & 0o7777, 0o600);
        if geteuid().is_root() {
            symlink(&victim, home.join("strange")).unwrap();
            lchown(&home, Some(12345), None).unwrap();
            lchown(home.join("strange"), Some(12345), None).unwrap();
            assert!(keep_in(&home.join("strange/preloaded-criu"), &from).is_err());
            assert_eq!(fs::read_dir(victim).unwrap().count(), 0);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_log(text in "(?s).{0,400}") {
            let log = Log::parse(&text);
            prop_assert!(log.errors.iter().all(|error| !error.is_empty() && !error.contains('\n')));
        }
    }
}
