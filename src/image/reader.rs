//! Reading an image.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::archive::Archive;
use super::check::{Check, Depth};
use super::error::{Fault, ImageError, Part};
use super::format::{Header, PAGE_BYTES, Section, SectionKind};
use super::manifest::Manifest;
use super::pages::{self, PageRun};
use super::trust;

/// Sections that are read into memory are no longer than this; only the memory section can be.
const MAX_READ: u64 = 1 << 30;

/// An image that is open: trusted, whole, and what a run needs of it checked.
///
/// Everything is read through the one descriptor that was checked.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    header: Header,
    check: Check,
    plan: Vec<u8>,
}

impl Image {
    /// Opens an image. Checked are: who could have written it, the header, the length, the list of
    /// checks and the plan. The memory is not read: see [`Image::verify`].
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        Self::read(path).map_err(|why| ImageError::Unusable { path: path.to_owned(), why })
    }

    /// When the image was made, in seconds since 1970 (UTC). Of what [`Image::open`] checks, only who could
    /// have written it and the header are: who asks this has not decided to run it.
    pub fn created(path: &Path) -> Result<u64, ImageError> {
        /// What is read of the manifest.
        #[derive(serde::Deserialize)]
        struct Created {
            created: u64,
        }
        let read = || {
            let (file, header) = Self::begin(path)?;
            let manifest = read_section(&file, &header, SectionKind::Manifest)?;
            let Created { created } =
                serde_json::from_slice(&manifest).map_err(|error| not_a_manifest(&error))?;
            Ok(created)
        };
        read().map_err(|why| ImageError::Unusable { path: path.to_owned(), why })
    }

    fn begin(path: &Path) -> Result<(File, Header), Fault> {
        let (file, metadata) = trust::open(path)?;
        let mut page = [0; PAGE_BYTES];
        let length = read_at_most(&file, &mut page)?;
        let header = Header::decode(&page[..length], metadata.size())?;
        Ok((file, header))
    }

    fn read(path: &Path) -> Result<Self, Fault> {
        let (file, header) = Self::begin(path)?;
        let check = read_section(&file, &header, SectionKind::Check)?;
        let check = Check::decode(&check).ok_or_else(|| malformed(SectionKind::Check))?;
        let plan = read_section(&file, &header, SectionKind::Plan)?;
        Ok(Self { path: path.to_owned(), file, header, check, plan })
    }

    /// The path that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file: read-only, close-on-exec.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The open file, for who goes on with it alone.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }

    /// The open file, to be handed on.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.file.into()
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.header.length
    }

    /// Where a section lies.
    #[must_use]
    pub fn section(&self, kind: SectionKind) -> Section {
        self.header.section(kind)
    }

    /// The part of the file that is memory, to be mapped.
    #[must_use]
    pub fn memory(&self) -> Range<u64> {
        self.section(SectionKind::Memory).range()
    }

    /// The restore plan: the bytes that were written. Whether they make sense is not known here.
    #[must_use]
    pub fn plan(&self) -> &[u8] {
        &self.plan
    }

    /// What the image depends on.
    #[must_use]
    pub fn check(&self) -> &Check {
        &self.check
    }

    /// Whether the machine and the files are still those that the image was made from.
    pub fn compare(&self, depth: Depth) -> Result<(), ImageError> {
        let stale = |why| ImageError::Stale { path: self.path.clone(), why };
        self.check.compare(depth).map_err(stale)?;
        if depth == Depth::Full {
            for (path, content) in self.manifest()?.sources {
                Check::compare_content(&path, content).map_err(stale)?;
            }
        }
        Ok(())
    }

    /// Whether the imports would find in this environment what they have found. A `child` may be given
    /// another number of threads: it sets its pools to it.
    pub fn compare_variables<'a>(
        &'a self,
        environment: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        child: bool,
    ) -> Result<(), ImageError> {
        let stale = |why| ImageError::Stale { path: self.path.clone(), why };
        self.check.compare_variables(environment, child).map_err(stale)
    }

    /// What the image is, for people.
    pub fn manifest(&self) -> Result<Manifest, ImageError> {
        let bytes = self.bytes(SectionKind::Manifest)?;
        serde_json::from_slice(&bytes).map_err(|error| self.unusable(not_a_manifest(&error)))
    }

    /// CRIU's files but the pages.
    pub fn criu_files(&self) -> Result<Archive, ImageError> {
        let bytes = self.bytes(SectionKind::Criu)?;
        Archive::decode(bytes).ok_or_else(|| self.unusable(malformed(SectionKind::Criu)))
    }

    /// Where the dumped pages lie.
    pub fn pages(&self) -> Result<Vec<PageRun>, ImageError> {
        let bytes = self.bytes(SectionKind::Pages)?;
        pages::decode(&bytes, &self.memory())
            .ok_or_else(|| self.unusable(malformed(SectionKind::Pages)))
    }

    /// Reads the whole file and compares every section with its checksum.
    pub fn verify(&self) -> Result<(), ImageError> {
        for kind in SectionKind::ALL {
            let section = self.section(kind);
            let sum = checksum(&self.file, &section).map_err(|why| self.unusable(why.into()))?;
            if sum != section.checksum {
                return Err(self.unusable(Fault::Damaged(Part::Section(kind))));
            }
        }
        Ok(())
    }

    fn bytes(&self, kind: SectionKind) -> Result<Vec<u8>, ImageError> {
        read_section(&self.file, &self.header, kind).map_err(|why| self.unusable(why))
    }

    fn unusable(&self, why: Fault) -> ImageError {
        ImageError::Unusable { path: self.path.clone(), why }
    }
}

fn not_a_manifest(error: &serde_json::Error) -> Fault {
    Fault::Malformed { part: Part::Section(SectionKind::Manifest), what: error.to_string() }
}

fn malformed(kind: SectionKind) -> Fault {
    Fault::Malformed { part: Part::Section(kind), what: "it makes no sense".into() }
}

fn read_section(file: &File, header: &Header, kind: SectionKind) -> Result<Vec<u8>, Fault> {
    let section = header.section(kind);
    if section.length > MAX_READ {
        let part = Part::Section(kind);
        return Err(Fault::Malformed { part, what: format!("{} bytes long", section.length) });
    }
    // The header's sections lie inside the file, so this is never more than the file has.
    let mut bytes = vec![0; section.length as usize];
    file.read_exact_at(&mut bytes, section.offset)?;
    if xxh3_64(&bytes) != section.checksum {
        return Err(Fault::Damaged(Part::Section(kind)));
    }
    Ok(bytes)
}

fn checksum(file: &File, section: &Section) -> io::Result<u64> {
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = section.offset;
    let end = section.range().end;
    while at < end {
        let length = (end - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..length], at)?;
        hash.update(&buffer[..length]);
        at += length as u64;
    }
    Ok(hash.digest())
}

fn read_at_most(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
