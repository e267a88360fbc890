//! From an image and the arguments for python to the frozen interpreter, in this very process.

mod fixed;
mod orders;
mod through_criu;

use std::ffi::OsString;
use std::path::PathBuf;

use crate::image::{Image, ImageError, SectionKind};
use crate::native::exec::{Launch, exec, exec_plainly};
use crate::native::{NativeError, view};
use crate::sys::Explain;

pub use through_criu::ThroughCriuError;

/// Who brings the frozen process back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The native one where the image allows it, else CRIU where the caller is allowed.
    #[default]
    Auto,
    /// This process becomes the frozen one.
    Native,
    /// CRIU restores the frozen one as a child of this process.
    Criu,
}

/// What `run` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The image.
    pub image: PathBuf,
    /// What `python3` would be given.
    pub arguments: Vec<OsString>,
    /// Leave by the interpreter's own finalization, as a whole.
    pub full_exit: bool,
    /// Who brings it back.
    pub engine: Engine,
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
    /// CRIU cannot bring it back.
    #[error(transparent)]
    ThroughCriu(#[from] ThroughCriuError),
}

impl Explain for RunError {
    fn hint(&self) -> String {
        match self {
            Self::Image(error) => error.hint(),
            Self::Plan { .. } => "make the snapshot anew".into(),
            Self::Native(error) => error.hint(),
            Self::ThroughCriu(error) => error.hint(),
        }
    }
}

/// Runs an image. The native engine returns only when it has failed, before anything of this process
/// was changed; the other one returns the script's exit status.
///
/// # Errors
///
/// What is wrong with the image, with the machine, or with the interpreter.
pub fn run(request: Request) -> Result<i32, RunError> {
    let image = Image::open(&request.image)?;
    let view = view::PlanView::new(image.plan(), image.length(), image.memory())
        .map_err(|why| RunError::Plan { path: request.image.clone(), why })?;
    image.compare()?;
    let least_descriptor =
        view.descriptors().filter_map(|one| i32::try_from(one.number + 1).ok()).max().unwrap_or(0);
    if fixed::needs_a_start(&request.arguments) {
        let mut arguments = vec![image.check().argv0.clone()];
        arguments.extend(request.arguments);
        match exec_plainly(image.check().interpreter.clone(), arguments)? {}
    }
    let plan = image.section(SectionKind::Plan);
    let check = image.check();
    let mut arguments = Vec::with_capacity(request.arguments.len() + 1);
    arguments.push(check.argv0.clone());
    arguments.extend(request.arguments);
    let options = if request.full_exit { restore_plan::OPTION_FULL_EXIT } else { 0 };
    if request.engine == Engine::Criu {
        let launch = through_criu::Launch { image: &image, view: &view, arguments, options };
        return Ok(through_criu::run(&launch)?);
    }
    let interpreter = check.interpreter.clone();
    match exec(Launch {
        image: image.into_file().into(),
        plan_offset: plan.offset,
        plan_length: plan.length,
        interpreter,
        arguments,
        least_descriptor,
        options,
    })? {}
}
