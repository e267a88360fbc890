//! Making an image: it has its name only when it is whole.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, linkat};
use tempfile::TempPath;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::archive::Archive;
use super::check::Check;
use super::error::{ImageError, WriteFault};
use super::format::{Header, MAGIC, PAGE, PAGE_BYTES, Section, SectionKind};
use super::manifest::Manifest;
use super::pages::{self, PageRun};
use super::trust::not_a_file;
use crate::sys::access::has_access_list;
use crate::sys::places::{by_descriptor, create_new};
use crate::sys::private::unguessable;
use crate::sys::way::{Blocked, Place};

/// Where the memory of every image begins.
pub const MEMORY_OFFSET: u64 = PAGE;

/// The mode of an image that nobody but its owner has been let read.
const PRIVATE: u32 = 0o600;
const READABLE: u32 = 0o444;
const READABLE_BY_ALL: u32 = 0o044;
const PREFIX: &str = ".preloaded-criu-";
/// How long a file is left alone that may not be locked yet.
const SETTLED: Duration = Duration::from_secs(60);
const BUFFER: usize = 1 << 20;
static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// An image in the making. First the memory is streamed in, then [`Writer::finish`] adds the rest
/// and gives the file its name. Dropped before that, it was never there.
///
/// Where the file system allows it, the file has no name at all until it is whole, so that not even
/// SIGKILL leaves anything behind. Elsewhere it has a temporary name in the same directory, which
/// `Drop` removes, and the snapshot's keeper where this program is killed ([`Writer::temporary`]).
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    force: bool,
    file: File,
    /// So that whoever finds its temporary name knows that it is in use; not every file system can lock.
    _lock: Option<Flock<File>>,
    /// The temporary name, on file systems where a file must have one.
    name: Option<TempPath>,
    /// Where the image will be; the temporary name is by its directory, and so goes first.
    place: Place,
    /// What the file is called if it has a name before it is whole.
    temporary: String,
    position: u64,
    hash: Hash,
    buffer: Vec<u8>,
}

/// What an image holds beside its memory.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// What it depends on.
    pub check: &'a Check,
    /// The restore plan.
    pub plan: &'a [u8],
    /// What it is.
    pub manifest: &'a Manifest,
    /// CRIU's files but the pages.
    pub criu: &'a Archive,
    /// Where the dumped pages lie.
    pub pages: &'a [PageRun],
}

struct Hash(Xxh3);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

impl Writer {
    /// Begins an image that will be called `path`. A file of that name is replaced when the image
    /// is whole, with `force`; else it is an error, now or then. Where the name is a link of the caller's
    /// own, what it leads to is replaced, as where a program opens it to write: who reads the image by
    /// another name would have the old one still if it were the link.
    pub fn create(path: &Path, force: bool) -> Result<Self, ImageError> {
        Self::begin(path, force).map_err(|why| ImageError::Unwritten { path: path.to_owned(), why })
    }

    fn begin(path: &Path, force: bool) -> Result<Self, WriteFault> {
        if path.file_name().is_none() {
            return Err(WriteFault::NoName);
        }
        let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
        if is_link && !force {
            return Err(WriteFault::Exists);
        }
        let place = Place::find(path).map_err(|why| match why {
            why if is_link => WriteFault::Link(why.into()),
            Blocked::Io(error) => error.into(),
            why => WriteFault::Place(why),
        })?;
        let path = if is_link { place.path.clone() } else { path.to_owned() };
        Self::begin_file(path, place, force)
    }

