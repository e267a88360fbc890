//! The places for temporary files: the resident, which is mapped as code, and CRIU's files, which
//! are as large as the memory of the process.

use std::fs::{self, DirBuilder};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::sys::Explain;

/// The resident's file name.
const RESIDENT: &str = "resident.so";
/// The file name of a recipe's own code.
const SCRIPT: &str = "warm-up.py";
/// The folder of CRIU's files.
const DUMP: &str = "dump";
/// What CRIU writes besides the memory, generously.
const BESIDES: u64 = 16 << 20;

/// Why temporary files have no place.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The directory takes no new files.
    #[error("cannot write temporary files into {}", directory.display())]
    Write {
        /// The directory.
        directory: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// What lies there cannot be mapped as code.
    #[error("temporary files in {} cannot be mapped as code: it is mounted noexec", .0.display())]
    NoExec(PathBuf),
    /// The dynamic loader cannot name a file there (ld.so(8), `LD_PRELOAD`).
    #[error("temporary files in {} cannot be preloaded: its name has a space or a colon",
        .0.display())]
    Name(PathBuf),
    /// The memory of the process has no room there.
    #[error("{} has {} MB free, and the memory of the process needs {}",
        directory.display(), free / MEGABYTE, needed / MEGABYTE)]
    Full {
        /// The directory.
        directory: PathBuf,
        /// Bytes that there are.
        free: u64,
        /// Bytes that it takes.
        needed: u64,
    },
}

const MEGABYTE: u64 = 1_000_000;

impl Explain for ScratchError {
    fn hint(&self) -> String {
        match self {
            Self::Write { .. } => "set TMPDIR to a directory that can be written to",
            Self::NoExec(_) => "set TMPDIR to a directory on a file system that allows execution",
            Self::Name(_) => "set TMPDIR to a directory with a plain name",
            Self::Full { .. } => "set TMPDIR to a directory with more room",
        }
        .to_owned()
    }
}

/// The directories that this snapshot uses, or might: one private directory, by the same name that
/// nobody can guess, in each place that will do. They go when this goes.
#[derive(Debug)]
pub(super) struct Scratch {
    places: Vec<PathBuf>,
    name: String,
}

impl Scratch {
    /// With `TMPDIR` set, that is the place, and no other: the user knows why. Else the usual ones,
    /// and the folder that the image will be in.
    pub(super) fn new(output: Option<&Path>) -> Self {
        let chosen = std::env::var_os("TMPDIR").filter(|directory| !directory.is_empty());
        let places = match chosen {
            Some(directory) => vec![PathBuf::from(directory)],
            None => ["/tmp", "/var/tmp"]
                .map(PathBuf::from)
                .into_iter()
                .chain(output.map(|folder| folder.join(".")))
                .collect(),
        };
        Self::among(places)
    }

    fn among(places: Vec<PathBuf>) -> Self {
        let places = places.into_iter().map(|place| std::path::absolute(&place).unwrap_or(place));
        let random = RandomState::new().hash_one(std::process::id());
        Self { places: places.collect(), name: format!("preloaded-criu-{random:016x}") }
    }

