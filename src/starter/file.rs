//! A starter as a file.
//!
//! After the first line (or two, where the kernel could not read such a line), lines of `key=value`;
//! lines that begin with `#` are for people. In values `%25` stands for `%` and `%0A` for a newline.
//!
//! ```text
//!   #!/usr/local/bin/preloaded-criu start
//!   # Starts python from an image; see `preloaded-criu starter --help`.
//!   python=/usr/bin/python3
//!   image=/home/me/snap.img        absent: a file in the user's cache directory
//!   folder=/home/me/project        where images are made; where it is no more, in `/`
//!   max-age=604800                 after how many seconds an image is made anew; absent: never
//!   snapshot=--import              the arguments of `preloaded-criu snapshot`, one a line;
//!   snapshot=numpy                 absent: it makes no image
//! ```

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions, read_link};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::sys::Explain;
use crate::sys::lookup::in_path;
use crate::sys::places::{by_descriptor, reason};
use crate::sys::private::unguessable;
use crate::sys::way::Place;

/// The command of this program that a starter's first line names.
pub(crate) const COMMAND: &str = "start";
/// What a kernel before 5.1 reads of a first line (execve(2)), its end included.
const LINE: usize = 127;
/// No starter is longer: what is, is something else.
const MOST: u64 = 1 << 20;

/// What a starter says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starter {
    /// The interpreter that does without the image.
    pub python: PathBuf,
    /// The image; without one, a file in the user's cache directory.
    pub at: Option<PathBuf>,
    /// The directory in which the image is made.
    pub folder: PathBuf,
    /// After which time an image is made anew.
    pub max_age: Option<Duration>,
    /// The arguments of `preloaded-criu snapshot`, but for the output; none if it makes no image.
    pub snapshot: Vec<OsString>,
}

/// What is wrong with a starter.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the starter {}", path.display())]
    Read {
        /// The starter.
        path: PathBuf,
        /// The system's reason.
        #[source]
        why: io::Error,
    },
    /// It is something else.
    #[error("{} is not a starter", .0.display())]
    Foreign(PathBuf),
    /// It cannot be written.
    #[error("cannot write the starter {}", path.display())]
    Write {
        /// The starter.
        path: PathBuf,
        /// The system's reason.
        #[source]
        why: io::Error,
    },
}

impl Explain for FileError {
    fn hint(&self) -> String {
        match self {
            Self::Read { .. } | Self::Foreign(_) => {
                "make it anew with `preloaded-criu starter`".into()
            }
            Self::Write { why, .. } if why.kind() == io::ErrorKind::AlreadyExists => {
                "`--force` replaces it; `--output` takes another name".into()
            }
            Self::Write { .. } => "name a file that you may write with `--output`".into(),
        }
    }
}

impl Starter {
    /// Reads a starter.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        // Room for all of it, in one call.
        let mut bytes = Vec::with_capacity(4096);
        File::open(path)
            .and_then(|file| file.take(MOST).read_to_end(&mut bytes))
            .map_err(|why| FileError::Read { path: path.to_owned(), why })?;
        Self::decode(&bytes).ok_or_else(|| FileError::Foreign(path.to_owned()))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut starter = Self::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            if line.is_empty() || line.starts_with(b"#") || line.starts_with(b"exec ") {
                continue;
            }
            let at = line.iter().position(|byte| *byte == b'=')?;
            let value = unescape(&line[at + 1..])?;
            match &line[..at] {
                b"python" => starter.python = value.into(),
                b"image" => starter.at = Some(value.into()),
                b"folder" => starter.folder = value.into(),
                b"max-age" => {
                    let seconds = value.to_str()?.parse().ok()?;
                    starter.max_age = Some(Duration::from_secs(seconds));
                }
                b"snapshot" => starter.snapshot.push(value),
                _ => return None,
            }
        }
        (!starter.python.as_os_str().is_empty()).then_some(starter)
    }

    fn encode(&self) -> Vec<u8> {
        let mut text =
            b"# Starts python from an image; see `preloaded-criu starter --help`.\n".to_vec();
        let mut line = |key: &str, value: &OsStr| {
            text.extend(key.bytes().chain([b'=']));
            text.extend(escape(value.as_bytes()));
            text.push(b'\n');
        };
        line("python", self.python.as_os_str());
        if let Some(image) = &self.at {
            line("image", image.as_os_str());
        }
        line("folder", self.folder.as_os_str());
        if let Some(age) = self.max_age {
            line("max-age", age.as_secs().to_string().as_ref());
        }
        self.snapshot.iter().for_each(|argument| line("snapshot", argument));
        text
    }

    /// The image; `None` where there is no place for one.
    pub(super) fn image(&self) -> Option<PathBuf> {
        if let Some(image) = &self.at {
            return Some(image.clone());
        }
        let absolute =
            |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache =
            absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        // Starters that say the same have the same image.
        let name = format!("starter-{:016x}.img", xxh3_64(&self.encode()));
        Some(cache.join("preloaded-criu").join(name))
    }
}

