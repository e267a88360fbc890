//! What a process got from the one that started it and hands on to the one that it becomes.

use std::ffi::{CStr, CString};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

unsafe extern "C" {
    static environ: *const *const std::ffi::c_char;
}

/// The environment as it stands, string by string: with duplicates, with strings that have no `=`,
/// in its order (environ(7)).
#[must_use]
pub fn environment() -> Vec<CString> {
    let mut strings = Vec::with_capacity(64);
    // SAFETY: the launcher is single-threaded and does not change its environment; the vector ends
    // with a null pointer and holds NUL-terminated strings.
    unsafe {
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            strings.push(CStr::from_ptr(*next).to_owned());
            next = next.add(1);
        }
    }
    strings
}

/// The signals that are ignored, bit N-1 for signal N (execve(2) leaves them so).
#[must_use]
pub fn ignored_signals() -> u64 {
    (1..=64).filter(|signal| is_ignored(*signal)).fold(0, |set, signal| set | 1 << (signal - 1))
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: a sigaction of zeros is a valid one to be written over.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with a null action the call only asks; `action` is writable.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// The limit for the size of the address space (getrlimit(2), `RLIMIT_AS`), if there is one.
#[must_use]
pub fn address_space_limit() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// The limit for memory that can be written to and is nobody else's (getrlimit(2), `RLIMIT_DATA`), if
/// there is one. Where it is 0, the kernel goes by the hard limit (mm/mmap.c, `may_expand_vm`).
#[must_use]
pub fn data_limit() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_DATA).ok()?;
    let limit = if soft == 0 { hard } else { soft };
    (limit != RLIM_INFINITY).then_some(limit)
}

/// Whether the caller has handed us a descriptor of this number. Our own are close-on-exec from birth,
/// and no descriptor that has come through an exec is.
#[must_use]
pub fn is_inherited(number: u64) -> bool {
    let Ok(number) = i32::try_from(number) else { return false };
    // SAFETY: F_GETFD only asks, and says so when there is no such descriptor.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

#[cfg(test)]
mod tests {
    use super::{environment, ignored_signals};

    #[test]
    fn the_environment_has_what_the_process_was_given() {
        let path = std::env::var_os("PATH").expect("tests run with a PATH");
        let wanted = [b"PATH=", path.as_encoded_bytes()].concat();
        assert!(environment().iter().any(|string| string.as_bytes() == wanted));
    }

    #[test]
    fn rust_ignores_sigpipe_in_its_own_programs() {
        assert_eq!(ignored_signals() & 1 << (libc::SIGPIPE - 1), 1 << (libc::SIGPIPE - 1));
    }
}
