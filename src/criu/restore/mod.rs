//! A restore by CRIU: the files for one run, and the request.

mod files;
mod memory;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use rust_criu::rust_criu_protobuf::rpc::{
    Criu_opts, Criu_req, Criu_req_type, Criu_resp, Inherit_fd,
};

use super::error::CriuError;
use super::log::LOG;
use super::swrk::{DIRECTORY_PATH, IMAGE, ORDERS};
use crate::image::Archive;
use crate::process::Damage;
use crate::sys::caller::Caller;

/// What CRIU calls the socket of the orders. Never a path: it is looked up among what it inherits.
const ORDERS_NAME: &str = "/preloaded-criu/orders";

/// Where a part of the memory comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// No file; the flags of mmap(2) that it is made with.
    Anonymous(u32),
    /// The image file, from this offset on.
    Image(u64),
    /// The file that the frozen process has mapped there, from this offset on.
    File(u64),
}

/// A part of the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its addresses.
    pub range: Range<u64>,
    /// Where its bytes come from.
    pub content: Content,
}

/// Bytes of the image that are copied to memory: whole pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Their addresses.
    pub range: Range<u64>,
    /// Offset in the image file.
    pub offset: u64,
}

/// All memory of the processes in an image.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The frozen process's, in address order.
    pub parts: Vec<Part>,
    /// What of it is copied, in address order.
    pub copies: Vec<Copied>,
    /// Bytes of the memory of the other processes in the image, by the N of their `pages-N.img`, in
    /// the order of that file.
    pub others: BTreeMap<u32, Vec<Copied>>,
    /// Advice for ranges of the frozen process's, by its number (madvise(2)).
    pub advice: Vec<(Range<u64>, u32)>,
}

/// The frozen process, as it is to be for this run.
#[derive(Debug)]
pub struct Restore<'a> {
    /// CRIU's own files of it.
    pub archive: &'a Archive,
    /// The image file, of which memory is mapped.
    pub image: &'a File,
    /// The name of the image file, absolute: what `/proc` will show.
    pub image_path: PathBuf,
    /// Its memory.
    pub memory: Memory,
    /// Signals whose handler yields to a caller who ignores them, bit N-1 for signal N.
    pub yielding: u64,
    /// Whose process it becomes.
    pub caller: &'a Caller,
    /// New numbers, one for each of [`numbers`].
    pub numbers: Vec<u32>,
    /// The descriptor that the frozen process waits at.
    pub frozen_orders: u32,
    /// The descriptor that it shall wait at instead.
    pub orders: u32,
}

/// Why the files for a run cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file of the image is missing.
    #[error("the image has no {0}")]
    Missing(String),
    /// A file of the image makes no sense.
    #[error("{name} in the image makes no sense")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong with it.
        #[source]
        source: Damage,
    },
    /// The files have no place.
    #[error("cannot write {} for CRIU", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A file would be opened for more than reading.
    #[error("the image has {path} open for more than reading")]
    Writes {
        /// Its path.
        path: String,
    },
    /// It has more threads than numbers were taken.
    #[error("the image has {0} threads, not as many as its plan says")]
    Threads(usize),
}

/// The numbers of the processes and threads in an image, the frozen process's own first.
///
/// # Errors
///
/// What is wrong with the image's files.
pub fn numbers(archive: &Archive) -> Result<Vec<u32>, FilesError> {
    files::numbers(archive)
}

/// The numbers of the descriptors that the frozen process has, but for the standard ones.
///
/// # Errors
///
/// What is wrong with the image's files.
pub fn descriptors(archive: &Archive) -> Result<Vec<u32>, FilesError> {
    files::descriptors(archive)
}

impl Restore<'_> {
    /// Writes CRIU's files into an empty directory.
    ///
    /// # Errors
    ///
    /// What is wrong with the image's own files, or with the place.
    pub fn write(&self, directory: &Path) -> Result<(), FilesError> {
        files::write(self, directory)
    }

    /// The request to be sent to a [`super::Worker`] that was started with the directory, the socket
    /// of the orders and the image ([`super::Worker::restorer`]).
    #[must_use]
    pub fn request(&self) -> Criu_req {
        let mut options = Criu_opts::new();
        options.set_images_dir_fd(-1);
        options.set_images_dir(DIRECTORY_PATH.to_owned());
        options.set_log_file(LOG.to_owned());
        options.set_log_level(super::request::DEBUG);
        options.set_shell_job(true);
        options.set_unprivileged(true);
        options.set_manage_cgroups(false);
        options.set_manage_cgroups_mode(rust_criu::rust_criu_protobuf::rpc::Criu_cg_mode::IGNORE);
        // The script is our child, and not CRIU's.
        options.set_rst_sibling(true);
        options.set_notify_scripts(true);
        let image = self.image_path.to_string_lossy();
        for (name, descriptor) in [(ORDERS_NAME, ORDERS), (&image, IMAGE)] {
            let mut inherited = Inherit_fd::new();
            // CRIU's names have no first slash.
            inherited.set_key(name.trim_start_matches('/').to_owned());
            inherited.set_fd(descriptor);
            options.inherit_fd.push(inherited);
        }
        let mut request = Criu_req::new();
        request.set_type(Criu_req_type::RESTORE);
        request.opts = Some(options).into();
        request
    }
}

/// What the answer means: the number of the restored process. `status` is how CRIU ended.
///
/// # Errors
///
/// [`CriuError::Died`] and [`CriuError::NotRestored`], with what the log says; the log is kept.
pub fn judge(
    answer: Option<Criu_resp>,
    status: Option<ExitStatus>,
    directory: &Path,
) -> Result<i32, CriuError> {
    match answer {
        Some(answer) if answer.success() && answer.restore.pid() > 0 => Ok(answer.restore.pid()),
        Some(answer) => {
            Err(CriuError::NotRestored(super::request::reason(directory, Some(&answer))))
        }
        None => Err(CriuError::Died { status, source: super::request::reason(directory, None) }),
    }
}
