//! Arenas of `CPython`'s allocator for small objects, by `CPython`'s own table of them.
//!
//! An arena is mapped once and unmapped as a whole; nothing else is ever done with it. It is known by
//! agreement: the table's entry says where the arena is, and the pools in the arena say the entry's
//! index.
//!
//! Facts: Objects/obmalloc.c and `Include/internal/pycore_obmalloc.h` of `CPython` 3.10 to 3.14
//! (`arena_object`, `pool_header`, `ARENA_BITS`, `POOL_BITS`). A free-threaded build has no such arenas.

use std::ops::Range;

use super::Why;
use super::claims::Claims;
use super::glibc::covered;
use super::window::Window;
use crate::process::pages::PAGE;
use crate::process::{Memory, ProcessError, Vma, VmaKind};

/// `sizeof(struct arena_object)`.
const ENTRY: u64 = 48;

/// Size classes: 512 bytes in steps of 16.
const CLASSES: u32 = 32;

const READ_WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();

/// How a build of `CPython` cuts memory.
#[derive(Clone, Copy, Debug)]
struct Cut {
    arena: u64,
    pool: u64,
}

/// With and without the radix tree that `CPython` builds on 64-bit machines by default.
const CUTS: [Cut; 2] =
    [Cut { arena: 1 << 20, pool: 1 << 14 }, Cut { arena: 1 << 18, pool: 1 << 12 }];

/// An entry of the table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    unused: u64,
    cut: Cut,
}

/// Claims what the table lists and the pools confirm.
pub(super) fn claim(memory: &Memory<'_>, claims: &mut Claims) -> Result<(), ProcessError> {
    let vmas = &memory.process().vmas;
    let mut window = Window::new(memory);
    let mut arenas: Vec<(u64, Range<u64>)> = Vec::new();
    for (place, entry) in candidates(memory)? {
        let range = entry.address..entry.address + entry.cut.arena;
        if covered(vmas, &range, READ_WRITE)
            && let Some(index) = index(&mut window, entry)?
            && let Some(table) = index.checked_mul(ENTRY).and_then(|skip| place.checked_sub(skip))
        {
            arenas.push((table, range));
        }
    }
    // A forgotten copy of the table, from before it was made longer, lists arenas too; the true one
    // lists them all.
    arenas.sort_by_key(|(table, range)| (*table, range.start));
    let mut tables: Vec<&[(u64, Range<u64>)]> =
        arenas.chunk_by(|one, other| one.0 == other.0).collect();
    tables.sort_by_key(|table| std::cmp::Reverse(table.len()));
    for (_, range) in tables.into_iter().flatten() {
        claims.add(range.clone(), Why::PymallocArena);
    }
    Ok(())
}

/// Everything in memory that has the form of an entry.
fn candidates(memory: &Memory<'_>) -> Result<Vec<(u64, Entry)>, ProcessError> {
    /// How much is looked at at once.
    const PIECE: u64 = 1 << 20;
    let process = memory.process();
    let mut found = Vec::new();
    let mut bytes = Vec::new();
    let anonymous =
        |vma: &&Vma| vma.prot == READ_WRITE && vma.kind == VmaKind::Anonymous && !vma.growsdown;
    for vma in process.vmas.iter().filter(anonymous) {
        for run in process.pages.within(vma.range.clone()).map(|run| run.range) {
            for start in run.clone().step_by(PIECE as usize) {
                let end = run.end.min(start + PIECE);
                // An entry may reach into the next page, which may have been left out as zeros.
                bytes.resize((end.saturating_add(PAGE).min(vma.range.end) - start) as usize, 0);
                memory.read(start, &mut bytes)?;
                let heads = heads(&bytes, (end - start) as usize);
                let entries = heads.into_iter().filter_map(|at| Some((at, entry(&bytes[at..])?)));
                found.extend(entries.map(|(at, entry)| (start + at as u64, entry)));
            }
        }
    }
    Ok(found)
}

/// Where among the first `length` bytes there is an address of a page, above the first 4 GiB as all
/// are that mmap(2) gives out. Most of the process's memory goes through here, word by word, hence the
/// plain loop: it decides in a few instructions for all that are none.
fn heads(bytes: &[u8], length: usize) -> Vec<usize> {
    let mut found = Vec::new();
    let (words, _) = bytes[..length].as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        if word[0] == 0 && word[1].trailing_zeros() >= 4 && (word[4] | word[5]) != 0 {
            found.push(8 * index);
        }
    }
    found
}

/// What a program can address (the kernel's Documentation/arch/x86/x86_64/mm.rst, four-level paging).
const ADDRESSES: u64 = 1 << 47;

/// The entry that these bytes start with, if it can be one: its address, its first unused pool, and
/// two counters of pools.
fn entry(head: &[u8]) -> Option<Entry> {
    let word = |index: usize| {
        let bytes = head.get(8 * index..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    };
    let (address, unused) = (word(0)?, word(1)?);
    // Any words of the memory may come along, those that are no addresses too.
    if address == 0
        || !address.is_multiple_of(PAGE)
        || !(address.saturating_add(1)..ADDRESSES).contains(&unused)
    {
        return None;
    }
    let counters = word(2)?;
    let (free, total) = (counters & 0xffff_ffff, counters >> 32);
    CUTS.into_iter().map(|cut| Entry { address, unused, cut }).find(|entry| {
        let pools = entry.pools();
        unused.is_multiple_of(entry.cut.pool)
            && (pools.start..=pools.end).contains(&unused)
            && total == (pools.end - pools.start) / entry.cut.pool
            && free <= total
    })
}

impl Entry {
    /// Whole pools that fit the arena.
    fn pools(&self) -> Range<u64> {
        let start = self.address.next_multiple_of(self.cut.pool);
        let end = self.address.saturating_add(self.cut.arena);
        start..end - end % self.cut.pool
    }
}

/// The index on which all pools of the arena agree.
fn index(window: &mut Window<'_>, entry: Entry) -> Result<Option<u64>, ProcessError> {
    let mut agreed = None;
    for pool in (entry.pools().start..entry.unused).step_by(entry.cut.pool as usize) {
        let Some(word) = window.word(pool + 32)? else { return Ok(None) };
        let (index, class) = (word & 0xffff_ffff, (word >> 32) as u32);
        if class >= CLASSES || agreed.is_some_and(|agreed| agreed != index) {
            return Ok(None);
        }
        agreed = Some(index);
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_no_addresses_make_no_entry() {
        for address in [0, 1, PAGE, ADDRESSES, u64::MAX - PAGE + 1] {
            for unused in [0, address, u64::MAX] {
                let head: Vec<u8> = [address, unused, u64::MAX].map(u64::to_le_bytes).concat();
                assert!(entry(&head).is_none(), "{address:#x} {unused:#x}");
            }
        }
    }
}
