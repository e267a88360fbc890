//! Which memory may be mapped from an image, and which must be copied.
//!
//! Mapping costs nothing until a page is touched, copying costs at once. But a private mapping of a
//! file differs from memory without a file: after `MADV_DONTNEED` it shows the file's bytes again and
//! not zeros, `MADV_FREE` fails on it, and when mremap(2) makes it longer, what comes next in the
//! file appears. So memory is mapped only where it is proven to belong to an owner who does none of
//! these, or to whom it makes no difference. What is not proven is copied: slower, and never wrong.

mod claims;
mod elf;
mod glibc;
mod pymalloc;
#[cfg(test)]
mod tests;
mod window;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use super::pages::PAGE;
use super::smaps::VmFlags;
use super::{Memory, Pages, Process, ProcessError, Thread, Vma, VmaKind};
use claims::Claims;
use elf::Objects;

/// How a range of addresses gets its content. A range never spans two mappings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The addresses, page-aligned.
    pub range: Range<u64>,
    /// Where the content comes from.
    pub how: How,
    /// What it is.
    pub why: Why,
}

/// Where the content of a range comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum How {
    /// The file that is mapped there, unchanged.
    File,
    /// Nothing: new memory without a file.
    Zero,
    /// A private mapping of the image. Pages in it that were not dumped are in the image too, as
    /// [`Memory::read`] has them.
    Map,
    /// The mapping as it was, with the dumped pages copied into it.
    Copy,
}

/// What a range is, as far as that is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// Pages of a file as they are in the file.
    Unchanged,
    /// Pages of a file that the image has too, so that a run need not open the file.
    Embedded,
    /// Memory that was never written.
    Untouched,
    /// Data of a program or library that its code or the loader changed.
    LibraryData,
    /// Zero-initialised data of a program or library.
    Bss,
    /// The heap between the first and the current program break.
    BrkHeap,
    /// A heap of one of glibc's arenas for threads.
    MallocArena,
    /// A large block that glibc's malloc got by mmap(2), without its first page.
    MallocBlock,
    /// The first page of such a block: glibc grows blocks by mremap(2), which refuses to resize a
    /// range of two mappings, and then falls back to allocate, copy and free.
    BlockHeader,
    /// An arena of `CPython`'s allocator for small objects.
    PymallocArena,
    /// Our own code that stays in the process.
    Resident,
    /// A thread's stack.
    Stack,
    /// The part of the main stack that no function uses any more.
    DeadStack,
    /// Pages of a mapped file that were changed, and the file is no program or library.
    ChangedFile,
    /// The kernel may drop it or empties it in a child, and its owner relies on that: it must come
    /// back empty.
    Volatile,
    /// Locked into memory.
    Locked,
    /// Memory whose owner is not known.
    Unproven,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unchanged => "files as they are",
            Self::Embedded => "libraries that the image holds",
            Self::Untouched => "never written",
            Self::LibraryData => "data of libraries",
            Self::Bss => "zero-initialised data of libraries",
            Self::BrkHeap => "malloc's heap",
            Self::MallocArena => "malloc's arenas of threads",
            Self::MallocBlock => "malloc's large blocks",
            Self::BlockHeader => "first pages of malloc's large blocks, which must be able to grow",
            Self::PymallocArena => "Python's small objects",
            Self::Resident => "code that stays in the process",
            Self::Stack => "stacks",
            Self::DeadStack => "unused stack",
            Self::ChangedFile => "changed pages of files",
            Self::Volatile => "memory that its owner wants to be forgotten",
            Self::Locked => "locked memory",
            Self::Unproven => "memory of an unknown owner, who may rely on its being anonymous",
        })
    }
}

impl Why {
    /// What becomes of its dumped pages.
    fn how(self) -> How {
        match self {
            Self::Unchanged => How::File,
            Self::Untouched | Self::DeadStack | Self::Volatile => How::Zero,
            Self::Embedded
            | Self::LibraryData
            | Self::Bss
            | Self::BrkHeap
            | Self::MallocArena
            | Self::MallocBlock
            | Self::PymallocArena
            | Self::Resident => How::Map,
            Self::BlockHeader | Self::Stack | Self::ChangedFile | Self::Locked | Self::Unproven => {
                How::Copy
            }
        }
    }
}

