//! CRIU's files of a process whose memory was changed since they were written: memory that was
//! adopted has no file any more, and pages that are not kept are not listed.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::directory::{self, Directory};
use super::messages::files::{Fdinfo_entry, File_entry};
use super::messages::mm::Mm_entry;
use super::messages::pagemap::{Pagemap_entry, Pagemap_head};
use super::messages::task::Core_entry;
use super::pages::PAGE;
use super::vma::status;
use super::{Damage, Process, ProcessError};

const MAP_PRIVATE: u32 = 2;
const MAP_ANONYMOUS: u32 = 0x20;
/// A mapping that CRIU has to restore, and pages that are in the dump (criu/include/image.h,
/// `VMA_AREA_REGULAR`; criu/include/pagemap.h, `PE_PRESENT`).
const REGULAR: u32 = 1;
const PRESENT: u32 = 1 << 2;

impl Process {
    /// Makes the files in the directory that the process was loaded from say what is true of it now.
    /// `kept` are the pages that `pages-N.img` will have, in its order.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or written.
    pub fn rewrite(&self, path: &Path, kept: &[Range<u64>]) -> Result<(), ProcessError> {
        let directory = Directory::new(path);
        let name = format!("mm-{}.img", self.pid);
        let mut mm: Mm_entry = directory.one(&name, directory::MM)?;
        for vma in &mut mm.vmas {
            if self.adopted.iter().any(|range| range.contains(&vma.start())) {
                vma.set_status(REGULAR | status::ANON_PRIVATE);
                vma.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
                vma.set_shmid(0);
                vma.set_pgoff(0);
                vma.set_fd(-1);
            }
        }
        let file = path.join(name);
        write(&file, directory::encode(directory::MM, &[mm]))?;

        let name = format!("pagemap-{}.img", self.pid);
        let (head, _): (Pagemap_head, Vec<Pagemap_entry>) =
            directory.headed(&name, directory::PAGEMAP)?;
        let file = path.join(name);
        let mut bytes = directory::encode(directory::PAGEMAP, &[head]);
        for range in kept {
            bytes = bytes
                .and_then(|mut bytes| directory::append(&mut bytes, &entry(range)).map(|()| bytes));
        }
        write(&file, bytes)
    }
}

/// Takes the snapshot's own pipes out of the descriptors of the processes that were started by the
/// frozen one: where they stand for a standard stream, it is what the frozen process has there.
///
/// # Errors
///
/// A file that cannot be read or written.
pub(crate) fn without_pipes(
    path: &Path,
    process: &Process,
    others: &[Process],
    pipes: &[u32],
) -> Result<(), ProcessError> {
    if others.is_empty() {
        return Ok(());
    }
    let directory = Directory::new(path);
    let table = |pid: u32| -> Result<String, ProcessError> {
        let name = format!("core-{pid}.img");
        let core: Core_entry = directory.one(&name, directory::CORE)?;
        let ids = match core.ids.into_option() {
            Some(ids) => ids,
            None => directory.one(&format!("ids-{pid}.img"), directory::IDS)?,
        };
        Ok(format!("fdinfo-{}.img", ids.files_id()))
    };
    let files: Vec<File_entry> = directory.all("files.img", directory::FILES)?;
    let is_ours = |id: u32| {
        let file = files.iter().find(|file| file.id() == id);
        file.and_then(|file| file.pipe.as_ref()).is_some_and(|pipe| pipes.contains(&pipe.pipe_id()))
    };
    let own = table(process.pid)?;
    let standard: Vec<Fdinfo_entry> = directory.any(&own, directory::FDINFO)?;
    // CRIU wants a descriptor for each one that is listed.
    let has = |one: &Fdinfo_entry, file: &File_entry| one.id() == file.id();
    let kept: Vec<File_entry> = files
        .iter()
        .filter(|file| !is_ours(file.id()) || standard.iter().any(|one| has(one, file)))
        .cloned()
        .collect();
    write(&path.join("files.img"), directory::encode(directory::FILES, &kept))?;
    for other in others {
        let name = table(other.pid)?;
        if name == own {
            continue;
        }
        let mut descriptors: Vec<Fdinfo_entry> = directory.any(&name, directory::FDINFO)?;
        for one in descriptors.iter_mut().filter(|one| one.fd() <= 2 && is_ours(one.id())) {
            if let Some(standard) = standard.iter().find(|standard| standard.fd() == one.fd()) {
                *one = standard.clone();
            }
        }
        descriptors.retain(|one| !is_ours(one.id()));
        write(&path.join(name), directory::encode(directory::FDINFO, &descriptors))?;
    }
    Ok(())
}

/// The entry for pages that are in the dump.
pub(crate) fn entry(range: &Range<u64>) -> Pagemap_entry {
    let mut entry = Pagemap_entry::new();
    let pages = (range.end - range.start) / PAGE;
    entry.set_vaddr(range.start);
    entry.set_compat_nr_pages(pages as u32);
    entry.set_nr_pages(pages);
    entry.set_flags(PRESENT);
    entry
}

fn write(path: &Path, bytes: Result<Vec<u8>, Damage>) -> Result<(), ProcessError> {
    let bytes = bytes.map_err(|source| ProcessError::Damaged { path: path.to_owned(), source })?;
    fs::write(path, bytes).map_err(|source| ProcessError::Write { path: path.to_owned(), source })
}
