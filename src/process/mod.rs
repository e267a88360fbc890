//! The frozen process as data.
//!
//! [`Process::load`] reads what CRIU dumped into one model; [`placement`] says which of its memory may
//! be mapped from an image and which must be copied; [`Process::refusals`] says what of it the native
//! restore does not take. Nothing here makes a system call but to read files, and nothing here knows
//! how a process is restored.

mod descriptor;
pub(crate) mod directory;
mod error;
mod memory;
pub mod messages;
mod pages;
pub mod placement;
mod refusals;
pub(crate) mod rewrite;
pub mod smaps;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod thread;
pub(crate) mod vma;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use descriptor::{Descriptor, DescriptorKind, OpenFile, is_common_device, only_reads};
pub use error::{Damage, Inconsistency, ProcessError, SmapsError};
pub use memory::{FileContent, Memory, OnDisk};
pub use pages::{PAGE, PageRun, PageSource, Pages};
pub use refusals::{MappingRefusal, Refusal, ThreadRefusal};
pub use thread::{Component, FloatingPoint, Registers, Rseq, SignalStack, Thread};
pub use vma::{Vma, VmaKind};

use descriptor::FileTable;
use directory::Directory;
use messages::files::{Fdinfo_entry, File_lock_entry};
use messages::inventory::Inventory_entry;
use messages::mm::{Mm_entry, Vma_entry};
use messages::pagemap::{Pagemap_entry, Pagemap_head};
use messages::pstree::Pstree_entry;
use messages::task::{Core_entry, Task_core_entry, Task_kobj_ids_entry};
use smaps::{Smaps, VmFlags};
use vma::status;

/// A frozen process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number when it was frozen.
    pub pid: u32,
    /// The N of the `pages-N.img` that its pages are in.
    pub pages_id: u32,
    /// Its name, as bytes: the kernel does not care for an encoding.
    pub comm: Vec<u8>,
    /// The program that it runs.
    pub exe: PathBuf,
    /// Its threads, the main thread first.
    pub threads: Vec<Thread>,
    /// Its mappings, in address order.
    pub vmas: Vec<Vma>,
    /// Its pages that have content of their own.
    pub pages: Pages,
    /// Ranges that `MADV_GUARD_INSTALL` made inaccessible; only CRIU 4.2 and later tell.
    pub guards: Vec<Range<u64>>,
    /// Where its code, data, heap, arguments and so on are.
    pub layout: MmLayout,
    /// What it does on each signal but SIGKILL and SIGSTOP.
    pub signals: Vec<SignalAction>,
    /// Its open descriptors, by number.
    pub descriptors: Vec<Descriptor>,
    /// Private mappings that [`Process::adopt`] turned into memory of the image.
    pub adopted: Vec<Range<u64>>,
    /// What else the kernel keeps for it.
    pub state: State,
    /// [`Process::annotate`] was called, so that [`Vma::special`] is complete.
    pub annotated: bool,
}

/// Where the parts of the address space are (prctl(2), `PR_SET_MM`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the one of its name in prctl(2)")]
pub struct MmLayout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_stack: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// The auxiliary vector: type and value (getauxval(3)).
    pub auxv: Vec<(u64, u64)>,
}

impl MmLayout {
    /// The value of an entry of the auxiliary vector.
    #[must_use]
    pub fn aux(&self, kind: u64) -> Option<u64> {
        self.auxv.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value)
    }
}

/// What happens on a signal, as the kernel keeps it (`rt_sigaction(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalAction {
    /// Its number.
    pub number: u32,
    /// The handler's address; 0 for the default and 1 to ignore it.
    pub handler: u64,
    /// `SA_` flags.
    pub flags: u64,
    /// The C library's sigreturn trampoline.
    pub restorer: u64,
    /// Signals that are blocked meanwhile, bit N-1 for signal N.
    pub mask: u64,
    /// It was set by 32-bit code.
    pub compat: bool,
}

