//! A plan that somebody else wrote: checked as a whole before the restorer, which checks nothing,
//! is let loose with it.

use std::ffi::{CStr, OsStr};
use std::marker::PhantomData;
use std::ops;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use restore_plan::{
    ADVISE, Advice, Copy, Descriptor, GUARD_INSTALL, Header, Landing, Layout, MAGIC, Mapping, PAGE,
    PROTECT, Range, SOURCE_ANONYMOUS, SOURCE_FILE, SOURCE_IMAGE, Signal, Source, Special, Table,
    Thread,
};

use crate::process::only_reads;

/// One past the highest address of a process (arch/x86/include/asm/page_64_types.h, four-level
/// paging).
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// How far below a stack's mapping its thread may have its landing: the kernel lets the stack grow.
const STACK_GROWTH: u64 = 1 << 20;
/// More holes than this are of no use to the restorer.
const MOST_HOLES: u64 = 1024;

const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;
const PROT_ALL: u32 = 7;

const MAP_TYPE: u32 = 0xf;
const MAP_SHARED: u32 = 1;
const MAP_PRIVATE: u32 = 2;
const MAP_DROPPABLE: u32 = 8;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_GROWSDOWN: u32 = 0x100;
/// Flags that change nothing about what is mapped: `MAP_FIXED`, `MAP_NORESERVE`, `MAP_STACK`.
const MAP_HARMLESS: u32 = 0x10 | 0x4000 | 0x2_0000;

/// Advice that only says how memory is to be treated, never to drop it (madvise(2)):
/// `MADV_NORMAL`, `RANDOM`, `SEQUENTIAL`, `DONTFORK`, `DOFORK`, `MERGEABLE`, `UNMERGEABLE`,
/// `HUGEPAGE`, `NOHUGEPAGE`, `DONTDUMP`, `DODUMP`, `WIPEONFORK`, `KEEPONFORK`.
const ADVICE: [u32; 14] = [0, 1, 2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, GUARD_INSTALL];

/// Longest path, with its NUL (linux/limits.h, `PATH_MAX`).
const LONGEST_PATH: usize = 4096;
/// The highest number that a descriptor can have (fs.nr_open's usual value).
const MOST_DESCRIPTORS: u64 = 1 << 20;

