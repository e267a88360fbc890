//! The places for temporary files: the resident, which is mapped as code, and CRIU's files, which
//! are as large as the memory of the process.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::sys::Explain;
use crate::sys::private::{Private, SAFE_PLACE, write_new};
use crate::sys::way::Blocked;

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
    /// Others could put their own files in the place of ours.
    #[error("temporary files in {} are not safe from others", directory.display())]
    Unsafe {
        /// The directory.
        directory: PathBuf,
        /// Who could, and where.
        #[source]
        source: Blocked,
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
            Self::Unsafe { .. } => SAFE_PLACE,
            Self::NoExec(_) => "set TMPDIR to a directory on a file system that allows execution",
            Self::Name(_) => "set TMPDIR to a directory with a plain name",
            Self::Full { .. } => "set TMPDIR to a directory with more room",
        }
        .to_owned()
    }
}

/// The directories that this snapshot uses, or might: a private one in each place that will do. They go
/// when this goes.
#[derive(Debug)]
pub(super) struct Scratch(Vec<Private>);

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
        Self(places.map(Private::new).collect())
    }

    /// All directories that there will be.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        self.0.iter().map(Private::path).collect()
    }

    /// Writes the resident where it can be preloaded from.
    pub(super) fn resident(&self, content: &[u8]) -> Result<PathBuf, ScratchError> {
        self.first(|private| {
            let place = private.place();
            let name = place.as_os_str().as_bytes();
            if name.iter().any(|byte| matches!(byte, b':' | b' ' | b'\t' | b'\n')) {
                return Err(ScratchError::Name(place.to_owned()));
            }
            let directory = make(private)?;
            let write = |source| ScratchError::Write { directory: place.to_owned(), source };
            let system = statvfs(&directory).map_err(|errno| write(errno.into()))?;
            if system.flags().contains(FsFlags::ST_NOEXEC) {
                return Err(ScratchError::NoExec(place.to_owned()));
            }
            let path = directory.join(RESIDENT);
            write_new(&path, content).map_err(write)?;
            Ok(path)
        })
    }

    /// Writes code that python is to run.
    pub(super) fn script(&self, content: &str) -> Result<PathBuf, ScratchError> {
        self.first(|private| {
            let place = private.place();
            let path = make(private)?.join(SCRIPT);
            let write = |source| ScratchError::Write { directory: place.to_owned(), source };
            write_new(&path, content.as_bytes()).map_err(write)?;
            Ok(path)
        })
    }

    /// Makes the directory for CRIU's files, where so much memory has room.
    pub(super) fn dump(&self, memory: u64) -> Result<PathBuf, ScratchError> {
        let needed = memory + BESIDES;
        self.first(|private| {
            let place = private.place();
            let directory = make(private)?;
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
        mut attempt: impl FnMut(&Private) -> Result<PathBuf, ScratchError>,
    ) -> Result<PathBuf, ScratchError> {
        let mut wrong = None;
        for private in &self.0 {
            match attempt(private) {
                Ok(path) => return Ok(path),
                Err(error) => wrong = wrong.or(Some(error)),
            }
        }
        Err(wrong.unwrap_or_else(|| ScratchError::Write {
            directory: PathBuf::from("/tmp"),
            source: io::ErrorKind::NotFound.into(),
        }))
    }
}

fn make(private: &Private) -> Result<PathBuf, ScratchError> {
    let directory = private.place().to_owned();
    private.make().map_err(|blocked| match blocked {
        Blocked::Io(source) => ScratchError::Write { directory, source },
        source => ScratchError::Unsafe { directory, source },
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
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

    #[test]
    fn no_name_tells_another_and_no_file_is_anybody_elses_to_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = ["one", "two"].map(|name| folder.path().join(name));
        for place in &places {
            fs::create_dir(place).expect("a folder");
        }
        let scratch = Scratch::among(places.to_vec());
        let names = scratch.directories();
        assert_ne!(names[0].file_name(), names[1].file_name());
        let resident = scratch.resident(b"code").expect("the first place will do");
        let script = scratch.script("pass").expect("the directory is ours");
        for file in [&resident, &script] {
            assert_eq!(fs::metadata(file).expect("it is there").mode() & 0o777, 0o600);
        }
        // Somebody who has seen where the second would be.
        fs::create_dir(&names[1]).expect("the name is free");
        let second = Scratch(vec![scratch.0.into_iter().nth(1).expect("there are two")]);
        let error = second.dump(1).expect_err("it is not ours");
        assert!(matches!(error, ScratchError::Write { .. }), "{error:?}");
        drop(second);
        assert!(names[1].exists(), "nor is it removed");
    }

    #[test]
    fn a_place_where_others_rename_is_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let [open, closed] = ["open", "closed"].map(|name| folder.path().join(name));
        for place in [&open, &closed] {
            fs::create_dir(place).expect("a folder");
        }
        fs::set_permissions(&open, Permissions::from_mode(0o777)).expect("it is ours");
        let scratch = Scratch::among(vec![open.clone(), closed.clone()]);
        assert!(scratch.resident(b"").expect("the second will do").starts_with(closed));
        let error = Scratch::among(vec![open]).resident(b"").expect_err("there is no other");
        assert!(matches!(error, ScratchError::Unsafe { .. }), "{error:?}");
    }
}