    fn begin_file(path: PathBuf, place: Place, force: bool) -> Result<Self, WriteFault> {
        match fs::symlink_metadata(&place.path) {
            Ok(metadata) if metadata.is_symlink() || metadata.is_file() => {
                if !force {
                    return Err(WriteFault::Exists);
                }
            }
            Ok(metadata) => {
                return Err(WriteFault::NotAFile(not_a_file(&metadata).unwrap_or("something")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let directory = &place.directory;
        sweep(&by_descriptor(directory));
        let temporary = unguessable(PREFIX);
        let (file, name) = if let Ok(file) = unnamed(directory) {
            (file, None)
        } else {
            // File systems say in many ways that they cannot; what really is wrong shows again.
            let (file, name) = named(directory, &temporary)?;
            (file, Some(name))
        };
        let lock = lock(&file);
        // The mode must not depend on the umask.
        file.set_permissions(Permissions::from_mode(PRIVATE))?;
        Ok(Self {
            path,
            force,
            file,
            _lock: lock,
            name,
            place,
            temporary,
            position: MEMORY_OFFSET,
            hash: Hash(Xxh3::new()),
            buffer: Vec::new(),
        })
    }

    /// As on a file system where a file must have a name.
    #[cfg(test)]
    pub(super) fn create_named(path: &Path, force: bool) -> Result<Self, ImageError> {
        let mut writer = Self::create(path, force)?;
        let (file, name) = named(&writer.place.directory, &writer.temporary)
            .map_err(|error| writer.unwritten(error.into()))?;
        (writer.file, writer.name) = (file, Some(name));
        Ok(writer)
    }

    /// What the image will be called: where a link was named, what it leads to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that the file has until it is whole, where it has one then. Whoever outlives this program
    /// removes it: it is nobody else's.
    #[must_use]
    pub fn temporary(&self) -> PathBuf {
        self.place.path.with_file_name(&self.temporary)
    }

    /// Offset in the image of the next page.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Adds pages of memory and says at which offset in the image they lie. Pages of zeros are left
    /// as holes. What is less than a page is filled up with zeros.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64, ImageError> {
        let start = self.position;
        self.stream(bytes).map_err(|why| self.unwritten(why))?;
        Ok(start)
    }

    /// Adds `length` bytes of another file from `offset`, as [`Writer::append`] would.
    pub fn append_file(
        &mut self,
        source: &File,
        offset: u64,
        length: u64,
    ) -> Result<u64, ImageError> {
        let start = self.position;
        // Every byte goes through the checksum, so there is nothing to win by copy_file_range(2).
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        let mut done = 0;
        while done < length {
            let part = &mut buffer[..(length - done).min(BUFFER as u64) as usize];
            source
                .read_exact_at(part, offset + done)
                .map_err(WriteFault::from)
                .and_then(|()| self.stream(part))
                .map_err(|why| self.unwritten(why))?;
            done += part.len() as u64;
        }
        self.buffer = buffer;
        Ok(start)
    }

    /// Writes the memory's plan, as far as it is known, so that the restore can be tried before the image
    /// is finished, which overwrites it. Returns the file, read-only, and where the plan lies.
    pub fn rehearse(&mut self, plan: &[u8]) -> Result<(File, Section), ImageError> {
        let end = self.position;
        let written = self.add(plan);
        self.position = end;
        written
            .and_then(|section| Ok((File::open(by_descriptor(&self.file))?, section)))
            .map_err(|error| self.unwritten(error.into()))
    }

    /// Writes the rest and gives the image its name; returns its length.
    pub fn finish(self, contents: &Contents<'_>) -> Result<u64, ImageError> {
        let path = self.path.clone();
        self.complete(contents).map_err(|why| ImageError::Unwritten { path, why })
    }

    fn stream(&mut self, bytes: &[u8]) -> Result<(), WriteFault> {
        let whole = bytes.len() - bytes.len() % PAGE_BYTES;
        let (pages, rest) = bytes.split_at(whole);
        self.stream_pages(pages)?;
        if !rest.is_empty() {
            let mut page = [0; PAGE_BYTES];
            page[..rest.len()].copy_from_slice(rest);
            self.stream_pages(&page)?;
        }
        Ok(())
    }

    fn stream_pages(&mut self, mut pages: &[u8]) -> Result<(), WriteFault> {
        self.hash.0.update(pages);
        while !pages.is_empty() {
            let zero = pages.starts_with(&ZERO_PAGE);
            let same = |page: &&[u8]| (*page == ZERO_PAGE) == zero;
            let length = PAGE_BYTES * pages.chunks_exact(PAGE_BYTES).take_while(same).count();
            let (run, rest) = pages.split_at(length);
            if !zero {
                self.file.write_all_at(run, self.position)?;
            }
            self.position += length as u64;
            pages = rest;
        }
        Ok(())
    }

    fn complete(mut self, contents: &Contents<'_>) -> Result<u64, WriteFault> {
        let length = self.position - MEMORY_OFFSET;
        let memory = Section { offset: MEMORY_OFFSET, length, checksum: self.hash.0.digest() };
        let manifest = serde_json::to_vec(contents.manifest).map_err(io::Error::from)?;
        let check = self.add(&contents.check.encode())?;
        let plan = self.add(contents.plan)?;
        let manifest = self.add(&manifest)?;
        let criu = self.add(contents.criu.as_bytes())?;
        let pages = self.add(&pages::encode(contents.pages))?;

        let mut header = Header::new(self.position);
        header.set(SectionKind::Memory, memory);
        header.set(SectionKind::Check, check);
        header.set(SectionKind::Plan, plan);
        header.set(SectionKind::Manifest, manifest);
        header.set(SectionKind::Criu, criu);
        header.set(SectionKind::Pages, pages);
        self.file.set_len(self.position)?;
        self.file.write_all_at(&header.encode(), 0)?;
        self.file.sync_all()?;
        let length = self.position;
        self.publish()?;
        Ok(length)
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<Section> {
        let section =
            Section { offset: self.position, length: bytes.len() as u64, checksum: xxh3_64(bytes) };
        self.file.write_all_at(bytes, section.offset)?;
        self.position = section.range().end.next_multiple_of(PAGE);
        Ok(section)
    }

    /// Who was let read the image that this one replaces reads this one too.
    fn take_over_readers(&self) -> io::Result<()> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let path = by_descriptor(&self.place.directory).join(&self.place.name);
        let old = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
        let readers = old.and_then(|old| readers(&old, &self.file)).unwrap_or(0);
        self.file.set_permissions(Permissions::from_mode(PRIVATE | readers))
    }

    fn publish(self) -> Result<(), WriteFault> {
        if self.force {
            self.take_over_readers()?;
        }
        let exists = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => WriteFault::Exists,
            _ => WriteFault::from(error),
        };
        let directory = by_descriptor(&self.place.directory);
        let path = directory.join(&self.place.name);
        match (self.name, self.force) {
            (Some(name), true) => name.persist(&path).map_err(|error| error.error.into()),
            (Some(name), false) => {
                name.persist_noclobber(&path).map_err(|error| exists(error.error))
            }
            (None, force) => match give_name(&self.file, &path) {
                // A link cannot replace a file, so the image needs a name of its own for a moment.
                Err(error) if force && error.kind() == io::ErrorKind::AlreadyExists => {
                    let temporary = directory.join(&self.temporary);
                    give_name(&self.file, &temporary)?;
                    TempPath::try_from_path(temporary)?
                        .persist(&path)
                        .map_err(|error| error.error.into())
                }
                named => named.map_err(exists),
            },
        }?;
        // Not every file system can do this, and the image is there in any case.
        let _ = File::open(directory).and_then(|directory| directory.sync_all());
        Ok(())
    }

    fn unwritten(&self, why: WriteFault) -> ImageError {
        ImageError::Unwritten { path: self.path.clone(), why }
    }
}

/// The bits of those who may read `old`, for `new`, which gets its group: none where it is no image of this
/// user's, which was made readable for some other reason, and where a list says who reads it.
fn readers(old: &File, new: &File) -> io::Result<u32> {
    let (was, is) = (old.metadata()?, new.metadata()?);
    let mut begin = [0; MAGIC.len()];
    if !was.is_file() || was.uid() != geteuid().as_raw() || has_access_list(old.as_fd())? {
        return Ok(0);
    }
    old.read_exact_at(&mut begin, 0)?;
    if begin != *MAGIC {
        return Ok(0);
    }
    let readers = was.mode() & READABLE;
    let is_same_group = was.gid() == is.gid() || fchown(new, None, Some(was.gid())).is_ok();
    // Where all read it, it does not matter who is in the group.
    Ok(if is_same_group || readers & READABLE_BY_ALL == READABLE_BY_ALL { readers } else { 0 })
}

fn lock(file: &File) -> Option<Flock<File>> {
    Flock::lock(file.try_clone().ok()?, FlockArg::LockExclusiveNonblock).ok()
}

/// Removes what a snapshot has left in this directory that was killed while its image had a temporary
/// name: on most file systems for the moment between two system calls.
fn sweep(directory: &Path) {
    let is_temporary = |name: &OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !is_temporary(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&path);
        let Ok((metadata, file)) = file.and_then(|file| Ok((file.metadata()?, file))) else {
            continue;
        };
        let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
        let is_ours = metadata.is_file() && metadata.uid() == geteuid().as_raw();
        // In use as long as it is locked, which it is soon after it was made.
        if is_ours && age.is_some_and(|age| age > SETTLED) && lock(&file).is_some() {
            let _ = fs::remove_file(path);
        }
    }
}

fn unnamed(directory: &OwnedFd) -> nix::Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    Ok(openat(directory, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
}

fn named(directory: &OwnedFd, name: &str) -> io::Result<(File, TempPath)> {
    let file = create_new(directory, name)?;
    Ok((file, TempPath::try_from_path(by_descriptor(directory).join(name))?))
}

/// Gives an unnamed file a name that no file has (open(2), `O_TMPFILE`).
fn give_name(file: &File, name: &Path) -> io::Result<()> {
    let follow = AtFlags::AT_SYMLINK_FOLLOW;
    linkat(AT_FDCWD, &by_descriptor(file), AT_FDCWD, name, follow).map_err(io::Error::from)
}
