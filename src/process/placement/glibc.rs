//! glibc's malloc in the frozen memory: its heap between the program breaks, its threads' arenas,
//! and the large blocks that it maps one by one.
//!
//! None of them minds being a private file mapping. Heaps grow and shrink by sbrk(2), mprotect(2) and
//! munmap(2); `malloc_trim` and the shrinking of an arena use `MADV_DONTNEED`, but only on free
//! memory, and calloc(3) trusts nothing of it to be zero: it leaves out the clearing only of what it
//! has just mapped, and of the part of the top chunk past the highest end that the heap has ever had
//! (`max_system_mem`, `mprotect_size`). Those marks stay where they are after `MADV_DONTNEED`
//! (`shrink_heap`, `mtrim`); where a heap shrinks by a new mapping or by sbrk(2), the kernel makes
//! new anonymous memory when it grows again. Nothing past a mark was ever dumped. Large blocks are grown by mremap(2), which
//! [`Why::BlockHeader`] sees to.
//!
//! Facts: malloc/malloc.c (`malloc_chunk`, `malloc_par`, `sysmalloc`, `mremap_chunk`,
//! `__libc_calloc`, `mtrim`) and
//! malloc/arena.c (`heap_info`, `new_heap`, `shrink_heap`) of glibc 2.26 to 2.41.

use std::ops::Range;

use super::Why;
use super::claims::Claims;
use super::window::Window;
use crate::process::pages::PAGE;
use crate::process::{Memory, ProcessError, Vma, VmaKind};

/// Low bits of a chunk's size field.
const PREV_INUSE: u64 = 1;
const IS_MMAPPED: u64 = 2;
const NON_MAIN_ARENA: u64 = 4;
const FLAGS: u64 = PREV_INUSE | IS_MMAPPED | NON_MAIN_ARENA;

/// Chunks are multiples of this; one of exactly this size is a fence at the end of a heap.
const ALIGNMENT: u64 = 16;

/// `HEAP_MAX_SIZE`: arenas' heaps are this large and aligned to it.
const HEAP_MAX: u64 = 64 << 20;

/// `DEFAULT_MMAP_MAX`.
const MOST_BLOCKS: u32 = 65536;

const READ_WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();

/// What malloc itself has counted (`struct malloc_par`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Books {
    /// Where its part of the brk heap begins.
    base: u64,
    /// How many large blocks there are.
    blocks: u32,
    /// Their lengths together.
    bytes: u64,
}

/// Claims the heaps that can be proven to be malloc's. Returns its account of large blocks, if it was
/// found, for [`claim_blocks`].
pub(super) fn claim_heaps(
    memory: &Memory<'_>,
    claims: &mut Claims,
) -> Result<Option<Books>, ProcessError> {
    let mut window = Window::new(memory);
    let layout = &memory.process().layout;
    // Many numbers look like the heap's start: the right one is where chunks are. Another may happen to be
    // the address of a later chunk (1,000,000,000 in CPython's data), so the one that begins first counts.
    let mut books = None;
    let mut heap = None;
    let mut candidates = candidates(memory, &mut window)?;
    candidates.sort_by_key(|candidate| candidate.base);
    for candidate in candidates {
        heap = brk_heap(&mut window, candidate.base, layout.brk)?;
        if heap.is_some() {
            books = Some(candidate);
            break;
        }
    }
    if heap.is_none() {
        heap = brk_heap(&mut window, layout.start_brk, layout.brk)?;
    }
    if let Some(heap) = heap {
        claims.add(heap, Why::BrkHeap);
    }
    for heap in arenas(memory, &mut window)? {
        claims.add(heap, Why::MallocArena);
    }
    Ok(books)
}

/// Looks for malloc's own account in the data of mapped libraries. It is recognised by the start of
/// the brk heap, which it ends with, and by what precedes it; other data may look like it.
fn candidates(memory: &Memory<'_>, window: &mut Window<'_>) -> Result<Vec<Books>, ProcessError> {
    let process = memory.process();
    let heap = process.layout.start_brk..process.layout.brk;
    let data = |vma: &&Vma| {
        vma.prot == READ_WRITE && matches!(vma.kind, VmaKind::File { shared: false, .. })
    };
    let mut bytes = Vec::new();
    let mut candidates = Vec::new();
    for vma in process.vmas.iter().filter(data) {
        for run in process.pages.within(vma.range.clone()).map(|run| run.range) {
            bytes.resize((run.end - run.start) as usize, 0);
            memory.read(run.start, &mut bytes)?;
            let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
            for (address, base) in run.step_by(8).zip(words) {
                if heap.contains(&base)
                    && let Some(books) = books_before(window, address, base)?
                {
                    candidates.push(books);
                }
            }
        }
    }
    Ok(candidates)
}