/// Says for each private mapping, and each shared mapping of a file, how its content comes back: all
/// their addresses, in order.
///
/// Every change of source costs a mapping when the process is restored. So up to `fill` pages that
/// were not dumped, between two that are mapped from the image, are put into the image too, across
/// the border of two mappings as well if these have the same protection and advice: whoever lays
/// out the image can then make one mapping of neighbours. Of the files that `embedded` names, all that
/// is mapped is put into the image.
pub fn placement(
    memory: &Memory<'_>,
    fill: u64,
    embedded: &dyn Fn(&Path) -> bool,
) -> Result<Vec<Placement>, ProcessError> {
    let process = memory.process();
    let objects = Objects::load(memory)?;
    let claims = claims(memory, &objects)?;
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    for vma in &process.vmas {
        let plain = match &vma.kind {
            VmaKind::Anonymous => Why::Untouched,
            VmaKind::File { path, .. } if !is_shared_with_writers(vma) && embedded(path) => {
                // What cannot be accessed has no content.
                if vma.prot == 0 { Why::Untouched } else { Why::Embedded }
            }
            VmaKind::File { .. } => Why::Unchanged,
            _ => continue,
        };
        for (range, claim) in claims.split(vma.range.clone()) {
            cut(&process.pages, range, claim.unwrap_or(Why::Unproven), plain, vma, &mut pieces);
        }
    }
    fill_gaps(&mut pieces, fill.saturating_mul(PAGE));
    fill_ends(&mut pieces, fill.min(END).saturating_mul(PAGE));
    let mut placements = join(&pieces);
    // Guard regions in memory of a file are possible since Linux 6.15 only, and in other memory since 6.13.
    let has_guard = |placement: &Placement| {
        let range = &placement.range;
        process.guards.iter().any(|guard| guard.start < range.end && range.start < guard.end)
    };
    for placement in &mut placements {
        if placement.how == How::Map && has_guard(placement) {
            placement.how = How::Copy;
        }
    }
    Ok(placements)
}

/// What others see when it is written to.
fn is_shared_with_writers(vma: &Vma) -> bool {
    const PROT_WRITE: u32 = 2;
    matches!(vma.kind, VmaKind::File { shared: true, .. }) && vma.prot & PROT_WRITE != 0
}

/// A range of one owner in one mapping, all of which was dumped or none.
struct Piece<'a> {
    range: Range<u64>,
    vma: &'a Vma,
    /// Whose it is.
    owner: Why,
    /// What is to become of it.
    why: Why,
}

/// Cuts a range of one owner into what was dumped and what was not.
fn cut<'a>(
    pages: &Pages,
    range: Range<u64>,
    owner: Why,
    plain: Why,
    vma: &'a Vma,
    pieces: &mut Vec<Piece<'a>>,
) {
    let mut put = |range: Range<u64>, why: Why| {
        if range.start < range.end {
            pieces.push(Piece { range, vma, owner, why });
        }
    };
    if owner.how() == How::Zero {
        return put(range, owner);
    }
    let mut done = range.start;
    for run in pages.within(range.clone()).map(|run| run.range) {
        put(done..run.start, plain);
        done = run.end;
        put(run, owner);
    }
    put(done..range.end, plain);
}

