//! The images that tests run, each made once.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::context::Context;
use super::seat::{Python, Seat, Who};
use super::shared::shared;

/// What an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Recipe {
    /// No import at all.
    Nothing,
    /// A few modules of the standard library.
    Plain,
    /// Threads that work, and `faulthandler`.
    Lively,
    /// Memory of all kinds and sizes.
    Blocks,
    /// Blocks of up to a gigabyte.
    Giant,
    /// Pages of various owners, and what the kernel can be asked about them.
    Pages,
    /// Memory of every allocator, and what can be done to it.
    Churn,
    /// Everything that draws random numbers, already drawn from.
    Dice,
    /// Another rounding mode than a new process has.
    Rounding,
    /// Memory that the kernel was asked not to keep.
    Volatile,
    /// numpy, scipy and scikit-learn with their threads.
    Numeric,
}

impl Recipe {
    /// The modules, in their order.
    pub(crate) fn imports(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Plain => &["json", "threading", "subprocess", "ctypes"],
            Self::Lively => &["lively"],
            Self::Blocks => &["blocks"],
            Self::Giant => &["giant"],
            Self::Pages => &["pages"],
            Self::Churn => &["churn"],
            Self::Dice => &["dice"],
            Self::Rounding => &["rounding"],
            Self::Volatile => &["volatile"],
            Self::Numeric => &["numeric"],
        }
    }

    /// The interpreter that has them.
    pub(crate) fn interpreter(self, python: &Python) -> PathBuf {
        match self {
            Self::Numeric => shared().libraries().join("bin/python"),
            _ => python.path.clone(),
        }
    }
}

type Key = (Who, PathBuf, Recipe);
type Cell = Arc<OnceLock<Option<PathBuf>>>;

/// The image for a seat, made by root for root and by the ordinary user for the others.
pub(crate) fn image(seat: Seat, recipe: Recipe) -> PathBuf {
    static IMAGES: Mutex<Option<HashMap<Key, Cell>>> = Mutex::new(None);
    let key = (seat.who.maker(), recipe.interpreter(seat.python), recipe);
    let cell = {
        let mut images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(images.get_or_insert_default().entry(key).or_default())
    };
    let made = cell.get_or_init(|| make(Seat { who: seat.who.maker(), ..seat }, recipe));
    made.clone()
        .unwrap_or_else(|| panic!("no image of {recipe:?}: the first that needed it says why"))
}

fn make(seat: Seat, recipe: Recipe) -> Option<PathBuf> {
    let it = Context::new(seat);
    let made = it.work().join("snap.img");
    let outcome = it
        .snapshot(["--output".into(), made.clone().into_os_string()])
        .args(arguments(seat, recipe))
        .env("PYTHONPATH", shared().modules())
        .run();
    if !outcome.status.success() {
        eprintln!("an image of {recipe:?} for {seat} was not made: {outcome:?}");
        it.forget();
        return None;
    }
    let kept = shared().root().join(format!("{}.img", it.name()));
    fs::rename(&made, &kept).unwrap();
    Some(kept)
}

/// The options of `snapshot` for a recipe.
pub(crate) fn arguments(seat: Seat, recipe: Recipe) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        vec!["--python".into(), recipe.interpreter(seat.python).into_os_string()];
    for module in recipe.imports() {
        arguments.extend(["--import".into(), module.into()]);
    }
    arguments
}

/// A copy of an image that the test may spoil, owned by whoever runs it.
pub(crate) fn copy(it: &Context, recipe: Recipe, name: &str) -> PathBuf {
    let copy = it.work().join(name);
    fs::copy(image(it.seat, recipe), &copy).unwrap();
    it.own(&copy);
    copy
}

/// The bytes of a file, for comparison.
pub(crate) fn digest(path: &Path) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&fs::read(path).unwrap())
}