fn books_before(
    window: &mut Window<'_>,
    address: u64,
    base: u64,
) -> Result<Option<Books>, ProcessError> {
    let mut before = |distance: u64| window.word(address.wrapping_sub(distance));
    let (Some(most_bytes), Some(bytes)) = (before(8)?, before(16)?) else { return Ok(None) };
    // Four counters of 32 bits precede the lengths, and since 2.35 a fifth one before them, which
    // puts a gap behind them: (flags, now) (limit, most) (setting, gap), or (now, limit) (most,
    // setting).
    let words = (before(40)?, before(32)?, before(24)?);
    let (Some(first), Some(second), Some(third)) = words else { return Ok(None) };
    let low = |word: u64| word as u32;
    let high = |word: u64| (word >> 32) as u32;
    let counters = [
        (high(first), low(second), high(second)), // 2.35 and later
        (low(second), high(second), low(third)),
    ];
    let right = |(now, limit, most): &(u32, u32, u32)| *limit == MOST_BLOCKS && now <= most;
    let found = counters.iter().find(|counters| right(counters));
    let lengths = bytes.is_multiple_of(PAGE) && bytes <= most_bytes;
    Ok(found.filter(|_| lengths).map(|(blocks, _, _)| Books { base, blocks: *blocks, bytes }))
}

/// The part of the brk heap that malloc's chunks fill without a gap.
fn brk_heap(
    window: &mut Window<'_>,
    base: u64,
    brk: u64,
) -> Result<Option<Range<u64>>, ProcessError> {
    let first = base.next_multiple_of(ALIGNMENT);
    let end = chunks(window, first..brk, 0)?;
    // Whoever moved the break besides malloc owns what lies before its chunks and after them.
    let start = base.next_multiple_of(PAGE);
    Ok(end.map(|end| {
        let end = if end == brk { end.next_multiple_of(PAGE) } else { end - end % PAGE };
        start..end
    }))
}

/// Walks from chunk to chunk. Returns where they end: at the end of `range`, or after the fences
/// that malloc leaves where somebody else took the memory behind it. None where a header is not one.
fn chunks(
    window: &mut Window<'_>,
    range: Range<u64>,
    arena: u64,
) -> Result<Option<u64>, ProcessError> {
    let mut at = range.start;
    let mut previous = 0;
    let mut fences = 0;
    while at < range.end {
        let (Some(before), Some(head)) = (window.word(at)?, window.word(at.wrapping_add(8))?)
        else {
            return Ok(None);
        };
        let size = head & !FLAGS;
        let fits = size >= ALIGNMENT && size.is_multiple_of(ALIGNMENT) && size <= range.end - at;
        // A chunk whose predecessor is free repeats the predecessor's size.
        let linked = head & PREV_INUSE != 0 || before == previous;
        if !fits || !linked || head & (IS_MMAPPED | NON_MAIN_ARENA) != arena {
            return Ok(None);
        }
        at += size;
        previous = size;
        fences = if size == ALIGNMENT { fences + 1 } else { 0 };
        if fences == 2 {
            return Ok(Some(at));
        }
    }
    Ok((at > range.start).then_some(at))
}

/// Heaps of arenas for threads.
fn arenas(memory: &Memory<'_>, window: &mut Window<'_>) -> Result<Vec<Range<u64>>, ProcessError> {
    let vmas = &memory.process().vmas;
    let mut heaps: Vec<Heap> = Vec::new();
    for vma in vmas.iter().filter(|vma| vma.prot == READ_WRITE && vma.kind == VmaKind::Anonymous) {
        // What a heap begins with is not zero, so it was dumped: a mapping may be longer than all memory.
        for run in memory.process().pages.within(vma.range.clone()).map(|run| run.range) {
            let first = run.start.next_multiple_of(HEAP_MAX);
            for start in (first..run.end).step_by(HEAP_MAX as usize) {
                heaps.extend(heap(vmas, window, start)?);
            }
        }
    }
    // A heap that is not an arena's first belongs to the arena of the one before it.
    loop {
        let known: Vec<(u64, u64)> = heaps.iter().map(|heap| (heap.start, heap.arena)).collect();
        heaps.retain(|heap| heap.previous == 0 || known.contains(&(heap.previous, heap.arena)));
        if heaps.len() == known.len() {
            break;
        }
    }
    Ok(heaps.iter().map(|heap| heap.start..heap.start + HEAP_MAX).collect())
}