const SIGKILL: u64 = 9;
const SIGSTOP: u64 = 19;

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanFault {
    /// It does not begin as a plan does.
    #[error("it does not begin as a restore plan does")]
    Foreign,
    /// It is longer or shorter than it says.
    #[error("it is {is} bytes long and says {says}")]
    Length {
        /// Its length.
        is: u64,
        /// What its header says.
        says: u64,
    },
    /// A table that is not in it.
    #[error("its table of {0} does not lie within it")]
    Table(&'static str),
    /// A record that no process could have.
    #[error("{kind} number {index} {what}")]
    Record {
        /// Kind of the record.
        kind: &'static str,
        /// Its place in the table.
        index: usize,
        /// What is wrong with it, as the rest of a sentence.
        what: &'static str,
    },
    /// The vDSO that it moves is not this kernel's.
    #[error("its vDSO is not as long as this kernel's")]
    Vdso,
    /// A part of the header that no process could have.
    #[error("its {0}")]
    Header(&'static str),
}

/// A plan in which everything is where it should be: tables and names within the plan, mappings
/// within the address space and apart from each other, all that is taken from the image within the
/// image.
#[derive(Clone, Debug)]
pub struct PlanView<'a> {
    bytes: &'a [u8],
    header: Header,
}

impl<'a> PlanView<'a> {
    /// Checks a plan for an image of `length` bytes, in which `memory` is the memory.
    pub fn new(bytes: &'a [u8], length: u64, memory: ops::Range<u64>) -> Result<Self, PlanFault> {
        let view = Self::parse(bytes)?;
        if memory.end > length {
            return Err(PlanFault::Header("image is shorter than its memory"));
        }
        view.check_sources()?;
        let space = view.check_mappings(&memory)?;
        view.check_copies(&space, &memory)?;
        view.check_amounts(&memory)?;
        view.check_advices(&space)?;
        view.check_signals()?;
        view.check_threads(&space)?;
        view.check_specials(&space)?;
        view.check_holes(&space)?;
        view.check_descriptors()?;
        view.check_touched(&space)?;
        view.check_header(&space)?;
        Ok(view)
    }

    fn parse(bytes: &'a [u8]) -> Result<Self, PlanFault> {
        let header =
            bytes.get(..size_of::<Header>()).and_then(|mut bytes| Header::take(&mut bytes));
        let header = header.filter(|header| header.magic == MAGIC).ok_or(PlanFault::Foreign)?;
        if header.length != bytes.len() as u64 {
            return Err(PlanFault::Length { is: bytes.len() as u64, says: header.length });
        }
        let tables = [
            ("sources", header.sources, size_of::<Source>()),
            ("mappings", header.mappings, size_of::<Mapping>()),
            ("copies", header.copies, size_of::<Copy>()),
            ("advices", header.advices, size_of::<Advice>()),
            ("signals", header.signals, size_of::<Signal>()),
            ("threads", header.threads, size_of::<Thread>()),
            ("specials", header.specials, size_of::<Special>()),
            ("holes", header.holes, size_of::<Range>()),
            ("descriptors", header.descriptors, size_of::<Descriptor>()),
            ("touched", header.touched, size_of::<Range>()),
            ("names", header.names, 1),
        ];
        for (name, table, size) in tables {
            let end = table
                .count
                .checked_mul(size as u64)
                .and_then(|length| length.checked_add(table.offset));
            let within = end.is_some_and(|end| end <= header.length);
            let after_header = table.offset >= size_of::<Header>() as u64;
            if !within || !after_header || !table.offset.is_multiple_of(8) {
                return Err(PlanFault::Table(name));
            }
        }
        Ok(Self { bytes, header })
    }

    /// The first record.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where mappings come from.
    #[must_use]
    pub fn sources(&self) -> Records<'a, Source> {
        self.records(self.header.sources)
    }

    /// All mappings, in the order of their sources.
    #[must_use]
    pub fn mappings(&self) -> Records<'a, Mapping> {
        self.records(self.header.mappings)
    }

    /// The mappings of one source.
    #[must_use]
    pub fn mappings_of(&self, source: &Source) -> Records<'a, Mapping> {
        let size = size_of::<Mapping>() as u64;
        let offset = self.header.mappings.offset.saturating_add(source.first.saturating_mul(size));
        self.records(Table { offset, count: source.count })
    }

    /// What is read into memory.
    #[must_use]
    pub fn copies(&self) -> Records<'a, Copy> {
        self.records(self.header.copies)
    }

    /// What is said about memory.
    #[must_use]
    pub fn advices(&self) -> Records<'a, Advice> {
        self.records(self.header.advices)
    }

    /// Signal actions.
    #[must_use]
    pub fn signals(&self) -> Records<'a, Signal> {
        self.records(self.header.signals)
    }

    /// Threads, the main thread first.
    #[must_use]
    pub fn threads(&self) -> Records<'a, Thread> {
        self.records(self.header.threads)
    }

    /// The vDSO and its data.
    #[must_use]
    pub fn specials(&self) -> Records<'a, Special> {
        self.records(self.header.specials)
    }

    /// Addresses that nothing uses.
    #[must_use]
    pub fn holes(&self) -> Records<'a, Range> {
        self.records(self.header.holes)
    }

    /// Pages that every run writes to.
    #[must_use]
    pub fn touched(&self) -> Records<'a, Range> {
        self.records(self.header.touched)
    }

    /// One past the highest number that the frozen process knows as a descriptor of its own; 0 for none.
    #[must_use]
    pub fn least_descriptor(&self) -> RawFd {
        self.descriptors().filter_map(|one| RawFd::try_from(one.number + 1).ok()).max().unwrap_or(0)
    }

    /// Files that are opened.
    #[must_use]
    pub fn descriptors(&self) -> Records<'a, Descriptor> {
        self.records(self.header.descriptors)
    }

    /// The path of a source that is a file.
    #[must_use]
    pub fn path(&self, source: &Source) -> Option<&'a Path> {
        (source.kind == SOURCE_FILE).then(|| self.name(source.name)).flatten()
    }

    /// A path by its offset among the names.
    #[must_use]
    pub fn name(&self, offset: u64) -> Option<&'a Path> {
        let names = self.slice(self.header.names.offset, self.header.names.count)?;
        let name = names.get(usize::try_from(offset).ok()?..)?;
        // However many names there are, and however they overlap: each costs no more than a path.
        let name = name.get(..LONGEST_PATH).unwrap_or(name);
        let name = CStr::from_bytes_until_nul(name).ok()?;
        Some(Path::new(OsStr::from_bytes(name.to_bytes())))
    }

    fn records<T: Take>(&self, table: Table) -> Records<'a, T> {
        let length = table.count.saturating_mul(size_of::<T>() as u64);
        Records { bytes: self.slice(table.offset, length).unwrap_or_default(), record: PhantomData }
    }

    fn slice(&self, offset: u64, length: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    }

    fn check_sources(&self) -> Result<(), PlanFault> {
        let mut next = 0;
        for (index, source) in self.sources().enumerate() {
            let wrong = |what| PlanFault::Record { kind: "source", index, what };
            if source.first != next {
                return Err(wrong("does not begin where the one before it ends"));
            }
            next = source.first.saturating_add(source.count);
            if next > self.header.mappings.count {
                return Err(wrong("has more mappings than there are"));
            }
            match source.kind {
                SOURCE_ANONYMOUS | SOURCE_IMAGE => {}
                SOURCE_FILE => {
                    if !self.path(&source).is_some_and(Path::is_absolute) {
                        return Err(wrong("has no absolute path"));
                    }
                }
                _ => return Err(wrong("is of no known kind")),
            }
        }
        if next != self.header.mappings.count {
            return Err(PlanFault::Header("mappings are more than its sources have"));
        }
        Ok(())
    }

    fn check_mappings(&self, memory: &ops::Range<u64>) -> Result<Space, PlanFault> {
        let mut areas = Vec::with_capacity(self.mappings().len());
        for source in self.sources() {
            for mapping in self.mappings_of(&source) {
                let index = areas.len();
                let wrong = |what| PlanFault::Record { kind: "mapping", index, what };
                let area = Area::new(mapping.start, mapping.length).ok_or_else(|| {
                    wrong("is not a range of whole pages within the address space")
                })?;
                if mapping.prot & !PROT_ALL != 0 {
                    return Err(wrong("has an unknown protection"));
                }
                let anonymous = source.kind == SOURCE_ANONYMOUS;
                let known = MAP_TYPE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_HARMLESS;
                if mapping.flags & !known != 0 || anonymous != (mapping.flags & MAP_ANONYMOUS != 0)
                {
                    return Err(wrong("has flags that do not go with its source"));
                }
                let writable = mapping.prot & PROT_WRITE != 0;
                match (mapping.flags & MAP_TYPE, source.kind) {
                    (MAP_PRIVATE, _) | (MAP_DROPPABLE, SOURCE_ANONYMOUS) => {}
                    (MAP_SHARED, SOURCE_FILE) if !writable => {}
                    _ => return Err(wrong("would be shared with other processes")),
                }
                let end = mapping.offset.checked_add(mapping.length);
                let end = end.filter(|end| i64::try_from(*end).is_ok());
                let Some(end) = end.filter(|_| mapping.offset.is_multiple_of(PAGE)) else {
                    return Err(wrong("has an offset that no file has"));
                };
                if source.kind == SOURCE_IMAGE
                    && (mapping.offset < memory.start || end > memory.end)
                {
                    return Err(wrong("is not in the image's memory"));
                }
                areas.push(Area { prot: mapping.prot, flags: mapping.flags, index, ..area });
            }
        }
        Space::new(areas)
    }

    fn check_copies(&self, space: &Space, memory: &ops::Range<u64>) -> Result<(), PlanFault> {
        for (index, copy) in self.copies().enumerate() {
            let wrong = |what| PlanFault::Record { kind: "copy", index, what };
            let end = copy.offset.checked_add(copy.length);
            if !end.is_some_and(|end| copy.offset >= memory.start && end <= memory.end) {
                return Err(wrong("is not in the image's memory"));
            }
            if !space.holds(copy.address, copy.length, PROT_WRITE) {
                return Err(wrong("goes where nothing is mapped that could be written to"));
            }
        }
        Ok(())
    }

    /// Every byte of the image's memory comes to one place, so nothing costs a run more than the image is
    /// long.
    fn check_amounts(&self, memory: &ops::Range<u64>) -> Result<(), PlanFault> {
        let room = memory.end.saturating_sub(memory.start);
        let of_image = self.sources().filter(|source| source.kind == SOURCE_IMAGE);
        let mapped = of_image.flat_map(|source| self.mappings_of(&source)).map(|one| one.length);
        let copied = self.copies().map(|one| one.length);
        if mapped.chain(copied).fold(0, u64::saturating_add) > room {
            return Err(PlanFault::Header("memory is more than the image has"));
        }
        let touched = self.touched().map(|range| range.end.saturating_sub(range.start));
        if touched.fold(0, u64::saturating_add) > room {
            return Err(PlanFault::Header("touched memory is more than the image has"));
        }
        Ok(())
    }

    fn check_advices(&self, space: &Space) -> Result<(), PlanFault> {
        for (index, advice) in self.advices().enumerate() {
            let wrong = |what| PlanFault::Record { kind: "advice", index, what };
            let area = Area::new(advice.start, advice.length);
            if !area.is_some_and(|area| space.covers(area.start, area.end, 0)) {
                return Err(wrong("is about addresses where nothing is mapped"));
            }
            let known = match advice.call {
                ADVISE => ADVICE.contains(&advice.value),
                PROTECT => advice.value & !PROT_ALL == 0,
                _ => false,
            };
            if !known {
                return Err(wrong("is of no known kind"));
            }
        }
        Ok(())
    }

    fn check_signals(&self) -> Result<(), PlanFault> {
        let mut seen = 0_u64;
        for (index, signal) in self.signals().enumerate() {
            let wrong = |what| PlanFault::Record { kind: "signal", index, what };
            let catchable =
                (1..=64).contains(&signal.number) && ![SIGKILL, SIGSTOP].contains(&signal.number);
            if !catchable {
                return Err(wrong("has a number that cannot be caught"));
            }
            let bit = 1 << (signal.number - 1);
            if seen & bit != 0 {
                return Err(wrong("is there twice"));
            }
            seen |= bit;
            if signal.handler == 0 || signal.handler >= TASK_SIZE || signal.restorer >= TASK_SIZE {
                return Err(wrong("has a handler outside the address space"));
            }
        }
        Ok(())
    }

    fn check_threads(&self, space: &Space) -> Result<(), PlanFault> {
        if self.header.threads.count == 0 {
            return Err(PlanFault::Header("threads are none"));
        }
        for (index, thread) in self.threads().enumerate() {
            let wrong = |what| PlanFault::Record { kind: "thread", index, what };
            if !thread.landing.is_multiple_of(align_of::<Landing>() as u64)
                || !space.holds(thread.landing, size_of::<Landing>() as u64, PROT_WRITE)
            {
                return Err(wrong("lands where nothing is mapped"));
            }
            let tid = thread.clear_tid;
            // The main thread's is written by the resident, the others' by the kernel, where they can be.
            let (is_main, length) = (index == 0, size_of::<u32>() as u64);
            let place = if is_main { PROT_WRITE } else { 0 };
            let absent = tid == 0 && !is_main;
            if !absent && (!tid.is_multiple_of(4) || !space.holds(tid, length, place)) {
                return Err(wrong("has its number where nothing is mapped"));
            }
            // The first word of a thread's own data is its address (ELF TLS, x86-64).
            if !space.holds(thread.fs_base, size_of::<u64>() as u64, 0)
                || thread.gs_base >= TASK_SIZE
            {
                return Err(wrong("has its data where nothing is mapped"));
            }
        }
        let main = self.threads().next().map_or(0, |thread| thread.landing);
        let stack = self.header.stack;
        if !(stack.start.saturating_sub(STACK_GROWTH)..stack.end).contains(&main) {
            return Err(PlanFault::Header("main thread is not on the main stack"));
        }
        let mut landings: Vec<u64> = self.threads().map(|thread| thread.landing).collect();
        landings.sort_unstable();
        if landings.windows(2).any(|pair| pair[1] - pair[0] < size_of::<Landing>() as u64) {
            return Err(PlanFault::Header("threads land in one place"));
        }
        Ok(())
    }

    fn check_specials(&self, space: &Space) -> Result<(), PlanFault> {
        let mut specials = self.specials().enumerate().peekable();
        while let Some((index, special)) = specials.next() {
            let wrong = |what| PlanFault::Record { kind: "vDSO mapping", index, what };
            let area = Area::new(special.start, special.length)
                .ok_or_else(|| wrong("is not a range of whole pages within the address space"))?;
            if space.meets(&area) {
                return Err(wrong("lies over another mapping"));
            }
            let next = specials.peek().map(|(_, next)| next.start);
            if next.is_some_and(|start| start != area.end) {
                return Err(wrong("does not end where the next one begins"));
            }
            if (special.is_vdso != 0) != next.is_none() {
                return Err(wrong("is not in its place: data first, the vDSO last"));
            }
        }
        Ok(())
    }

    fn check_touched(&self, space: &Space) -> Result<(), PlanFault> {
        for (index, range) in self.touched().enumerate() {
            let wrong = |what| PlanFault::Record { kind: "touched range", index, what };
            let area = Area::of(range)
                .ok_or_else(|| wrong("is not a range of whole pages within the address space"))?;
            if !space.covers(area.start, area.end, PROT_WRITE) {
                return Err(wrong("is where nothing is mapped that could be written to"));
            }
        }
        Ok(())
    }

    fn check_holes(&self, space: &Space) -> Result<(), PlanFault> {
        if self.header.holes.count > MOST_HOLES {
            return Err(PlanFault::Header("holes are too many"));
        }
        for (index, hole) in self.holes().enumerate() {
            let wrong = |what| PlanFault::Record { kind: "hole", index, what };
            let area = Area::of(hole)
                .ok_or_else(|| wrong("is not a range of whole pages within the address space"))?;
            let special = self.specials().any(|special| {
                area.start < special.start.saturating_add(special.length)
                    && special.start < area.end
            });
            if special || space.meets(&area) {
                return Err(wrong("is none: something is mapped there"));
            }
        }
        Ok(())
    }

    fn check_descriptors(&self) -> Result<(), PlanFault> {
        for (index, descriptor) in self.descriptors().enumerate() {
            let wrong = |what| PlanFault::Record { kind: "descriptor", index, what };
            if !(3..=MOST_DESCRIPTORS).contains(&descriptor.number) {
                return Err(wrong("has a number that is not its own to take"));
            }
            let Some(path) = self.name(descriptor.name).filter(|path| path.is_absolute()) else {
                return Err(wrong("has no absolute path"));
            };
            if !only_reads(path, descriptor.flags) {
                return Err(wrong("is open for more than reading"));
            }
            if i64::try_from(descriptor.position).is_err() {
                return Err(wrong("is at a place that no file has"));
            }
        }
        let mut numbers: Vec<u64> = self.descriptors().map(|one| one.number).collect();
        numbers.sort_unstable();
        if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(PlanFault::Header("descriptors have one number twice"));
        }
        Ok(())
    }

    fn check_header(&self, space: &Space) -> Result<(), PlanFault> {
        let Header { stack, thaw, layout, rseq_length, .. } = self.header;
        let length = stack.end.checked_sub(stack.start);
        let area = length.and_then(|length| Area::new(stack.start, length));
        if !area.is_some_and(|area| space.covers(area.start, area.end, PROT_WRITE)) {
            return Err(PlanFault::Header("main stack is not mapped"));
        }
        if !space.covers(thaw, thaw.saturating_add(1), PROT_EXEC) {
            return Err(PlanFault::Header("entry point is not in code"));
        }
        if !addresses(&layout).iter().all(|address| *address < TASK_SIZE) {
            return Err(PlanFault::Header("layout is not within the address space"));
        }
        if rseq_length > PAGE {
            return Err(PlanFault::Header("rseq area is too long"));
        }
        Ok(())
    }
}

