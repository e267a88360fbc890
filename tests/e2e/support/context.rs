//! A test's own place: it owns everything that the test makes, and looks at the end whether
//! anything is left.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::unistd::chown;

use super::image::{self, Recipe};
use super::leftovers::{self, Before};
use super::run::{Command, Python};
use super::seat::Seat;
use super::shared::shared;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The place.
pub(crate) struct Context {
    /// Who is here, with which interpreter.
    pub(crate) seat: Seat,
    folder: PathBuf,
    before: Before,
    forgiven: Cell<bool>,
}

impl Context {
    pub(crate) fn new(seat: Seat) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let it = Self {
            seat,
            folder: shared().root().join(format!("t{number}.")),
            before: Before::now(),
            forgiven: Cell::new(false),
        };
        for folder in [&it.folder, &it.work(), &it.home(), &it.folder.join("tmp")] {
            fs::create_dir(folder).unwrap();
            it.own(folder);
        }
        it
    }

    /// Gives a file to the one who is here.
    pub(crate) fn own(&self, path: &Path) {
        chown(path, Some(self.seat.who.uid()), None).unwrap();
    }

    /// A name that no other place has.
    pub(crate) fn name(&self) -> &str {
        self.folder.file_name().unwrap().to_str().unwrap()
    }

    /// The directory in which commands run.
    pub(crate) fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// `HOME`.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// Takes an image out of the working directory, which is cleared for each run of python.
    pub(crate) fn keep(&self, image: &str) -> PathBuf {
        let kept = self.folder.join(image);
        fs::rename(self.work().join(image), &kept).unwrap();
        kept
    }

    /// Makes a file in the working directory.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work().join(name);
        let mut folder = self.work();
        for step in Path::new(name).parent().into_iter().flat_map(Path::iter) {
            folder.push(step);
            if !folder.exists() {
                fs::create_dir(&folder).unwrap();
                self.own(&folder);
            }
        }
        fs::write(&path, content).unwrap();
        self.own(&path);
        path
    }

    /// The environment that every command here has.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut variables: Vec<(OsString, OsString)> = vec![
            ("PATH".into(), PATH.into()),
            ("HOME".into(), self.home().into()),
            ("TMPDIR".into(), self.folder.join("tmp").into()),
            ("LANG".into(), "C.UTF-8".into()),
            ("TERM".into(), "xterm".into()),
        ];
        if let Some(criu) = std::env::var_os("PRELOADED_CRIU_CRIU") {
            variables.push(("PRELOADED_CRIU_CRIU".into(), criu));
        }
        variables
    }

    /// `python3` with these arguments, to be run from an image and by itself.
    pub(crate) fn python<I>(&self, arguments: I) -> Python<'_>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Python::new(self, arguments)
    }

    /// `python3 -c CODE`.
    pub(crate) fn code(&self, code: &str) -> Python<'_> {
        self.python(["-c", code])
    }

    /// `preloaded-criu` with these arguments.
    pub(crate) fn program<I>(&self, arguments: I) -> Command<'_>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Command::new(self, shared().binary()).args(arguments)
    }

    /// `preloaded-criu snapshot` with these arguments.
    pub(crate) fn snapshot<I>(&self, arguments: I) -> Command<'_>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.program(["snapshot"]).args(arguments)
    }

    /// Another program.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command<'_> {
        Command::new(self, program.as_ref())
    }

    /// The image with that content.
    pub(crate) fn image(&self, recipe: Recipe) -> PathBuf {
        image::image(self.seat, recipe)
    }

    /// Nothing is said about what is left here: something else has failed.
    pub(crate) fn forget(&self) {
        self.forgiven.set(true);
    }

    /// Fails if anything is left: processes, mounts, temporary files.
    pub(crate) fn nothing_is_left(&self) {
        let left = self.before.left(&self.folder);
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let left = if thread::panicking() || self.forgiven.get() {
            Vec::new()
        } else {
            self.before.left(&self.folder)
        };
        leftovers::end_processes(&self.folder);
        let _ = fs::remove_dir_all(&self.folder);
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}
