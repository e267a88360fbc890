//! What is to be frozen, and how.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::image::Again;
use crate::sys::capabilities::may_checkpoint;
use crate::sys::keeper::Isolation;

/// What the image shall hold.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The interpreter, by its path or by a name in `PATH`; without one, the active virtual
    /// environment's, else `python3`.
    pub python: Option<PathBuf>,
    /// Options of the interpreter, for instance `-O`.
    pub flags: Vec<OsString>,
    /// Modules to import, in this order.
    pub imports: Vec<String>,
    /// Code to run after the imports.
    pub warm_up: Option<String>,
    /// Files to run after that, in this order.
    pub exec: Vec<PathBuf>,
    /// Variables to set, besides those that the caller has.
    pub environment: Vec<(OsString, OsString)>,
    /// How to make the same image again, if that can be said.
    pub again: Option<Again>,
}

/// How to go about it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The CRIU that was asked for.
    pub criu: Option<PathBuf>,
    /// Where python and CRIU run.
    pub isolation: Choice,
    /// What may be frozen.
    pub engines: Engines,
    /// The image holds what is mapped of libraries, so that a run opens none of their files.
    pub self_contained: bool,
    /// The folder in which the image will be written, if it is known: a place for temporary files
    /// when the usual ones are of no use.
    pub output: Option<PathBuf>,
    /// What the image is called until it is whole, if it has a name then: removed at the end, also where
    /// this program is killed.
    pub temporary: Option<PathBuf>,
}

/// Which engines shall be able to restore the image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Engines {
    /// Both: what the native one cannot restore is refused.
    #[default]
    Both,
    /// CRIU at least: what only it can restore is frozen too.
    Criu,
}

/// Where python and CRIU run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Choice {
    /// In the host's namespaces where the rights suffice, else in a user namespace.
    #[default]
    Auto,
    /// In the namespaces that we are in.
    Host,
    /// In a user namespace.
    UserNamespace,
}

impl Choice {
    /// The decision on this machine, with these rights.
    #[must_use]
    pub fn resolve(self) -> Isolation {
        match self {
            Self::Auto if may_checkpoint() => Isolation::Host,
            Self::Host => Isolation::Host,
            Self::Auto | Self::UserNamespace => Isolation::UserNamespace,
        }
    }
}
