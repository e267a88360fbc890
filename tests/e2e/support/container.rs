//! Containers: podman with runc, on the roots that `scripts/make-root` makes.
//!
//! Each command of podman is in a mount and a process namespace of its own, with a storage of its
//! test's own (`podman.sh`): other tests see nothing of it, and nothing is left however it ends.

use std::collections::HashMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value;

use super::context::Context;
use super::run::{Command, Outcome};
use super::seat::Seat;
use super::shared::shared;

/// A distribution's release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Root {
    /// Debian 12: glibc 2.36, CPython 3.11, and CRIU by `scripts/install-criu`.
    Bookworm,
    /// Debian 13: glibc 2.41, which draws random numbers without the kernel; its own CRIU 4.1.
    Trixie,
    /// Debian's testing: the newest C library and the newest CRIU that can be had.
    Forky,
}

impl Root {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Forky];

    /// Its interpreter.
    pub(crate) fn python(self) -> &'static str {
        match self {
            Self::Bookworm | Self::Trixie => "/usr/bin/python3",
            Self::Forky => "/usr/bin/python3.13",
        }
    }

    /// Where it is. It is never written to: what runs in it has a layer of its own above it.
    pub(crate) fn path(self) -> PathBuf {
        let roots = env::var_os("PRELOADED_CRIU_TEST_ROOTS").map(PathBuf::from).expect(
            "PRELOADED_CRIU_TEST_ROOTS is not set: scripts/test makes the roots and sets it",
        );
        let path = roots.join(self.name());
        assert!(path.is_dir(), "{} is not there: scripts/make-root makes it", path.display());
        path
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        }
    }
}

/// Whoever runs the programs of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum User {
    /// Its root.
    Root,
    /// An ordinary user.
    Ordinary,
}

impl User {
    /// Both of them.
    pub(crate) const BOTH: [Self; 2] = [Self::Root, Self::Ordinary];

    fn id(self) -> &'static str {
        match self {
            Self::Root => "0",
            Self::Ordinary => "1000",
        }
    }
}

/// What a snapshot needs.
pub(crate) const TO_SNAPSHOT: [&str; 2] =
    ["--cap-add=CHECKPOINT_RESTORE", "--security-opt=seccomp=unconfined"];
/// What a restore by CRIU needs.
pub(crate) const TO_RESTORE: [&str; 1] = ["--cap-add=CHECKPOINT_RESTORE"];

/// A container to be started. The test's working directory is `/work` in it.
#[derive(Clone)]
pub(crate) struct Container<'a> {
    it: &'a Context,
    options: Vec<OsString>,
    base: Vec<OsString>,
}

impl<'a> Container<'a> {
    /// Of a root, with what podman gives by default.
    pub(crate) fn of(it: &'a Context, root: Root) -> Self {
        let mut base = root.path().into_os_string();
        base.push(":O");
        Self::with(it, vec!["--rootfs".into(), base])
            .share(shared().binary(), "/usr/local/bin/preloaded-criu:ro")
    }

    /// Of the image `debian:trixie`, or another one that the test has made.
    pub(crate) fn of_image(it: &'a Context, image: &str) -> Self {
        programs(it, pulled());
        Self::with(it, vec![image.into()])
    }

    fn with(it: &'a Context, base: Vec<OsString>) -> Self {
        Self { it, options: Vec::new(), base }
            .options(["--rm", "--hostname=box", "--workdir=/work"])
            .share(&it.work(), "/work")
            .share(&shared().modules(), "/modules:ro")
    }

    /// More options of `podman run`.
    pub(crate) fn options<I>(mut self, options: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.options.extend(options.into_iter().map(|option| option.as_ref().to_owned()));
        self
    }

    /// Another user.
    pub(crate) fn user(self, user: User) -> Self {
        self.options(["--user", user.id()])
    }

    /// A file or directory of this machine's under a name there (and options, after a colon).
    pub(crate) fn share(self, path: &Path, name: &str) -> Self {
        let mut volume = path.as_os_str().to_owned();
        volume.push(":");
        volume.push(name);
        self.options(["--volume".into(), volume])
    }

