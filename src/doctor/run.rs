//! What running an image needs.

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::Finding;
use super::system::{self, Kernel, Proc};
use crate::sys::probe::{self, Attempt};

/// Mappings that a large image has; the kernel's own limit is 65530.
const MANY_MAPPINGS: u64 = 10_000;
/// Fewer than these are not even enough for a small image.
const FEW_MAPPINGS: u64 = 1_000;
/// Address space that an image with TensorFlow or PyTorch needs.
const LARGE: u64 = 16_000_000_000;

/// What was found out.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    kernel: Kernel,
    proc: Proc,
    filtered: bool,
    executable_memory: Attempt,
    /// The sysctl `vm.memfd_noexec`.
    memfd_noexec: Option<u32>,
    memory_map_fields: Attempt,
    movable_vdso: Attempt,
    /// `RLIMIT_AS` in bytes, where it is limited.
    address_space: Option<u64>,
    /// The sysctl `vm.max_map_count`.
    mappings: Option<u64>,
    /// Bytes that may still be promised, where the kernel counts them.
    commit: Option<u64>,
}

impl Facts {
    pub(super) fn gather() -> Self {
        let limit = getrlimit(Resource::RLIMIT_AS).map_or(RLIM_INFINITY, |(soft, _)| soft);
        Self {
            kernel: Kernel::here(),
            proc: Proc::here(),
            filtered: system::is_filtered(),
            executable_memory: probe::executable_memory(),
            memfd_noexec: system::sysctl("vm.memfd_noexec"),
            memory_map_fields: probe::memory_map_fields(),
            movable_vdso: probe::movable_vdso(),
            address_space: (limit != RLIM_INFINITY).then_some(limit),
            mappings: system::sysctl("vm.max_map_count"),
            commit: commit(),
        }
    }

    pub(super) fn judge(&self) -> Vec<Finding> {
        vec![
            self.kernel.judge(),
            self.proc.judge(),
            self.judge_filter(),
            self.judge_executable_memory(),
            self.judge_memory_map_fields(),
            self.judge_vdso(),
            self.judge_address_space(),
            self.judge_mappings(),
            self.judge_commit(),
        ]
    }

    /// Only a remark: what a filter forbids shows in the other findings.
    fn judge_filter(&self) -> Finding {
        Finding::good(
            "seccomp",
            if self.filtered {
                "a seccomp filter is in force"
            } else {
                "no seccomp filter is in force"
            },
        )
    }

    fn judge_executable_memory(&self) -> Finding {
        const NAME: &str = "memory files";
        match (self.executable_memory, self.memfd_noexec) {
            (Attempt::Works, _) => Finding::good(NAME, "files in memory can be executed"),
            (Attempt::Refused(Errno::EACCES), Some(2)) => Finding::missing(
                NAME,
                "the kernel is set to let no file in memory be executed",
                "`sysctl vm.memfd_noexec=1`, as root",
            ),
            (attempt, _) => Finding::missing(
                NAME,
                format!("files in memory cannot be executed ({})", told(attempt)),
                "let the security policy of this machine or container allow memfd_create(2) and \
                 executable mappings of its files",
            ),
        }
    }

    fn judge_memory_map_fields(&self) -> Finding {
        const NAME: &str = "heap";
        match self.memory_map_fields {
            Attempt::Works => Finding::good(NAME, "a process can say where its heap is"),
            attempt => Finding::missing(
                NAME,
                format!("a process cannot say where its heap is ({})", told(attempt)),
                if self.filtered {
                    "let the seccomp filter of this container allow prctl(2) with PR_SET_MM, and \
                     use a kernel that is built with CONFIG_CHECKPOINT_RESTORE"
                } else {
                    "use a kernel that is built with CONFIG_CHECKPOINT_RESTORE, as those of the \
                     distributions are"
                },
            ),
        }
    }

    fn judge_vdso(&self) -> Finding {
        const NAME: &str = "vdso";
        match self.movable_vdso {
            Attempt::Works => Finding::good(NAME, "the kernel's vDSO can be moved"),
            Attempt::Refused(Errno::ENOENT) => Finding::missing(
                NAME,
                "the kernel gives no vDSO to its processes",
                "start the kernel without vdso=0",
            ),
            attempt => Finding::missing(
                NAME,
                format!("the kernel's vDSO cannot be moved ({})", told(attempt)),
                "use a kernel that is built without CONFIG_MSEAL_SYSTEM_MAPPINGS",
            ),
        }
    }

