//! From a dump to an image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::iter;
use std::ops::Range;
use std::path::{Path, PathBuf, absolute};
use std::time::{SystemTime, UNIX_EPOCH};

use std::os::unix::ffi::OsStrExt;

use nix::sys::utsname::uname;

use crate::agent::Ready;
use crate::image::{
    Archive, Check, Contents, FileStamp, Host, MEMORY_OFFSET, Machine, Manifest,
    Memory as MemoryFigures, MemoryKind, Module, PageRun, Python, Variables, Writer,
};
use crate::native::NativeError;
use crate::native::builder::{Built, Facts, build};
use crate::native::layout::Piece;
use crate::native::view::PlanView;
use crate::native::xsave::XsaveLayout;
use crate::process::placement::{How, Placement, Why, placement};
use crate::process::smaps::Smaps;
use crate::process::{DescriptorKind, Memory, OnDisk, PageSource, Process, ProcessError, VmaKind};

use super::frozen::Frozen;
use super::others;
use super::progress::{Event, Progress};
use super::recipe::{Engines, Recipe};
use super::rehearsal::{self, Rehearsal};
use super::sources::Sources;
use super::{Refusal, SnapshotError};
use crate::sys::keeper::Isolation;
use crate::{image, process};

/// Writes the image of a dump; returns its length in bytes.
///
/// # Errors
///
/// What of the process cannot be frozen, or why the image cannot be written.
pub(super) fn assemble(
    recipe: &Recipe,
    frozen: &Frozen,
    self_contained: bool,
    mut writer: Writer,
    progress: &mut dyn Progress,
) -> Result<u64, SnapshotError> {
    let (mut process, mut others) = Process::load_tree(&frozen.directory)?;
    let smaps = Smaps::parse(frozen.smaps.as_bytes()).map_err(ProcessError::Smaps)?;
    process.annotate(&smaps)?;
    process.adopt(&frozen.resident, frozen.resident_bytes);
    let own: Vec<u32> = u32::try_from(frozen.orders).into_iter().collect();
    others::prepare(&mut others, frozen)?;
    let mut refusals = process.refusals(&own);
    refusals.extend(others.iter().flat_map(|other| other.refusals_as_other(&frozen.pipes)));
    let named = |refusal: &process::Refusal| Refusal {
        what: refusal.to_string(),
        owner: owner(refusal, &frozen.ready),
    };
    let only_criu = match frozen.engines {
        Engines::Criu => {
            let (restored, refused) =
                refusals.into_iter().partition(process::Refusal::restorable_by_criu);
            refusals = refused;
            restored
        }
        Engines::Both => Vec::new(),
    };
    if !refusals.is_empty() {
        return Err(SnapshotError::Refused(refusals.iter().map(named).collect()));
    }
    let only_criu: Vec<String> =
        only_criu.iter().map(|reason| super::error::list(&[named(reason)])).collect();
    if !only_criu.is_empty() {
        progress.event(Event::OnlyCriu { reasons: &only_criu });
    }
    let files = OnDisk::default();
    let memory = Memory::open(&process, &files)?;
    let embedded = embedded(&process, self_contained);
    let placements = placement(&memory, FILL, &|path| embedded.contains(path))?;
    let xsave = XsaveLayout::of_this_machine().ok_or(SnapshotError::Xsave)?;
    let facts = Facts { thaw: frozen.ready.thaw, default_sigint: true, own_descriptors: own };
    let built = build(&memory, &placements, &facts, &xsave, writer.position())?;
    write_memory(&built, &memory, frozen, &mut writer)?;
    let mut plan = built.plan(&[])?;
    if only_criu.is_empty() {
        plan = built.plan(&touched(frozen, &plan, &mut writer)?)?;
    }
    let sources = Sources::of(&frozen.ready.modules, &embedded);
    let check = check(recipe, frozen, (&process, &others), &sources, &embedded)?;
    let check = Check { only_criu, ..check };
    let manifest = Manifest {
        sources: contents(&sources.rest)?,
        processes: others.iter().map(|other| lossy(&other.comm)).collect(),
        only_criu: check.only_criu.clone(),
        ..manifest(recipe, frozen, &process, &placements, &check)
    };
    let mut pages = page_index(&process, &built);
    pages.extend(keep_vdso(&process, &mut writer)?);
    pages.sort_unstable_by_key(|run| run.address);
    let kept: Vec<_> = pages.iter().map(|run| run.address..run.address + run.length).collect();
    process.rewrite(&frozen.directory, &kept)?;
    for other in &others {
        pages.extend(others::keep(other, frozen, &mut writer)?);
    }
    process::rewrite::without_pipes(&frozen.directory, &process, &others, &frozen.pipes)?;
    let criu = Archive::from_directory(&frozen.directory)
        .map_err(|cause| unreadable(&frozen.directory, cause))?;
    let contents =
        Contents { check: &check, plan: &plan, manifest: &manifest, criu: &criu, pages: &pages };
    frozen.interrupted()?;
    Ok(writer.finish(&contents)?)
}

