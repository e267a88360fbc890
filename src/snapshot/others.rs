//! Processes that the imports have started and that run on: for an image that CRIU restores.

use std::fs::File;

use super::SnapshotError;
use super::frozen::Frozen;
use crate::image::{PageRun, Writer};
use crate::process::smaps::{Smaps, VmFlags};
use crate::process::{PageSource, Process, ProcessError};

/// Adds to them what is not in CRIU's files.
pub(super) fn prepare(others: &mut [Process], frozen: &Frozen) -> Result<(), SnapshotError> {
    for other in others {
        let smaps = frozen.others.iter().find(|(pid, _)| *pid == other.pid);
        let smaps = smaps.map_or("", |(_, smaps)| smaps.as_str());
        other.annotate_loosely(&Smaps::parse(smaps.as_bytes()).map_err(ProcessError::Smaps)?);
        // One that was forked has the resident too.
        other.adopt(&frozen.resident, frozen.resident_bytes);
    }
    Ok(())
}

/// Writes the memory of one; returns where its pages went. What the kernel was to drop or to wipe is
/// left out, and comes back empty.
pub(super) fn keep(
    other: &Process,
    frozen: &Frozen,
    writer: &mut Writer,
) -> Result<Vec<PageRun>, SnapshotError> {
    let file = other.pages.file();
    let dump =
        File::open(file).map_err(|source| ProcessError::Read { path: file.to_owned(), source })?;
    let volatile = VmFlags::DROPPABLE | VmFlags::WIPE_ON_FORK;
    let mut index = Vec::new();
    for vma in other.vmas.iter().filter(|vma| !vma.special.intersects(volatile)) {
        for run in other.pages.within(vma.range.clone()) {
            let (address, length) = (run.range.start, run.range.end - run.range.start);
            let offset = match run.source {
                PageSource::Dump(from) => writer.append_file(&dump, from, length)?,
                PageSource::Adopted(from) => {
                    let from = from as usize;
                    writer.append(&other.pages.adopted()[from..from + length as usize])?
                }
            };
            index.push(PageRun { pages_id: other.pages_id, address, length, offset });
        }
        frozen.interrupted()?;
    }
    let kept: Vec<_> = index.iter().map(|run| run.address..run.address + run.length).collect();
    other.rewrite(&frozen.directory, &kept)?;
    Ok(index)
}
