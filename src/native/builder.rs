//! From the frozen process to the plan of its restore, and to the bytes of the image's memory
//! section.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use restore_plan::{
    ADVISE, Advice, Copy, Descriptor, GUARD_INSTALL, Header, Landing, Layout, MAGIC, Mapping, PAGE,
    PROTECT, Range, Signal, Source, Special, Table, Thread,
};

use super::NativeError;
use super::encode::{Encode, Encoder};
use super::frame::{frame_size, mask_address, signal_frame};
use super::layout::{Content, Piece, Segment, holes, segments};
use super::view::PlanView;
use super::xsave::XsaveLayout;
use crate::process::placement::Placement;
use crate::process::smaps::VmFlags;
use crate::process::{
    DescriptorKind, Memory, OpenFile, Process, Thread as FrozenThread, Vma, VmaKind,
};

const PROT_WRITE: u32 = 2;
const MAP_SHARED: u32 = 1;
const MAP_PRIVATE: u32 = 2;
const MAP_DROPPABLE: u32 = 8;
const MAP_NORESERVE: u32 = 0x4000;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_GROWSDOWN: u32 = 0x100;
const MADV_DONTFORK: u32 = 10;
const MADV_DONTDUMP: u32 = 16;
const MADV_HUGEPAGE: u32 = 14;
const MADV_NOHUGEPAGE: u32 = 15;
const MADV_WIPEONFORK: u32 = 18;

/// Bytes below the stack pointer that a function may use without moving it (System V ABI, x86-64).
const RED_ZONE: u64 = 128;
/// Stack that the landing's own code may use.
const LANDING_ROOM: u64 = 1024;
/// Most bytes without access that become a part of the text before them.
const PADDING: u64 = 16 * PAGE;
/// How many holes the plan offers to the restorer.
const HOLES: usize = 8;

/// What the agent and the snapshot know and the dump does not.
pub struct Facts {
    /// Address of the resident's thaw function.
    pub thaw: u64,
    /// Whether SIGINT's handler is CPython's default one.
    pub default_sigint: bool,
    /// Descriptors that are the snapshot's and not the program's.
    pub own_descriptors: Vec<u32>,
}

/// A plan, and what the image's memory section must hold for it.
pub struct Built {
    header: Header,
    tables: Encoder,
    /// The memory section from its first byte on.
    pub memory: Vec<Piece>,
    /// Where dumped pages went: address, length, offset in the image file.
    pub pages: Vec<(u64, u64, u64)>,
    /// Where in the image file the memory section lies.
    section: std::ops::Range<u64>,
}

impl Built {
    /// The plan's bytes. `touched` is the private memory that every run writes to, as far as it is known.
    ///
    /// # Errors
    ///
    /// What no run would accept of it ([`PlanView::new`]).
    pub fn plan(&self, touched: &[std::ops::Range<u64>]) -> Result<Vec<u8>, NativeError> {
        let mut tables = self.tables.clone();
        let touched: Vec<_> =
            touched.iter().map(|range| Range { start: range.start, end: range.end }).collect();
        let touched = tables.table(&touched);
        let plan = tables.finish(Header { touched, ..self.header });
        PlanView::new(&plan, self.section.end, self.section.clone())?;
        Ok(plan)
    }
}

/// Makes the plan of a process whose memory section begins at `memory_offset` of the image file.
///
/// # Errors
///
/// What the restorer cannot bring back, by name.
pub fn build(
    memory: &Memory<'_>,
    placements: &[Placement],
    facts: &Facts,
    xsave: &XsaveLayout,
    memory_offset: u64,
) -> Result<Built, NativeError> {
    let process = memory.process();
    let mut builder = Builder::new(memory_offset);
    let mut rest = placements;
    for vma in &process.vmas {
        let count = rest.partition_point(|placement| placement.range.start < vma.range.end);
        let (here, after) = rest.split_at(count);
        rest = after;
        builder.vma(memory, vma, here)?;
    }
    // After all properties of the mappings, and in parts of them.
    builder.advices.extend(process.guards.iter().map(|guard| Advice {
        start: guard.start,
        length: guard.end - guard.start,
        call: ADVISE,
        value: GUARD_INSTALL,
    }));
    let threads = process
        .threads
        .iter()
        .enumerate()
        .map(|(index, thread)| builder.thread(memory, thread, index == 0, xsave))
        .collect::<Result<Vec<_>, _>>()?;
    let signals = signals(process, facts);
    let descriptors = builder.descriptors(process, &facts.own_descriptors)?;
    let specials = specials(process)?;
    let holes = holes(process, HOLES)
        .into_iter()
        .map(|hole| Range { start: hole.start, end: hole.end })
        .collect();
    let main = process.threads.first().ok_or(NativeError::NoThread)?;
    let sp = main.registers.sp;
    let stack = process.vma_at(sp).ok_or(NativeError::Stack { thread: main.tid, address: sp })?;
    let rseq = main.rseq.as_ref();
    let header = Header {
        magic: MAGIC,
        layout: layout(process, &specials),
        thaw: facts.thaw,
        stack: Range { start: stack.range.start, end: stack.range.end },
        rseq_length: rseq.map_or(32, |rseq| u64::from(rseq.length)),
        rseq_signature: rseq.map_or(0, |rseq| u64::from(rseq.signature)),
        ..Header::default()
    };
    let section = memory_offset..builder.next;
    builder.finish(header, &Tables { signals, threads, specials, holes, descriptors }, section)
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Anonymous,
    Image,
    File(PathBuf),
}