/// Turns short gaps between mapped pieces into mapped pieces.
fn fill_gaps(pieces: &mut [Piece<'_>], most: u64) {
    let mut last: Option<usize> = None;
    for index in 0..pieces.len() {
        if pieces[index].why.how() != How::Map {
            continue;
        }
        if let Some(before) = last {
            let gap = pieces[index].range.start - pieces[before].range.end;
            let stretch = &pieces[before..=index];
            if gap <= most && stretch.windows(2).all(|pair| pair[0].continues(&pair[1])) {
                for piece in &mut pieces[before + 1..index] {
                    piece.why = piece.owner;
                }
            }
        }
        last = Some(index);
    }
}

/// Most pages that were not dumped and are put into the image where they end what is mapped from it.
const END: u64 = 4;

/// Turns the short end of a mapping of which the rest is mapped from the image into a mapped piece.
fn fill_ends(pieces: &mut [Piece<'_>], most: u64) {
    for index in 1..pieces.len() {
        let (before, piece) = (&pieces[index - 1], &pieces[index]);
        if before.why.how() == How::Map
            && piece.why == Why::Untouched
            && piece.range.end - piece.range.start <= most
            && before.continues(piece)
        {
            pieces[index].why = piece.owner;
        }
    }
}

impl Piece<'_> {
    /// One mapping of the image could be made of both.
    fn continues(&self, next: &Self) -> bool {
        let one = |vma: &Vma| (vma.prot, vma.advice, vma.special);
        self.range.end == next.range.start
            && self.owner.how() == How::Map
            && next.owner.how() == How::Map
            && one(self.vma) == one(next.vma)
    }
}

/// Joins neighbours in one mapping to which the same happens for the same reason.
fn join(pieces: &[Piece<'_>]) -> Vec<Placement> {
    let joined = |one: &Piece<'_>, next: &Piece<'_>| {
        one.vma.range == next.vma.range && one.range.end == next.range.start && one.why == next.why
    };
    let placement = |group: &[Piece<'_>]| {
        let (first, last) = (group.first()?, group.last()?);
        let range = first.range.start..last.range.end;
        Some(Placement { range, how: first.why.how(), why: first.why })
    };
    pieces.chunk_by(joined).filter_map(placement).collect()
}

fn claims(memory: &Memory<'_>, objects: &Objects<'_>) -> Result<Claims, ProcessError> {
    let process = memory.process();
    let mut claims = Claims::default();
    for vma in &process.vmas {
        if let Some(why) = by_kind(vma, objects) {
            claims.add(vma.range.clone(), why);
        }
    }
    for range in &process.adopted {
        claims.add(range.clone(), Why::Resident);
    }
    main_stack(process, &mut claims);
    for zeros in objects.zero_initialised() {
        for part in anonymous_parts(process, &zeros) {
            claims.add(part, Why::Bss);
        }
    }
    let books = glibc::claim_heaps(memory, &mut claims)?;
    pymalloc::claim(memory, &mut claims)?;
    if let Some(books) = books {
        glibc::claim_blocks(memory, books, &mut claims)?;
    }
    for vma in process.threads.iter().filter_map(|thread| stack_of(process, thread)) {
        for (rest, why) in claims.split(vma.range.clone()) {
            if why.is_none() {
                claims.add(rest, Why::Stack);
            }
        }
    }
    Ok(claims)
}

/// What a whole mapping is by its own description.
fn by_kind(vma: &Vma, objects: &Objects<'_>) -> Option<Why> {
    if vma.special.intersects(VmFlags::DROPPABLE | VmFlags::WIPE_ON_FORK) {
        return Some(Why::Volatile);
    }
    if vma.special.intersects(VmFlags::LOCKED) {
        return Some(Why::Locked);
    }
    match vma.kind {
        VmaKind::File { shared: true, .. } => Some(Why::Unchanged),
        VmaKind::File { .. } if objects.is_segment(vma) => Some(Why::LibraryData),
        VmaKind::File { .. } => Some(Why::ChangedFile),
        _ => None,
    }
}

/// Bytes below the stack pointer that a function may use without moving it (x86-64 psABI, 3.2.2).
const RED_ZONE: u64 = 128;

/// Below the stack pointer the main stack holds nothing that is used. Of a pthread's stack that is not
/// said: if it was made without a guard, there may be other memory below it in the same mapping.
fn main_stack(process: &Process, claims: &mut Claims) {
    for thread in &process.threads {
        let Some(vma) = stack_of(process, thread).filter(|vma| vma.growsdown) else { continue };
        let live = thread.registers.sp.saturating_sub(RED_ZONE) / PAGE * PAGE;
        let live = live.max(vma.range.start);
        claims.add(vma.range.start..live, Why::DeadStack);
        claims.add(live..vma.range.end, Why::Stack);
    }
}

fn stack_of<'a>(process: &'a Process, thread: &Thread) -> Option<&'a Vma> {
    let sp = thread.registers.sp;
    let on_signal_stack =
        thread.signal_stack.is_some_and(|stack| sp.wrapping_sub(stack.address) < stack.length);
    let vma = process.vma_at(sp).filter(|_| !on_signal_stack)?;
    matches!(vma.kind, VmaKind::Anonymous).then_some(vma)
}

/// The parts of `range` that are private memory without a file.
fn anonymous_parts(process: &Process, range: &Range<u64>) -> Vec<Range<u64>> {
    let first = process.vmas.partition_point(|vma| vma.range.end <= range.start);
    process.vmas[first..]
        .iter()
        .take_while(|vma| vma.range.start < range.end)
        .filter(|vma| vma.kind == VmaKind::Anonymous)
        .map(|vma| vma.range.start.max(range.start)..vma.range.end.min(range.end))
        .collect()
}