fn addresses(layout: &Layout) -> [u64; 11] {
    let Layout {
        start_code,
        end_code,
        start_data,
        end_data,
        start_brk,
        brk,
        start_stack,
        at_phdr,
        at_base,
        at_entry,
        at_sysinfo_ehdr,
    } = *layout;
    [
        start_code,
        end_code,
        start_data,
        end_data,
        start_brk,
        brk,
        start_stack,
        at_phdr,
        at_base,
        at_entry,
        at_sysinfo_ehdr,
    ]
}

/// A range of whole pages that is in use.
#[derive(Clone, Copy)]
struct Area {
    start: u64,
    end: u64,
    prot: u32,
    flags: u32,
    /// Which mapping it is.
    index: usize,
}

impl Area {
    fn of(range: Range) -> Option<Self> {
        Self::new(range.start, range.end.checked_sub(range.start)?)
    }

    fn new(start: u64, length: u64) -> Option<Self> {
        let end = start.checked_add(length).filter(|end| *end <= TASK_SIZE)?;
        let whole = start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
        (whole && length > 0 && start > 0).then_some(Self {
            start,
            end,
            prot: 0,
            flags: 0,
            index: 0,
        })
    }
}

/// The address space as it will be.
struct Space {
    areas: Vec<Area>,
}