/// What the kernel keeps for a process that the model has no other place for: mostly what has to be
/// absent for the native restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Other processes of the dump.
    pub others: Vec<u32>,
    /// Not running and not sleeping: stopped, or a zombie.
    pub stopped: bool,
    /// personality(2).
    pub personality: u32,
    /// Interval timers that are set (setitimer(2)).
    pub interval_timers: usize,
    /// Timers of `timer_create(2)`.
    pub posix_timers: usize,
    /// Signals sent to the process and not delivered.
    pub pending: usize,
    /// Registered asynchronous I/O contexts (`io_setup(2)`).
    pub aio_rings: usize,
    /// Numbers of the descriptors that hold a file lock.
    pub locks: Vec<i32>,
    /// `PR_SET_CHILD_SUBREAPER` of prctl(2).
    pub subreaper: bool,
    /// Registered commands of membarrier(2).
    pub membarrier: u32,
    /// `PR_SET_THP_DISABLE` of prctl(2).
    pub huge_pages_disabled: bool,
}

impl Process {
    /// Reads the directory that CRIU dumped into.
    pub fn load(path: &Path) -> Result<Self, ProcessError> {
        Self::load_tree(path).map(|(root, _)| root)
    }

    /// Reads the directory that CRIU dumped into: the process, and those that it has started and that
    /// run. Ones that have ended and were not waited for are in [`State::others`] only.
    pub fn load_tree(path: &Path) -> Result<(Self, Vec<Self>), ProcessError> {
        let directory = Directory::new(path);
        let inconsistent = |source| ProcessError::Inconsistent { path: path.to_owned(), source };
        let inventory: Inventory_entry = directory.one("inventory.img", directory::INVENTORY)?;
        if inventory.img_version() != FORMAT {
            return Err(inconsistent(Inconsistency::Version(inventory.img_version())));
        }
        let tree: Vec<Pstree_entry> = directory.all("pstree.img", directory::PSTREE)?;
        let (root, others) = tree
            .split_first()
            .ok_or_else(|| inconsistent(Inconsistency::Missing("the process")))?;
        let files = FileTable::load(directory)?;
        let mut process = Self::load_one(directory, &files, root)?;
        process.state.others = others.iter().map(Pstree_entry::pid).collect();
        let lives = |one: &&Pstree_entry| path.join(format!("mm-{}.img", one.pid())).exists();
        let others = others.iter().filter(lives);
        let others =
            others.map(|one| Self::load_one(directory, &files, one)).collect::<Result<_, _>>()?;
        Ok((process, others))
    }

    fn load_one(
        directory: Directory<'_>,
        files: &FileTable,
        entry: &Pstree_entry,
    ) -> Result<Self, ProcessError> {
        let path = directory.path();
        let inconsistent = |source| ProcessError::Inconsistent { path: path.to_owned(), source };
        let pid = entry.pid();
        let cores = cores(directory, entry)?;
        let main =
            &cores.first().ok_or_else(|| inconsistent(Inconsistency::Missing("a thread")))?.1;
        let task = main
            .tc
            .as_ref()
            .ok_or_else(|| inconsistent(Inconsistency::Missing("the process's state")))?;
        let ids = ids(directory, pid, main)?;
        let mm: Mm_entry = directory.one(&format!("mm-{pid}.img"), directory::MM)?;
        let (vmas, guards) = vmas(&mm.vmas, files).map_err(inconsistent)?;
        let (pages_id, pages) = load_pages(directory, pid, &vmas)?;
        let infos: Vec<Fdinfo_entry> =
            directory.any(&format!("fdinfo-{}.img", ids.files_id()), directory::FDINFO)?;
        let mut descriptors = infos
            .iter()
            .map(|info| files.descriptor(info))
            .collect::<Result<Vec<_>, _>>()
            .map_err(inconsistent)?;
        descriptors.sort_unstable_by_key(|descriptor| descriptor.number);
        let locks: Vec<File_lock_entry> = directory.any("filelocks.img", directory::FILE_LOCKS)?;
        let exe = files.regular(mm.exe_file_id()).map_err(inconsistent)?;
        Ok(Self {
            pid,
            pages_id,
            comm: task.comm().to_vec(),
            exe: exe
                .ok_or_else(|| inconsistent(Inconsistency::Missing("the program's path")))?
                .path,
            threads: cores
                .iter()
                .map(|(tid, core)| Thread::new(*tid, core))
                .collect::<Result<_, _>>()
                .map_err(inconsistent)?,
            vmas,
            pages,
            guards,
            layout: layout(&mm),
            signals: signals(task).map_err(inconsistent)?,
            descriptors,
            adopted: Vec::new(),
            state: state(task, &mm, &locks),
            annotated: false,
        })
    }

