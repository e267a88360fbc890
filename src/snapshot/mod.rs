//! From a request to an image.
//!
//! Only the types that the command line fills in are here as yet.

pub mod assemble;

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::Explain;

/// What is to be frozen, and how.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Name of the recipe that the rest begins with, for the manifest.
    pub recipe: Option<String>,
    /// Modules to import, in order.
    pub imports: Vec<String>,
    /// Python code to execute after the imports: the recipe's warm-up.
    pub warm_up: Option<String>,
    /// Files to execute after that, in order.
    pub exec: Vec<PathBuf>,
    /// The interpreter, if one was named.
    pub python: Option<PathBuf>,
    /// Environment variables to set; a later one of the same name wins.
    pub environment: Vec<(OsString, OsString)>,
    /// The image to write.
    pub output: PathBuf,
    /// Replace the image if there is one.
    pub force: bool,
    /// How CRIU gets its rights.
    pub isolation: Isolation,
    /// The criu program, if one was named.
    pub criu: Option<PathBuf>,
}

/// How CRIU gets the rights that it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// As the caller where that is enough, else in a user namespace.
    #[default]
    Auto,
    /// As the caller.
    Host,
    /// In a user namespace.
    Userns,
}

/// What happens while an image is made.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A module's import begins.
    Importing {
        /// The module.
        module: &'a str,
    },
    /// A module is imported.
    Imported {
        /// The module.
        module: &'a str,
        /// How long it took.
        took: Duration,
    },
    /// A file's execution begins.
    Executing {
        /// The file.
        path: &'a Path,
    },
    /// A file was executed.
    Executed {
        /// The file.
        path: &'a Path,
        /// How long it took.
        took: Duration,
    },
    /// An import or a file has raised an exception. An error follows.
    Failed {
        /// What failed, for instance `import tensorflow`.
        what: &'a str,
        /// Python's own traceback.
        traceback: &'a str,
    },
    /// CRIU begins to dump.
    Dumping,
    /// CRIU has dumped.
    Dumped {
        /// Bytes of memory.
        bytes: u64,
        /// How long it took.
        took: Duration,
    },
    /// The image is being written.
    Writing,
    /// The image has its name.
    Written {
        /// The image.
        path: &'a Path,
        /// Its length.
        bytes: u64,
        /// How long it took.
        took: Duration,
    },
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Nothing makes images yet.
    #[error("this build cannot make images")]
    Absent,
    /// x
    #[error("xsave")]
    Xsave,
    /// x
    #[error(transparent)]
    Process(#[from] crate::process::ProcessError),
    /// x
    #[error(transparent)]
    Native(#[from] crate::native::NativeError),
    /// x
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
}

impl Explain for SnapshotError {
    fn hint(&self) -> String {
        "use a later one".into()
    }
}

/// Makes an image.
pub fn take(_: &Request, _: &mut dyn FnMut(&Event<'_>)) -> Result<(), SnapshotError> {
    let absent: Result<Infallible, _> = Err(SnapshotError::Absent);
    absent.map(|never| match never {})
}
