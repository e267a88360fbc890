use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::sys::Explain;

/// Why a directory of CRIU's does not become a [`Process`](super::Process).
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A file of the dump cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file of the dump cannot be written anew.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file of the dump is not what CRIU writes.
    #[error("{} is not a whole file of CRIU's", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Damage,
    },
    /// The files of the dump do not fit each other.
    #[error("the dump in {} does not hold together", path.display())]
    Inconsistent {
        /// The directory or file.
        path: PathBuf,
        /// What does not fit.
        source: Inconsistency,
    },
    /// A file that the process has mapped cannot be read.
    #[error("cannot read the mapped file {}", path.display())]
    MappedFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// `/proc/PID/smaps` does not describe the mappings that were dumped.
    #[error("the list of mappings does not fit the dump")]
    Smaps(#[source] SmapsError),
}

/// What is wrong with one file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The first bytes are not CRIU's.
    #[error("it starts with {found:#010x} where CRIU writes {expected:#010x}")]
    Magic {
        /// What CRIU writes.
        expected: u32,
        /// What is there.
        found: u32,
    },
    /// It ends in the middle of an entry.
    #[error("it ends in the middle of an entry")]
    Truncated,
    /// It has no entry at all.
    #[error("it is empty")]
    Empty,
    /// A number in it that no process could have.
    #[error("one of its entries is of no process that could be")]
    Nonsense,
    /// An entry is not the protobuf message that it should be.
    #[error("one of its entries cannot be decoded")]
    Message(#[from] protobuf::Error),
}

/// What does not fit between the files of a dump.
#[derive(Debug, thiserror::Error)]
pub enum Inconsistency {
    /// A newer or much older CRIU wrote it.
    #[error("it has version {0} of CRIU's format, and only version 2 is known")]
    Version(u32),
    /// The dump is of another kind of machine.
    #[error("it was not made on x86-64")]
    Architecture,
    /// A field that is needed is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A list has the wrong length.
    #[error("{what} has {found} entries where {expected} belong")]
    Count {
        /// The list.
        what: &'static str,
        /// How many it should have.
        expected: usize,
        /// How many it has.
        found: usize,
    },
    /// A range of addresses is empty, not page-aligned, out of order or overlaps another.
    #[error("the address range {:#x}-{:#x} is impossible", .0.start, .0.end)]
    Range(Range<u64>),
    /// Pages that belong to no mapping.
    #[error("the pages at {:#x}-{:#x} belong to no mapping", .0.start, .0.end)]
    StrayPages(Range<u64>),
    /// The pages are not in this dump but in one that it builds on, or still in the process.
    #[error("the pages at {:#x}-{:#x} were not written to this dump", .0.start, .0.end)]
    PagesElsewhere(Range<u64>),
    /// A mapping or descriptor refers to a file that the dump does not list.
    #[error("file {0} is not in its list of files")]
    UnknownFile(u32),
    /// The file of pages is shorter than the pages that are said to be in it.
    #[error("its pages take {expected} bytes and {found} are there")]
    PagesLength {
        /// Length that the page map adds up to.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
}

/// What is wrong with the text of `/proc/PID/smaps`, or does not fit the process.
#[derive(Debug, thiserror::Error)]
pub enum SmapsError {
    /// A line that smaps does not have.
    #[error("line {0} is not one of /proc/PID/smaps")]
    Line(usize),
    /// A mapping that was dumped is not listed.
    #[error("the mapping {:#x}-{:#x} is not listed", .0.start, .0.end)]
    Missing(Range<u64>),
}

impl Explain for ProcessError {
    fn hint(&self) -> String {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::Damaged { .. } => {
                "make the snapshot again; if it fails the same way, check the disk and the CRIU version (4.1 or later)"
            }
            Self::Inconsistent { source: Inconsistency::Version(_), .. } => {
                "use CRIU 4.1 or a later 4.x version"
            }
            Self::Inconsistent { .. } => "make the snapshot again with CRIU 4.1 or later",
            Self::MappedFile { .. } => {
                "make the snapshot again and leave the libraries alone while it is made"
            }
            Self::Smaps(_) => "make the snapshot again; the process must stand still while it is dumped",
        }
        .to_owned()
    }
}
