//! From an image and the arguments for python to the frozen interpreter, in this very process.

mod orders;
mod through_criu;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::read_link;
use std::iter;
use std::path::{Path, PathBuf, absolute};

use crate::cpython::{CommandLine, Settings};
use crate::image::{Check, Image, ImageError, SectionKind};
use crate::native::exec::{Children, Launch, exec, exec_plainly};
use crate::native::{NativeError, view};
use crate::sys::Explain;
use crate::sys::inherited::{address_space_limit, environment, is_open};
use crate::sys::lookup::{goes_by, is_executable, usual_python};

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
    /// What python is called (`argv[0]`); what it was called at the snapshot, if nothing is said.
    pub name: Option<OsString>,
    /// What `python3` would be given.
    pub arguments: Vec<OsString>,
    /// Leave by the interpreter's own finalization, as a whole.
    pub full_exit: bool,
    /// Who brings it back.
    pub engine: Engine,
    /// Children that are the same interpreter start as ever.
    pub no_children: bool,
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
    /// It is the image of another interpreter than the one that was started.
    #[error("the image {} is not one of {}", path.display(), program.display())]
    OtherProgram {
        /// The image.
        path: PathBuf,
        /// What was started.
        program: PathBuf,
    },
    /// It would find itself elsewhere by the name that it was called by.
    #[error("a python that is called {} would not be the image's", name.display())]
    OtherName {
        /// Its `argv[0]`.
        name: OsString,
    },
    /// The memory does not fit a limit.
    #[error("the image needs {} MiB of address space, and the limit (ulimit -v) is {} MiB",
        needed >> 20, limit >> 20)]
    NoRoom {
        /// Bytes of address space that the image has.
        needed: u64,
        /// Bytes that the limit allows.
        limit: u64,
    },
    /// A descriptor of the caller's has a number that the frozen process knows as its own.
    #[error("descriptor {number} is open, and the image has {} open under that number",
        file.display())]
    Descriptor {
        /// Its number.
        number: u64,
        /// What the image has open.
        file: PathBuf,
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
            Self::OtherProgram { .. } => "name the interpreter's own image".into(),
            Self::OtherName { .. } => "call it by the path of the image's interpreter".into(),
            Self::NoRoom { .. } => "raise the limit, or freeze less".into(),
            Self::Descriptor { number, .. } => format!("close it: `{number}<&-` in a shell"),
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
pub fn run(request: &Request) -> Result<i32, RunError> {
    become_frozen(Image::open(&request.image)?, request)
}

/// Whatever happens, becomes a python: the frozen one if that is right, a new one otherwise.
///
/// `program` is the interpreter that is to be as if it had been executed; without one it is the
/// image's, or the usual one where that cannot be known. `regret` is told why the image was not used,
/// when it was not.
///
/// # Errors
///
/// There is no interpreter, or it cannot be started.
pub fn run_or_start(
    request: Request,
    program: Option<PathBuf>,
    regret: impl FnOnce(RunError),
) -> Result<i32, NativeError> {
    let mut known = None;
    let failed = Image::open(&request.image).map_err(Into::into).and_then(|image| {
        let Check { interpreter, argv0, .. } = image.check();
        known = Some((interpreter.clone(), argv0.clone()));
        match &program {
            Some(program) if program != interpreter => Err(RunError::OtherProgram {
                path: request.image.clone(),
                program: program.clone(),
            }),
            _ => become_frozen(image, &request),
        }
    });
    let why = match failed {
        Ok(status) => return Ok(status),
        Err(why) => why,
    };
    let (interpreter, name) = match (program, known) {
        (Some(program), _) => (program, None),
        (None, Some((interpreter, name))) if is_executable(&interpreter) => {
            (interpreter, Some(name))
        }
        // The name has the kernel say that there is none.
        (None, _) => (usual_python().unwrap_or_else(|| "python3".into()), None),
    };
    regret(why);
    match start(interpreter, request.name.or(name), request.arguments)? {}
}

/// Becomes a new interpreter.
fn start(
    interpreter: PathBuf,
    name: Option<OsString>,
    arguments: Vec<OsString>,
) -> Result<Infallible, NativeError> {
    let name = name.unwrap_or_else(|| interpreter.clone().into_os_string());
    exec_plainly(interpreter, iter::once(name).chain(arguments).collect())
}

fn become_frozen(image: Image, request: &Request) -> Result<i32, RunError> {
    let view = view::PlanView::new(image.plan(), image.length(), image.memory())
        .map_err(|why| RunError::Plan { path: request.image.clone(), why })?;
    image.compare()?;
    let Check { interpreter, argv0, .. } = image.check().clone();
    // A python that goes by another name would be another one: it finds its libraries by its name.
    let name = match &request.name {
        Some(name) if goes_by(name, &interpreter) => name.clone(),
        Some(name) => return Err(RunError::OtherName { name: name.clone() }),
        None if goes_by(&argv0, &interpreter) => argv0,
        None => interpreter.clone().into_os_string(),
    };
    if !stands_for(image.check(), &request.arguments) {
        match start(interpreter, Some(name), request.arguments.clone())? {}
    }
    fits(&view)?;
    let least_descriptor =
        view.descriptors().filter_map(|one| i32::try_from(one.number + 1).ok()).max().unwrap_or(0);
    let options = if request.full_exit { restore_plan::OPTION_FULL_EXIT } else { 0 };
    let arguments = iter::once(name).chain(request.arguments.iter().cloned()).collect();
    if request.engine == Engine::Criu {
        let launch = through_criu::Launch { image: &image, view: &view, arguments, options };
        return Ok(through_criu::run(&launch)?);
    }
    let plan = image.section(SectionKind::Plan);
    let children = if request.no_children { None } else { children(&request.image) };
    match exec(Launch {
        image: image.into_file().into(),
        plan_offset: plan.offset,
        plan_length: plan.length,
        interpreter,
        arguments,
        least_descriptor,
        options,
        children,
    })? {}
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

/// What a restore would otherwise find out when there is no way back.
fn fits(view: &view::PlanView<'_>) -> Result<(), RunError> {
    if let Some(limit) = address_space_limit() {
        let needed = view.mappings().map(|mapping| mapping.length).sum();
        if needed > limit {
            return Err(RunError::NoRoom { needed, limit });
        }
    }
    let taken = view.descriptors().find(|one| is_open(one.number));
    taken.map_or(Ok(()), |one| {
        let file = view.name(one.name).unwrap_or(Path::new("a file")).to_owned();
        Err(RunError::Descriptor { number: one.number, file })
    })
}

/// How children are started; `None` where that cannot be said by absolute paths.
fn children(image: &Path) -> Option<Children> {
    let launcher = read_link("/proc/self/exe").ok()?;
    Some(Children { launcher, image: absolute(image).ok()? })
}