/// The records that do not come from mappings.
struct Tables {
    signals: Vec<Signal>,
    threads: Vec<Thread>,
    specials: Vec<Special>,
    holes: Vec<Range>,
    descriptors: Vec<Descriptor>,
}

struct Builder {
    names: Vec<u8>,
    mappings: BTreeMap<Key, Vec<Mapping>>,
    copies: Vec<Copy>,
    advices: Vec<Advice>,
    memory: Vec<Piece>,
    pages: Vec<(u64, u64, u64)>,
    /// Next free byte of the image file.
    next: u64,
    /// Where the last mapping of an embedded library that cannot be written to ends, and the library.
    text: Option<(u64, PathBuf)>,
}

impl Builder {
    fn new(memory_offset: u64) -> Self {
        Self {
            names: Vec::new(),
            mappings: BTreeMap::new(),
            copies: Vec::new(),
            advices: Vec::new(),
            memory: Vec::new(),
            pages: Vec::new(),
            next: memory_offset,
            text: None,
        }
    }

    fn store(&mut self, piece: Piece) -> u64 {
        let offset = self.next;
        if let Piece::Memory(range) = &piece {
            self.pages.push((range.start, range.end - range.start, offset));
        }
        self.next += piece.length().next_multiple_of(PAGE);
        self.memory.push(piece);
        offset
    }

    /// Adds a mapping, or makes the last one longer where it goes on seamlessly.
    fn map(&mut self, key: Key, mapping: Mapping) {
        let anonymous = key == Key::Anonymous;
        let group = self.mappings.entry(key).or_default();
        match group.last_mut() {
            Some(last)
                if last.start + last.length == mapping.start
                    && (last.prot, last.flags) == (mapping.prot, mapping.flags)
                    && mapping.flags & MAP_GROWSDOWN == 0
                    && (anonymous || last.offset + last.length == mapping.offset) =>
            {
                last.length += mapping.length;
            }
            _ => group.push(mapping),
        }
    }

    /// Makes one mapping of all of a library that cannot be written to: headers, code, constants (which
    /// linkers made one segment of until they came to have `-z separate-code`, ld(1)) and what the loader
    /// has made unwritable (`-z relro`). Nothing that can be executed can be written to.
    /// Returns whether the mapping goes on where such a part of the same library ends.
    fn lengthen_text(&mut self, vma: &Vma, mapping: Mapping) -> bool {
        let (Some((end, library)), VmaKind::File { path, .. }) = (&mut self.text, &vma.kind) else {
            return false;
        };
        if *end != mapping.start || library != path {
            return false;
        }
        match self.mappings.get_mut(&Key::Image).and_then(|group| group.last_mut()) {
            Some(last)
                if last.start + last.length == mapping.start
                    && last.flags == mapping.flags
                    && (last.prot | mapping.prot) & PROT_WRITE == 0
                    && last.offset + last.length == mapping.offset =>
            {
                last.length += mapping.length;
                last.prot |= mapping.prot;
                *end += mapping.length;
                true
            }
            _ => false,
        }
    }

