//! What all tests of this binary share: one directory that every user can reach, with a copy of the
//! program in it.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::resource::{Resource, setrlimit};

/// The shared directory.
pub(crate) struct Shared {
    root: PathBuf,
    binary: PathBuf,
    /// When this end of the pipe closes, with the test process and however that ends, the directory
    /// is removed.
    _reaper: ChildStdin,
}

/// Makes it at the first call.
pub(crate) fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(Shared::new)
}

impl Shared {
    fn new() -> Self {
        // Scripts here die of signals on purpose.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
        let root = tempfile::Builder::new()
            .prefix("preloaded-criu-e2e.")
            .permissions(Permissions::from_mode(0o711))
            .tempdir_in(reachable_base())
            .unwrap()
            .keep();
        let reaper = reap(&root);
        let binary = root.join("bin/preloaded-criu");
        fs::create_dir(root.join("bin")).unwrap();
        copy_program(&built(), &binary);
        fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
        let modules = root.join("modules");
        fs::create_dir(&modules).unwrap();
        for (name, source) in MODULES {
            fs::write(modules.join(name), source).unwrap();
        }
        Self { root, binary, _reaper: reaper }
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The program.
    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where the modules of `tests/e2e/modules` are.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("modules")
    }

    /// The virtual environment with scikit-learn, where every user can reach it.
    pub(crate) fn libraries(&self) -> &Path {
        static LIBRARIES: OnceLock<PathBuf> = OnceLock::new();
        LIBRARIES.get_or_init(|| {
            let venv = env::var_os("PRELOADED_CRIU_TEST_VENV").map(PathBuf::from).expect(
                "PRELOADED_CRIU_TEST_VENV is not set: scripts/test makes the environment and sets it",
            );
            if is_reachable(&venv) {
                return venv;
            }
            let copy = self.root.join("venv");
            let status = Command::new("cp").arg("-a").arg(&venv).arg(&copy).status().unwrap();
            assert!(status.success(), "cp -a {}: {status}", venv.display());
            copy
        })
    }
}

const MODULES: &[(&str, &str)] = &[
    ("blocks.py", include_str!("../modules/blocks.py")),
    ("churn.py", include_str!("../modules/churn.py")),
    ("crowd.py", include_str!("../modules/crowd.py")),
    ("dice.py", include_str!("../modules/dice.py")),
    ("giant.py", include_str!("../modules/giant.py")),
    ("lively.py", include_str!("../modules/lively.py")),
    ("numeric.py", include_str!("../modules/numeric.py")),
    ("pages.py", include_str!("../modules/pages.py")),
    ("probe.py", include_str!("../modules/probe.py")),
    ("rounding.py", include_str!("../modules/rounding.py")),
    ("volatile.py", include_str!("../modules/volatile.py")),
];

/// Copies a program that is to be executed. Another process does: one that is started here in that moment
/// would have the copy open for writing until its own exec, and nobody could execute it (execve(2),
/// `ETXTBSY`).
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp {} {}: {status}", from.display(), to.display());
}

fn built() -> PathBuf {
    env::var_os("PRELOADED_CRIU_TEST_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_preloaded-criu").into(), PathBuf::from)
}

#[expect(clippy::zombie_processes, reason = "it outlives this process, that is its purpose")]
fn reap(root: &Path) -> ChildStdin {
    let mut reaper = Command::new("sh")
        .args(["-c", "trap '' HUP INT TERM; read -r _; rm -rf -- \"$0\""])
        .arg(root)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    reaper.stdin.take().unwrap()
}

fn reachable_base() -> PathBuf {
    [env::temp_dir(), "/tmp".into(), "/var/tmp".into()]
        .into_iter()
        .find(|base| is_reachable(base))
        .expect("no directory for temporary files that every user can reach: set TMPDIR")
}

/// Whether any user can go there: every directory on the way is open to others.
pub(crate) fn is_reachable(path: &Path) -> bool {
    path.ancestors().filter(|step| step.as_os_str() != OsStr::new("")).all(|step| {
        fs::metadata(step).is_ok_and(|metadata| !metadata.is_dir() || metadata.mode() & 0o001 != 0)
    })
}
