//! What the kernel says of itself and of this process.

use std::fs;
use std::str::FromStr;

use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use nix::sys::utsname::uname;

use super::Finding;

/// The oldest kernel that has all that the restorer calls: rseq(2) came with 4.18.
const OLDEST: (u32, u32) = (4, 18);

/// The kernel.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) release: String,
    pub(super) machine: String,
}

impl Kernel {
    pub(super) fn here() -> Self {
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        match uname() {
            Ok(name) => Self { release: text(name.release()), machine: text(name.machine()) },
            Err(_) => Self { release: String::new(), machine: String::new() },
        }
    }

    fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.split(|character: char| !character.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    pub(super) fn judge(&self) -> Finding {
        const NAME: &str = "kernel";
        let Self { release, machine } = self;
        if machine != "x86_64" {
            let text = format!("this is a machine of the kind {machine}");
            return Finding::missing(NAME, text, "use a machine of the kind x86_64");
        }
        let (major, minor) = OLDEST;
        match self.version() {
            Some(version) if version >= OLDEST => {
                Finding::good(NAME, format!("this is Linux {release} on {machine}"))
            }
            Some(_) => Finding::missing(
                NAME,
                format!("Linux {release} is too old"),
                format!("use Linux {major}.{minor} or later"),
            ),
            None => Finding::doubtful(
                NAME,
                format!("nobody knows how old a kernel {release:?} is"),
                format!("use Linux {major}.{minor} or later"),
            ),
        }
    }
}

/// What `/proc` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proc {
    Mounted,
    /// Something else lies there, or nothing.
    Absent,
}

impl Proc {
    pub(super) fn here() -> Self {
        let mounted =
            statfs("/proc").is_ok_and(|found| found.filesystem_type() == PROC_SUPER_MAGIC);
        if mounted && fs::read_dir("/proc/self/fd").is_ok() { Self::Mounted } else { Self::Absent }
    }

    pub(super) fn judge(self) -> Finding {
        const NAME: &str = "proc";
        match self {
            Self::Mounted => Finding::good(NAME, "/proc is mounted and shows this process"),
            Self::Absent => Finding::missing(
                NAME,
                "/proc does not show this process",
                "`mount -t proc proc /proc`, as root",
            ),
        }
    }
}

/// A number that the kernel keeps below `/proc/sys`; `None` where it has none of that name.
pub(super) fn sysctl<T: FromStr>(name: &str) -> Option<T> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of a field of a file like `/proc/self/status`: `Name:  value`.
pub(super) fn field<T: FromStr>(path: &str, name: &str) -> Option<T> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

/// Whether a seccomp filter judges what this process does (proc(5), `Seccomp`).
pub(super) fn is_filtered() -> bool {
    field::<u32>("/proc/self/status", "Seccomp").is_some_and(|mode| mode != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    fn kernel(release: &str, machine: &str) -> Status {
        Kernel { release: release.into(), machine: machine.into() }.judge().status
    }

    #[test]
    fn kernels_are_judged_by_their_numbers() {
        assert_eq!(kernel("6.18.44-fc", "x86_64"), Status::Good);
        assert_eq!(kernel("4.18", "x86_64"), Status::Good);
        assert_eq!(kernel("10.0-rc1", "x86_64"), Status::Good);
        assert_eq!(kernel("4.17.9", "x86_64"), Status::Missing);
        assert_eq!(kernel("6.1.0", "aarch64"), Status::Missing);
        assert_eq!(kernel("unknown", "x86_64"), Status::Doubtful);
    }

    #[test]
    fn fields_and_numbers_are_found() {
        assert_eq!(field::<u32>("/proc/self/status", "Pid"), Some(std::process::id()));
        assert_eq!(field::<u32>("/proc/self/status", "Nothing"), None);
        assert!(sysctl::<u64>("kernel.pid_max").is_some());
        assert_eq!(sysctl::<u64>("kernel.nothing"), None);
        assert_eq!(Proc::here(), Proc::Mounted);
    }
}