    /// Adds what only `/proc/PID/smaps` of the standing process tells.
    pub fn annotate(&mut self, smaps: &Smaps) -> Result<(), ProcessError> {
        for vma in &mut self.vmas {
            // A stack may have been dumped with a guard page that is not listed.
            let known = if vma.growsdown { vma.range.end - PAGE } else { vma.range.start };
            let found = match (smaps.flags(&(known..vma.range.end)), &vma.kind) {
                (Some(flags), _) => flags,
                // Lists differ in whether they name it, and nothing is to be known about it.
                (None, VmaKind::Vsyscall) => continue,
                (None, _) => {
                    return Err(ProcessError::Smaps(SmapsError::Missing(vma.range.clone())));
                }
            };
            vma.special = vma.special | found;
        }
        self.annotated = true;
        Ok(())
    }

    /// As [`Process::annotate`], for a process that went on while it was looked at: mappings that are
    /// not in the list were made since.
    pub fn annotate_loosely(&mut self, smaps: &Smaps) {
        for vma in &mut self.vmas {
            vma.special = vma.special | smaps.flags(&vma.range).unwrap_or_default();
        }
        self.annotated = true;
    }

    /// Turns the private mappings of the file `path` into memory without a file. Pages that were not
    /// dumped, since they are as in the file, get their content from `bytes`, the whole file.
    pub fn adopt(&mut self, path: &Path, bytes: &[u8]) {
        for vma in &mut self.vmas {
            let VmaKind::File { path: mapped, offset, shared: false, .. } = &vma.kind else {
                continue;
            };
            if mapped != path {
                continue;
            }
            let from = bytes.len().min(usize::try_from(*offset).unwrap_or(usize::MAX));
            self.pages.fill(&vma.range, &bytes[from..]);
            vma.kind = VmaKind::Anonymous;
            self.adopted.push(vma.range.clone());
        }
    }

    /// The mapping at an address.
    #[must_use]
    pub fn vma_at(&self, address: u64) -> Option<&Vma> {
        let index = self.vmas.partition_point(|vma| vma.range.end <= address);
        self.vmas.get(index).filter(|vma| vma.range.contains(&address))
    }
}

/// `CRTOOLS_IMAGES_V1_1` of criu/include/magic.h.
const FORMAT: u32 = 2;
/// `X86_64` of CRIU's core.proto.
const X86_64: u32 = 1;
/// Number of signals, and the two that have no action to set.
const SIGNALS: u32 = 64;
const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;
/// `COMPEL_TASK_ALIVE` of compel's task-state.h.
const ALIVE: u32 = 1;

fn cores(
    directory: Directory<'_>,
    root: &Pstree_entry,
) -> Result<Vec<(u32, Core_entry)>, ProcessError> {
    let pid = root.pid();
    let followers = root.threads.iter().copied().filter(|tid| *tid != pid);
    std::iter::once(pid)
        .chain(followers)
        .map(|tid| {
            let core: Core_entry = directory.one(&format!("core-{tid}.img"), directory::CORE)?;
            if core.mtype() == X86_64 {
                return Ok((tid, core));
            }
            let path = directory.path().to_owned();
            Err(ProcessError::Inconsistent { path, source: Inconsistency::Architecture })
        })
        .collect()
}

fn ids(
    directory: Directory<'_>,
    pid: u32,
    main: &Core_entry,
) -> Result<Task_kobj_ids_entry, ProcessError> {
    match main.ids.as_ref() {
        Some(ids) => Ok(ids.clone()),
        None => directory.one(&format!("ids-{pid}.img"), directory::IDS),
    }
}