impl Space {
    fn new(mut areas: Vec<Area>) -> Result<Self, PlanFault> {
        areas.sort_unstable_by_key(|area| area.start);
        let over = areas.windows(2).find(|pair| pair[0].end > pair[1].start);
        match over {
            Some(pair) => Err(PlanFault::Record {
                kind: "mapping",
                index: pair[1].index,
                what: "lies over another",
            }),
            None => Ok(Self { areas }),
        }
    }

    /// The first area that ends after `address`.
    fn from(&self, address: u64) -> &[Area] {
        &self.areas[self.areas.partition_point(|area| area.end <= address)..]
    }

    fn meets(&self, other: &Area) -> bool {
        self.from(other.start).first().is_some_and(|area| area.start < other.end)
    }

    /// Whether mappings with this protection lie at every address of the range.
    fn covers(&self, start: u64, end: u64, prot: u32) -> bool {
        let mut reached = start;
        for area in self.from(start) {
            if area.start > reached || area.prot & prot != prot {
                return false;
            }
            reached = area.end;
            if reached >= end {
                return start < end;
            }
        }
        false
    }

    /// As [`Space::covers`], for a range that may also begin below a stack that grows.
    fn holds(&self, start: u64, length: u64, prot: u32) -> bool {
        let Some(end) = start.checked_add(length) else { return false };
        let Some(area) = self.from(start).first() else { return false };
        let grows =
            area.flags & MAP_GROWSDOWN != 0 && area.start.saturating_sub(start) <= STACK_GROWTH;
        if start < area.start && grows {
            area.prot & prot == prot && (end <= area.start || self.covers(area.start, end, prot))
        } else {
            self.covers(start, end, prot)
        }
    }
}

