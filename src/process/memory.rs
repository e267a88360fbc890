//! The bytes at an address of the frozen process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Process;
use super::error::ProcessError;
use super::pages::{PAGE, PageSource};
use super::vma::VmaKind;

/// The files that the process has mapped.
pub trait FileContent {
    /// Reads the file's bytes from `offset` on into `buffer`; returns how many there were, fewer than
    /// asked for only at the file's end.
    fn read_at(&self, path: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

/// Files by their path on this machine; each is opened once.
#[derive(Debug, Default)]
pub struct OnDisk {
    open: RefCell<HashMap<PathBuf, File>>,
}

impl FileContent for OnDisk {
    fn read_at(&self, path: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut open = self.open.borrow_mut();
        let file = match open.get(path) {
            Some(file) => file,
            None => open.entry(path.to_owned()).or_insert(File::open(path)?),
        };
        read_fully(file, offset, buffer)
    }
}

fn read_fully(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The memory of a frozen process.
pub struct Memory<'a> {
    process: &'a Process,
    dump: File,
    files: &'a dyn FileContent,
}

impl<'a> Memory<'a> {
    /// Opens the dumped pages. Clean pages of mapped files come from `files`.
    pub fn open(process: &'a Process, files: &'a dyn FileContent) -> Result<Self, ProcessError> {
        match File::open(process.pages.file()) {
            Ok(dump) => Ok(Self { process, dump, files }),
            Err(source) => {
                Err(ProcessError::Read { path: process.pages.file().to_owned(), source })
            }
        }
    }

    /// The process whose memory it is.
    #[must_use]
    pub fn process(&self) -> &'a Process {
        self.process
    }

    /// The files that the process has mapped.
    #[must_use]
    pub fn files(&self) -> &'a dyn FileContent {
        self.files
    }

    /// Fills `buffer` with the bytes from `address` on. Returns false where an address in it is not
    /// mapped, or has no content that is known: shared memory and the kernel's own mappings.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<bool, ProcessError> {
        let Some(end) = address.checked_add(buffer.len() as u64) else {
            return Ok(false);
        };
        let vmas = &self.process.vmas;
        let first = vmas.partition_point(|vma| vma.range.end <= address);
        let mut at = address;
        for vma in &vmas[first..] {
            if at >= end || vma.range.start > at {
                break;
            }
            let until = vma.range.end.min(end);
            let part = &mut buffer[(at - address) as usize..(until - address) as usize];
            match &vma.kind {
                VmaKind::Anonymous => self.overlay(at, part, true)?,
                VmaKind::File { path, offset, shared, .. } => {
                    self.read_file(path, offset + (at - vma.range.start), part)?;
                    if !shared {
                        self.overlay(at, part, false)?;
                    }
                }
                _ => return Ok(false),
            }
            at = until;
        }
        Ok(at >= end)
    }

    /// The 64-bit number at an address.
    pub fn word(&self, address: u64) -> Result<Option<u64>, ProcessError> {
        let mut bytes = [0; 8];
        Ok(self.read(address, &mut bytes)?.then(|| u64::from_le_bytes(bytes)))
    }

    fn read_file(&self, path: &Path, offset: u64, buffer: &mut [u8]) -> Result<(), ProcessError> {
        match self.files.read_at(path, offset, buffer) {
            Ok(count) => {
                buffer[count..].fill(0);
                Ok(())
            }
            Err(source) => Err(ProcessError::MappedFile { path: path.to_owned(), source }),
        }
    }

    /// Puts the dumped pages over what is in `buffer`.
    fn overlay(&self, address: u64, buffer: &mut [u8], clear: bool) -> Result<(), ProcessError> {
        if clear {
            buffer.fill(0);
        }
        let end = address + buffer.len() as u64;
        let pages = address / PAGE * PAGE..end.next_multiple_of(PAGE);
        for run in self.process.pages.within(pages) {
            let from = run.range.start.max(address);
            let part =
                &mut buffer[(from - address) as usize..(run.range.end.min(end) - address) as usize];
            let skipped = from - run.range.start;
            match run.source {
                PageSource::Dump(offset) => self.read_dump(offset + skipped, part)?,
                PageSource::Adopted(offset) => {
                    let start = (offset + skipped) as usize;
                    part.copy_from_slice(&self.process.pages.adopted()[start..start + part.len()]);
                }
            }
        }
        Ok(())
    }

    fn read_dump(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ProcessError> {
        self.dump.read_exact_at(buffer, offset).map_err(|source| ProcessError::Read {
            path: self.process.pages.file().to_owned(),
            source,
        })
    }
}
