//! From an image and the arguments for python to the frozen interpreter, in this very process.

pub mod criu_terms;
mod orders;
mod through_criu;

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsString};
use std::fs::read_link;
use std::io;
use std::iter;
use std::path::{Path, PathBuf, absolute};

use restore_plan::Mapping;

use crate::cpython::{CommandLine, Settings};
use crate::image::{Check, Depth, Image, ImageError, SectionKind, Stale};
use crate::native::exec::{Children, Launch, exec, exec_plainly};
use crate::native::{NativeError, view};
use crate::sys::capabilities::starts_securely;
use crate::sys::inherited::{address_space_limit, data_limit, environment, is_inherited};
use crate::sys::lookup::{goes_by, is_executable, usual_python};
use crate::sys::probe::maps_as_code;
use crate::sys::{Explain, MOUNT_PROC, limits, vdso_lengths};

pub use through_criu::ThroughCriuError;

/// A variable that asks for [`Request::full_exit`], for children of a run too.
const FULL_EXIT: &str = "PRELOADED_CRIU_FULL_EXIT";

/// What `run` was asked for.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct Request {
    /// The image.
    pub image: PathBuf,
    /// The interpreter that it must be an image of; any, if nothing is said.
    pub program: Option<PathBuf>,
    /// What python is called (`argv[0]`); what it was called at the snapshot, if nothing is said.
    pub name: Option<OsString>,
    /// What `python3` would be given.
    pub arguments: Vec<OsString>,
    /// How much is compared with what the image was made from.
    pub check: Depth,
    /// Leave by the interpreter's own finalization, as a whole.
    pub full_exit: bool,
    /// Copy all memory of the image instead of mapping it.
    pub eager: bool,
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
    #[error("the image needs {} KiB of {what}, and the limit ({option}) is {} KiB",
        needed >> 10, limit >> 10)]
    NoRoom {
        /// What is limited.
        what: &'static str,
        /// How a shell sets the limit.
        option: &'static str,
        /// Bytes of it that the image has.
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
    /// What this process has mapped cannot be looked at.
    #[error("/proc does not show what this process has mapped")]
    Map(#[source] io::Error),
    /// What is mapped of the image cannot be code.
    #[error("the image {} cannot be mapped as code where it lies", path.display())]
    NoCode {
        /// The image.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        why: io::Error,
    },
    /// This process cannot have what the frozen one had.
    #[error("only --engine criu can restore {}: {}", path.display(), reasons.join("; "))]
    OnlyCriu {
        /// The image.
        path: PathBuf,
        /// Why, each as a sentence.
        reasons: Vec<String>,
    },
    /// The interpreter cannot become the frozen one.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// Neither engine can bring it back.
    #[error("{} cannot be brought back; native: {native}; criu: {criu}", path.display())]
    Neither {
        /// The image.
        path: PathBuf,
        /// Why this process cannot become it.
        native: String,
        /// Why CRIU cannot restore it.
        criu: String,
        /// What would help.
        hint: String,
    },
    /// CRIU cannot bring it back.
    #[error(transparent)]
    ThroughCriu(#[from] ThroughCriuError),
}

impl RunError {
    /// Whether nothing is wrong with the image, but the caller's environment has what only an
    /// interpreter that imports anew can heed: then that is what a run is.
    #[must_use]
    pub fn is_for_a_new_start(&self) -> bool {
        matches!(self, Self::Image(ImageError::Stale { why: Stale::Variable(_), .. }))
    }
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
            Self::Map(why) => limits(why).unwrap_or(MOUNT_PROC).into(),
            Self::NoCode { .. } => {
                "move it to a file system that is not mounted noexec (findmnt -T IMAGE shows it), or \
                 run it with --eager, which copies its memory"
                    .into()
            }
            Self::OnlyCriu { .. } => {
                "run it as root or with CAP_CHECKPOINT_RESTORE, which CRIU needs (--engine criu, or \
                 auto), or make an image without these: `preloaded-criu snapshot` without --engine criu \
                 says what is to be done"
                    .into()
            }
            Self::Native(error) => error.hint(),
            Self::Neither { hint, .. } => hint.clone(),
            Self::ThroughCriu(error) => error.hint(),
        }
    }
}

