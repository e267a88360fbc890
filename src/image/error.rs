//! What can be wrong with an image.

use std::io;
use std::path::PathBuf;

use crate::sys::way::Blocked;
use crate::sys::{Explain, limits};

use super::check::Stale;
use super::format::SectionKind;

/// Why an image cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file is not one that may be used.
    #[error("cannot use the image {}", path.display())]
    Unusable {
        /// The image, as it was named.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        why: Fault,
    },
    /// The machine is no longer what the image was made on.
    #[error("the image {} is out of date", path.display())]
    Stale {
        /// The image, as it was named.
        path: PathBuf,
        /// What has changed.
        #[source]
        why: Stale,
    },
    /// The file could not be made.
    #[error("cannot write the image {}", path.display())]
    Unwritten {
        /// The image, as it was to be named.
        path: PathBuf,
        /// What went wrong.
        #[source]
        why: WriteFault,
    },
}

/// What is wrong with a file that should be an image.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No file has this name.
    #[error("there is no such file")]
    Missing,
    /// The system refused.
    #[error("{0}")]
    Io(io::Error),
    /// A directory, a device, a pipe.
    #[error("it is {0}, not a file")]
    NotAFile(&'static str),
    /// Someone else could have written it, for us to run.
    #[error("it belongs to the user with the id {owner}, who is neither you nor root")]
    ForeignOwner {
        /// User id of the owner.
        owner: u32,
    },
    /// Others could have changed it.
    #[error("others may write to it (mode {:04o})", mode & 0o7777)]
    WritableByOthers {
        /// Its mode.
        mode: u32,
    },
    /// Anyone could have put another file in its place.
    #[error("everyone may rename and replace files in {}", directory.display())]
    OpenDirectory {
        /// The directory, or one above it.
        directory: PathBuf,
    },
    /// Others could have put the link there.
    #[error("{} is somebody else's symbolic link in a directory that everyone may write to",
        link.display())]
    LinkInOpenDirectory {
        /// The link.
        link: PathBuf,
    },
    /// What would be written behind it would be written to a place of somebody else's choice.
    #[error("{} is somebody else's symbolic link", link.display())]
    ForeignLink {
        /// The link.
        link: PathBuf,
    },
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// Some other kind of file.
    #[error("it is not an image made by preloaded-criu")]
    Foreign,
    /// Made by a later version.
    #[error(
        "its format is number {found}, and this program knows {known}: it was made by a newer version"
    )]
    Newer {
        /// Format version of the file.
        found: u32,
        /// Format version of this program.
        known: u32,
    },
    /// Made by a version whose format is not read any more.
    #[error(
        "its format is number {found}, and this program knows {known}: it was made by an older version"
    )]
    Older {
        /// Format version of the file.
        found: u32,
        /// Format version of this program.
        known: u32,
    },
    /// Not even all of its header is there.
    #[error("it ends after {is} bytes, within its header")]
    CutOff {
        /// Length of the file.
        is: u64,
    },
    /// Not all of it is there.
    #[error("it is {is} bytes long and should be {should}")]
    WrongLength {
        /// Length of the file.
        is: u64,
        /// Length that it was made with.
        should: u64,
    },
    /// Not the bytes that were written.
    #[error("it is damaged: its {0} does not match its checksum")]
    Damaged(Part),
    /// The bytes that were written, but they make no sense.
    #[error("its {part} is not valid: {what}")]
    Malformed {
        /// Where.
        part: Part,
        /// What is wrong, as half a sentence.
        what: String,
    },
}

/// A part of the file, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first page.
    Header,
    /// One of the sections.
    Section(SectionKind),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Section(kind) => kind.name(),
        })
    }
}