/// The memory that every run writes to.
fn touched(
    frozen: &Frozen,
    plan: &[u8],
    writer: &mut Writer,
) -> Result<Vec<Range<u64>>, SnapshotError> {
    let (image, section) = writer.rehearse(plan)?;
    let end = writer.position();
    let view = PlanView::new(plan, end, MEMORY_OFFSET..end).map_err(NativeError::Plan)?;
    match rehearsal::rehearse(frozen, &image, &section, &view) {
        Rehearsal::Touched(touched) => Ok(touched),
        Rehearsal::Failed { why, hint } => Err(SnapshotError::NotRestored { why, hint }),
    }
}

/// A library of which no more than this is mapped is in every image: opening its file and mapping its
/// parts cost a run more than its bytes cost the disk.
const SMALL: u64 = 4 << 20;

/// The files whose mapped parts the image holds.
///
/// Tools that look into other processes find the interpreter and the C library by the names in
/// `/proc/PID/maps`; those have to stay, unless everything is wanted.
fn embedded(process: &Process, all: bool) -> BTreeSet<PathBuf> {
    const PROT_EXEC: u32 = 4;
    let executable = process.vmas.iter().filter(|vma| vma.prot & PROT_EXEC != 0);
    let libraries: BTreeSet<&Path> = executable
        .filter_map(|vma| match &vma.kind {
            VmaKind::File { path, .. } if *path != process.exe => Some(path.as_path()),
            _ => None,
        })
        .filter(|path| !is_looked_for(path))
        .collect();
    let is_small = |path: &Path, bytes: u64| bytes <= SMALL && libraries.contains(path);
    let files = mapped_files(process).into_iter();
    files.filter(|(path, bytes)| all || is_small(path, *bytes)).map(|(path, _)| path).collect()
}

/// Whether tools look for a library by its name: CPython's own code, and the objects of the C library that
/// debuggers ask for threads and loaded libraries (gdb/solib-svr4.c, gdb/linux-thread-db.c).
fn is_looked_for(path: &Path) -> bool {
    const NAMES: [&[u8]; 4] = [b"libpython", b"ld-", b"libpthread", b"libc-"];
    is_libc(path)
        || path.file_name().is_some_and(|name| {
            NAMES.iter().any(|start| name.as_encoded_bytes().starts_with(start))
        })
}

/// How many bytes of each file are mapped.
fn mapped_files(process: &Process) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for vma in &process.vmas {
        if let VmaKind::File { path, .. } = &vma.kind {
            *files.entry(path.clone()).or_default() += vma.range.end - vma.range.start;
        }
    }
    files
}

/// After which step something was there, as the agent has seen it.
fn owner(refusal: &process::Refusal, ready: &Ready) -> Option<String> {
    match refusal {
        process::Refusal::Descriptor { number, .. } => {
            let opened = ready.descriptors.iter().find(|opened| opened.descriptor == *number);
            opened.map(|opened| opened.owner.clone())
        }
        process::Refusal::Mapping { range, .. } => {
            let mapped = ready.mappings.iter().find(|mapped| range.contains(&mapped.address));
            mapped.map(|mapped| mapped.owner.clone())
        }
        process::Refusal::Timers(_) => ready.timers.first().cloned(),
        process::Refusal::Processes(_) => ready.children.first().cloned(),
        _ => None,
    }
}

/// How many pages may lie between two dumped ones that are mapped in one call: a hole in the image
/// costs less than a system call in every run.
const FILL: u64 = 16;

fn unreadable(path: &Path, source: std::io::Error) -> ProcessError {
    ProcessError::Read { path: path.to_owned(), source }
}

fn write_memory(
    built: &Built,
    memory: &Memory<'_>,
    frozen: &Frozen,
    writer: &mut Writer,
) -> Result<(), SnapshotError> {
    const AT_ONCE: u64 = 1 << 20;
    let mut buffer = Vec::new();
    for piece in &built.memory {
        match piece {
            Piece::Memory(range) => {
                for start in range.clone().step_by(AT_ONCE as usize) {
                    let length = AT_ONCE.min(range.end - start);
                    buffer.resize(length as usize, 0);
                    if !memory.read(start, &mut buffer)? {
                        return Err(SnapshotError::Unreadable { address: start });
                    }
                    writer.append(&buffer)?;
                }
                frozen.interrupted()?;
            }
            Piece::Bytes(bytes) => {
                writer.append(bytes)?;
            }
        }
    }
    Ok(())
}

