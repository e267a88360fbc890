//! The exec of the interpreter with the restorer as its audit object.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::unistd::execve;
use restore_plan::{HANDOVER_NAME, Handover};

use super::NativeError;
use crate::sys::handover::{at_least, executable_memory, keep_over_exec};
use crate::sys::inherited::{environment, ignored_signals};
use crate::sys::survive_failed_writes;

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
    /// `OPTION_` bits of the plan crate.
    pub options: u64,
}

/// Becomes the frozen interpreter: on success there is nobody to return to.
///
/// # Errors
///
/// What kept the interpreter from being started.
pub fn exec(launch: Launch) -> Result<Infallible, NativeError> {
    // Asked before anything here changes it.
    let ignored = ignored_signals();
    // A limit for the size of files counts for the memory file too; CPython ignores its signal anyway.
    survive_failed_writes();
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
        options: launch.options,
        attempt: 0,
    };
    let mut environment = environment();
    environment.push(CString::new(format!("LD_AUDIT=/proc/self/fd/{}", restorer.as_raw_fd()))?);
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