    /// All directories that there will be.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        self.places.iter().map(|place| place.join(&self.name)).collect()
    }

    /// Writes the resident where it can be preloaded from.
    pub(super) fn resident(&self, content: &[u8]) -> Result<PathBuf, ScratchError> {
        self.first(|place| {
            let name = place.as_os_str().as_bytes();
            if name.iter().any(|byte| matches!(byte, b':' | b' ' | b'\t' | b'\n')) {
                return Err(ScratchError::Name(place.to_owned()));
            }
            let directory = self.make(place)?;
            let write = |source| ScratchError::Write { directory: place.to_owned(), source };
            let system = statvfs(&directory).map_err(|errno| write(errno.into()))?;
            if system.flags().contains(FsFlags::ST_NOEXEC) {
                return Err(ScratchError::NoExec(place.to_owned()));
            }
            let path = directory.join(RESIDENT);
            fs::write(&path, content).map_err(write)?;
            Ok(path)
        })
    }

    /// Writes code that python is to run.
    pub(super) fn script(&self, content: &str) -> Result<PathBuf, ScratchError> {
        self.first(|place| {
            let path = self.make(place)?.join(SCRIPT);
            let write = |source| ScratchError::Write { directory: place.to_owned(), source };
            fs::write(&path, content).map_err(write)?;
            Ok(path)
        })
    }

    /// Makes the directory for CRIU's files, where so much memory has room.
    pub(super) fn dump(&self, memory: u64) -> Result<PathBuf, ScratchError> {
        let needed = memory + BESIDES;
        self.first(|place| {
            let directory = self.make(place)?;
            let write = |source| ScratchError::Write { directory: place.to_owned(), source };
            let system = statvfs(&directory).map_err(|errno| write(errno.into()))?;
            let free = system.blocks_available().saturating_mul(system.fragment_size());
            // A tmpfs without a limit says that it has no blocks at all.
            if system.blocks() > 0 && free < needed {
                return Err(ScratchError::Full { directory: place.to_owned(), free, needed });
            }
            let dump = directory.join(DUMP);
            DirBuilder::new().mode(0o700).create(&dump).map_err(write)?;
            Ok(dump)
        })
    }

    /// The first place that will do; what is wrong with the first one where none does.
    fn first(
        &self,
        mut attempt: impl FnMut(&Path) -> Result<PathBuf, ScratchError>,
    ) -> Result<PathBuf, ScratchError> {
        let mut wrong = None;
        for place in &self.places {
            match attempt(place) {
                Ok(path) => return Ok(path),
                Err(error) => wrong = wrong.or(Some(error)),
            }
        }
        Err(wrong.unwrap_or_else(|| ScratchError::Write {
            directory: PathBuf::from("/tmp"),
            source: io::ErrorKind::NotFound.into(),
        }))
    }

    fn make(&self, place: &Path) -> Result<PathBuf, ScratchError> {
        let directory = place.join(&self.name);
        match DirBuilder::new().mode(0o700).create(&directory) {
            // Ours: nobody else knows the name.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(directory),
            Err(source) => Err(ScratchError::Write { directory: place.to_owned(), source }),
            Ok(()) => Ok(directory),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for directory in self.directories() {
            // Most were never made, and the keeper has removed the others, unless there was none.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use super::{Scratch, ScratchError};

    #[test]
    fn a_place_that_will_not_do_is_passed_over_and_told_when_none_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let spaced = folder.path().join("a b");
        let plain = folder.path().join("plain");
        fs::create_dir(&spaced).expect("a folder");
        fs::create_dir(&plain).expect("a folder");
        let missing = PathBuf::from("/no/such/place");

        let scratch = Scratch::among(vec![missing.clone(), spaced.clone(), plain.clone()]);
        let path = scratch.resident(b"code").expect("the last place will do");
        assert!(path.starts_with(&plain));
        let dump = scratch.dump(1).expect("there is room for a byte");
        assert!(dump.starts_with(&spaced));
        assert_eq!(fs::metadata(&dump).expect("it is there").mode() & 0o777, 0o700);
        drop(scratch);
        assert_eq!(fs::read_dir(&plain).expect("a folder").count(), 0);
        assert_eq!(fs::read_dir(&spaced).expect("a folder").count(), 0);

        let error = Scratch::among(vec![missing]).resident(b"").expect_err("there is no place");
        assert!(matches!(error, ScratchError::Write { .. }), "{error:?}");
        let error = Scratch::among(vec![spaced]).resident(b"").expect_err("the loader cannot");
        assert!(matches!(error, ScratchError::Name(_)), "{error:?}");
        let error = Scratch::among(vec![plain]).dump(1 << 60).expect_err("so much is nowhere");
        assert!(matches!(error, ScratchError::Full { .. }), "{error:?}");
    }
}