/// The records of a table, one after the other.
#[derive(Clone, Debug)]
pub struct Records<'a, T> {
    bytes: &'a [u8],
    record: PhantomData<T>,
}

impl<T: Take> Iterator for Records<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        T::take(&mut self.bytes)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = self.bytes.len() / size_of::<T>();
        (count, Some(count))
    }
}

impl<T: Take> ExactSizeIterator for Records<'_, T> {}

/// A record that can be read from the start of bytes. Records have no padding, so that their fields
/// one after the other are the record.
pub trait Take: Sized {
    /// Reads it, and moves the bytes on; `None` if they are not enough.
    fn take(bytes: &mut &[u8]) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ident)*) => {
        $(impl Take for $number {
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                let (number, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(Self::from_le_bytes(*number))
            }
        })*
    };
}

macro_rules! records {
    ($($record:ident { $($field:ident),* })*) => {
        $(impl Take for $record {
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: Take::take(bytes)?),* })
            }
        })*
    };
}

numbers! { u32 u64 }

records! {
    Table { offset, count }
    Range { start, end }
    Header {
        magic, length, sources, mappings, copies, advices, signals, threads, specials, holes,
        descriptors, touched, names, layout, thaw, stack, rseq_length, rseq_signature
    }
    Source { kind, name, first, count }
    Mapping { start, length, offset, prot, flags }
    Copy { address, length, offset }
    Advice { start, length, call, value }
    Signal { number, handler, flags, restorer, mask, yields }
    Thread { clear_tid, fs_base, gs_base, landing }
    Descriptor { number, name, flags, position }
    Special { start, length, is_vdso }
    Layout {
        start_code, end_code, start_data, end_data, start_brk, brk, start_stack, at_phdr, at_base,
        at_entry, at_sysinfo_ehdr
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::native::encode::Encoder;

    const CODE: u64 = 0x40_0000;
    const HEAP: u64 = 0x50_0000;
    const STACK: u64 = 0x7ff0_0000_0000;
    const MEMORY: ops::Range<u64> = PAGE..20 * PAGE;
    const RW: u32 = 3;
    const RX: u32 = 5;

    /// The tables of a plan, to be changed before they are encoded.
    #[derive(Clone)]
    struct Draft {
        header: Header,
        sources: Vec<Source>,
        mappings: Vec<Mapping>,
        copies: Vec<Copy>,
        advices: Vec<Advice>,
        signals: Vec<Signal>,
        threads: Vec<Thread>,
        specials: Vec<Special>,
        holes: Vec<Range>,
        descriptors: Vec<Descriptor>,
        touched: Vec<Range>,
        names: Vec<u8>,
    }

    fn draft() -> Draft {
        let stack = Range { start: STACK, end: STACK + 4 * PAGE };
        let mapping = |start, pages, offset, prot, flags| Mapping {
            start,
            length: pages * PAGE,
            offset,
            prot,
            flags,
        };
        let vdso = STACK + (1 << 20);
        Draft {
            header: Header { magic: MAGIC, thaw: CODE + 16, stack, ..Header::default() },
            sources: vec![
                Source { kind: SOURCE_ANONYMOUS, name: 0, first: 0, count: 2 },
                Source { kind: SOURCE_IMAGE, name: 0, first: 2, count: 1 },
                Source { kind: SOURCE_FILE, name: 4, first: 3, count: 2 },
            ],
            mappings: vec![
                mapping(STACK, 4, 0, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN),
                mapping(HEAP + 2 * PAGE, 1, 0, RW, MAP_PRIVATE | MAP_ANONYMOUS),
                mapping(HEAP, 2, 5 * PAGE, RW, MAP_PRIVATE),
                mapping(CODE, 3, 0, RX, MAP_PRIVATE),
                mapping(CODE + 3 * PAGE, 1, 7 * PAGE, 1, MAP_SHARED),
            ],
            copies: vec![
                Copy { address: STACK - 5000, length: 6000, offset: PAGE },
                Copy { address: HEAP + PAGE + 8, length: PAGE, offset: 3 * PAGE },
            ],
            advices: vec![
                Advice { start: HEAP, length: 3 * PAGE, call: ADVISE, value: 10 },
                Advice { start: CODE, length: PAGE, call: PROTECT, value: 1 },
            ],
            signals: vec![Signal { number: 2, handler: CODE, ..Signal::default() }],
            threads: vec![Thread {
                clear_tid: HEAP + 16,
                fs_base: HEAP,
                gs_base: 0,
                landing: STACK - 4096,
            }],
            specials: vec![
                Special { start: vdso, length: 2 * PAGE, is_vdso: 0 },
                Special { start: vdso + 2 * PAGE, length: 2 * PAGE, is_vdso: 1 },
            ],
            holes: vec![Range { start: 0x60_0000, end: STACK - (1 << 22) }],
            descriptors: vec![Descriptor { number: 7, name: 4, flags: 0, position: 10 }],
            touched: vec![Range { start: HEAP + PAGE, end: HEAP + 3 * PAGE }],
            names: b"abc\0/usr/lib/libc.so.6\0".to_vec(),
        }
    }

    fn encode(draft: &Draft) -> Vec<u8> {
        let mut encoder = Encoder::with_room_for::<Header>();
        let header = Header {
            sources: encoder.table(&draft.sources),
            mappings: encoder.table(&draft.mappings),
            copies: encoder.table(&draft.copies),
            advices: encoder.table(&draft.advices),
            signals: encoder.table(&draft.signals),
            threads: encoder.table(&draft.threads),
            specials: encoder.table(&draft.specials),
            holes: encoder.table(&draft.holes),
            descriptors: encoder.table(&draft.descriptors),
            touched: encoder.table(&draft.touched),
            names: encoder.bytes(&draft.names),
            ..draft.header
        };
        encoder.finish(header)
    }

    /// A plan for an image with nineteen pages of memory.
    pub(crate) fn sample() -> Vec<u8> {
        encode(&draft())
    }

    fn check(bytes: &[u8]) -> Result<PlanView<'_>, PlanFault> {
        PlanView::new(bytes, MEMORY.end, MEMORY)
    }

    fn refused(change: impl FnOnce(&mut Draft)) -> String {
        let mut draft = draft();
        change(&mut draft);
        check(&encode(&draft)).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let draft = draft();
        let bytes = encode(&draft);
        let view = check(&bytes).unwrap();
        assert_eq!(view.sources().collect::<Vec<_>>(), draft.sources);
        assert_eq!(view.mappings().collect::<Vec<_>>(), draft.mappings);
        assert_eq!(view.copies().collect::<Vec<_>>(), draft.copies);
        assert_eq!(view.advices().collect::<Vec<_>>(), draft.advices);
        assert_eq!(view.signals().collect::<Vec<_>>(), draft.signals);
        assert_eq!(view.threads().collect::<Vec<_>>(), draft.threads);
        assert_eq!(view.specials().collect::<Vec<_>>(), draft.specials);
        assert_eq!(view.holes().collect::<Vec<_>>(), draft.holes);
        assert_eq!(view.descriptors().collect::<Vec<_>>(), draft.descriptors);
        assert_eq!(view.touched().collect::<Vec<_>>(), draft.touched);
        assert_eq!(view.header().thaw, CODE + 16);
        let [_, image, file] = draft.sources.as_slice() else { panic!() };
        assert_eq!(view.mappings_of(image).collect::<Vec<_>>(), draft.mappings[2..3]);
        assert_eq!(view.path(file), Some(Path::new("/usr/lib/libc.so.6")));
        assert_eq!(view.path(image), None);
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        let bytes = encode(&draft());
        assert_eq!(check(b"").unwrap_err(), PlanFault::Foreign);
        assert_eq!(check(&[0; 4096]).unwrap_err(), PlanFault::Foreign);
        for length in 0..bytes.len() {
            check(&bytes[..length]).unwrap_err();
        }
        assert_eq!(
            PlanView::new(&bytes, MEMORY.end - 1, MEMORY).unwrap_err(),
            PlanFault::Header("image is shorter than its memory")
        );
    }

    #[test]
    fn touched_pages_are_writable_ones() {
        refused(|draft| draft.touched[0].start = CODE);
        refused(|draft| draft.touched[0].start += 8);
        refused(|draft| draft.touched[0].end = 0);
        refused(|draft| draft.touched[0].end += PAGE);
        refused(|draft| draft.touched[0] = Range { start: CODE, end: CODE + PAGE });
    }

    #[test]
    fn nothing_costs_more_than_the_image_is_long() {
        let memory = "its memory is more than the image has";
        let copy = Copy { address: HEAP, length: 2 * PAGE, offset: PAGE };
        assert_eq!(refused(|draft| draft.copies.extend([copy; 9])), memory);
        let touched = "its touched memory is more than the image has";
        let range = Range { start: HEAP, end: HEAP + 2 * PAGE };
        assert_eq!(refused(|draft| draft.touched.extend([range; 9])), touched);
        // A name that would be looked through for each of the files that have it.
        let path = "source number 2 has no absolute path";
        let long = [b"/".to_vec(), vec![b'a'; LONGEST_PATH], vec![0]].concat();
        assert_eq!(refused(|draft| draft.names.splice(4.., long).for_each(drop)), path);
    }

    #[test]
    fn descriptors_only_read_and_leave_the_standard_ones_alone() {
        refused(|draft| draft.descriptors[0].number = 2);
        refused(|draft| draft.descriptors[0].number = u64::MAX);
        refused(|draft| draft.descriptors[0].flags = 1);
        refused(|draft| draft.descriptors[0].flags = 0o1000);
        refused(|draft| draft.descriptors[0].name = 0);
        refused(|draft| draft.descriptors[0].name = u64::MAX);
        refused(|draft| draft.descriptors[0].position = u64::MAX);
        refused(|draft| draft.descriptors.push(draft.descriptors[0]));
        let mut draft = draft();
        draft.descriptors[0].name = draft.names.len() as u64;
        draft.descriptors[0].flags = 0o2001;
        draft.names.extend(b"/dev/null\0");
        assert!(check(&encode(&draft)).is_ok(), "what is written there goes nowhere");
    }

    #[test]
    fn sources_have_the_mappings_that_there_are() {
        refused(|draft| draft.sources[1].first = 1);
        refused(|draft| draft.sources[2].count = 3);
        refused(|draft| draft.sources[2].count = 1);
        refused(|draft| draft.sources[2].count = u64::MAX);
        refused(|draft| draft.sources[0].kind = 3);
        let path = "source number 2 has no absolute path";
        assert_eq!(refused(|draft| draft.sources[2].name = 0), path);
        assert_eq!(refused(|draft| draft.sources[2].name = u64::MAX), path);
        assert_eq!(refused(|draft| draft.names.truncate(21)), path);
    }

    #[test]
    fn mappings_are_apart_and_within_bounds() {
        let over = "mapping number 1 lies over another";
        assert_eq!(refused(|draft| draft.mappings[2].length = 3 * PAGE), over);
        refused(|draft| draft.mappings[1].start += 1);
        refused(|draft| draft.mappings[1].start = 0);
        refused(|draft| draft.mappings[1].start = TASK_SIZE);
        refused(|draft| draft.mappings[1].start = PAGE.wrapping_neg());
        refused(|draft| draft.mappings[1].length = 0);
        refused(|draft| draft.mappings[1].length = u64::MAX);
        refused(|draft| draft.mappings[1].prot = 8);
        refused(|draft| draft.mappings[1].flags = MAP_PRIVATE);
        refused(|draft| draft.mappings[1].flags = MAP_ANONYMOUS | MAP_SHARED);
        refused(|draft| draft.mappings[1].flags |= 0x4_0000);
        refused(|draft| draft.mappings[2].flags = MAP_SHARED);
        refused(|draft| draft.mappings[2].flags |= MAP_ANONYMOUS);
        refused(|draft| draft.mappings[3].offset = 1);
        refused(|draft| draft.mappings[3].offset = i64::MAX as u64 & !(PAGE - 1));
        refused(|draft| draft.mappings[4].prot = RW);
        let outside = "mapping number 2 is not in the image's memory";
        assert_eq!(refused(|draft| draft.mappings[2].offset = 0), outside);
        assert_eq!(refused(|draft| draft.mappings[2].offset = 19 * PAGE), outside);
    }

    #[test]
    fn copies_go_from_the_memory_to_memory_that_can_be_written() {
        refused(|draft| draft.copies[1].offset = 0);
        refused(|draft| draft.copies[1].offset = 20 * PAGE);
        refused(|draft| draft.copies[1].offset = u64::MAX);
        refused(|draft| draft.copies[1].address = CODE);
        refused(|draft| draft.copies[1].address = HEAP + 3 * PAGE);
        refused(|draft| draft.copies[1].address = u64::MAX);
        refused(|draft| draft.copies[1].length = 3 * PAGE);
        refused(|draft| draft.copies[1].length = 0);
        refused(|draft| draft.copies[0].address = STACK - STACK_GROWTH - 1);
        refused(|draft| draft.copies[0].length = 5 * PAGE + 5000);
        refused(|draft| draft.mappings[0].flags &= !MAP_GROWSDOWN);
    }

    #[test]
    fn everything_else_is_within_bounds_too() {
        refused(|draft| draft.advices[0].start = HEAP - PAGE);
        refused(|draft| draft.advices[0].length = 4 * PAGE);
        refused(|draft| draft.advices[0].value = 4);
        refused(|draft| draft.advices[0].call = 2);
        refused(|draft| draft.advices[1].value = 8);
        for number in [0, 9, 19, 65, u64::MAX] {
            refused(|draft| draft.signals[0].number = number);
        }
        refused(|draft| draft.signals[0].handler = 0);
        refused(|draft| draft.signals[0].handler = TASK_SIZE);
        refused(|draft| draft.signals.push(draft.signals[0]));
        refused(|draft| draft.threads.clear());
        refused(|draft| draft.threads[0].landing = CODE);
        refused(|draft| draft.threads[0].landing += 4);
        refused(|draft| draft.threads[0].landing = u64::MAX - 7);
        refused(|draft| draft.threads[0].clear_tid = 0x1000);
        refused(|draft| draft.threads[0].clear_tid = 0);
        refused(|draft| draft.threads[0].clear_tid = CODE + 16);
        refused(|draft| draft.threads[0].clear_tid += 1);
        refused(|draft| draft.threads[0].fs_base = u64::MAX);
        refused(|draft| draft.threads[0].fs_base = 0);
        refused(|draft| draft.threads[0].landing = HEAP);
        refused(|draft| draft.threads.push(draft.threads[0]));
        refused(|draft| draft.specials[0].start = HEAP);
        refused(|draft| draft.specials[0].length = PAGE);
        refused(|draft| draft.specials[0].is_vdso = 1);
        refused(|draft| draft.specials[1].is_vdso = 0);
        refused(|draft| draft.holes[0].end = TASK_SIZE);
        refused(|draft| draft.holes[0].start = CODE);
        refused(|draft| draft.holes[0].end = 0);
        refused(|draft| {
            draft.holes[0] = Range { start: draft.specials[1].start, end: TASK_SIZE };
        });
        refused(|draft| draft.header.thaw = HEAP);
        refused(|draft| draft.header.thaw = u64::MAX);
        refused(|draft| draft.header.stack.start -= PAGE);
        refused(|draft| draft.header.stack.end = 0);
        refused(|draft| draft.header.layout.brk = u64::MAX);
        refused(|draft| draft.header.rseq_length = PAGE + 1);
    }

    #[test]
    fn tables_lie_within_the_plan() {
        let bytes = encode(&draft());
        // The tables of the header: 16 bytes each after magic and length.
        for table in 0..9 {
            let at = 16 + 16 * table;
            for (place, value) in [
                (at, 0_u64),
                (at, 8),
                (at, u64::MAX),
                (at, bytes.len() as u64 + 8),
                (at, size_of::<Header>() as u64 + 4),
                (at + 8, u64::MAX),
                (at + 8, bytes.len() as u64),
            ] {
                let mut forged = bytes.clone();
                forged[place..place + 8].copy_from_slice(&value.to_le_bytes());
                assert!(matches!(check(&forged), Err(PlanFault::Table(_))), "{place} {value}");
            }
        }
    }

    /// What the restorer relies on, said once more in the plainest way.
    fn is_sound(view: &PlanView<'_>) -> bool {
        let mappings: Vec<_> = view.mappings().collect();
        let apart = mappings.iter().enumerate().all(|(index, one)| {
            mappings[index + 1..].iter().all(|other| {
                one.start + one.length <= other.start || other.start + other.length <= one.start
            })
        });
        let inside = view.sources().all(|source| {
            view.mappings_of(&source).all(|mapping| {
                source.kind != SOURCE_IMAGE
                    || (mapping.offset >= MEMORY.start
                        && mapping.offset + mapping.length <= MEMORY.end)
            })
        });
        let named =
            view.sources().all(|source| source.kind != SOURCE_FILE || view.path(&source).is_some());
        apart && inside && named && view.threads().len() > 0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn a_forged_plan_is_sound_or_refused(
            words in proptest::collection::vec(
                (any::<prop::sample::Index>(), prop_oneof![
                    any::<u64>(),
                    (0_u64..64).prop_map(|bit| 1 << bit),
                    (0_u64..32).prop_map(|pages| pages * PAGE),
                    prop::sample::select(vec![CODE, HEAP, STACK, 0, u64::MAX, TASK_SIZE]),
                ]),
                1..4,
            ),
        ) {
            let mut bytes = encode(&draft());
            for (index, value) in words {
                let word = index.index(bytes.len() / 8);
                bytes[word * 8..word * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
            if let Ok(view) = check(&bytes) {
                prop_assert!(is_sound(&view));
            }
        }

        #[test]
        fn foreign_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut bytes = bytes;
            let _ = check(&bytes);
            let length = bytes.len() as u64;
            if bytes.len() >= 16 {
                bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[8..16].copy_from_slice(&length.to_le_bytes());
                let _ = check(&bytes);
            }
        }
    }
}
