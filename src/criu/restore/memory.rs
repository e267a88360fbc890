//! The address space of a run: mappings of the image file where CRIU dumped pages, and the few pages
//! that have to be copied.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::{Content, Copied, Memory};
use crate::process::PAGE;
use crate::process::messages::mm::Vma_entry;
use crate::process::vma::status;

const MAP_PRIVATE: u32 = 2;
/// `VMA_AREA_REGULAR` (criu/include/image.h).
const REGULAR: u32 = 1;

/// Replaces the dumped mappings by those of the run. `pages` are written by us: they are anonymous,
/// whatever the parts say. None where a mapping is none.
pub(super) fn split(
    dumped: &[Vma_entry],
    memory: &Memory,
    pages: &BTreeSet<u64>,
    image_file: u32,
) -> Option<Vec<Vma_entry>> {
    let Memory { parts, advice, .. } = memory;
    let mut entries = Vec::with_capacity(dumped.len() + parts.len());
    for vma in dumped {
        // The kernel's own, and what is no mapping but a note about some: CRIU has these last.
        let unchanged = status::VDSO | status::VVAR | status::VSYSCALL | status::GUARD;
        if vma.status() & unchanged != 0 {
            entries.push(vma.clone());
            continue;
        }
        let length = vma.end().checked_sub(vma.start()).filter(|length| *length > 0)?;
        vma.pgoff().checked_add(length)?;
        let first = parts.partition_point(|part| part.range.end <= vma.start());
        let mut at = vma.start();
        for part in parts[first..].iter().take_while(|part| part.range.start < vma.end()) {
            let range = part.range.start.max(vma.start())..part.range.end.min(vma.end());
            if at < range.start {
                entries.push(slice(vma, at..range.start));
            }
            at = range.end;
            let skipped = range.start - part.range.start;
            match part.content {
                Content::Anonymous(flags) => entries.push(anonymous(vma, range, flags)),
                Content::File(offset) => {
                    let mut entry = slice(vma, range);
                    entry.set_pgoff(offset + skipped);
                    entries.push(entry);
                }
                Content::Image(offset) => {
                    let offset = |address| offset + (address - part.range.start);
                    let mut from = range.start;
                    for page in pages.range(range.clone()).copied() {
                        if from < page {
                            entries.push(of_image(vma, from..page, offset(from), image_file));
                        }
                        let flags = MAP_PRIVATE | libc::MAP_ANONYMOUS.cast_unsigned();
                        entries.push(anonymous(vma, page..page + PAGE, flags));
                        from = page + PAGE;
                    }
                    if from < range.end {
                        entries.push(of_image(vma, from..range.end, offset(from), image_file));
                    }
                }
            }
        }
        if at < vma.end() {
            entries.push(slice(vma, at..vma.end()));
        }
    }
    for (range, number) in advice {
        for entry in &mut entries {
            if range.start <= entry.start() && entry.end() <= range.end {
                entry.set_madv(entry.madv() | 1 << number);
            }
        }
    }
    Some(entries)
}

fn slice(vma: &Vma_entry, range: std::ops::Range<u64>) -> Vma_entry {
    let mut entry = vma.clone();
    entry.set_start(range.start);
    entry.set_end(range.end);
    if vma.status() & (status::FILE_PRIVATE | status::FILE_SHARED) != 0 {
        entry.set_pgoff(vma.pgoff() + (range.start - vma.start()));
    }
    entry
}

fn anonymous(vma: &Vma_entry, range: std::ops::Range<u64>, flags: u32) -> Vma_entry {
    let mut entry = slice(vma, range);
    entry.set_status(REGULAR | status::ANON_PRIVATE | vma.status() & status::HEAP);
    entry.set_flags(flags & !libc::MAP_FIXED.cast_unsigned());
    entry.set_shmid(0);
    entry.set_pgoff(0);
    entry.set_fd(-1);
    entry.clear_fdflags();
    entry
}

fn of_image(vma: &Vma_entry, range: std::ops::Range<u64>, offset: u64, file: u32) -> Vma_entry {
    let mut entry = slice(vma, range);
    entry.set_status(REGULAR | status::FILE_PRIVATE);
    entry.set_flags(MAP_PRIVATE);
    entry.set_shmid(file.into());
    entry.set_pgoff(offset);
    entry.set_fd(-1);
    entry.set_fdflags(libc::O_RDONLY.cast_unsigned());
    entry
}

/// Copies pages from the image to CRIU's own file of pages, with some words changed.
pub(super) fn write_pages(
    image: &File,
    copies: &[Copied],
    words: &BTreeMap<u64, u32>,
    target: &mut impl Write,
) -> io::Result<()> {
    const AT_ONCE: u64 = 1 << 20;
    let mut buffer = Vec::new();
    for copy in copies {
        let mut at = copy.range.start;
        while at < copy.range.end {
            let end = copy.range.end.min(at + AT_ONCE);
            buffer.resize((end - at) as usize, 0);
            image.read_exact_at(&mut buffer, copy.offset + (at - copy.range.start))?;
            for (address, word) in words.range(at..end) {
                let place = (address - at) as usize;
                if let Some(bytes) = buffer.get_mut(place..place + size_of::<u32>()) {
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
            }
            target.write_all(&buffer)?;
            at = end;
        }
    }
    Ok(())
}