/// Where CRIU's own pages went, for `export`.
fn page_index(process: &Process, built: &Built) -> Vec<PageRun> {
    let mut index = Vec::new();
    for (address, length, offset) in &built.pages {
        for run in process.pages.within(*address..address + length) {
            index.push(PageRun {
                pages_id: process.pages_id,
                address: run.range.start,
                length: run.range.end - run.range.start,
                offset: offset + (run.range.start - address),
            });
        }
    }
    index
}

/// The vDSO's own pages: no native restore needs them, but CRIU compares them with the kernel's.
fn keep_vdso(process: &Process, writer: &mut Writer) -> Result<Vec<PageRun>, SnapshotError> {
    let dump = File::open(process.pages.file())
        .map_err(|cause| unreadable(process.pages.file(), cause))?;
    let mut index = Vec::new();
    for vma in process.vmas.iter().filter(|vma| vma.kind == VmaKind::Vdso) {
        for run in process.pages.within(vma.range.clone()) {
            let PageSource::Dump(from) = run.source else { continue };
            let length = run.range.end - run.range.start;
            let offset = writer.append_file(&dump, from, length)?;
            index.push(PageRun {
                pages_id: process.pages_id,
                address: run.range.start,
                length,
                offset,
            });
        }
    }
    Ok(index)
}

/// Everything that has to be as it is now.
fn check(
    recipe: &Recipe,
    frozen: &Frozen,
    (process, others): (&Process, &[Process]),
    sources: &Sources,
    embedded: &BTreeSet<PathBuf>,
) -> Result<Check, SnapshotError> {
    let mapped = mapped_files(process).into_keys();
    let mut paths: Vec<PathBuf> = mapped.filter(|path| !embedded.contains(path)).collect();
    // CRIU maps what the other processes have from the files themselves.
    paths.extend(others.iter().flat_map(|other| mapped_files(other).into_keys()));
    paths.extend(iter::once(process).chain(others).map(|one| one.exe.clone()));
    paths.extend(sources.quick.iter().cloned());
    paths.extend(iter::once(process).chain(others).flat_map(open_files));
    paths.extend(recipe.exec.iter().filter_map(|path| absolute(path).ok()));
    paths.sort_unstable();
    paths.dedup();
    let files = paths
        .iter()
        .map(|path| FileStamp::of(path).map_err(|cause| unreadable(path, cause)))
        .collect::<Result<_, _>>()?;
    Ok(Check {
        interpreter: frozen.interpreter.path.clone(),
        argv0: recipe.python.as_ref().map_or_else(|| "python3".into(), Into::into),
        libc: libc_version(process),
        kernel: kernel_release(),
        settings: frozen.settings.clone(),
        only_criu: Vec::new(),
        variables: variables(recipe, &frozen.ready),
        machine: Machine::here(),
        files,
    })
}

/// The files that a process has open: where it was in one means nothing in another. Those of the kernel's
/// own file systems are other ones each time.
fn open_files(process: &Process) -> impl Iterator<Item = PathBuf> + '_ {
    let standard = |number: u32| number <= 2;
    let of_kernel = |path: &Path| ["/proc", "/sys"].iter().any(|place| path.starts_with(place));
    process.descriptors.iter().filter_map(move |one| match &one.kind {
        DescriptorKind::File(file) if !standard(one.number) => {
            let is_file = fs::metadata(&file.path).is_ok_and(|metadata| metadata.is_file());
            (is_file && !of_kernel(&file.path)).then(|| file.path.clone())
        }
        _ => None,
    })
}

/// What the imports have read of the environment. What the recipe has set for them need not be set in
/// a run.
fn variables(recipe: &Recipe, ready: &Ready) -> Variables {
    let bytes = |text: &str| text.chars().filter_map(|byte| u8::try_from(byte).ok()).collect();
    let mut variables = Variables::default();
    for (name, values) in &ready.variables {
        let name: Vec<u8> = bytes(name);
        for value in values {
            variables.allow(name.clone(), value.as_deref().map(bytes).as_deref());
        }
        if recipe.environment.iter().any(|(set, _)| set.as_bytes() == name) {
            variables.allow(name, None);
        }
    }
    ready.families.iter().for_each(|family| variables.add_family(bytes(family)));
    ready.settable.iter().for_each(|name| variables.add_settable(bytes(name)));
    variables
}

/// The files that a run compares only when it is asked to, with the hash of each.
fn contents(paths: &BTreeSet<PathBuf>) -> Result<BTreeMap<PathBuf, u64>, SnapshotError> {
    let hash = |path: &PathBuf| {
        let stamp = FileStamp::of(path).map_err(|cause| unreadable(path, cause))?;
        Ok((path.clone(), stamp.content))
    };
    // JSON is text, and so are the names that the agent reports.
    paths.iter().filter(|path| path.to_str().is_some()).map(hash).collect()
}