    fn vma(
        &mut self,
        memory: &Memory<'_>,
        vma: &Vma,
        placements: &[Placement],
    ) -> Result<(), NativeError> {
        match &vma.kind {
            VmaKind::Vdso | VmaKind::Vvar | VmaKind::Vsyscall => return Ok(()),
            VmaKind::Anonymous | VmaKind::File { .. } => {}
            other => {
                return Err(NativeError::Mapping {
                    start: vma.range.start,
                    kind: format!("{other:?}"),
                });
            }
        }
        for mut segment in segments(memory.process(), vma, placements) {
            if segment.content == Content::Anonymous {
                segment.copies = written(memory, &segment.copies)?;
            }
            self.segment(vma, segment);
        }
        self.properties(vma);
        Ok(())
    }

    fn segment(&mut self, vma: &Vma, segment: Segment) {
        let Segment { range, content, copies, embedded } = segment;
        let (start, length) = (range.start, range.end - range.start);
        // What is copied into memory that cannot be written to is made unwritable afterwards.
        let prot = if copies.is_empty() { vma.prot } else { vma.prot | PROT_WRITE };
        if prot != vma.prot {
            self.advices.push(Advice { start, length, call: PROTECT, value: vma.prot });
        }
        // The kernel may refuse to promise what it need not have promised before.
        let unreserved = if vma.special.contains(VmFlags::NO_RESERVE) { MAP_NORESERVE } else { 0 };
        let mapping = Mapping { start, length, offset: 0, prot, flags: MAP_PRIVATE | unreserved };
        // What a linker leaves empty between code and data: less than it costs to map it.
        if content == Content::Anonymous
            && prot == 0
            && length <= PADDING
            && self.lengthen_text(vma, Mapping { offset: self.next, ..mapping })
        {
            self.store(Piece::Bytes(vec![0; length as usize]));
            return;
        }
        match (content, &vma.kind) {
            (Content::Image, kind) => {
                let end = range.end;
                let offset = self.store(Piece::Memory(range));
                let mapping = Mapping { offset, ..mapping };
                if !self.lengthen_text(vma, mapping) {
                    self.map(Key::Image, mapping);
                    if let VmaKind::File { path, .. } = kind
                        && embedded
                        && prot & PROT_WRITE == 0
                    {
                        self.text = Some((end, path.clone()));
                    }
                }
            }
            (Content::File(offset), VmaKind::File { path, shared, .. }) => {
                let flags = unreserved | if *shared { MAP_SHARED } else { MAP_PRIVATE };
                self.map(Key::File(path.clone()), Mapping { offset, flags, ..mapping });
            }
            _ => {
                let flags = MAP_ANONYMOUS
                    | unreserved
                    | if vma.special.contains(VmFlags::DROPPABLE) {
                        MAP_DROPPABLE
                    } else {
                        MAP_PRIVATE
                    }
                    | if vma.growsdown { MAP_GROWSDOWN } else { 0 };
                self.map(Key::Anonymous, Mapping { flags, ..mapping });
            }
        }
        for run in copies {
            let (address, length) = (run.start, run.end - run.start);
            let offset = self.store(Piece::Memory(run));
            self.copies.push(Copy { address, length, offset });
        }
    }

