//! Who runs a test, with which interpreter.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::unistd::{Uid, geteuid};

use super::engine::Engine;
use super::shared::is_reachable;

/// The ordinary user that root's tests become: one that no machine knows.
const USER: u32 = 54321;

/// An account and what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// Root with all that root has here.
    Root,
    /// An ordinary user.
    User,
    /// The same user with no capability to be had: an empty bounding set, no new privileges.
    Stripped,
}

/// Whether a machine that is there for the tests runs them: then nothing may be left out.
pub(crate) fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

impl Who {
    /// Everyone who can be had here.
    pub(crate) fn all() -> &'static [Self] {
        if Engine::tested() == Engine::Criu {
            // The others may not restore through CRIU.
            assert!(geteuid().is_root(), "only root can test the engine criu");
            return &[Self::Root];
        }
        if geteuid().is_root() {
            return &[Self::Root, Self::User, Self::Stripped];
        }
        // scripts/test says so when it has run them as root before.
        let covered = env::var_os("PRELOADED_CRIU_TEST_AS").is_some_and(|who| who == "user");
        assert!(covered || !in_ci(), "only root can test what root does");
        &[Self::User]
    }

    /// The one who may do most.
    pub(crate) fn most() -> Self {
        Self::all()[0]
    }

    /// Whom the files of this one belong to.
    pub(crate) fn uid(self) -> Uid {
        match self {
            Self::User | Self::Stripped if geteuid().is_root() => Uid::from_raw(USER),
            _ => geteuid(),
        }
    }

    /// Who makes the images that this one runs.
    pub(crate) fn maker(self) -> Self {
        if self == Self::Root { Self::Root } else { Self::User }
    }

    /// The command that turns the tests' user into this one.
    pub(crate) fn command(self) -> Vec<OsString> {
        let identity = [format!("--reuid={USER}"), format!("--regid={USER}")];
        let mut command: Vec<OsString> = Vec::new();
        if geteuid().is_root() && self != Self::Root {
            command.push("setpriv".into());
            command.extend(identity.map(OsString::from));
            command.push("--clear-groups".into());
            command.push("--inh-caps=-all".into());
            command.push("--ambient-caps=-all".into());
        }
        if self == Self::Stripped {
            command.extend(["--bounding-set=-all".into(), "--no-new-privs".into()]);
        }
        command
    }

    /// Whether this one can go to a path.
    fn reaches(self, path: &Path) -> bool {
        self == Self::Root || !geteuid().is_root() || is_reachable(path)
    }
}

/// An interpreter.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Python {
    /// What it is called by.
    pub(crate) path: PathBuf,
    /// For instance `(3, 11)`.
    pub(crate) version: (u32, u32),
}

impl Python {
    /// The machine's own.
    pub(crate) fn system() -> &'static Self {
        static SYSTEM: OnceLock<Python> = OnceLock::new();
        SYSTEM.get_or_init(|| {
            Self::at("/usr/bin/python3".into()).expect("/usr/bin/python3 is not there")
        })
    }

    /// All that can be tested here, the machine's own first.
    pub(crate) fn all() -> &'static [&'static Self] {
        static ALL: OnceLock<Vec<&'static Python>> = OnceLock::new();
        ALL.get_or_init(|| {
            let found = pyenv_interpreters().into_iter().filter_map(Self::at);
            let supported = found.filter(|python| (10..=13).contains(&python.version.1));
            let pyenv = supported.map(|python| &*Box::leak(Box::new(python)));
            [Self::system()].into_iter().chain(pyenv).collect()
        })
    }

    fn at(path: PathBuf) -> Option<Self> {
        let code = "import sys; print(*sys.version_info[:2])";
        let output = Command::new(&path).args(["-I", "-c", code]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let (major, minor) = text.trim().split_once(' ')?;
        Some(Self { path, version: (major.parse().ok()?, minor.parse().ok()?) })
    }
}

fn pyenv_interpreters() -> Vec<PathBuf> {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv")));
    let entries = root.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("3."))
        .map(|entry| entry.path().join("bin/python3"))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found
}

/// One who runs an interpreter.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Seat {
    /// The account.
    pub(crate) who: Who,
    /// The interpreter.
    pub(crate) python: &'static Python,
}

impl Seat {
    /// Every combination that this machine has. How CRIU restores does not depend on the interpreter:
    /// for its engine, the machine's own one and the newest stand for all.
    pub(crate) fn all() -> Vec<Self> {
        let all = Python::all();
        let few = [all[0], all[all.len() - 1]];
        let few = if all.len() > 1 { &few[..] } else { all };
        let pythons = if Engine::tested() == Engine::Criu { few.to_vec() } else { all.to_vec() };
        let seats = |who: Who| {
            let reachable = pythons.iter().filter(move |python| who.reaches(&python.path));
            reachable.map(move |python| Self { who, python })
        };
        Who::all().iter().flat_map(|who| seats(*who)).collect()
    }

    /// Everyone with the machine's own interpreter.
    pub(crate) fn everyone() -> Vec<Self> {
        Who::all().iter().map(|who| Self { who: *who, python: Python::system() }).collect()
    }

    /// One with all rights, and the machine's own interpreter.
    pub(crate) fn first() -> Self {
        Self { who: Who::most(), python: Python::system() }
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with {}", self.who, self.python.path.display())
    }
}