/// Why a file could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WriteFault {
    /// Something has that name, and was not to be replaced.
    #[error("a file of this name is there already")]
    Exists,
    /// Never replaced, even when asked to.
    #[error("what has this name is {0}, not a file")]
    NotAFile(&'static str),
    /// The name is a link, and what it leads to must not be written.
    #[error("it is a symbolic link that is not followed: {0}")]
    Link(Fault),
    /// Others could have led the way to it, or would rename it.
    #[error("{0}")]
    Place(Blocked),
    /// The name ends in nothing that a file could be called.
    #[error("this is not the name of a file")]
    NoName,
    /// The disk, a quota or the limit for file sizes.
    #[error("there is no room for it: {0}")]
    Full(io::Error),
    /// The system refused.
    #[error("{0}")]
    Io(io::Error),
    /// A file whose bytes were to be part of the image has fewer of them.
    #[error("the file that its memory comes from is too short")]
    ShortSource,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Self::Missing } else { Self::Io(error) }
    }
}

impl From<Blocked> for Fault {
    fn from(blocked: Blocked) -> Self {
        match blocked {
            Blocked::Io(error) => error.into(),
            Blocked::NotAFile(kind) => Self::NotAFile(kind),
            Blocked::OpenDirectory { directory } => Self::OpenDirectory { directory },
            Blocked::ForeignDirectory { owner, .. } => Self::ForeignOwner { owner },
            Blocked::ForeignLink { link } => Self::ForeignLink { link },
            Blocked::LinkInOpenDirectory { link } => Self::LinkInOpenDirectory { link },
        }
    }
}

impl From<io::Error> for WriteFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::Full(error),
            io::ErrorKind::UnexpectedEof => Self::ShortSource,
            _ => Self::Io(error),
        }
    }
}

/// What to do about a directory in which everyone may rename.
const CLOSE_DIRECTORY: &str =
    "`chmod o-w` the directory, or `chmod +t` so that each file is its owner's to replace";

impl Explain for ImageError {
    fn hint(&self) -> String {
        match self {
            Self::Unusable { why, .. } => why.hint(),
            Self::Stale { why: Stale::Variable(name), .. } => {
                let name = String::from_utf8_lossy(name);
                format!(
                    "give {name} the value that it had, or make an image with this one (what looks like a secret needs `snapshot --env`); `--fallback` starts without an image"
                )
            }
            Self::Stale { path, .. } => {
                format!("`preloaded-criu snapshot --refresh {}` makes it again", path.display())
            }
            Self::Unwritten { why, .. } => why.hint().into(),
        }
    }
}

impl Fault {
    fn hint(&self) -> String {
        match self {
            Self::Missing => "make an image with `preloaded-criu snapshot --import MODULE -o IMAGE`",
            Self::Io(error) => limits(error)
                .unwrap_or("look at the permissions of the file and of the directories above it"),
            Self::NotAFile(_) | Self::Foreign => {
                "name a file that `preloaded-criu snapshot` made; `preloaded-criu run --help` shows the order of arguments"
            }
            Self::ForeignOwner { .. } => {
                "an image is code that runs as you: make one of your own, or copy this one if you trust its owner"
            }
            Self::WritableByOthers { .. } => {
                "if you trust what is in it: `chmod go-w` the image"
            }
            Self::OpenDirectory { .. } => CLOSE_DIRECTORY,
            Self::LinkInOpenDirectory { .. } | Self::ForeignLink { .. } => "name the image itself and not the link",
            Self::Newer { .. } => "use the version of preloaded-criu that made it, or make it again with this one",
            Self::Empty
            | Self::Older { .. }
            | Self::CutOff { .. }
            | Self::WrongLength { .. }
            | Self::Damaged(_)
            | Self::Malformed { .. } => "make the image again with `preloaded-criu snapshot --force`",
        }
        .into()
    }
}

impl WriteFault {
    fn hint(&self) -> &'static str {
        match self {
            Self::Exists => "`--force` replaces it; `--output` takes another name",
            Self::Link(_) => "name the file itself and not the link",
            Self::Place(Blocked::OpenDirectory { .. }) => CLOSE_DIRECTORY,
            Self::Place(_) => "name a way to it that is your own with `--output`",
            Self::NotAFile(_) | Self::NoName => "name a file with `--output`",
            Self::Full(_) => "make room, raise the limit, or name another disk with `--output`",
            Self::Io(error) => {
                limits(error).unwrap_or("name a directory that you may write to with `--output`")
            }
            Self::ShortSource => "try again; something changed the files of the snapshot meanwhile",
        }
    }
}
