//! What making an image needs, beyond what running it needs.

use std::env;
use std::error::Error;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::Finding;
use super::system::{self, Kernel, Proc};
use crate::criu::{self, CriuError, Version};
use crate::sys::capabilities::may_checkpoint;
use crate::sys::keeper::{Isolation, Keeper};
use crate::sys::{Explain, probe, spawn};

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
    /// Whether CRIU may work in the host's namespaces.
    privileged: bool,
    /// Whether `criu check` tells the truth.
    checkable: bool,
    namespaces: Namespaces,
    criu: Criu,
    places: Vec<Place>,
}

/// Whether an ordinary user gets namespaces.
#[derive(Clone, Debug, Default)]
struct Namespaces {
    /// Why not.
    refused: Option<String>,
    /// The sysctl `user.max_user_namespaces`.
    most: Option<u64>,
    /// The sysctl `kernel.unprivileged_userns_clone` of some distributions' kernels.
    unprivileged: Option<u32>,
    /// The sysctl `kernel.apparmor_restrict_unprivileged_userns`.
    apparmor: Option<u32>,
}

/// The CRIU that would be used.
#[derive(Clone, Debug)]
enum Criu {
    /// There is none of use: why, and what to do.
    Absent(String, String),
    Found {
        path: PathBuf,
        version: Version,
        /// What `criu check` has against this machine.
        complaint: Option<String>,
        /// Whether it may keep what it finds out about the kernel.
        remembers: bool,
    },
}

/// A directory for temporary files.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    /// Why no file can be made in it.
    unwritable: Option<String>,
    /// Whether files in it can be executed.
    executable: bool,
    /// Bytes that are free.
    room: u64,
}

impl Facts {
    pub(super) fn gather(criu: Option<&Path>) -> Self {
        // Nothing is known that could go wrong with it, and the probes would say so.
        let _ = spawn::expect_children();
        let privileged = may_checkpoint();
        let isolation = if privileged { Isolation::Host } else { Isolation::UserNamespace };
        Self {
            kernel: Kernel::here(),
            proc: Proc::here(),
            filtered: system::is_filtered(),
            yama: system::sysctl("kernel.yama.ptrace_scope"),
            privileged,
            checkable: criu::can_check(),
            namespaces: Namespaces::examine(),
            criu: Criu::examine(criu, isolation),
            places: Place::all().into_iter().map(Place::examine).collect(),
        }
    }

    pub(super) fn judge(&self) -> Vec<Finding> {
        // Where CRIU could not be given the rights that it needs, it was not tried.
        let tried = self.checkable && (self.privileged || self.namespaces.refused.is_none());
        let mut findings = self.criu.judge(tried);
        findings.extend([
            self.kernel.judge(),
            self.proc.judge(),
            self.judge_rights(),
            self.namespaces.judge(self.privileged, self.filtered),
            self.judge_filter(),
            self.judge_yama(),
        ]);
        findings.extend(Place::judge(&self.places));
        findings
    }

    /// Only a remark: without rights, the namespaces decide.
    fn judge_rights(&self) -> Finding {
        Finding::good(
            "rights",
            if self.privileged {
                "this user may freeze processes (root, or CAP_CHECKPOINT_RESTORE)"
            } else {
                "this user has no CAP_CHECKPOINT_RESTORE, and freezes in a user namespace"
            },
        )
    }

