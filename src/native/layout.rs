//! How the frozen memory lies in the image file, and by which mappings it comes back.
//!
//! Memory that may be mapped lies in the image in the order of its addresses, in chunks: a chunk is
//! one mmap(2) call. Two runs of dumped pages that a small gap separates make one chunk, with the
//! gap's bytes (zeros, or the file's) between them: a page of zeros in the file costs less than a
//! system call in every run.

use std::ops::Range;
use std::path::PathBuf;

use restore_plan::PAGE;

use crate::process::placement::{How, Placement};
use crate::process::{Process, Vma, VmaKind};

/// The widest gap, in bytes, that is filled to join two runs.
const WIDEST_GAP: u64 = 16 * PAGE;

/// Where bytes of a chunk come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Dumped pages of the frozen process, by their addresses.
    Dumped(Range<u64>),
    /// So many zero bytes.
    Zero(u64),
    /// A range of a file of the machine.
    File {
        /// The file.
        path: PathBuf,
        /// Offsets in it.
        range: Range<u64>,
    },
    /// Bytes that the frozen process did not have.
    Bytes(Vec<u8>),
}

impl Piece {
    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Dumped(range) | Self::File { range, .. } => range.end - range.start,
            Self::Zero(length) => *length,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// A part of a mapping of the frozen process with one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Addresses.
    pub range: Range<u64>,
    /// What is there.
    pub content: Content,
}

/// What a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Mapped from the image: these pieces, one after the other.
    Image(Vec<Piece>),
    /// Fresh anonymous memory; the dumped pages among it are copied.
    Anonymous(Vec<Range<u64>>),
    /// Mapped from the same file as in the frozen process, from this offset on.
    File(u64),
}

/// Splits a mapping at the places where its source changes.
///
/// `placements` are those of the mapping's dumped pages, by address.
#[must_use]
pub fn segments(vma: &Vma, placements: &[Placement]) -> Vec<Segment> {
    let mut builder = Builder { vma, segments: Vec::new(), position: vma.range.start };
    for placement in placements {
        match placement.how {
            How::Map => builder.map(placement.range.clone()),
            How::Copy => builder.copy(placement.range.clone()),
            How::Zero | How::File => {}
        }
    }
    builder.rest(vma.range.end);
    builder.segments
}

struct Builder<'a> {
    vma: &'a Vma,
    segments: Vec<Segment>,
    position: u64,
}

impl Builder<'_> {
    fn file_offset(&self, address: u64) -> Option<(PathBuf, u64)> {
        match &self.vma.kind {
            VmaKind::File { path, offset, .. } => {
                Some((path.clone(), offset + (address - self.vma.range.start)))
            }
            _ => None,
        }
    }

    fn map(&mut self, run: Range<u64>) {
        let gap = run.start - self.position;
        let filler = (gap > 0).then(|| match self.file_offset(self.position) {
            Some((path, offset)) => Piece::File { path, range: offset..offset + gap },
            None => Piece::Zero(gap),
        });
        if gap <= WIDEST_GAP
            && let Some(Segment { range, content: Content::Image(pieces) }) =
                self.segments.last_mut()
            && range.end == self.position
        {
            pieces.extend(filler);
            pieces.push(Piece::Dumped(run.clone()));
            range.end = run.end;
        } else {
            self.rest(run.start);
            self.segments.push(Segment {
                range: run.clone(),
                content: Content::Image(vec![Piece::Dumped(run.clone())]),
            });
        }
        self.position = run.end;
    }

    fn copy(&mut self, run: Range<u64>) {
        self.rest(run.start);
        self.position = run.end;
        if let Some(Segment { range, content: Content::Anonymous(copies) }) =
            self.segments.last_mut()
            && range.end == run.start
        {
            range.end = run.end;
            copies.push(run);
            return;
        }
        self.segments.push(Segment { range: run.clone(), content: Content::Anonymous(vec![run]) });
    }

    /// What was not dumped is what the mapping had from the start.
    fn rest(&mut self, end: u64) {
        let range = self.position..end;
        if range.is_empty() {
            return;
        }
        self.position = end;
        if let Some((_, offset)) = self.file_offset(range.start) {
            self.segments.push(Segment { range, content: Content::File(offset) });
            return;
        }
        if let Some(Segment { range: last, content: Content::Anonymous(_) }) =
            self.segments.last_mut()
            && last.end == range.start
        {
            last.end = end;
            return;
        }
        self.segments.push(Segment { range, content: Content::Anonymous(Vec::new()) });
    }
}

/// The address ranges that no mapping touches, largest first, at most `most` of them.
#[must_use]
pub fn holes(process: &Process, most: usize) -> Vec<Range<u64>> {
    /// vm.mmap_min_addr's usual value.
    const LOWEST: u64 = 0x1_0000;
    /// Below the stack of any process, wherever it is (arch/x86/include/asm/processor.h).
    const HIGHEST: u64 = 0x7fff_ffff_f000;
    let mut holes = Vec::new();
    let mut from = LOWEST;
    for vma in &process.vmas {
        if vma.range.start > from {
            holes.push(from..vma.range.start.min(HIGHEST));
        }
        from = from.max(vma.range.end);
    }
    if from < HIGHEST {
        holes.push(from..HIGHEST);
    }
    holes.sort_by_key(|hole| std::cmp::Reverse(hole.end - hole.start));
    holes.truncate(most);
    holes
}