/// `struct heap_info`.
struct Heap {
    start: u64,
    arena: u64,
    previous: u64,
}

fn heap(vmas: &[Vma], window: &mut Window<'_>, start: u64) -> Result<Option<Heap>, ProcessError> {
    let mut field = |index: u64| window.word(start + 8 * index);
    let fields = (field(0)?, field(1)?, field(2)?, field(3)?);
    let (Some(arena), Some(previous), Some(size), Some(writable)) = fields else {
        return Ok(None);
    };
    // An arena lies in its first heap, right behind the fields: four before 2.35, then more.
    let first = previous == 0 && [0x20, 0x30].contains(&arena.wrapping_sub(start));
    let later = previous != 0
        && previous != start
        && previous.is_multiple_of(HEAP_MAX)
        && arena - arena % HEAP_MAX != start;
    let sizes = size.is_multiple_of(PAGE)
        && writable.is_multiple_of(PAGE)
        && (PAGE..=writable).contains(&size)
        && writable <= HEAP_MAX;
    let Some(end) = start.checked_add(HEAP_MAX) else { return Ok(None) };
    let right = (first || later)
        && sizes
        && covered(vmas, &(start..start + writable), READ_WRITE)
        && covered(vmas, &(start + writable..end), libc::PROT_NONE.cast_unsigned());
    Ok(right.then_some(Heap { start, arena, previous }))
}

/// All of `range` is private memory without a file and with this protection.
pub(super) fn covered(vmas: &[Vma], range: &Range<u64>, prot: u32) -> bool {
    let mut at = range.start;
    let first = vmas.partition_point(|vma| vma.range.end <= at);
    for vma in &vmas[first..] {
        if at >= range.end {
            break;
        }
        if vma.range.start > at
            || vma.prot != prot
            || vma.kind != VmaKind::Anonymous
            || vma.growsdown
        {
            return false;
        }
        at = vma.range.end;
    }
    at >= range.end
}

/// Claims the large blocks. Comes after all else that lies in the same mappings.
pub(super) fn claim_blocks(
    memory: &Memory<'_>,
    books: Books,
    claims: &mut Claims,
) -> Result<(), ProcessError> {
    let mut window = Window::new(memory);
    let blocks = blocks(memory, &mut window, claims)?;
    // Malloc knows how many there are. More than that means that something else looks like one, and
    // then nobody can tell which.
    let bytes: u64 = blocks.iter().map(|block| block.end - block.start).sum();
    if blocks.len() as u64 > u64::from(books.blocks) || bytes > books.bytes {
        return Ok(());
    }
    for block in blocks {
        claims.add(block.start..block.start + PAGE, Why::BlockHeader);
        claims.add(block.start + PAGE..block.end, Why::MallocBlock);
    }
    Ok(())
}

/// Everything that has the header of a large block: a page that starts with 0 and its own length.
fn blocks(
    memory: &Memory<'_>,
    window: &mut Window<'_>,
    claims: &Claims,
) -> Result<Vec<Range<u64>>, ProcessError> {
    let process = memory.process();
    let mut blocks: Vec<Range<u64>> = Vec::new();
    let writable =
        |vma: &&Vma| vma.prot == READ_WRITE && vma.kind == VmaKind::Anonymous && !vma.growsdown;
    for vma in process.vmas.iter().filter(writable) {
        let free = claims.split(vma.range.clone()).into_iter().filter(|(_, why)| why.is_none());
        let runs = free.flat_map(|(piece, _)| process.pages.within(piece));
        for start in runs.flat_map(|run| run.range.step_by(PAGE as usize)) {
            if blocks.last().is_some_and(|block| start < block.end) {
                continue;
            }
            let (Some(0), Some(head)) = (window.word(start)?, window.word(start + 8)?) else {
                continue;
            };
            let length = head & !FLAGS;
            let Some(end) = start.checked_add(length) else { continue };
            if head & FLAGS == IS_MMAPPED
                && length != 0
                && length.is_multiple_of(PAGE)
                && covered(&process.vmas, &(start..end), READ_WRITE)
                && !claims.touches(&(start..end))
            {
                blocks.push(start..end);
            }
        }
    }
    Ok(blocks)
}