    fn properties(&mut self, vma: &Vma) {
        let has = |flag| vma.special.contains(flag);
        let wanted = [
            (has(VmFlags::HUGE_PAGE), MADV_HUGEPAGE),
            (has(VmFlags::NO_HUGE_PAGE), MADV_NOHUGEPAGE),
            (has(VmFlags::DONT_COPY), MADV_DONTFORK),
            (has(VmFlags::DONT_DUMP), MADV_DONTDUMP),
            // A droppable mapping has it from the kernel, which refuses to be asked again.
            (has(VmFlags::WIPE_ON_FORK) && !has(VmFlags::DROPPABLE), MADV_WIPEONFORK),
        ];
        for (_, value) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
            let (start, length) = (vma.range.start, vma.range.end - vma.range.start);
            self.advices.push(Advice { start, length, call: ADVISE, value });
        }
    }

    /// Puts a thread's signal frame and landing below its stack pointer.
    fn thread(
        &mut self,
        memory: &Memory<'_>,
        thread: &FrozenThread,
        is_main: bool,
        xsave: &XsaveLayout,
    ) -> Result<Thread, NativeError> {
        let process = memory.process();
        let sp = thread.registers.sp;
        let no_room = NativeError::Stack { thread: thread.tid, address: sp };
        let size = frame_size(xsave) as u64;
        let context = sp.checked_sub(RED_ZONE + size).map(|below| below & !63);
        let landing =
            context.and_then(|it| it.checked_sub(size_of::<Landing>() as u64)).map(|it| it & !15);
        let lowest = landing.and_then(|landing| landing.checked_sub(LANDING_ROOM));
        let (Some(context), Some(landing), Some(lowest)) = (context, landing, lowest) else {
            return Err(no_room);
        };
        let Some(vma) = process.vma_at(sp.saturating_sub(1)) else { return Err(no_room) };
        let fits = lowest >= vma.range.start;
        if vma.prot & PROT_WRITE == 0 || !(fits || vma.growsdown) {
            return Err(no_room);
        }
        let mut frozen = thread.clone();
        if is_main {
            finish_read(memory, &mut frozen)?;
        }
        let frame = signal_frame(&frozen, xsave, context);
        let mut name = [0; 16];
        if !is_main && thread.comm != process.comm {
            for (place, byte) in name.iter_mut().take(15).zip(thread.comm.iter().copied()) {
                *place = byte;
            }
        }
        let (robust_list, robust_length) = thread.robust.unwrap_or((0, 0));
        let rseq = thread.rseq.as_ref();
        let record = Landing {
            robust_list,
            robust_length: u64::from(robust_length),
            rseq: rseq.map_or(0, |rseq| rseq.address),
            rseq_length: rseq.map_or(0, |rseq| u64::from(rseq.length)),
            rseq_signature: rseq.map_or(0, |rseq| u64::from(rseq.signature)),
            name,
            context,
            mask: mask_address(context),
        };
        let mut bytes = record.bytes();
        bytes.resize((context - landing) as usize, 0);
        bytes.extend(frame);
        let length = bytes.len() as u64;
        let offset = self.store(Piece::Bytes(bytes));
        self.copies.push(Copy { address: landing, length, offset });
        Ok(Thread {
            clear_tid: thread.clear_tid,
            fs_base: thread.registers.fs_base,
            gs_base: thread.registers.gs_base,
            landing,
        })
    }

    /// The files that the process has open for reading; anything else has been refused before.
    fn descriptors(
        &mut self,
        process: &Process,
        own: &[u32],
    ) -> Result<Vec<Descriptor>, NativeError> {
        const O_CLOEXEC: u64 = 0o2_000_000;
        let mut records = Vec::new();
        for one in &process.descriptors {
            let DescriptorKind::File(OpenFile { path, flags, position, .. }) = &one.kind else {
                continue;
            };
            if one.number <= 2 || own.contains(&one.number) {
                continue;
            }
            let close_on_exec = if one.close_on_exec { O_CLOEXEC } else { 0 };
            records.push(Descriptor {
                number: u64::from(one.number),
                name: add_name(&mut self.names, path)?,
                flags: u64::from(*flags) | close_on_exec,
                position: *position,
            });
        }
        Ok(records)
    }

    fn finish(
        self,
        mut header: Header,
        tables: &Tables,
        section: std::ops::Range<u64>,
    ) -> Result<Built, NativeError> {
        let mut encoder = Encoder::with_room_for::<Header>();
        let mut names = self.names;
        let mut sources = Vec::new();
        let mut mappings: Vec<Mapping> = Vec::new();
        for (key, group) in &self.mappings {
            let (kind, name) = match key {
                Key::Anonymous => (restore_plan::SOURCE_ANONYMOUS, 0),
                Key::Image => (restore_plan::SOURCE_IMAGE, 0),
                Key::File(path) => (restore_plan::SOURCE_FILE, add_name(&mut names, path)?),
            };
            sources.push(Source {
                kind,
                name,
                first: mappings.len() as u64,
                count: group.len() as u64,
            });
            mappings.extend(group);
        }
        header.sources = encoder.table(&sources);
        header.mappings = encoder.table(&mappings);
        header.copies = encoder.table(&self.copies);
        header.advices = encoder.table(&self.advices);
        header.signals = encoder.table(&tables.signals);
        header.threads = encoder.table(&tables.threads);
        header.specials = encoder.table(&tables.specials);
        header.holes = encoder.table(&tables.holes);
        header.descriptors = encoder.table(&tables.descriptors);
        header.names = encoder.bytes(&names);
        let Self { memory, pages, .. } = self;
        Ok(Built { header, tables: encoder, memory, pages, section })
    }
}

