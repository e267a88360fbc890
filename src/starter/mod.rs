//! Starters: small files that are executed as `python3` is, and run an image.
//!
//! A starter is a text whose first line names this program as its interpreter (execve(2),
//! "Interpreter scripts"), so it costs a run nothing but the reading of one page, follows this program
//! through upgrades, and can be moved. It says which image is run, which python does without it, and
//! how the image is made.
//!
//! Who finds no image to run makes it, at once and before its own run: a process in the background
//! would outlive its caller, and take memory and processors from the run beside it. Only one does so,
//! the one that gets the lock: all others start without an image meanwhile, because waiting for the
//! image takes longer than doing without. What could not be made is not tried again for a day.

mod beside;
mod file;
mod making;

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub(crate) use file::COMMAND;
pub use file::{FileError, Starter, write};

use crate::native::NativeError;
use crate::run::{Request, RunError, run, run_without};
use crate::sys::Explain;

/// Why a starter does not start its image.
#[derive(Debug, thiserror::Error)]
pub enum Regret {
    /// The image cannot be used, and making it anew would not help or is not this starter's to do.
    #[error(transparent)]
    Run(RunError),
    /// Somebody else makes the image right now.
    #[error("the image {} is being made", .0.display())]
    Busy(PathBuf),
    /// The image could not be made.
    #[error("the image {} could not be made: {why}", image.display())]
    NotMade {
        /// The image.
        image: PathBuf,
        /// What `preloaded-criu snapshot` said.
        why: String,
    },
    /// It is older than it should be, could not be made anew, and is run all the same.
    #[error("the image {} is older than it should be and could not be made anew: {why}", image.display())]
    NotRenewed {
        /// The image.
        image: PathBuf,
        /// What `preloaded-criu snapshot` said.
        why: String,
    },
    /// It could not be made before, and is not tried again for a while.
    #[error("the image {} could not be made (in {}: why; removed, it is tried again)",
        image.display(), note.display())]
    GivenUp {
        /// The image.
        image: PathBuf,
        /// The file that says why.
        note: PathBuf,
    },
    /// There is nowhere to keep an image.
    #[error("there is no directory for the image: neither XDG_CACHE_HOME nor HOME is set")]
    Homeless,
}

impl Explain for Regret {
    fn hint(&self) -> String {
        match self {
            Self::Run(error) => error.hint(),
            Self::Busy(_) => "the next start will find it".into(),
            Self::NotMade { .. } | Self::NotRenewed { .. } | Self::GivenUp { .. } => {
                "make it by hand with `preloaded-criu snapshot`, which says more".into()
            }
            Self::Homeless => "name the image's file when the starter is made".into(),
        }
    }
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The starter itself makes no sense.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no python.
    #[error(transparent)]
    Python(#[from] NativeError),
}

impl Explain for StartError {
    fn hint(&self) -> String {
        match self {
            Self::File(error) => error.hint(),
            Self::Python(error) => error.hint(),
        }
    }
}

/// Does what the starter `path` is for. `tell` is told why the image is not used, if it is not, and
/// before an image is made (with its path).
///
/// # Errors
///
/// The starter cannot be read, or there is no python.
pub fn start(
    path: &Path,
    arguments: Vec<OsString>,
    mut tell: impl FnMut(Result<&Path, &Regret>),
) -> Result<Infallible, StartError> {
    let starter = Starter::read(path)?;
    let Some(image) = starter.image() else {
        tell(Err(&Regret::Homeless));
        let request = Request { arguments, ..Request::default() };
        return Ok(run_without(&request, Some(starter.python))?);
    };
    let request = Request { image: image.clone(), arguments, ..Request::default() };
    if let Err(regret) = making::renew(&starter, path, &image, |image| tell(Ok(image))) {
        tell(Err(&regret));
    }
    let Err(why) = run(&request);
    let regret = match making::make(&starter, path, &request, why, |image| tell(Ok(image))) {
        Ok(never) => match never {},
        Err(regret) => regret,
    };
    tell(Err(&regret));
    Ok(run_without(&request, Some(starter.python))?)
}
