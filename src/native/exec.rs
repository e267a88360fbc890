//! The exec of the interpreter with the restorer as its audit object.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::unistd::execve;
use restore_plan::{HANDOVER_NAME, Handover, IMAGE_NAME, LAUNCHER_NAME, OPTION_CHILDREN};

use super::NativeError;
use crate::sys::handover::{at_least, executable_memory, keep_over_exec};
use crate::sys::inherited::{environment, ignored_signals};
use crate::sys::{fail_at_writes, survive_failed_writes};

/// The restorer's shared object.
const RESTORER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/librestorer.so"));

/// What a run is made of.
pub struct Launch {
    /// The image, opened and checked.
    pub image: OwnedFd,
    /// Where the plan lies in it.
    pub plan_offset: u64,
    /// The plan's length.
    pub plan_length: u64,
    /// The interpreter to be started.
    pub interpreter: PathBuf,
    /// Its arguments, the program's name first.
    pub arguments: Vec<OsString>,
    /// Numbers below this belong to the frozen process's own descriptors.
    pub least_descriptor: RawFd,
    /// `OPTION_` bits of the plan crate, but for `OPTION_CHILDREN`.
    pub options: u64,
    /// What children of the frozen interpreter are started with; without it they are as they are.
    pub children: Option<Children>,
}

/// What the resident executes where the program executes its own interpreter. Absolute paths.
pub struct Children {
    /// This program.
    pub launcher: PathBuf,
    /// The image.
    pub image: PathBuf,
}

/// Becomes the frozen interpreter: on success there is nobody to return to.
///
/// # Errors
///
/// What kept the interpreter from being started. The process is as it was.
pub fn exec(launch: Launch) -> Result<Infallible, NativeError> {
    // Asked before anything here changes it.
    let ignored = ignored_signals();
    // A limit for the size of files counts for the memory file too; CPython ignores its signal anyway.
    survive_failed_writes();
    let failed = hand_over(launch, ignored);
    fail_at_writes(ignored);
    failed
}

fn hand_over(launch: Launch, ignored: u64) -> Result<Infallible, NativeError> {
    let away = |descriptor| at_least(descriptor, launch.least_descriptor.max(3));
    let restorer =
        executable_memory(c"python3", RESTORER).and_then(away).map_err(NativeError::Handover)?;
    let image = away(launch.image).map_err(NativeError::Handover)?;
    // The dynamic loader opens the restorer, and the restorer one file after the other.
    let spare = [&image, &restorer].map(OwnedFd::try_clone);
    for descriptor in spare {
        descriptor.map_err(NativeError::Handover)?;
    }
    let handover = Handover {
        image: image.as_raw_fd().unsigned_abs().into(),
        restorer: restorer.as_raw_fd().unsigned_abs().into(),
        plan_offset: launch.plan_offset,
        plan_length: launch.plan_length,
        ignored,
        options: launch.options | launch.children.as_ref().map_or(0, |_| OPTION_CHILDREN),
        attempt: 0,
    };
    let mut environment = environment();
    if let Some(Children { launcher, image }) = launch.children {
        for (name, path) in [(LAUNCHER_NAME, launcher), (IMAGE_NAME, image)] {
            environment.push(CString::new([name, path.as_os_str().as_bytes()].concat())?);
        }
    }
    let named = format!("/proc/self/fd/{}", restorer.as_raw_fd());
    // What the loader cannot open it leaves out, and starts the program all the same.
    fs::metadata(&named).map_err(NativeError::NoProc)?;
    environment.push(CString::new(format!("LD_AUDIT={named}"))?);
    environment.push(CString::new([HANDOVER_NAME, &handover.to_text()].concat())?);
    let arguments = strings(launch.arguments)?;
    let interpreter = CString::new(launch.interpreter.clone().into_os_string().into_vec())?;
    for descriptor in [&image, &restorer] {
        keep_over_exec(descriptor.as_fd()).map_err(NativeError::Handover)?;
    }
    replace(&interpreter, &arguments, &environment)
        .map_err(|cause| NativeError::Exec { interpreter: launch.interpreter, cause })
}

/// Becomes a new interpreter, with nothing frozen in it.
///
/// # Errors
///
/// What kept the interpreter from being started.
pub fn exec_plainly(
    interpreter: PathBuf,
    arguments: Vec<OsString>,
) -> Result<Infallible, NativeError> {
    let program = CString::new(interpreter.clone().into_os_string().into_vec())?;
    replace(&program, &strings(arguments)?, &environment())
        .map_err(|cause| NativeError::Exec { interpreter, cause })
}

fn strings(arguments: Vec<OsString>) -> Result<Vec<CString>, NativeError> {
    let strings = arguments.into_iter().map(|argument| CString::new(argument.into_vec()));
    Ok(strings.collect::<Result<_, _>>()?)
}

fn replace(
    program: &CStr,
    arguments: &[CString],
    environment: &[CString],
) -> Result<Infallible, std::io::Error> {
    execve(program, arguments, environment).map_err(Into::into)
}