    /// The command that runs a program in it, as its first process.
    pub(crate) fn command<I>(&self, words: I) -> Command<'a>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        podman(self.it, ["run"]).args(&self.options).args(&self.base).args(words)
    }

    /// Runs a program in it, as its first process.
    pub(crate) fn run<I>(&self, words: I) -> Outcome
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.command(words).run()
    }

    /// Starts a program in it so many times at once; what each one did. Fails if anything is left.
    #[track_caller]
    pub(crate) fn crowd(&self, python: &str, count: usize, words: &[&str]) -> Vec<Member> {
        let count = count.to_string();
        let command =
            [python, "/modules/crowd.py", &count].into_iter().chain(words.iter().copied());
        let outcome = self.run(command).succeeds();
        let told: Value = serde_json::from_slice(&outcome.out).unwrap();
        assert_eq!(told["left"], Value::Array(Vec::new()), "left behind: {told:#}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let member = |told: &Value| Member {
            status: told["status"].as_i64(),
            out: text(&told["out"]),
            err: text(&told["err"]),
        };
        told["outcomes"].as_array().unwrap().iter().map(member).collect()
    }
}

/// How one of many ended.
#[derive(Debug)]
pub(crate) struct Member {
    /// Its status; `None` where it could not be started.
    pub(crate) status: Option<i64>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

/// podman under the tests' own rules.
const PODMAN: &str = include_str!("podman.sh");

/// `podman` with these arguments, with a storage of the test's own.
pub(crate) fn podman<I>(it: &Context, arguments: I) -> Command<'_>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    it.command(programs(it, Path::new("/nonexistent")).join("podman")).args(arguments)
}

/// A command that finds `podman` and `docker` in its `PATH`, with a storage of the test's own that begins
/// with the image `debian:trixie`.
pub(crate) fn with_programs<'a>(command: Command<'a>, it: &'a Context) -> Command<'a> {
    let mut path = programs(it, pulled()).into_os_string();
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("PATH", path)
}

/// A folder with the programs `podman` and `docker`, whose storage begins with the images of another one.
fn programs(it: &Context, images: &Path) -> PathBuf {
    let folder = it.home().join("programs");
    if !folder.exists() {
        let script = PODMAN
            .replace("@STORE@", it.home().join("storage").to_str().unwrap())
            .replace("@IMAGES@", images.to_str().unwrap())
            .replace("@GROUPS@", &format!("preloaded-criu-{}", it.name().trim_end_matches('.')));
        fs::create_dir(&folder).unwrap();
        for name in ["podman", "docker"] {
            let program = folder.join(name);
            fs::write(&program, &script).unwrap();
            fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        }
    }
    folder
}

/// A storage that holds `debian:trixie`, which no registry has to be asked for.
fn pulled() -> &'static Path {
    static PULLED: OnceLock<PathBuf> = OnceLock::new();
    PULLED.get_or_init(|| {
        let it = Context::new(Seat::first());
        let import = "tar -C \"$1\" -c . | \"$0\" import --quiet - docker.io/library/debian:trixie";
        it.command("/bin/bash")
            .args(["-o", "pipefail", "-c", import])
            .args([programs(&it, Path::new("/nonexistent")).join("podman"), Root::Trixie.path()])
            .run()
            .succeeds();
        let kept = shared().root().join("images");
        fs::rename(it.home().join("storage"), &kept).unwrap();
        kept
    })
}

type Images = HashMap<(Root, User), Arc<OnceLock<Option<PathBuf>>>>;

/// An image of everything that draws random numbers, made in a container by one of its users.
pub(crate) fn frozen(root: Root, user: User) -> PathBuf {
    static IMAGES: Mutex<Option<Images>> = Mutex::new(None);
    let cell = {
        let mut images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(images.get_or_insert_default().entry((root, user)).or_default())
    };
    let made = cell.get_or_init(|| make(root, user));
    made.clone().unwrap_or_else(|| {
        panic!("no image for {user:?} in {root:?}: the first that needed it says why")
    })
}

fn make(root: Root, user: User) -> Option<PathBuf> {
    let it = Context::new(Seat::first());
    // The ordinary user of a container is none of this machine's.
    fs::set_permissions(it.work(), Permissions::from_mode(0o1777)).unwrap();
    let outcome = Container::of(&it, root)
        // And nothing else of what podman gives.
        .options(["--cap-drop=all"])
        .options(TO_SNAPSHOT)
        .user(user)
        .options(["--env=PYTHONPATH=/modules"])
        .run(["preloaded-criu", "snapshot", "--python", root.python(), "--import", "dice"]);
    if !outcome.status.success() {
        eprintln!("no image for {user:?} in {root:?}: {outcome:?}");
        it.forget();
        return None;
    }
    let kept = shared().root().join(format!("{}.img", it.name()));
    fs::rename(it.work().join("snap.img"), &kept).unwrap();
    Some(kept)
}