    fn judge_address_space(&self) -> Finding {
        const NAME: &str = "address space";
        match self.address_space {
            None => Finding::good(NAME, "the address space is not limited"),
            Some(limit) => {
                let text = format!("a process may have {} MB of address space", limit / 1_000_000);
                if limit >= LARGE {
                    return Finding::good(NAME, text);
                }
                let fix = "`ulimit -v unlimited`, if an image does not start: it needs as much as \
                           python had after the imports";
                Finding::doubtful(NAME, text, fix)
            }
        }
    }

    fn judge_mappings(&self) -> Finding {
        const NAME: &str = "mappings";
        let fix = "`sysctl vm.max_map_count=65530`, as root";
        match self.mappings {
            Some(most) if most < FEW_MAPPINGS => {
                Finding::missing(NAME, format!("a process may have only {most} mappings"), fix)
            }
            Some(most) if most < MANY_MAPPINGS => Finding::doubtful(
                NAME,
                format!("a process may have {most} mappings, and a large image has thousands"),
                fix,
            ),
            Some(most) => Finding::good(NAME, format!("a process may have {most} mappings")),
            None => Finding::good(NAME, "the kernel does not say how many mappings there may be"),
        }
    }

    fn judge_commit(&self) -> Finding {
        const NAME: &str = "overcommit";
        match self.commit {
            None => Finding::good(NAME, "memory is promised as it is asked for"),
            Some(left) => Finding::doubtful(
                NAME,
                format!(
                    "the kernel promises no more memory than it has, and {} MB are left",
                    left / 1_000_000
                ),
                "`sysctl vm.overcommit_memory=0`, as root, if an image does not start: each run \
                 counts with all of its memory, though it shares most of it",
            ),
        }
    }
}

/// Bytes that the kernel may still promise, where vm.overcommit_memory is 2
/// (Documentation/mm/overcommit-accounting.rst of the kernel).
fn commit() -> Option<u64> {
    (system::sysctl::<u32>("vm.overcommit_memory")? == 2).then_some(())?;
    let kilobytes = |name| system::field::<u64>("/proc/meminfo", name);
    let left = kilobytes("CommitLimit")?.saturating_sub(kilobytes("Committed_AS")?);
    Some(left.saturating_mul(1024))
}

pub(super) fn told(attempt: Attempt) -> String {
    match attempt {
        Attempt::Works => "it works".into(),
        Attempt::Refused(reason) => reason.desc().into(),
        Attempt::Killed => "a seccomp filter kills who tries".into(),
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
            executable_memory: Attempt::Works,
            memfd_noexec: Some(0),
            memory_map_fields: Attempt::Works,
            movable_vdso: Attempt::Works,
            address_space: None,
            mappings: Some(65530),
            commit: None,
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
    fn this_machine_can_run_images() {
        assert!(Facts::gather().judge().iter().all(|finding| finding.status != Missing));
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_fix() {
        assert_eq!(found(|_| ()), []);
        assert_eq!(found(|facts| facts.filtered = true), []);
        assert_eq!(found(|facts| facts.address_space = Some(LARGE)), []);
    }

    #[test]
    fn everything_missing_has_its_own_fix() {
        let one = |change: fn(&mut Facts), name, status, part: &str| {
            let found = found(change);
            let [(is_name, is_status, fix)] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!((*is_name, *is_status), (name, status));
            assert!(fix.contains(part), "{fix}");
        };
        let refused = Attempt::Refused(Errno::EACCES);
        one(|facts| facts.proc = Proc::Absent, "proc", Missing, "mount");
        one(
            |facts| {
                facts.executable_memory = Attempt::Refused(Errno::EACCES);
                facts.memfd_noexec = Some(2);
            },
            "memory files",
            Missing,
            "vm.memfd_noexec=1",
        );
        one(|facts| facts.executable_memory = Attempt::Killed, "memory files", Missing, "policy");
        one(
            |facts| facts.memory_map_fields = Attempt::Refused(Errno::EPERM),
            "heap",
            Missing,
            "CONFIG_CHECKPOINT_RESTORE",
        );
        one(
            |facts| facts.movable_vdso = Attempt::Refused(Errno::EPERM),
            "vdso",
            Missing,
            "CONFIG_MSEAL_SYSTEM_MAPPINGS",
        );
        one(
            |facts| facts.movable_vdso = Attempt::Refused(Errno::ENOENT),
            "vdso",
            Missing,
            "vdso=0",
        );
        one(|facts| facts.address_space = Some(1 << 30), "address space", Doubtful, "ulimit -v");
        one(|facts| facts.mappings = Some(500), "mappings", Missing, "vm.max_map_count");
        one(|facts| facts.mappings = Some(5000), "mappings", Doubtful, "vm.max_map_count");
        one(|facts| facts.commit = Some(0), "overcommit", Doubtful, "vm.overcommit_memory");
        assert_eq!(told(refused), "Permission denied");
    }
}
