//! What is preloaded into each CRIU (crate `guard`): in want of processes, CRIU would end all others.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::handover::executable_memory;
use crate::sys::spawn::Spawn;

/// The guard's shared object.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libguard.so"));
/// The number of its descriptor in CRIU's process.
const NUMBER: i32 = 204;

/// Lets a program be started with the guard: returns the descriptor that is to come after all others of
/// the program.
///
/// # Errors
///
/// The kernel's reason, for want of descriptors, or where no file in memory may be executed.
pub(super) fn guard(program: &mut Spawn) -> io::Result<OwnedFd> {
    let object = executable_memory(c"guard", OBJECT)?;
    program.environment.push(("LD_PRELOAD".into(), format!("/proc/self/fd/{NUMBER}").into()));
    program.descriptors.push(NUMBER);
    Ok(object)
}