fn kernel_release() -> String {
    uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// The C library's file, whose path names it: the version proper is nowhere to be had without it.
fn libc_version(process: &Process) -> String {
    process
        .vmas
        .iter()
        .find_map(|vma| match &vma.kind {
            VmaKind::File { path, .. } if is_libc(path) => Some(path.display().to_string()),
            _ => None,
        })
        .unwrap_or_default()
}

fn is_libc(path: &Path) -> bool {
    path.file_name().is_some_and(|name| {
        let name = name.as_encoded_bytes();
        name.starts_with(b"libc.so") || name.starts_with(b"libc-2")
    })
}

fn manifest(
    recipe: &Recipe,
    frozen: &Frozen,
    process: &Process,
    placements: &[Placement],
    check: &Check,
) -> Manifest {
    let ready = &frozen.ready;
    let seconds = |name: &str| {
        frozen.imported.iter().find(|(module, _)| module == name).map(|(_, seconds)| *seconds)
    };
    Manifest {
        made_by: env!("CARGO_PKG_VERSION").into(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        python: Python {
            version: ready.python.version.clone(),
            implementation: "cpython".into(),
            executable: ready.python.executable.clone(),
            interpreter: process.exe.display().to_string(),
            prefix: ready.python.prefix.clone(),
            base_prefix: ready.python.base_prefix.clone(),
            flags: recipe.flags.iter().map(|flag| lossy(flag.as_bytes())).collect(),
        },
        recipe: image::Recipe {
            name: recipe.name.clone(),
            imports: recipe.imports.clone(),
            exec: recipe.exec.iter().map(|path| lossy(path.as_os_str().as_bytes())).collect(),
            environment: recipe
                .environment
                .iter()
                .map(|(name, _)| lossy(name.as_bytes()))
                .collect(),
            withheld: frozen.withheld.clone(),
            again: recipe.again.clone(),
        },
        modules: ready
            .versions
            .iter()
            .map(|(name, version)| Module {
                name: name.clone(),
                version: Some(version.clone()),
                seconds: seconds(name),
            })
            .collect(),
        host: Host {
            name: uname()
                .map(|name| name.nodename().to_string_lossy().into_owned())
                .unwrap_or_default(),
            system: system_name(),
            kernel: check.kernel.clone(),
            libc: check.libc.clone(),
            vdso: format!("{:016x}", check.machine.vdso),
            cpu: cpu_name(),
            cpu_features: check.machine.cpu.features().into_iter().map(str::to_owned).collect(),
            isolation: match frozen.isolation {
                Isolation::Host => "host".into(),
                Isolation::UserNamespace => "userns".into(),
            },
        },
        sources: BTreeMap::new(),
        processes: Vec::new(),
        only_criu: Vec::new(),
        criu: frozen.criu.version.to_string(),
        threads: process.threads.iter().map(|thread| lossy(&thread.comm)).collect(),
        memory: figures(process, placements),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn figures(process: &Process, placements: &[Placement]) -> MemoryFigures {
    let sum = |how: How| {
        placements
            .iter()
            .filter(|placement| placement.how == how)
            .map(|placement| placement.range.end - placement.range.start)
            .sum()
    };
    let files: u64 = process
        .vmas
        .iter()
        .filter(|vma| matches!(vma.kind, VmaKind::File { .. }))
        .map(|vma| vma.range.end - vma.range.start)
        .sum();
    MemoryFigures {
        mapped: sum(How::Map),
        copied: sum(How::Copy),
        zero: sum(How::Zero),
        files,
        kinds: kinds(placements),
    }
}

fn kinds(placements: &[Placement]) -> Vec<MemoryKind> {
    let mut sums: BTreeMap<(How, Why), u64> = BTreeMap::new();
    for one in placements.iter().filter(|one| matches!(one.how, How::Map | How::Copy)) {
        *sums.entry((one.how, one.why)).or_default() += one.range.end - one.range.start;
    }
    let mut kinds: Vec<MemoryKind> = sums
        .into_iter()
        .map(|((how, why), bytes)| MemoryKind {
            what: why.to_string(),
            copied: how == How::Copy,
            bytes,
        })
        .collect();
    kinds.sort_by_key(|kind| (kind.copied, std::cmp::Reverse(kind.bytes)));
    kinds
}

/// `PRETTY_NAME` of os-release(5).
fn system_name() -> String {
    field("/etc/os-release", "PRETTY_NAME=").trim_matches('"').to_owned()
}

fn cpu_name() -> String {
    field("/proc/cpuinfo", "model name").trim_start_matches([' ', '\t', ':']).to_owned()
}

fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
}