/// Runs an image in this process: returns only when that failed, before anything of this process was
/// changed.
///
/// # Errors
///
/// What is wrong with the image, with the machine, or with the interpreter.
pub fn run(request: &Request) -> Result<Infallible, RunError> {
    let image = Image::open(&request.image)?;
    let view = view(&image)?;
    let arguments = arguments(&image, request)?;
    let reasons = &image.check().only_criu;
    if !reasons.is_empty() {
        let (path, reasons) = (request.image.clone(), reasons.clone());
        return Err(RunError::OnlyCriu { path, reasons });
    }
    fits(&view)?;
    if !has_this_vdso(&view)? {
        let (path, why) = (request.image.clone(), view::PlanFault::Vdso);
        return Err(RunError::Plan { path, why });
    }
    if !request.eager {
        is_mappable(&image)?;
    }
    let least_descriptor = view.least_descriptor();
    let plan = image.section(SectionKind::Plan);
    let children = if request.no_children { None } else { children(&request.image) };
    Ok(exec(Launch {
        interpreter: image.check().interpreter.clone(),
        image: image.into_file().into(),
        plan_offset: plan.offset,
        plan_length: plan.length,
        arguments,
        least_descriptor,
        options: options(request),
        children,
    })?)
}

/// Has CRIU restore an image as a child of this process, and stays with it to its end; returns its exit
/// status.
///
/// # Errors
///
/// As [`run`], or what keeps CRIU from restoring.
pub fn run_through_criu(request: &Request) -> Result<i32, RunError> {
    let image = Image::open(&request.image)?;
    let view = view(&image)?;
    let arguments = arguments(&image, request)?;
    fits(&view)?;
    if !request.eager {
        is_mappable(&image)?;
    }
    let options = options(request);
    let launch = through_criu::Launch { image: &image, view: &view, arguments, options };
    Ok(through_criu::run(&launch)?)
}

/// Runs an image by the native engine, and where that cannot do it here, through CRIU.
///
/// # Errors
///
/// What is wrong with the image or with the machine, or what keeps both engines from it.
pub fn run_by_either(request: &Request) -> Result<i32, RunError> {
    let Err(native) = run(request);
    if !matches!(native, RunError::Native(_) | RunError::OnlyCriu { .. }) {
        return Err(native);
    }
    run_through_criu(request).map_err(|criu| RunError::Neither {
        path: request.image.clone(),
        native: said(&native),
        criu: said(&criu),
        hint: native.hint(),
    })
}

/// An error and its causes on one line.
fn said(error: &dyn std::error::Error) -> String {
    let causes = iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn view(image: &Image) -> Result<view::PlanView<'_>, RunError> {
    view::PlanView::new(image.plan(), image.length(), image.memory())
        .map_err(|why| RunError::Plan { path: image.path().to_owned(), why })
}

fn options(request: &Request) -> u64 {
    let wished = env::var_os(FULL_EXIT).is_some_and(|value| !value.is_empty());
    let options = [
        (request.full_exit || wished, restore_plan::OPTION_FULL_EXIT),
        (request.eager, restore_plan::OPTION_EAGER),
        // Whoever names the program has asked for it, and not for an image.
        (request.program.is_some(), restore_plan::OPTION_SILENT),
    ];
    options.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, option)| all | option)
}

/// The arguments for the frozen interpreter, its name first. Where it may not stand for a new one, this
/// process becomes a new one.
fn arguments(image: &Image, request: &Request) -> Result<Vec<OsString>, RunError> {
    let Check { interpreter, argv0, .. } = image.check();
    if let Some(program) = request.program.as_ref().filter(|program| *program != interpreter) {
        let (path, program) = (request.image.clone(), program.clone());
        return Err(RunError::OtherProgram { path, program });
    }
    image.compare(request.check)?;
    // A python that goes by another name would be another one: it finds its libraries by its name.
    let name = match &request.name {
        Some(name) if goes_by(name, interpreter) => name.clone(),
        Some(name) => return Err(RunError::OtherName { name: name.clone() }),
        None => own_name(argv0.clone(), interpreter),
    };
    let environment = environment();
    // Where the loader would not load the restorer, there is no way to the image.
    let is_reachable = !starts_securely(interpreter);
    if !is_reachable || !stands_for(image.check(), &request.arguments, &environment) {
        match start(interpreter.clone(), name, &request.arguments)? {}
    }
    if request.check != Depth::Off {
        let child = request.program.is_some();
        image.compare_variables(variables(&environment), child)?;
    }
    Ok(iter::once(name).chain(request.arguments.iter().cloned()).collect())
}

