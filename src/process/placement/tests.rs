use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::Path;

use proptest::prelude::*;

use super::elf::tests::object;
use super::*;
use crate::process::FileContent;
use crate::process::testing::{Dump, EXE, PID, smaps};
use crate::process::vma::status;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const LIBRARY: u32 = 2;
const OTHER: u32 = 3;

/// Files by path; what is not here reads as an empty file.
#[derive(Default)]
struct Files(BTreeMap<&'static str, Vec<u8>>);

impl FileContent for Files {
    fn read_at(&self, path: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let empty = Vec::new();
        let bytes = path.to_str().and_then(|path| self.0.get(path)).unwrap_or(&empty);
        let from = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }
}

/// A process in the making: mappings, and words at addresses, whose pages are dumped.
struct World {
    dump: Dump,
    words: BTreeMap<u64, u64>,
    files: Files,
    flags: BTreeMap<u64, &'static str>,
}

impl World {
    fn new() -> Self {
        let mut dump = Dump::new();
        dump.file(LIBRARY, "/lib/libc.so.6");
        dump.file(OTHER, "/data");
        // Text, then data whose file part is one page and whose zeros are two more.
        let library = object(&[(0, 0, 0x1000, 0x1000), (0x1000, 0x2000, 0x1000, 0x3000)]);
        let files = Files(BTreeMap::from([("/lib/libc.so.6", library)]));
        Self { dump, words: BTreeMap::new(), files, flags: BTreeMap::new() }
    }

    /// Maps the library as a loader does: text at `base`, data 0x2000 behind it.
    fn library(&mut self, base: u64) {
        let text = self.dump.vma(base, 1, libc::PROT_READ, status::FILE_PRIVATE);
        text.set_shmid(u64::from(LIBRARY));
        let data = self.dump.vma(base + 0x2000, 1, RW, status::FILE_PRIVATE);
        data.set_shmid(u64::from(LIBRARY));
        data.set_pgoff(0x1000);
    }

    fn put(&mut self, address: u64, words: &[u64]) {
        self.words.extend((address..).step_by(8).zip(words.iter().copied()));
    }

    /// Pages that are dumped with something in them that means nothing.
    fn touch(&mut self, range: Range<u64>) {
        for page in range.step_by(PAGE as usize) {
            self.words.insert(page + 0x800, 0x5a5a_5a5a);
        }
    }

    fn heap(&mut self, start: u64, brk: u64) {
        self.dump.mm.set_mm_start_brk(start);
        self.dump.mm.set_mm_brk(brk);
        self.dump
            .anonymous(start, (brk - start).div_ceil(PAGE))
            .set_status(1 | status::ANON_PRIVATE | status::HEAP);
    }

    /// Chunks of these sizes one after the other, all in use.
    fn chunks(&mut self, mut address: u64, sizes: &[u64]) {
        for size in sizes {
            self.put(address, &[0, size | 1]);
            address += size;
        }
    }

    /// Malloc's account as glibc 2.35 and later lay it out, at an address in the library's data.
    fn books(&mut self, address: u64, base: u64, blocks: u64, bytes: u64) {
        let settings = [0x20000, 0x20000, 0x20000, 8, 0, 0, 0];
        self.put(address, &settings);
        let counters = [blocks << 32, 65536 | blocks << 32, 0];
        self.put(address + 56, &counters);
        self.put(address + 80, &[bytes, bytes, base]);
    }

    /// The dump, with the pages of the words.
    fn dump(&self) -> Dump {
        let mut pages: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (address, word) in &self.words {
            let page = address / PAGE * PAGE;
            let at = (address - page) as usize;
            let bytes = pages.entry(page).or_insert_with(|| vec![0; PAGE as usize]);
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let mut dump = self.dump.clone();
        for (page, bytes) in &pages {
            dump.content(*page, bytes);
        }
        dump
    }

    fn place(&self, fill: u64) -> Vec<Placement> {
        let folder = self.dump().write();
        let mut process = Process::load(folder.path()).expect("it loads");
        let list =
            smaps(&process, |vma| self.flags.get(&vma.range.start).copied().unwrap_or("rd wr"));
        process.annotate(&list).expect("it fits");
        let memory = Memory::open(&process, &self.files).expect("the pages are there");
        let placements = placement(&memory, fill, &|_| false).expect("files read");
        check(&process, &placements);
        placements
    }

    /// Pages by what becomes of them, for all that is not merely unchanged or untouched.
    fn pages(&self) -> Vec<(u64, u64, How, Why)> {
        let plain = [Why::Unchanged, Why::Untouched];
        self.place(0)
            .into_iter()
            .filter(|one| !plain.contains(&one.why))
            .map(|one| {
                (one.range.start, (one.range.end - one.range.start) / PAGE, one.how, one.why)
            })
            .collect()
    }
}

/// What holds for every answer: it covers all private mappings and shared files exactly, no range
/// spans two mappings, and no dumped page is lost.
fn check(process: &Process, placements: &[Placement]) {
    let mut rest = placements.iter().peekable();
    for vma in &process.vmas {
        if !matches!(vma.kind, VmaKind::Anonymous | VmaKind::File { .. }) {
            continue;
        }
        let mut at = vma.range.start;
        while at < vma.range.end {
            let one = rest.next().expect("a mapping is covered");
            assert_eq!(one.range.start, at);
            assert!(one.range.end <= vma.range.end && one.range.start < one.range.end);
            at = one.range.end;
            let dumped = process.pages.within(one.range.clone()).count() != 0;
            let dropped = matches!(one.why, Why::Volatile | Why::DeadStack);
            assert!(!dumped || dropped || matches!(one.how, How::Map | How::Copy), "{one:x?}");
            assert_eq!(one.how == How::File, one.why == Why::Unchanged);
        }
    }
    assert_eq!(rest.next(), None);
}

#[test]
fn a_librarys_data_and_zeros_are_mapped_and_its_text_is_the_files() {
    let mut world = World::new();
    world.library(0x10_0000);
    // The two pages of zeros, and two that somebody else mapped right behind them.
    world.dump.anonymous(0x10_3000, 4);
    world.touch(0x10_2000..0x10_7000);
    assert_eq!(
        world.pages(),
        [
            (0x10_2000, 1, How::Map, Why::LibraryData),
            (0x10_3000, 2, How::Map, Why::Bss),
            (0x10_5000, 2, How::Copy, Why::Unproven),
        ]
    );
}

#[test]
fn changed_pages_of_other_files_are_copied() {
    let mut world = World::new();
    let data = world.dump.vma(0x10_0000, 3, RW, status::FILE_PRIVATE);
    data.set_shmid(u64::from(OTHER));
    world.touch(0x10_1000..0x10_2000);
    assert_eq!(world.pages(), [(0x10_1000, 1, How::Copy, Why::ChangedFile)]);
}

#[test]
fn an_object_that_is_only_looked_at_is_no_library() {
    let mut world = World::new();
    let file = world.dump.vma(0x10_0000, 2, RW, status::FILE_PRIVATE);
    file.set_shmid(u64::from(LIBRARY));
    world.touch(0x10_1000..0x10_2000);
    assert_eq!(world.pages(), [(0x10_1000, 1, How::Copy, Why::ChangedFile)]);
}

#[test]
fn volatile_memory_comes_back_empty_and_locked_memory_is_copied() {
    let mut world = World::new();
    for (start, flags) in
        [(0x10_0000, "rd wr dp wf"), (0x20_0000, "rd wr wf"), (0x30_0000, "rd wr lo")]
    {
        world.dump.anonymous(start, 2);
        world.touch(start..start + PAGE);
        world.flags.insert(start, flags);
    }
    assert_eq!(
        world.pages(),
        [
            (0x10_0000, 2, How::Zero, Why::Volatile),
            (0x20_0000, 2, How::Zero, Why::Volatile),
            (0x30_0000, 1, How::Copy, Why::Locked),
        ]
    );
}

#[test]
fn stacks_are_copied_and_the_main_stack_only_as_far_as_it_is_used() {
    let mut world = World::new();
    let stack = world.dump.anonymous(0x7f_0000, 8);
    stack.set_flags((libc::MAP_PRIVATE | libc::MAP_GROWSDOWN).cast_unsigned());
    world.touch(0x7f_0000..0x7f_8000);
    let main = &mut world.dump.cores[0].1;
    let info = main.thread_info.mut_or_insert_default();
    // The red zone reaches into the page below.
    info.gpregs.mut_or_insert_default().set_sp(0x7f_5040);
    world.dump.anonymous(0x20_0000, 4);
    world.touch(0x20_0000..0x20_4000);
    world.dump.thread(PID + 1, 0x20_2000);
    assert_eq!(
        world.pages(),
        [
            (0x20_0000, 4, How::Copy, Why::Stack),
            (0x7f_0000, 4, How::Zero, Why::DeadStack),
            (0x7f_4000, 4, How::Copy, Why::Stack),
        ]
    );
}

#[test]
fn a_signal_stack_is_not_the_stack() {
    let mut world = World::new();
    let stack = world.dump.anonymous(0x7f_0000, 8);
    stack.set_flags((libc::MAP_PRIVATE | libc::MAP_GROWSDOWN).cast_unsigned());
    world.touch(0x7f_0000..0x7f_8000);
    let main = &mut world.dump.cores[0].1;
    main.thread_info.mut_or_insert_default().gpregs.mut_or_insert_default().set_sp(0x7f_5000);
    let state = main.thread_core.mut_or_insert_default();
    let signal = state.sas.mut_or_insert_default();
    signal.set_ss_sp(0x7f_4000);
    signal.set_ss_size(0x2000);
    signal.set_ss_flags(1);
    assert_eq!(world.pages(), [(0x7f_0000, 8, How::Copy, Why::Unproven)]);
}

#[test]
fn an_embedded_library_needs_its_file_no_more() {
    let mut world = World::new();
    world.library(0x10_0000);
    let folder = world.dump.write();
    let mut process = Process::load(folder.path()).expect("it loads");
    process.annotate(&smaps(&process, |_| "rd wr")).expect("it fits");
    let memory = Memory::open(&process, &world.files).expect("the pages are there");
    let usual = placement(&memory, 0, &|_| false).expect("files read");
    assert!(usual.iter().any(|one| one.how == How::File));
    let embedded = placement(&memory, 0, &|_| true).expect("files read");
    assert!(embedded.iter().any(|one| one.why == Why::Embedded));
    assert!(embedded.iter().all(|one| one.how != How::File));
}

#[test]
fn adopted_memory_is_mapped() {
    let mut dump = Dump::new();
    dump.file(OTHER, "/resident.so");
    let text = dump.vma(0x10_0000, 2, libc::PROT_READ | libc::PROT_EXEC, status::FILE_PRIVATE);
    text.set_shmid(u64::from(OTHER));
    let folder = dump.write();
    let mut process = Process::load(folder.path()).expect("it loads");
    process.adopt(Path::new("/resident.so"), &[1; 8192]);
    let files = Files::default();
    let memory = Memory::open(&process, &files).expect("the pages are there");
    let placements = placement(&memory, 0, &|_| false).expect("files read");
    let expected = Placement { range: 0x10_0000..0x10_2000, how: How::Map, why: Why::Resident };
    assert_eq!(placements, [expected]);
}

const HEAP: u64 = 0x50_0000;

#[test]
fn the_heap_is_malloc_s_where_its_chunks_fill_it() {
    let mut world = World::new();
    world.heap(HEAP, HEAP + 0x4000);
    world.chunks(HEAP, &[0x290, 0x1000, 0x20, 0x4000 - 0x12b0]);
    world.touch(HEAP..HEAP + 0x4000);
    assert_eq!(world.pages(), [(HEAP, 4, How::Map, Why::BrkHeap)]);
}

#[test]
fn a_chunk_that_is_free_is_known_to_its_successor() {
    let mut world = World::new();
    world.heap(HEAP, HEAP + 0x2000);
    world.chunks(HEAP, &[0x290, 0x100]);
    world.put(HEAP + 0x390, &[0x100, 0x2000 - 0x390]);
    assert_eq!(world.pages(), [(HEAP, 1, How::Map, Why::BrkHeap)]);
    world.put(HEAP + 0x390, &[0x110, 0x2000 - 0x390]);
    assert_eq!(world.pages(), [(HEAP, 1, How::Copy, Why::Unproven)]);
}

#[test]
fn the_heap_of_another_allocator_is_copied() {
    for broken in [0, 0x18, 0x29, 0x8290, 0x292, 0x294] {
        let mut world = World::new();
        world.heap(HEAP, HEAP + 0x4000);
        world.chunks(HEAP, &[0x290, 0x3d70]);
        assert_eq!(world.pages().first().map(|one| one.3), Some(Why::BrkHeap));
        world.put(HEAP + 0x298, &[broken | 1]);
        assert_eq!(world.pages(), [(HEAP, 1, How::Copy, Why::Unproven)], "{broken:#x}");
    }
}

#[test]
fn behind_malloc_s_fences_the_heap_is_somebody_else_s() {
    let mut world = World::new();
    world.heap(HEAP, HEAP + 0x6000);
    world.chunks(HEAP, &[0x290, 0x2d50, 0x10, 0x10]);
    world.touch(HEAP..HEAP + 0x6000);
    assert_eq!(
        world.pages(),
        [(HEAP, 3, How::Map, Why::BrkHeap), (HEAP + 0x3000, 3, How::Copy, Why::Unproven)]
    );
}

#[test]
fn before_malloc_s_first_chunk_the_heap_is_somebody_else_s() {
    let mut world = World::new();
    world.library(0x10_0000);
    world.heap(HEAP, HEAP + 0x6000);
    world.touch(HEAP..HEAP + 0x6000);
    world.books(0x10_2100, HEAP + 0x1800, 0, 0);
    world.chunks(HEAP + 0x1800, &[0x4800]);
    assert_eq!(
        world.pages()[1..],
        [(HEAP, 2, How::Copy, Why::Unproven), (HEAP + 0x2000, 4, How::Map, Why::BrkHeap)]
    );
}

#[test]
fn data_that_looks_like_malloc_s_account_does_not_take_its_place() {
    let mut world = World::new();
    world.library(0x10_0000);
    world.heap(HEAP, HEAP + 0x4000);
    world.chunks(HEAP, &[0x1000, 0x1000, 0x2000]);
    world.touch(HEAP..HEAP + 0x4000);
    world.books(0x10_2100, HEAP + 0x2000, 0, 0);
    world.books(0x10_2200, HEAP, 0, 0);
    assert_eq!(world.pages()[1..], [(HEAP, 4, How::Map, Why::BrkHeap)]);
}

const ARENA: u64 = 64 << 20;

impl World {
    /// An arena's heap: its fields, and how much of it can be written.
    fn arena(&mut self, start: u64, fields: [u64; 4], writable: u64) {
        self.dump.anonymous(start, writable / PAGE);
        if writable < ARENA {
            self.dump.vma(
                start + writable,
                (ARENA - writable) / PAGE,
                libc::PROT_NONE,
                status::ANON_PRIVATE,
            );
        }
        self.put(start, &fields);
    }
}

#[test]
fn heaps_of_arenas_are_mapped() {
    let (first, second) = (16 * ARENA, 18 * ARENA);
    for header in [0x20, 0x30] {
        let mut world = World::new();
        world.arena(first, [first + header, 0, 0x3000, 0x5000], 0x5000);
        world.arena(second, [first + header, first, ARENA, ARENA], ARENA);
        world.touch(second + PAGE..second + 2 * PAGE);
        assert_eq!(
            world.pages(),
            [(first, 1, How::Map, Why::MallocArena), (second, 2, How::Map, Why::MallocArena)]
        );
    }
}

#[test]
fn what_only_looks_like_an_arena_is_copied() {
    let start = 16 * ARENA;
    for (fields, writable) in [
        ([start + 0x28, 0, 0x3000, 0x5000], 0x5000),
        ([start + 0x30, 0, 0x6000, 0x5000], 0x5000),
        ([start + 0x30, 0, 0x3010, 0x5000], 0x5000),
        ([start + 0x30, 0, 0, 0x5000], 0x5000),
        ([start + 0x30, 0, 0x3000, 0x5000], 0x6000),
        ([start + 0x30, 0, 0x3000, 0x5000], 0x4000),
        ([start + 0x30, 0, 0x3000, 2 * ARENA], ARENA),
        // A later heap of an arena that is not there, and one that precedes itself.
        ([start - ARENA + 0x30, start - ARENA, 0x3000, 0x5000], 0x5000),
        ([start + 0x30, start, 0x3000, 0x5000], 0x5000),
    ] {
        let mut world = World::new();
        world.arena(start, fields, writable);
        assert_eq!(
            world.pages(),
            [(start, 1, How::Copy, Why::Unproven)],
            "{fields:x?} {writable:x}"
        );
    }
    let mut world = World::new();
    world.arena(start + PAGE, [start + PAGE + 0x30, 0, 0x3000, 0x5000], 0x5000);
    assert_eq!(world.pages(), [(start + PAGE, 1, How::Copy, Why::Unproven)]);
}

const BLOCKS: u64 = 0x7f00_0000_0000;

/// A library with malloc's account, a heap, and memory for blocks.
fn with_books(blocks: u64, bytes: u64) -> World {
    let mut world = World::new();
    world.library(0x10_0000);
    world.heap(HEAP, HEAP + 0x1000);
    world.chunks(HEAP, &[0x1000]);
    world.books(0x10_2100, HEAP, blocks, bytes);
    world
}

#[test]
fn large_blocks_are_mapped_but_for_their_first_page() {
    let mut world = with_books(2, 0x7000);
    world.dump.anonymous(BLOCKS, 8);
    world.touch(BLOCKS..BLOCKS + 0x8000);
    world.put(BLOCKS, &[0, 0x4002]);
    world.put(BLOCKS + 0x4000, &[0, 0x3002]);
    assert_eq!(
        world.pages()[2..],
        [
            (BLOCKS, 1, How::Copy, Why::BlockHeader),
            (BLOCKS + 0x1000, 3, How::Map, Why::MallocBlock),
            (BLOCKS + 0x4000, 1, How::Copy, Why::BlockHeader),
            (BLOCKS + 0x5000, 2, How::Map, Why::MallocBlock),
            (BLOCKS + 0x7000, 1, How::Copy, Why::Unproven),
        ]
    );
}

#[test]
fn a_block_whose_middle_got_advice_is_one_block() {
    let mut world = with_books(1, 0x6000);
    world.dump.anonymous(BLOCKS, 2);
    world.dump.anonymous(BLOCKS + 0x2000, 2).set_madv(1 << 14);
    world.dump.anonymous(BLOCKS + 0x4000, 2);
    world.touch(BLOCKS..BLOCKS + 0x6000);
    world.put(BLOCKS, &[0, 0x6002]);
    assert_eq!(
        world.pages()[2..],
        [
            (BLOCKS, 1, How::Copy, Why::BlockHeader),
            (BLOCKS + 0x1000, 1, How::Map, Why::MallocBlock),
            (BLOCKS + 0x2000, 2, How::Map, Why::MallocBlock),
            (BLOCKS + 0x4000, 2, How::Map, Why::MallocBlock),
        ]
    );
}

#[test]
fn what_is_not_in_malloc_s_account_is_no_block() {
    for (blocks, bytes) in [(0, 0), (1, 0x3000), (0, 0x4000)] {
        let mut world = with_books(blocks, bytes);
        world.dump.anonymous(BLOCKS, 4);
        world.put(BLOCKS, &[0, 0x4002]);
        assert_eq!(world.pages()[2..], [(BLOCKS, 1, How::Copy, Why::Unproven)], "{blocks} {bytes}");
    }
    let mut world = World::new();
    world.dump.anonymous(BLOCKS, 4);
    world.put(BLOCKS, &[0, 0x4002]);
    assert_eq!(world.pages(), [(BLOCKS, 1, How::Copy, Why::Unproven)]);
}

#[test]
fn a_block_has_all_its_pages() {
    for head in [0x4000, 0x4003, 0x4006, 0x4012, 0x9002, 2] {
        let mut world = with_books(9, 0x90000);
        world.dump.anonymous(BLOCKS, 8);
        world.put(BLOCKS, &[0, head]);
        assert_eq!(world.pages()[2..], [(BLOCKS, 1, How::Copy, Why::Unproven)], "{head:#x}");
    }
}

#[test]
fn the_account_of_an_older_glibc_is_read_too() {
    let mut world = World::new();
    world.library(0x10_0000);
    world.heap(HEAP, HEAP + 0x1000);
    world.chunks(HEAP, &[0x1000]);
    let counters = [1 | 65536 << 32, 1];
    world.put(0x10_2100, &[0x20000, 0x20000, 0x20000, 8, 0]);
    world.put(0x10_2128, &counters);
    world.put(0x10_2138, &[0x4000, 0x4000, HEAP]);
    world.dump.anonymous(BLOCKS, 4);
    world.put(BLOCKS, &[0, 0x4002]);
    assert_eq!(world.pages()[2..], [(BLOCKS, 1, How::Copy, Why::BlockHeader)]);
}

/// Where the table of arenas is: in the heap.
const TABLE: u64 = HEAP + 0x10;

struct Cut {
    arena: u64,
    pool: u64,
}

const CUTS: [Cut; 2] =
    [Cut { arena: 1 << 20, pool: 1 << 14 }, Cut { arena: 1 << 18, pool: 1 << 12 }];

impl World {
    fn with_table() -> Self {
        let mut world = Self::new();
        world.heap(HEAP, HEAP + 0x1000);
        world.chunks(HEAP, &[0x1000]);
        world
    }

    /// An arena in the table at `index`, of whose pools `used` say that they are of index `said`.
    fn pymalloc(&mut self, cut: &Cut, index: u64, address: u64, used: u64, said: u64) {
        let first = address.next_multiple_of(cut.pool);
        let total = (address + cut.arena - first) / cut.pool;
        let entry = [address, first + used * cut.pool, (total - used) | total << 32, 0, 0, 0];
        self.put(TABLE + 48 * index, &entry);
        for pool in 0..used {
            self.put(first + pool * cut.pool, &[3, 0, 0x1111, 0x1111, said | 5 << 32]);
        }
    }
}

#[test]
fn arenas_that_the_table_lists_are_mapped() {
    for cut in &CUTS {
        let mut world = World::with_table();
        world.dump.anonymous(BLOCKS, 3 * cut.arena / PAGE + 1);
        // One that is aligned to its pools, and one that is not; in the table between them a free
        // entry; between them in memory a page of somebody else.
        world.pymalloc(cut, 0, BLOCKS, 3, 0);
        world.pymalloc(cut, 2, BLOCKS + cut.arena + PAGE, 2, 2);
        world.touch(BLOCKS + cut.arena..BLOCKS + cut.arena + PAGE);
        let owners: HashSet<(Why, How)> = world
            .place(0)
            .iter()
            .filter(|one| one.range.start >= BLOCKS && one.why != Why::Untouched)
            .map(|one| (one.why, one.how))
            .collect();
        let expected = [(Why::PymallocArena, How::Map), (Why::Unproven, How::Copy)];
        assert_eq!(owners, HashSet::from(expected));
        let pages = world.pages();
        let foreign: Vec<_> = pages.iter().filter(|one| one.3 == Why::Unproven).collect();
        assert_eq!(foreign, [&(BLOCKS + cut.arena, 1, How::Copy, Why::Unproven)]);
    }
}

#[test]
fn an_arena_whose_pools_disagree_with_the_table_is_copied() {
    let cut = &CUTS[0];
    let unproven = |world: &World| {
        let pages = world.pages();
        pages.iter().all(|one| one.0 < BLOCKS || one.3 == Why::Unproven)
    };
    let mut world = World::with_table();
    world.dump.anonymous(BLOCKS, cut.arena / PAGE);
    world.pymalloc(cut, 0, BLOCKS, 3, 0);
    assert!(!unproven(&world));
    // One pool with another index; a size class that does not exist.
    for word in [1 | 5 << 32, 32 << 32] {
        let mut world = World::with_table();
        world.dump.anonymous(BLOCKS, cut.arena / PAGE);
        world.pymalloc(cut, 0, BLOCKS, 3, 0);
        world.put(BLOCKS + cut.pool + 32, &[word]);
        assert!(unproven(&world), "{word:#x}");
    }
    // No pool is used yet; the memory is not all there.
    let mut world = World::with_table();
    world.dump.anonymous(BLOCKS, cut.arena / PAGE);
    world.pymalloc(cut, 0, BLOCKS, 0, 0);
    world.touch(BLOCKS..BLOCKS + PAGE);
    assert!(unproven(&world));
    let mut world = World::with_table();
    world.dump.anonymous(BLOCKS, cut.arena / PAGE - 1);
    world.pymalloc(cut, 0, BLOCKS, 3, 0);
    assert!(unproven(&world));
}

#[test]
fn short_gaps_are_filled_and_long_ones_are_not() {
    let mut world = World::with_table();
    world.heap(HEAP + 0x10_0000, HEAP + 0x11_0000);
    world.dump.mm.vmas.remove(0);
    world.words.clear();
    let heap = HEAP + 0x10_0000;
    world.chunks(heap, &[0x3000, 0x5000, 0x8000]);
    // Pages 0, 3 and 8 are dumped.
    let maps = |fill: u64| -> Vec<(u64, u64)> {
        let placements = world.place(fill).into_iter().filter(|one| one.how == How::Map);
        placements
            .map(|one| ((one.range.start - heap) / PAGE, (one.range.end - heap) / PAGE))
            .collect()
    };
    assert_eq!(maps(0), [(0, 1), (3, 4), (8, 9)]);
    assert_eq!(maps(1), [(0, 1), (3, 4), (8, 9)]);
    assert_eq!(maps(2), [(0, 4), (8, 9)]);
    assert_eq!(maps(4), [(0, 9)]);
}

#[test]
fn gaps_are_filled_across_mappings_of_one_protection_only() {
    let mut world = World::new();
    world.library(0x10_0000);
    world.dump.anonymous(0x10_3000, 2);
    world.touch(0x10_2000..0x10_3000);
    world.touch(0x10_4000..0x10_5000);
    let maps = |world: &World| -> Vec<Range<u64>> {
        let placements = world.place(4).into_iter().filter(|one| one.how == How::Map);
        placements.map(|one| one.range).collect()
    };
    assert_eq!(maps(&world), [0x10_2000..0x10_3000, 0x10_3000..0x10_5000]);
    world.dump.mm.vmas[2].set_madv(1 << 14);
    assert_eq!(maps(&world), [0x10_2000..0x10_3000, 0x10_4000..0x10_5000]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in memory, the answer holds together (`check`), and what belongs to nobody known is
    /// never mapped.
    #[test]
    fn any_memory_is_placed(
        pages in prop::collection::btree_set(0_u64..40, 0..40),
        words in prop::collection::vec((0_u64..40 * 512, prop_oneof![any::<u64>(), 0_u64..0x9000, (0_u64..40).prop_map(|page| BLOCKS + page * PAGE)]), 0..60),
        splits in prop::collection::btree_set(1_u64..40, 0..4),
        fill in 0_u64..6,
    ) {
        let mut world = World::new();
        let mut start = 0;
        for end in splits.into_iter().chain([40]) {
            world.dump.anonymous(BLOCKS + start * PAGE, end - start);
            start = end;
        }
        for page in pages {
            world.touch(BLOCKS + page * PAGE..BLOCKS + (page + 1) * PAGE);
        }
        for (index, word) in words {
            world.put(BLOCKS + 8 * index, &[word]);
        }
        let placements = world.place(fill);
        prop_assert!(placements.iter().all(|one| one.how != How::Map));
    }

    /// A heap of chunks of any sizes is malloc's.
    #[test]
    fn any_chunks_are_malloc_s(sizes in prop::collection::vec((2_u64..600).prop_map(|size| 16 * size), 1..30)) {
        let mut world = World::new();
        let used: u64 = sizes.iter().sum();
        let end = (used + 32).next_multiple_of(PAGE);
        world.heap(HEAP, HEAP + end);
        world.chunks(HEAP, &sizes);
        world.chunks(HEAP + used, &[end - used]);
        world.touch(HEAP..HEAP + end);
        prop_assert_eq!(world.pages(), [(HEAP, end / PAGE, How::Map, Why::BrkHeap)]);
    }
}

/// Where the main thread of a seed was frozen, and its stack.
const CODE: u64 = 0x40_0000;
const STACK: u64 = 0x7ffe_0000_0000;

impl World {
    /// A program that waits in a system call of its code, on a stack.
    fn waiting(mut self) -> Self {
        let code = self.dump.vma(CODE, 1, libc::PROT_READ | libc::PROT_EXEC, status::FILE_PRIVATE);
        code.set_shmid(u64::from(EXE));
        let stack = self.dump.anonymous(STACK, 8);
        stack.set_flags((libc::MAP_PRIVATE | libc::MAP_GROWSDOWN).cast_unsigned());
        let info = self.dump.cores[0].1.thread_info.mut_or_insert_default();
        info.set_clear_tid_addr(STACK + 0x7000);
        let registers = info.gpregs.mut_or_insert_default();
        registers.set_ip(CODE + 0x100);
        registers.set_sp(STACK + 0x6000);
        registers.set_fs_base(STACK + 0x7100);
        self
    }

    /// As `fuzz/targets.rs` reads it: CRIU's files, mapped files by the last part of their names, and words
    /// of the pages.
    fn seed(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |name: &str, content: &[u8]| {
            for part in [name.as_bytes(), content] {
                bytes.extend((part.len() as u64).to_le_bytes());
                bytes.extend(part);
            }
        };
        let folder = self.dump().write();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .expect("it was written")
            .map(|entry| entry.expect("it is there").file_name().into_string().expect("a name"))
            .filter(|name| !name.starts_with("pages-"))
            .collect();
        names.sort();
        for name in names {
            put(&name, &std::fs::read(folder.path().join(&name)).expect("it was written"));
        }
        for (path, content) in &self.files.0 {
            put(path.rsplit('/').next().expect("a name"), content);
        }
        let pages: BTreeSet<u64> = self.words.keys().map(|address| address / PAGE).collect();
        let offset =
            |address: u64| pages.range(..address / PAGE).count() as u64 * PAGE + address % PAGE;
        let words = self.words.iter().flat_map(|(address, word)| [offset(*address), *word]);
        put("words", &words.flat_map(u64::to_le_bytes).collect::<Vec<_>>());
        bytes
    }
}

/// `PRELOADED_CRIU_SEEDS=DIRECTORY cargo test --lib make_seeds -- --ignored`
#[test]
#[ignore = "makes seeds for fuzz/seeds"]
fn make_seeds() {
    let folder = std::env::var("PRELOADED_CRIU_SEEDS").expect("it says where");
    let folder = Path::new(folder.rsplit(':').next().expect("the last part")).join("process");
    std::fs::create_dir_all(&folder).expect("a directory");
    let mut heap = with_books(0, 0);
    heap.touch(HEAP..HEAP + 0x1000);
    let mut arenas = World::new();
    let (first, second) = (16 * ARENA, 18 * ARENA);
    arenas.arena(first, [first + 0x30, 0, 0x3000, 0x5000], 0x5000);
    arenas.arena(second, [first + 0x30, first, ARENA, ARENA], ARENA);
    let mut blocks = with_books(2, 0x7000);
    blocks.dump.anonymous(BLOCKS, 8);
    blocks.touch(BLOCKS..BLOCKS + 0x8000);
    blocks.put(BLOCKS, &[0, 0x4002]);
    blocks.put(BLOCKS + 0x4000, &[0, 0x3002]);
    let cut = &CUTS[1];
    let mut pools = World::with_table();
    pools.dump.anonymous(BLOCKS, 2 * cut.arena / PAGE + 1);
    pools.pymalloc(cut, 0, BLOCKS, 3, 0);
    pools.pymalloc(cut, 2, BLOCKS + cut.arena + PAGE, 2, 2);
    for (name, world) in [("heap", heap), ("arenas", arenas), ("blocks", blocks), ("pools", pools)]
    {
        let world = world.waiting();
        world.place(16);
        std::fs::write(folder.join(name), world.seed()).expect("a seed");
    }
}