/// The parts of `ranges` that are not zeros: new anonymous memory has those anyway. Libraries touch
/// large buffers without writing to them.
fn written(
    memory: &Memory<'_>,
    ranges: &[std::ops::Range<u64>],
) -> Result<Vec<std::ops::Range<u64>>, NativeError> {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    let mut written: Vec<std::ops::Range<u64>> = Vec::new();
    let mut page = [0; PAGE as usize];
    for start in ranges.iter().flat_map(|range| range.clone().step_by(PAGE as usize)) {
        if memory.read(start, &mut page)? && page == ZEROS {
            continue;
        }
        match written.last_mut() {
            Some(last) if last.end == start => last.end += PAGE,
            _ => written.push(start..start + PAGE),
        }
    }
    Ok(written)
}

fn add_name(names: &mut Vec<u8>, path: &Path) -> Result<u64, NativeError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.contains(&0) || !path.is_absolute() {
        return Err(NativeError::Path { path: path.to_owned() });
    }
    let offset = names.len() as u64;
    names.extend_from_slice(bytes);
    names.push(0);
    Ok(offset)
}

/// The main thread was frozen in the resident's read(2); in a native restore that call is over and
/// says end of file.
fn finish_read(memory: &Memory<'_>, main: &mut FrozenThread) -> Result<(), NativeError> {
    /// The `syscall` instruction.
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let registers = &mut main.registers;
    let is_call = |address: u64| {
        let mut bytes = [0; 2];
        Ok::<_, NativeError>(memory.read(address, &mut bytes)? && bytes == SYSCALL)
    };
    // CRIU points a restartable call back at its instruction; one that is not restarted is past it.
    if is_call(registers.ip)? {
        registers.ip += 2;
    } else if !is_call(registers.ip.wrapping_sub(2))? {
        return Err(NativeError::NotAtSyncPoint { address: registers.ip });
    }
    registers.ax = 0;
    Ok(())
}

fn signals(process: &Process, facts: &Facts) -> Vec<Signal> {
    /// The C library's own signals (nptl(7)). posix_spawn(3) leaves them ignored in what it starts,
    /// which says nothing about the program.
    const INTERNAL: [u32; 2] = [32, 33];
    const IGNORED: u64 = 1;
    /// SIGINT, the only signal for which CPython has a handler of its own (Modules/signalmodule.c).
    const SIGINT: u64 = 2;
    process
        .signals
        .iter()
        .filter(|signal| signal.handler != 0)
        .filter(|signal| signal.handler != IGNORED || !INTERNAL.contains(&signal.number))
        .map(|signal| {
            let number = u64::from(signal.number);
            Signal {
                number,
                handler: signal.handler,
                flags: signal.flags,
                restorer: signal.restorer,
                mask: signal.mask,
                yields: u64::from(number == SIGINT && facts.default_sigint),
            }
        })
        .collect()
}

/// The vDSO and its data pages; they move as one row, so they must be one.
fn specials(process: &Process) -> Result<Vec<Special>, NativeError> {
    let specials: Vec<Special> = process
        .vmas
        .iter()
        .filter(|vma| matches!(vma.kind, VmaKind::Vdso | VmaKind::Vvar))
        .map(|vma| Special {
            start: vma.range.start,
            length: vma.range.end - vma.range.start,
            is_vdso: u64::from(vma.kind == VmaKind::Vdso),
        })
        .collect();
    let in_a_row = specials.windows(2).all(|pair| pair[0].start + pair[0].length == pair[1].start);
    let vdso_last = specials.last().is_none_or(|last| last.is_vdso == 1);
    if in_a_row && vdso_last { Ok(specials) } else { Err(NativeError::Vdso) }
}

fn layout(process: &Process, specials: &[Special]) -> Layout {
    const AT_PHDR: u64 = 3;
    const AT_BASE: u64 = 7;
    const AT_ENTRY: u64 = 9;
    let mm = &process.layout;
    let auxiliary = |key| mm.aux(key).unwrap_or(0);
    Layout {
        start_code: mm.start_code,
        end_code: mm.end_code,
        start_data: mm.start_data,
        end_data: mm.end_data,
        start_brk: mm.start_brk,
        brk: mm.brk,
        start_stack: mm.start_stack,
        at_phdr: auxiliary(AT_PHDR),
        at_base: auxiliary(AT_BASE),
        at_entry: auxiliary(AT_ENTRY),
        at_sysinfo_ehdr: specials.last().map_or(0, |vdso| vdso.start),
    }
}

const _: () = assert!(PAGE == 4096 && size_of::<Table>() == 16);
