//! Capabilities (capabilities(7)): which ones this process has, which ones a program is given.

#![allow(unsafe_code, reason = "sys")]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{getegid, geteuid, getgid, getuid};

use super::spawn::Privileges;

/// What CRIU tries to make use of where it has them, and fails: with the first two it takes root's
/// identity, with the others it sets limits and network options that a namespace's owner may not.
const HARMFUL: [Capability; 4] = [
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_RESOURCE,
];

/// Whether this process may checkpoint another one of its user in the namespaces that it is in:
/// the kernel asks for one of the two.
#[must_use]
pub fn may_checkpoint() -> bool {
    [Capability::CAP_CHECKPOINT_RESTORE, Capability::CAP_SYS_ADMIN].into_iter().any(effective)
}

/// Whether this process may set up the machine (capabilities(7), `CAP_SYS_ADMIN`). In a container it
/// may not, and sees what belongs to the machine read-only.
#[must_use]
pub fn may_administer() -> bool {
    effective(Capability::CAP_SYS_ADMIN)
}

/// Whether this process may do more than its caller, by capabilities of its file (or a setuid bit):
/// then nothing that the caller has chosen is to be executed, or believed (getauxval(3), `AT_SECURE`).
#[must_use]
pub fn exceeds_its_caller() -> bool {
    // SAFETY: takes no address.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether the dynamic loader would ignore what is preloaded into a program, were it executed by this
/// process (ld.so(8), "Secure-execution mode"): it has rights that its caller has not.
#[must_use]
pub fn starts_securely(program: &Path) -> bool {
    // The kernel compares the new identity with the real one, which an exec leaves as it is
    // (security/commoncap.c, `cap_bprm_creds_from_file`).
    geteuid() != getuid() || getegid() != getgid() || gives_rights(program)
}

/// Whether who executes this file gets rights by it: a setuid or setgid bit, or capabilities of the file.
fn gives_rights(program: &Path) -> bool {
    const SETUID: u32 = 0o4000;
    const SETGID_AND_EXECUTABLE: u32 = 0o2010;
    let mode = program.metadata().map_or(0, |metadata| metadata.mode());
    let by_bits = mode & SETUID != 0 || mode & SETGID_AND_EXECUTABLE == SETGID_AND_EXECUTABLE;
    let Ok(name) = CString::new(program.as_os_str().as_bytes()) else { return by_bits };
    // SAFETY: two strings that end with a NUL; without a buffer the call only says how long the value is.
    let length = unsafe {
        libc::getxattr(name.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0)
    };
    by_bits || length > 0
}

fn effective(capability: Capability) -> bool {
    // A kernel that does not know the capability does not grant it.
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Leaves this process, which is about to execute a program, what the program shall have.
pub(super) fn reduce(privileges: Privileges) -> io::Result<()> {
    match privileges {
        Privileges::Ordinary => ordinary(),
        Privileges::Traceable => {
            let any = libc::c_ulong::MAX;
            // SAFETY: an operation without pointers. A kernel without Yama refuses it, and does not
            // need it.
            unsafe { libc::prctl(libc::PR_SET_PTRACER, any, 0, 0, 0) };
            ordinary()
        }
        // Root's programs get all that the bounding set has.
        Privileges::Checkpoint if geteuid().is_root() => Ok(()),
        Privileges::Checkpoint => {
            let mut kept = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
            for capability in HARMFUL {
                kept.remove(&capability);
            }
            caps::set(None, CapSet::Inheritable, &kept).map_err(io::Error::other)?;
            caps::set(None, CapSet::Ambient, &kept).map_err(io::Error::other)
        }
    }
}

fn ordinary() -> io::Result<()> {
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(io::Error::other)
}