    fn judge_filter(&self) -> Finding {
        const NAME: &str = "seccomp";
        if self.filtered {
            // ptrace(2), PTRACE_O_SUSPEND_SECCOMP: refused to a tracer that has a filter itself.
            Finding::missing(
                NAME,
                "a seccomp filter is in force, and CRIU cannot look through it",
                "in a container: `--security-opt seccomp=unconfined`, also where the container's own image \
                 is built",
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

impl Namespaces {
    fn examine() -> Self {
        Self {
            refused: Keeper::start(Isolation::UserNamespace, &[]).err().map(|error| chain(&error)),
            most: system::sysctl("user.max_user_namespaces"),
            unprivileged: system::sysctl("kernel.unprivileged_userns_clone"),
            apparmor: system::sysctl("kernel.apparmor_restrict_unprivileged_userns"),
        }
    }

    /// What to do where namespaces are refused.
    fn fix(&self, filtered: bool) -> &'static str {
        if self.most == Some(0) {
            "`sysctl user.max_user_namespaces=15000`, as root; or make images as root"
        } else if self.unprivileged == Some(0) {
            "`sysctl kernel.unprivileged_userns_clone=1`, as root; or make images as root"
        } else if self.apparmor.is_some_and(|value| value != 0) {
            "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`, as root, or an AppArmor \
             profile that grants `userns` to this program; or make images as root"
        } else if filtered {
            "in a container: `--cap-add CHECKPOINT_RESTORE --security-opt seccomp=unconfined`"
        } else {
            "make images as root, or with CAP_CHECKPOINT_RESTORE (in a container: `--cap-add \
             CHECKPOINT_RESTORE`)"
        }
    }

    fn judge(&self, privileged: bool, filtered: bool) -> Finding {
        const NAME: &str = "user namespaces";
        match (&self.refused, privileged) {
            (None, _) => Finding::good(NAME, "this user can make user namespaces"),
            (Some(why), true) => Finding::good(
                NAME,
                format!("user namespaces are not to be had, nor needed ({why})"),
            ),
            (Some(why), false) => Finding::missing(
                NAME,
                format!("an ordinary user needs a user namespace to freeze in ({why})"),
                self.fix(filtered),
            ),
        }
    }
}

impl Criu {
    fn examine(named: Option<&Path>, isolation: Isolation) -> Self {
        match criu::find(named) {
            Ok(found) => Self::Found {
                complaint: criu::check(&found.path).err(),
                remembers: criu::runtime_directory(found.version, isolation).is_some(),
                path: found.path,
                version: found.version,
            },
            Err(error) => Self::absent(&error),
        }
    }

    fn absent(error: &CriuError) -> Self {
        Self::Absent(chain(error), error.hint())
    }

    fn judge(&self, tried: bool) -> Vec<Finding> {
        match self {
            Self::Absent(why, fix) => vec![Finding::missing("criu", why, fix)],
            Self::Found { path, version, complaint, remembers } => {
                let text = format!("CRIU {version} is there ({})", path.display());
                let mut findings = vec![Finding::good("criu", text)];
                findings.extend(tried.then(|| Self::judge_complaint(complaint.as_deref())));
                findings.push(Self::judge_memory(*remembers));
                findings
            }
        }
    }

    fn judge_complaint(complaint: Option<&str>) -> Finding {
        const NAME: &str = "criu check";
        match complaint {
            None => Finding::good(NAME, "CRIU finds in this kernel what it needs"),
            Some(why) => Finding::missing(
                NAME,
                why,
                "use a newer CRIU (scripts/install-criu installs one), or a kernel of a distribution",
            ),
        }
    }

    fn judge_memory(remembers: bool) -> Finding {
        const NAME: &str = "criu's cache";
        if remembers {
            Finding::good(NAME, "CRIU may remember what it finds out about the kernel")
        } else {
            Finding::doubtful(
                NAME,
                "CRIU has no place to remember what it finds out about the kernel, so each snapshot \
                 takes 0.1 s longer",
                "set XDG_RUNTIME_DIR to a directory of this user's own on a tmpfs",
            )
        }
    }
}

impl Place {
    /// Where a snapshot puts its temporary files: `TMPDIR`, or else the first of these that will do.
    fn all() -> Vec<PathBuf> {
        match env::var_os("TMPDIR").filter(|directory| !directory.is_empty()) {
            Some(directory) => vec![directory.into()],
            None => ["/tmp", "/var/tmp", "."].map(PathBuf::from).into(),
        }
    }

    fn examine(path: PathBuf) -> Self {
        let made = tempfile::tempfile_in(&path).and_then(|mut file| {
            file.write_all(&[0; 4096])?;
            Ok(file)
        });
        let room = statvfs(&path).map_or(0, |found| match found.blocks() {
            // A tmpfs without a limit.
            0 => u64::MAX,
            _ => found.blocks_available().saturating_mul(found.fragment_size()),
        });
        Self {
            executable: made.as_ref().is_ok_and(|file| probe::maps_as_code(file).is_ok()),
            unwritable: made.err().map(|error| error.to_string()),
            path,
            room,
        }
    }

    /// Why a library in it cannot be preloaded (ld.so(8): spaces and colons separate names).
    fn fault(&self) -> Option<String> {
        let path = self.path.display();
        if let Some(why) = &self.unwritable {
            Some(format!("no file can be made in {path} ({why})"))
        } else if self.path.as_os_str().as_bytes().iter().any(|byte| b": \t\n".contains(byte)) {
            Some(format!("nothing can be preloaded from {path}: there is a space or colon in it"))
        } else if self.executable {
            None
        } else {
            Some(format!("no file in {path} can be executed"))
        }
    }

    fn judge(places: &[Self]) -> Vec<Finding> {
        const FIX: &str = "set TMPDIR to a directory that can be written to, on a file system that is \
                           not mounted with noexec, with room and with a plain name";
        let files = if let Some(place) = places.iter().find(|place| place.fault().is_none()) {
            let text = format!("files in {} can be executed", place.path.display());
            Finding::good("temporary files", text)
        } else {
            let fault = places.iter().find_map(Self::fault).unwrap_or_default();
            Finding::missing("temporary files", fault, FIX)
        };
        let usable = || places.iter().filter(|place| place.unwritable.is_none());
        let wide = usable().find(|place| place.room >= ROOM);
        let Some(widest) = wide.or_else(|| usable().max_by_key(|place| place.room)) else {
            return vec![files];
        };
        let path = widest.path.display();
        let text = match widest.room {
            u64::MAX => format!("there is room in {path}"),
            room => format!("{} MB are free in {path}", room / 1_000_000),
        };
        let room = if widest.room < LEAST_ROOM {
            Finding::missing("room", text, FIX)
        } else if widest.room < ROOM {
            Finding::doubtful("room", format!("{text}, and a large process has more memory"), FIX)
        } else {
            Finding::good("room", text)
        };
        vec![files, room]
    }
}

/// An error with its reasons, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
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
            privileged: false,
            checkable: true,
            namespaces: Namespaces::default(),
            criu: criu(None, true),
            places: vec![place()],
        }
    }

