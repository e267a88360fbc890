//! Whole runs timed side by side: the script by python itself and from an image.
//!
//! All contestants take turns within one measurement, so that a machine that is busy slows all of
//! them alike; what counts are the ratios of their medians. And what is fast and wrong counts for
//! nothing: output and status of each run are compared with those of python itself.

mod contestants;
mod figures;
mod stopwatch;
mod turns;

use std::env::current_exe;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::image::{Image, ImageError};
use crate::sys::Explain;

pub use contestants::{Contestant, Kind};
pub use figures::{Entry, Figures, Report};

#[cfg(test)]
pub(crate) use figures::tests as testing;

use stopwatch::{Errors, Outcome, time};
use turns::turns;

/// The least number of times that anything is run, however long it takes.
pub const LEAST_RUNS: usize = 3;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub image: PathBuf,
    /// What `python3` would be given.
    pub arguments: Vec<OsString>,
    /// How often everything is run.
    pub runs: usize,
    /// How long one contestant's runs may take together: a slow one is run less often, but
    /// [`LEAST_RUNS`] times.
    pub budget: Duration,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// This program does not find itself.
    #[error("cannot find this program's own file")]
    Launcher(#[source] io::Error),
    /// A program cannot be started, or what it writes cannot be read.
    #[error("cannot run {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        why: io::Error,
    },
    /// `run` has failed by itself.
    #[error("`{name}` has failed")]
    Failed {
        /// What was run.
        name: &'static str,
        /// What it said.
        #[source]
        why: Said,
    },
}

impl Explain for BenchError {
    fn hint(&self) -> String {
        match self {
            Self::Image(error) => error.hint(),
            Self::Launcher(_) => "start it from where it was installed".into(),
            Self::Start { .. } => "see whether the image's interpreter is still there".into(),
            Self::Failed { .. } => {
                "`preloaded-criu run` with the same image and arguments shows it too".into()
            }
        }
    }
}

/// What a program of ours said about its own failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Said(String);

/// Runs everything in turns and says what came of it.
///
/// # Errors
///
/// The image cannot be used, or a program cannot be started. That outputs differ is no error here,
/// but in the report.
pub fn bench(request: &Request) -> Result<Report, BenchError> {
    let image = Image::open(&request.image)?;
    let python = image.manifest()?.python.executable.into();
    drop(image);
    let launcher = current_exe().map_err(BenchError::Launcher)?;
    let field = contestants::field(&launcher, python, &request.image, &request.arguments);
    let mut standard = None;
    let mut entries = Vec::new();
    for contestant in field {
        // Once before it counts: files are read, pages are cached, and it shows whether it can be done.
        let (outcome, errors) = attempt(&contestant)?;
        let standard = standard.get_or_insert_with(|| outcome.clone());
        let why = failure(&outcome, standard, &errors);
        match (why, contestant.kind) {
            (Some(why), Kind::Optional) => {
                entries.push(Entry::left_out(contestant, why.to_string()));
            }
            (Some(why), _) => return Err(BenchError::Failed { name: contestant.name, why }),
            (None, _) => {
                let count = turns(outcome.ended, request.budget, request.runs);
                let mut entry = Entry::new(contestant, count);
                entry.compare(&outcome, standard);
                entries.push(entry);
            }
        }
    }
    let Some(standard) = standard else { return Ok(Report { entries }) };
    for turn in 0..request.runs {
        for entry in &mut entries {
            if turns::is_due(entry.turns(), request.runs, turn) {
                let outcome = run(entry.contestant())?;
                entry.add(&outcome, &standard);
            }
        }
    }
    Ok(Report { entries })
}

fn run(contestant: &Contestant) -> Result<Outcome, BenchError> {
    let (outcome, _) =
        time(&contestant.words, Errors::Discarded).map_err(|why| start(contestant, why))?;
    Ok(outcome)
}

fn attempt(contestant: &Contestant) -> Result<(Outcome, String), BenchError> {
    time(&contestant.words, Errors::Kept).map_err(|why| start(contestant, why))
}

fn start(contestant: &Contestant, why: io::Error) -> BenchError {
    BenchError::Start { program: contestant.program(), why }
}

/// Whether this is a failure of our own, which says so by its status; a script may end with the same.
fn failure(outcome: &Outcome, standard: &Outcome, errors: &str) -> Option<Said> {
    const OURS: i32 = 125;
    let is_ours = outcome.status.code() == Some(OURS) && standard.status.code() != Some(OURS);
    is_ours.then(|| {
        let lines = errors.lines().map(str::trim).filter(|line| !line.starts_with("hint: "));
        let text = lines.collect::<Vec<_>>().join(": ");
        Said(text.strip_prefix("preloaded-criu: ").unwrap_or(&text).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn ended(code: i32) -> Outcome {
        Outcome {
            first_output: None,
            ended: Duration::ZERO,
            output: Vec::new(),
            status: ExitStatus::from_raw(code << 8),
        }
    }

    #[test]
    fn failures_of_ours_are_told_from_the_scripts() {
        let said = "preloaded-criu: cannot do it\n  for a reason\nhint: do something\n";
        let why = failure(&ended(125), &ended(0), said);
        assert_eq!(why, Some(Said("cannot do it: for a reason".into())));
        assert_eq!(failure(&ended(125), &ended(125), said), None);
        assert_eq!(failure(&ended(1), &ended(0), said), None);
    }
}
