//! How the frozen memory lies in the image file, and by which mappings it comes back.
//!
//! Memory that may be mapped lies in the image in the order of its addresses, so that what is next to
//! each other in memory is next to each other in the file and can be one mmap(2) call.

use std::ops::Range;

use crate::process::placement::{How, Placement, Why};
use crate::process::{Process, Vma, VmaKind};

/// Bytes of the image's memory section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Memory of the frozen process, by its addresses.
    Memory(Range<u64>),
    /// Bytes that the frozen process did not have.
    Bytes(Vec<u8>),
}

impl Piece {
    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Memory(range) => range.end - range.start,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// A part of a mapping of the frozen process with one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Addresses.
    pub range: Range<u64>,
    /// What is mapped there.
    pub content: Content,
    /// Memory that is copied into it.
    pub copies: Vec<Range<u64>>,
    /// It is of a library that the image holds.
    pub embedded: bool,
}

/// What a segment is mapped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The image.
    Image,
    /// Nothing: anonymous memory.
    Anonymous,
    /// The same file as in the frozen process, from this offset on.
    File(u64),
}

/// Splits a mapping at the places where its source changes. `placements` are the mapping's own.
#[must_use]
pub fn segments(process: &Process, vma: &Vma, placements: &[Placement]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for placement in placements {
        let range = placement.range.clone();
        let content = match (placement.how, &vma.kind) {
            (How::Map, _) => Content::Image,
            (How::File | How::Copy, VmaKind::File { offset, .. }) => {
                Content::File(offset + (range.start - vma.range.start))
            }
            _ => Content::Anonymous,
        };
        let copies = match placement.how {
            How::Copy => process.pages.within(range.clone()).map(|run| run.range).collect(),
            _ => Vec::new(),
        };
        let embedded = placement.why == Why::Embedded;
        match segments.last_mut() {
            Some(last) if last.range.end == range.start && last.goes_on_as(content) => {
                last.embedded |= embedded;
                last.range.end = range.end;
                last.copies.extend(copies);
            }
            _ => segments.push(Segment { range, content, copies, embedded }),
        }
    }
    segments
}

impl Segment {
    fn goes_on_as(&self, content: Content) -> bool {
        match (self.content, content) {
            (Content::File(start), Content::File(offset)) => {
                start + (self.range.end - self.range.start) == offset
            }
            (one, other) => one == other,
        }
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
        let end = vma.range.start.min(HIGHEST);
        if end > from {
            holes.push(from..end);
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
