//! The last words of a restore that cannot be: a message as the launcher would print it, and 125.

use crate::syscall::{self, Errno};

/// Exit status of preloaded-criu's own failures.
const OWN_FAILURE: usize = 125;

/// Why a restore ended.
pub(crate) struct Failure {
    /// The call or the thing that failed, with its object.
    pub(crate) what: &'static str,
    /// NUL-terminated path that it was about, or null.
    pub(crate) path: *const u8,
    /// The kernel's reason, 0 for none.
    pub(crate) errno: usize,
}

impl Failure {
    pub(crate) fn new(what: &'static str, errno: Errno) -> Self {
        Self { what, path: core::ptr::null(), errno: errno.0 }
    }

    pub(crate) fn plain(what: &'static str) -> Self {
        Self { what, path: core::ptr::null(), errno: 0 }
    }
}

/// Says why and ends the process: there is nothing to return to.
pub(crate) fn fail(failure: &Failure) -> ! {
    let mut line = Line { bytes: [0; 512], used: 0 };
    line.push(b"preloaded-criu: the image could not be put into this process\n  ");
    let what = failure.what.as_bytes();
    // What is of no file has none to be named.
    let without_file = if failure.path.is_null() { what.strip_suffix(b" of") } else { None };
    line.push(without_file.unwrap_or(what));
    if !failure.path.is_null() {
        line.push(b" ");
        line.push_path(failure.path);
    }
    if failure.errno != 0 {
        line.push(b": ");
        line.push(name(failure.errno).as_bytes());
    }
    line.push(b"\nhint: ");
    line.push(hint(failure).as_bytes());
    line.push(b"\n");
    // SAFETY: the buffer is alive and of that length; exit_group takes no address.
    unsafe {
        let _ =
            syscall::call(syscall::WRITE, [2, line.bytes.as_ptr() as usize, line.used, 0, 0, 0]);
        loop {
            let _ = syscall::call(syscall::EXIT_GROUP, [OWN_FAILURE, 0, 0, 0, 0, 0]);
        }
    }
}

fn name(errno: usize) -> &'static str {
    match errno {
        1 => "operation not permitted (EPERM)",
        2 => "no such file (ENOENT)",
        5 => "input/output error (EIO)",
        12 => "out of memory or of mappings (ENOMEM)",
        13 => "permission denied (EACCES)",
        17 => "the address is taken (EEXIST)",
        22 => "invalid argument (EINVAL)",
        23 | 24 => "too many open files (EMFILE)",
        38 => "not implemented by this kernel (ENOSYS)",
        _ => "refused by the kernel",
    }
}

fn hint(failure: &Failure) -> &'static str {
    match failure.errno {
        0 if !failure.path.is_null() => {
            "'preloaded-criu inspect' lists what the image has open: close the descriptor, or make the image anew"
        }
        2 => "make the snapshot anew: a file that it was made from is gone",
        12 => {
            "raise the memory limits (ulimit -v, -d; sysctl vm.max_map_count, vm.overcommit_memory)"
        }
        23 | 24 => "raise the limit of open files (ulimit -n)",
        _ => "'preloaded-criu doctor run' says what this machine allows",
    }
}

struct Line {
    bytes: [u8; 512],
    used: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for &byte in text {
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
    }

    fn push_path(&mut self, mut path: *const u8) {
        // Leaves room for what follows the path.
        while self.used < 320 {
            // SAFETY: the caller hands a NUL-terminated string, and reading stops at its NUL.
            let byte = unsafe { path.read() };
            if byte == 0 {
                return;
            }
            // A name of a file's, which the terminal should not obey; 0x80 to 0x9f after 0xc2 are the
            // second half of the control characters in UTF-8.
            let follows = self.used > 0 && self.bytes[self.used - 1] == 0xc2;
            let is_control =
                byte < b' ' || byte == 0x7f || (follows && (0x80..0xa0).contains(&byte));
            self.push(&[if is_control { b'?' } else { byte }]);
            // SAFETY: the byte read was not the last, so the next one is part of the string.
            path = unsafe { path.add(1) };
        }
    }
}
