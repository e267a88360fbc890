//! From an image and the arguments for python to the frozen interpreter, in this very process.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::cpython::{CommandLine, Settings};
use crate::image::{Check, Image, ImageError, SectionKind};
use crate::native::exec::{Launch, exec, exec_plainly};
use crate::native::{NativeError, view};
use crate::sys::Explain;
use crate::sys::inherited::environment;

/// What `run` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The image.
    pub image: PathBuf,
    /// What `python3` would be given.
    pub arguments: Vec<OsString>,
    /// Leave by the interpreter's own finalization, as a whole.
    pub full_exit: bool,
}

/// Why an image was not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The image cannot be used here and now.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The plan in it makes no sense.
    #[error("{} holds a plan that makes no sense", path.display())]
    Plan {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        why: view::PlanFault,
    },
    /// The interpreter cannot become the frozen one.
    #[error(transparent)]
    Native(#[from] NativeError),
}

impl Explain for RunError {
    fn hint(&self) -> String {
        match self {
            Self::Image(error) => error.hint(),
            Self::Plan { .. } => "make the snapshot anew".into(),
            Self::Native(error) => error.hint(),
        }
    }
}

/// Runs an image: returns only when that failed, before anything of this process was changed.
///
/// # Errors
///
/// What is wrong with the image, with the machine, or with the interpreter.
pub fn run(request: Request) -> Result<Infallible, RunError> {
    let image = Image::open(&request.image)?;
    let view = view::PlanView::new(image.plan(), image.length(), image.memory())
        .map_err(|why| RunError::Plan { path: request.image.clone(), why })?;
    image.compare()?;
    let least_descriptor =
        view.descriptors().filter_map(|one| i32::try_from(one.number + 1).ok()).max().unwrap_or(0);
    if !stands_for(image.check(), &request.arguments) {
        let mut arguments = vec![image.check().argv0.clone()];
        arguments.extend(request.arguments);
        return Ok(exec_plainly(image.check().interpreter.clone(), arguments)?);
    }
    let plan = image.section(SectionKind::Plan);
    let check = image.check();
    let mut arguments = Vec::with_capacity(request.arguments.len() + 1);
    arguments.push(check.argv0.clone());
    arguments.extend(request.arguments);
    let interpreter = check.interpreter.clone();
    let options = if request.full_exit { restore_plan::OPTION_FULL_EXIT } else { 0 };
    Ok(exec(Launch {
        image: image.into_file().into(),
        plan_offset: plan.offset,
        plan_length: plan.length,
        interpreter,
        arguments,
        least_descriptor,
        options,
    })?)
}

/// Whether the frozen interpreter may stand for a new one with these arguments in this environment.
/// Where something differs that only a new interpreter can heed, a run is the interpreter's own: as
/// slow as ever, and right.
fn stands_for(check: &Check, arguments: &[OsString]) -> bool {
    let environment = environment();
    let variables = environment.iter().filter_map(|entry| {
        let entry = entry.to_bytes();
        let equals = entry.iter().position(|byte| *byte == b'=')?;
        Some((&entry[..equals], &entry[equals + 1..]))
    });
    check.settings.fits(&Settings::new(&CommandLine::parse(arguments), variables))
}
