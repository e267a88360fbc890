//! What making an image needs, beyond what running it needs.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::Finding;
use super::system::{self, Kernel, Proc};
use crate::sys::probe;

/// Room that the dump of a large process takes for a while.
const ROOM: u64 = 2_000_000_000;
/// Room without which no snapshot succeeds.
const LEAST_ROOM: u64 = 100_000_000;

/// What was found out.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    kernel: Kernel,
    proc: Proc,
    filtered: bool,
    /// The sysctl `kernel.yama.ptrace_scope`, where Yama is in force.
    yama: Option<u32>,
    temporary: Temporary,
}

/// The directory for temporary files.
#[derive(Clone, Debug)]
struct Temporary {
    path: PathBuf,
    /// Why no file can be made in it.
    unwritable: Option<String>,
    /// Whether files in it can be executed.
    executable: bool,
    /// Bytes that are free.
    room: u64,
}

impl Facts {
    pub(super) fn gather(_criu: Option<&Path>) -> Self {
        Self {
            kernel: Kernel::here(),
            proc: Proc::here(),
            filtered: system::is_filtered(),
            yama: system::sysctl("kernel.yama.ptrace_scope"),
            temporary: Temporary::examine(env::temp_dir()),
        }
    }

    pub(super) fn judge(&self) -> Vec<Finding> {
        let mut findings =
            vec![self.kernel.judge(), self.proc.judge(), self.judge_filter(), self.judge_yama()];
        findings.extend(self.temporary.judge());
        findings
    }

    fn judge_filter(&self) -> Finding {
        const NAME: &str = "seccomp";
        if self.filtered {
            // ptrace(2), PTRACE_O_SUSPEND_SECCOMP: refused to a tracer that has a filter itself.
            Finding::missing(
                NAME,
                "a seccomp filter is in force, and CRIU cannot look through it",
                "in a container: make the image while the container's own image is built, or with \
                 `--security-opt seccomp=unconfined`",
            )
        } else {
            Finding::good(NAME, "no seccomp filter is in force")
        }
    }

    fn judge_yama(&self) -> Finding {
        const NAME: &str = "yama";
        match self.yama {
            None => Finding::good(NAME, "Yama is not in force"),
            Some(scope @ 0..=2) => Finding::good(
                NAME,
                format!("Yama lets CRIU trace what it started (kernel.yama.ptrace_scope={scope})"),
            ),
            Some(scope) => Finding::missing(
                NAME,
                format!("Yama lets nobody trace a process (kernel.yama.ptrace_scope={scope})"),
                "set kernel.yama.ptrace_scope to 0, 1 or 2 in /etc/sysctl.d and start the machine anew",
            ),
        }
    }
}

impl Temporary {
    fn examine(path: PathBuf) -> Self {
        let made = tempfile::tempfile_in(&path).and_then(|mut file| {
            file.write_all(&[0; 4096])?;
            Ok(file)
        });
        let room = statvfs(&path)
            .map_or(0, |found| found.blocks_available().saturating_mul(found.fragment_size()));
        Self {
            executable: made.as_ref().is_ok_and(probe::maps_executable),
            unwritable: made.err().map(|error| error.to_string()),
            path,
            room,
        }
    }

    fn judge(&self) -> Vec<Finding> {
        const NAME: &str = "temporary files";
        let path = self.path.display();
        let elsewhere = "set TMPDIR to a directory on another disk";
        if let Some(why) = &self.unwritable {
            let text = format!("no file can be made in {path} ({why})");
            return vec![Finding::missing(NAME, text, elsewhere)];
        }
        let executable = if self.executable {
            Finding::good(NAME, format!("files in {path} can be executed"))
        } else {
            let fix = "set TMPDIR to a directory of a file system that is not mounted with noexec";
            Finding::missing(NAME, format!("no file in {path} can be executed"), fix)
        };
        let text = format!("{} MB are free in {path}", self.room / 1_000_000);
        let room = if self.room < LEAST_ROOM {
            Finding::missing("room", text, elsewhere)
        } else if self.room < ROOM {
            let text = format!("{text}, and a large process has more memory");
            Finding::doubtful("room", text, elsewhere)
        } else {
            Finding::good("room", text)
        };
        vec![executable, room]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status::{self, Doubtful, Good, Missing};

    fn healthy() -> Facts {
        Facts {
            kernel: Kernel { release: "6.1.0".into(), machine: "x86_64".into() },
            proc: Proc::Mounted,
            filtered: false,
            yama: Some(1),
            temporary: Temporary {
                path: "/tmp".into(),
                unwritable: None,
                executable: true,
                room: ROOM,
            },
        }
    }

    /// What is not good, and the words of its fix.
    fn found(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Status, String)> {
        let mut facts = healthy();
        change(&mut facts);
        let findings = facts.judge().into_iter();
        findings
            .filter(|finding| finding.status != Good)
            .map(|finding| (finding.name, finding.status, finding.fix.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_fix() {
        assert_eq!(found(|_| ()), []);
        assert_eq!(found(|facts| facts.yama = None), []);
    }

    #[test]
    fn everything_missing_has_its_own_fix() {
        let one = |change: fn(&mut Facts), name, status, part: &str| {
            let found = found(change);
            let [(is_name, is_status, fix)] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!((*is_name, *is_status), (name, status));
            assert!(fix.contains(part), "{fix}");
        };
        one(|facts| facts.filtered = true, "seccomp", Missing, "seccomp=unconfined");
        one(|facts| facts.yama = Some(3), "yama", Missing, "ptrace_scope");
        one(|facts| facts.temporary.room = LEAST_ROOM, "room", Doubtful, "TMPDIR");
        one(|facts| facts.temporary.room = 0, "room", Missing, "TMPDIR");
        let files = "temporary files";
        one(|facts| facts.temporary.executable = false, files, Missing, "noexec");
        one(
            |facts| facts.temporary.unwritable = Some("Read-only file system".into()),
            files,
            Missing,
            "TMPDIR",
        );
    }

    #[test]
    fn a_directory_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let good = Temporary::examine(folder.path().to_owned());
        assert!(good.executable && good.unwritable.is_none() && good.room > 0);
        assert!(Temporary::examine("/proc".into()).unwritable.is_some());
        assert!(Temporary::examine(folder.path().join("absent")).unwritable.is_some());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