/// Writes a starter that this program starts. With `private`, only its owner can read it.
///
/// # Errors
///
/// Something is there and was not to be replaced, or the system's reason.
pub fn write(starter: &Starter, path: &Path, force: bool, private: bool) -> Result<(), FileError> {
    let put = || -> io::Result<()> {
        let path = absolute(path)?;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        if !force && fs::symlink_metadata(&path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is such a file already",
            ));
        }
        let mode = if private { 0o700 } else { 0o755 };
        // The place of a name that nobody has: what has the starter's own is replaced, also a link.
        let place = Place::find(&folder.join(unguessable(".starter."))).map_err(reason)?;
        let folder = by_descriptor(&place.directory);
        let mut file = tempfile::Builder::new()
            .prefix(".starter.")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(&folder)
            .map_err(|error| error.raw_os_error().map_or(error, io::Error::from_raw_os_error))?;
        file.write_all(&head(&launcher()?))?;
        file.write_all(&starter.encode())?;
        file.persist(folder.join(name)).map_err(|error| error.error)?;
        Ok(())
    };
    put().map_err(|why| FileError::Write { path: path.to_owned(), why })
}

/// The line that has the kernel execute this program. A path that such a line cannot hold needs a
/// shell's help.
fn head(launcher: &Path) -> Vec<u8> {
    let path = launcher.as_os_str().as_bytes();
    let plain = path.len() + COMMAND.len() + 4 <= LINE && !path.iter().any(u8::is_ascii_whitespace);
    let (before, path, after) = if plain {
        (&b"#!"[..], path.to_vec(), format!(" {COMMAND}\n"))
    } else {
        let quoted = path.split(|byte| *byte == b'\'').collect::<Vec<_>>().join(&b"'\\''"[..]);
        (&b"#!/bin/sh\nexec '"[..], quoted, format!("' {COMMAND} \"$0\" \"$@\"\n"))
    };
    [before, &path, after.as_bytes()].concat()
}

/// This program by the name that it was called by, which outlives its upgrades, if that is still it.
fn launcher() -> io::Result<PathBuf> {
    let own = read_link("/proc/self/exe")?;
    let called = env::args_os().next().unwrap_or_default();
    let named =
        if called.as_bytes().contains(&b'/') { absolute(called).ok() } else { in_path(&called) };
    let file = |path: &Path| path.metadata().map(|it| (it.dev(), it.ino())).ok();
    Ok(named.filter(|path| file(path).is_some() && file(path) == file(&own)).unwrap_or(own))
}

fn escape(value: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| match byte {
        b'%' => b"%25".to_vec(),
        b'\n' => b"%0A".to_vec(),
        byte => vec![*byte],
    };
    value.iter().flat_map(escape).collect()
}

fn unescape(value: &[u8]) -> Option<OsString> {
    let mut parts = value.split(|byte| *byte == b'%');
    let mut bytes = parts.next()?.to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        bytes.push(match code {
            b"25" => b'%',
            b"0A" => b'\n',
            _ => return None,
        });
        bytes.extend(rest);
    }
    (!bytes.contains(&0)).then(|| OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn starter() -> Starter {
        Starter {
            python: "/usr/bin/python3".into(),
            at: Some(OsStr::from_bytes(b"/a %0A\n\xff=.img").into()),
            folder: "/".into(),
            max_age: Some(Duration::from_secs(60)),
            snapshot: vec!["--import".into(), "json".into(), "".into()],
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        for launcher in ["/usr/bin/preloaded-criu", "/with space/it's", &"/long".repeat(60)] {
            let text = [head(Path::new(launcher)), starter().encode()].concat();
            assert_eq!(Starter::decode(&text), Some(starter()));
        }
    }

    #[test]
    fn first_lines_are_ones_that_the_kernel_understands() {
        let line = |launcher: &str| String::from_utf8(head(Path::new(launcher))).unwrap();
        assert_eq!(line("/bin/x"), "#!/bin/x start\n");
        assert_eq!(line("/a b'c"), "#!/bin/sh\nexec '/a b'\\''c' start \"$0\" \"$@\"\n");
        assert!(line(&"/long".repeat(60)).starts_with("#!/bin/sh\n"));
    }

    #[test]
    fn what_is_no_starter_is_refused() {
        for text in [
            "",
            "#!/bin/sh\necho\n",
            "image=/x\n",
            "python=/x\nother=y\n",
            "python=%\n",
            "python=/x\nmax-age=soon\n",
        ] {
            assert_eq!(Starter::decode(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Starter::decode(&bytes);
        }

        #[test]
        fn any_value_survives(bytes in proptest::collection::vec(1_u8.., 0..50)) {
            prop_assert_eq!(unescape(&escape(&bytes)), Some(OsString::from_vec(bytes)));
        }
    }
}