fn vmas(
    entries: &[Vma_entry],
    files: &FileTable,
) -> Result<(Vec<Vma>, Vec<Range<u64>>), Inconsistency> {
    let mut vmas = Vec::with_capacity(entries.len());
    let mut guards = Vec::new();
    for entry in entries {
        let range = entry.start()..entry.end();
        if range.start >= range.end
            || !range.start.is_multiple_of(PAGE)
            || !range.end.is_multiple_of(PAGE)
        {
            return Err(Inconsistency::Range(range));
        }
        if entry.status() & status::GUARD == 0 {
            vmas.push(vma(entry, range, files)?);
        } else {
            guards.push(range);
        }
    }
    vmas.sort_unstable_by_key(|vma| vma.range.start);
    guards.sort_unstable_by_key(|range| range.start);
    let overlap = vmas.windows(2).find(|pair| pair[0].range.end > pair[1].range.start);
    match overlap {
        Some(pair) => Err(Inconsistency::Range(pair[1].range.clone())),
        None => Ok((vmas, guards)),
    }
}

fn vma(entry: &Vma_entry, range: Range<u64>, files: &FileTable) -> Result<Vma, Inconsistency> {
    let flags = entry.flags().cast_signed();
    let status = entry.status();
    Ok(Vma {
        prot: entry.prot(),
        kind: vma_kind(entry, files)?,
        growsdown: flags & libc::MAP_GROWSDOWN != 0,
        advice: entry.madv(),
        special: special(flags),
        heap: status & status::HEAP != 0,
        range,
    })
}

fn special(flags: i32) -> VmFlags {
    [(libc::MAP_LOCKED, VmFlags::LOCKED), (libc::MAP_HUGETLB, VmFlags::HUGETLB)]
        .into_iter()
        .filter(|(bit, _)| flags & bit != 0)
        .fold(VmFlags::default(), |all, (_, flag)| all | flag)
}

fn vma_kind(entry: &Vma_entry, files: &FileTable) -> Result<VmaKind, Inconsistency> {
    let bits = entry.status();
    if bits & status::STRANGE != 0 {
        return Ok(VmaKind::Other(bits));
    }
    if bits & (status::FILE_PRIVATE | status::FILE_SHARED) != 0 {
        let id =
            u32::try_from(entry.shmid()).map_err(|_| Inconsistency::Missing("a mapped file"))?;
        let memfd = bits & status::MEMFD != 0;
        return Ok(match files.regular(id)? {
            Some(file) => VmaKind::File {
                path: file.path,
                offset: entry.pgoff(),
                shared: bits & status::FILE_SHARED != 0,
                writable: entry
                    .fdflags
                    .is_none_or(|flags| flags.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY),
                nameless: memfd || file.deleted,
            },
            None => VmaKind::Other(bits),
        });
    }
    Ok(if bits & status::VSYSCALL != 0 {
        VmaKind::Vsyscall
    } else if bits & status::VDSO != 0 {
        VmaKind::Vdso
    } else if bits & status::VVAR != 0 {
        VmaKind::Vvar
    } else if bits & status::ANON_SHARED != 0 {
        VmaKind::SharedAnonymous { shmid: entry.shmid() }
    } else if bits & status::ANON_PRIVATE != 0 {
        VmaKind::Anonymous
    } else {
        VmaKind::Other(bits)
    })
}

/// criu/include/pagemap.h: the pages are in an earlier dump; they may come later; they are here.
const PE_PARENT: u32 = 1;
const PE_PRESENT: u32 = 4;

fn load_pages(
    directory: Directory<'_>,
    pid: u32,
    vmas: &[Vma],
) -> Result<(u32, Pages), ProcessError> {
    let (head, entries): (Pagemap_head, Vec<Pagemap_entry>) =
        directory.headed(&format!("pagemap-{pid}.img"), directory::PAGEMAP)?;
    let file = directory.path().join(format!("pages-{}.img", head.pages_id()));
    let inconsistent = |source| ProcessError::Inconsistent { path: file.clone(), source };
    let runs = page_runs(&entries, vmas).map_err(inconsistent)?;
    let expected = runs.iter().map(|run| run.range.end - run.range.start).sum();
    let found = match fs::metadata(&file) {
        Ok(metadata) => metadata.len(),
        Err(source) => return Err(ProcessError::Read { path: file, source }),
    };
    if found < expected {
        return Err(inconsistent(Inconsistency::PagesLength { expected, found }));
    }
    Ok((head.pages_id(), Pages::new(runs, file)))
}