/// Becomes an ordinary python, after [`run`] has failed: the one that the image must be of, or is of,
/// or else the `usual` one, or else the one that is meant where none is named.
///
/// # Errors
///
/// There is no interpreter, or it cannot be started.
pub fn run_without(request: &Request, usual: Option<PathBuf>) -> Result<Infallible, NativeError> {
    let Request { image, program, name, arguments, .. } = request;
    let there = |program: &PathBuf| is_executable(program);
    if let Some(program) = program {
        let name = name.clone().unwrap_or_else(|| program.clone().into_os_string());
        return start(program.clone(), name, arguments);
    }
    if let Ok(image) = Image::open(image)
        && there(&image.check().interpreter)
    {
        let Check { interpreter, argv0, .. } = image.check().clone();
        let name = own_name(argv0, &interpreter);
        return start(interpreter, name, arguments);
    }
    // With the name alone, the kernel says that there is none.
    let python = usual.filter(there).or_else(usual_python).unwrap_or_else(|| "python3".into());
    start(python.clone(), python.into_os_string(), arguments)
}

/// Becomes a new interpreter.
fn start(
    interpreter: PathBuf,
    name: OsString,
    arguments: &[OsString],
) -> Result<Infallible, NativeError> {
    exec_plainly(interpreter, iter::once(name).chain(arguments.iter().cloned()).collect())
}

/// What the interpreter was called when it was frozen, where that still means it; else its path.
fn own_name(name: OsString, interpreter: &Path) -> OsString {
    if goes_by(&name, interpreter) { name } else { interpreter.into() }
}

/// Whether the frozen interpreter may stand for a new one with these arguments in this environment.
/// Where something differs that only a new interpreter can heed, a run is the interpreter's own: as
/// slow as ever, and right.
fn stands_for(check: &Check, arguments: &[OsString], environment: &[CString]) -> bool {
    check.settings.fits(&Settings::new(&CommandLine::parse(arguments), variables(environment)))
}

/// Names and values.
fn variables(environment: &[CString]) -> impl Iterator<Item = (&[u8], &[u8])> {
    environment.iter().filter_map(|entry| {
        let entry = entry.to_bytes();
        let equals = entry.iter().position(|byte| *byte == b'=')?;
        Some((&entry[..equals], &entry[equals + 1..]))
    })
}

/// What a restore would otherwise find out when there is no way back.
fn fits(view: &view::PlanView<'_>) -> Result<(), RunError> {
    let every: fn(&Mapping) -> bool = |_| true;
    let limits = [
        ("address space", "ulimit -v", address_space_limit(), every),
        ("memory of its own", "ulimit -d", data_limit(), is_data),
    ];
    for (what, option, limit, counts) in limits {
        let Some(limit) = limit else { continue };
        let needed = view.mappings().filter(counts).map(|mapping| mapping.length).sum();
        if needed > limit {
            return Err(RunError::NoRoom { what, option, needed, limit });
        }
    }
    let taken = view.descriptors().find(|one| is_inherited(one.number));
    taken.map_or(Ok(()), |one| {
        let file = view.name(one.name).unwrap_or(Path::new("a file")).to_owned();
        Err(RunError::Descriptor { number: one.number, file })
    })
}

/// Whether the vDSO and its data, which the restorer moves, are as long here as the plan says.
fn has_this_vdso(view: &view::PlanView<'_>) -> Result<bool, RunError> {
    let length = |is_code: bool| -> u64 {
        let part = view.specials().filter(|special| (special.is_vdso != 0) == is_code);
        part.map(|special| special.length).sum()
    };
    let here = vdso_lengths().map_err(RunError::Map)?;
    Ok(here == (length(false), length(true)))
}

/// Whether code can be mapped from where the image lies, as every run of it does. Tried and not asked of
/// the file system, which over a network would cost a round trip.
fn is_mappable(image: &Image) -> Result<(), RunError> {
    match maps_as_code(image.file()) {
        Err(why)
            if matches!(why.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENODEV)) =>
        {
            Err(RunError::NoCode { path: image.path().to_owned(), why })
        }
        // What else may be wrong, the restore says better.
        _ => Ok(()),
    }
}

/// Whether a mapping counts for the limit of [`data_limit`] (mm/internal.h of the kernel,
/// `is_data_mapping`).
fn is_data(mapping: &Mapping) -> bool {
    let others = libc::MAP_SHARED | libc::MAP_GROWSDOWN;
    mapping.prot & libc::PROT_WRITE.cast_unsigned() != 0
        && mapping.flags & others.cast_unsigned() == 0
}

/// How children are started; `None` where that cannot be said by absolute paths.
fn children(image: &Path) -> Option<Children> {
    let launcher = read_link("/proc/self/exe").ok()?;
    Some(Children { launcher, image: absolute(image).ok()? })
}