    fn criu(complaint: Option<String>, remembers: bool) -> Criu {
        Criu::Found { path: "/criu".into(), version: Version::FLOOR, complaint, remembers }
    }

    fn place() -> Place {
        Place { path: "/tmp".into(), unwritable: None, executable: true, room: ROOM }
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
        one(
            |facts| facts.criu = Criu::Absent("there is none".into(), "get one".into()),
            "criu",
            Missing,
            "get one",
        );
        one(
            |facts| facts.criu = criu(Some("it fails".into()), true),
            "criu check",
            Missing,
            "scripts/install-criu",
        );
        one(|facts| facts.criu = criu(None, false), "criu's cache", Doubtful, "XDG_RUNTIME_DIR");
        one(|facts| facts.places[0].room = LEAST_ROOM, "room", Doubtful, "TMPDIR");
        one(|facts| facts.places[0].room = 0, "room", Missing, "TMPDIR");
        let files = "temporary files";
        one(|facts| facts.places[0].executable = false, files, Missing, "noexec");
        one(|facts| facts.places[0].path = "/a b".into(), files, Missing, "plain name");
        one(
            |facts| facts.places[0].unwritable = Some("Read-only file system".into()),
            files,
            Missing,
            "TMPDIR",
        );
    }

    #[test]
    fn what_restricts_user_namespaces_is_named() {
        let fix = |change: fn(&mut Namespaces)| {
            let found = found(|facts| {
                facts.namespaces.refused = Some("cannot make a user namespace".into());
                change(&mut facts.namespaces);
            });
            let [("user namespaces", Missing, fix)] = found.as_slice() else { panic!("{found:?}") };
            fix.clone()
        };
        assert!(fix(|_| ()).contains("as root"));
        assert!(fix(|found| found.most = Some(0)).contains("max_user_namespaces"));
        assert!(fix(|found| found.unprivileged = Some(0)).contains("unprivileged_userns_clone"));
        assert!(fix(|found| found.apparmor = Some(1)).contains("apparmor_restrict"));
    }

    #[test]
    fn with_rights_no_namespace_is_needed() {
        let found = found(|facts| {
            facts.privileged = true;
            facts.namespaces.refused = Some("no".into());
        });
        assert_eq!(found, []);
    }

    #[test]
    fn one_good_place_is_enough() {
        let bad = Place { executable: false, room: 0, ..place() };
        assert_eq!(found(|facts| facts.places.insert(0, bad)), []);
    }

    #[test]
    fn a_directory_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let good = Place::examine(folder.path().to_owned());
        assert!(good.executable && good.unwritable.is_none() && good.room > 0);
        assert!(Place::examine("/proc".into()).unwritable.is_some());
        assert!(Place::examine(folder.path().join("absent")).unwritable.is_some());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