fn page_runs(entries: &[Pagemap_entry], vmas: &[Vma]) -> Result<Vec<PageRun>, Inconsistency> {
    let mut runs: Vec<PageRun> = Vec::with_capacity(entries.len());
    let mut offset = 0_u64;
    for entry in entries {
        let range = page_range(entry)?;
        let flags = entry.flags.unwrap_or(PE_PRESENT);
        // PE_LAZY (2) is on most pages of an ordinary dump: they are here, and CRIU could also send
        // them later. Only without PE_PRESENT are they missing.
        if entry.in_parent() || flags & PE_PARENT != 0 || flags & PE_PRESENT == 0 {
            return Err(Inconsistency::PagesElsewhere(range));
        }
        if runs.last().is_some_and(|last| last.range.end > range.start) {
            return Err(Inconsistency::Range(range));
        }
        let length = range.end - range.start;
        // A run may go on over the border of two mappings; nothing else here has to know that.
        let mut at = range.start;
        let first = vmas.partition_point(|vma| vma.range.end <= at);
        for vma in &vmas[first..] {
            if at >= range.end || vma.range.start > at {
                break;
            }
            at = vma.range.end.min(range.end);
        }
        if at < range.end {
            return Err(Inconsistency::StrayPages(at..range.end));
        }
        let source = PageSource::Dump(offset);
        offset = offset.checked_add(length).ok_or_else(|| Inconsistency::Range(range.clone()))?;
        runs.push(PageRun { range, source });
    }
    Ok(runs)
}

/// CRIU 4.2 has a number of pages with 64 bits beside the one with 32.
fn page_range(entry: &Pagemap_entry) -> Result<Range<u64>, Inconsistency> {
    let start = entry.vaddr();
    let count = entry.nr_pages.unwrap_or(u64::from(entry.compat_nr_pages()));
    let end = count.checked_mul(PAGE).and_then(|length| start.checked_add(length));
    match end {
        Some(end) if start < end && start.is_multiple_of(PAGE) => Ok(start..end),
        _ => Err(Inconsistency::Range(start..end.unwrap_or(u64::MAX))),
    }
}

fn layout(mm: &Mm_entry) -> MmLayout {
    MmLayout {
        start_code: mm.mm_start_code(),
        end_code: mm.mm_end_code(),
        start_data: mm.mm_start_data(),
        end_data: mm.mm_end_data(),
        start_stack: mm.mm_start_stack(),
        start_brk: mm.mm_start_brk(),
        brk: mm.mm_brk(),
        arg_start: mm.mm_arg_start(),
        arg_end: mm.mm_arg_end(),
        env_start: mm.mm_env_start(),
        env_end: mm.mm_env_end(),
        auxv: mm.mm_saved_auxv.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(),
    }
}

fn signals(task: &Task_core_entry) -> Result<Vec<SignalAction>, Inconsistency> {
    let numbers = (1..=SIGNALS).filter(|number| ![SIGKILL, SIGSTOP].contains(number));
    let expected = numbers.clone().count();
    if task.sigactions.len() != expected {
        let found = task.sigactions.len();
        return Err(Inconsistency::Count { what: "the list of signal actions", expected, found });
    }
    let actions = numbers.zip(&task.sigactions).map(|(number, action)| SignalAction {
        number,
        handler: action.sigaction(),
        flags: action.flags(),
        restorer: action.restorer(),
        mask: action.mask(),
        compat: action.compat_sigaction(),
    });
    Ok(actions.collect())
}

fn state(task: &Task_core_entry, mm: &Mm_entry, locks: &[File_lock_entry]) -> State {
    let timers = task.timers.as_ref();
    let interval = timers.map_or(0, |timers| {
        [&timers.real, &timers.virt, &timers.prof]
            .into_iter()
            .filter(|timer| timer.vsec() != 0 || timer.vusec() != 0)
            .count()
    });
    State {
        others: Vec::new(),
        stopped: task.task_state() != ALIVE,
        personality: task.personality(),
        interval_timers: interval,
        posix_timers: timers.map_or(0, |timers| timers.posix.len()),
        pending: task.signals_s.signals.len(),
        aio_rings: mm.aios.len(),
        locks: locks.iter().map(File_lock_entry::fd).collect(),
        subreaper: task.child_subreaper(),
        membarrier: task.membarrier_registration_mask(),
        huge_pages_disabled: mm.thp_disabled(),
    }
}
