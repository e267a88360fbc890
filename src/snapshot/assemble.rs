//! From a dump to an image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use std::ffi::OsString;

use nix::sys::utsname::uname;

use crate::agent::Ready;
use crate::image::{
    Archive, Check, Contents, FileStamp, Host, Machine, Manifest, Memory as MemoryFigures, Module,
    PageRun, Python, Recipe, Writer,
};
use crate::native::builder::{Built, Facts, build};
use crate::native::layout::Piece;
use crate::native::xsave::XsaveLayout;
use crate::process::placement::{How, Placement, place};
use crate::process::smaps::Smaps;
use crate::process::{FileContent, Memory, OnDisk, PageSource, Process, ProcessError, VmaKind};

use super::SnapshotError;

/// A dump, and what the snapshot knows about it that CRIU does not.
pub struct Dump<'a> {
    /// CRIU's directory.
    pub directory: &'a Path,
    /// `/proc/PID/smaps` at the sync point.
    pub smaps: &'a [u8],
    /// The resident's file, as the process had it mapped, and its bytes.
    pub resident: (&'a Path, &'a [u8]),
    /// Descriptors of the snapshot's own in the process.
    pub own_descriptors: &'a [u32],
    /// What the agent said last.
    pub ready: &'a Ready,
    /// The path by which the interpreter is started.
    pub interpreter: &'a Path,
    /// What a run calls it.
    pub argv0: OsString,
    /// What was asked for.
    pub recipe: Recipe,
    /// Version of the CRIU that dumped.
    pub criu: String,
    /// How CRIU had its rights.
    pub isolation: String,
}

/// Writes the image of a dump; returns its length in bytes.
///
/// # Errors
///
/// What of the process cannot be frozen, or why the image cannot be written.
pub fn assemble(dump: &Dump<'_>, mut writer: Writer) -> Result<u64, SnapshotError> {
    let mut process = Process::load(dump.directory)?;
    let smaps = Smaps::parse(dump.smaps).map_err(ProcessError::Smaps)?;
    process.annotate(&smaps)?;
    process.adopt(dump.resident.0, dump.resident.1);
    let files = OnDisk::default();
    let memory = Memory::open(&process, &files)?;
    let placements = place(&memory)?;
    let xsave = XsaveLayout::of_this_machine().ok_or(SnapshotError::Xsave)?;
    let facts = Facts {
        thaw: dump.ready.thaw,
        default_sigint: true,
        own_descriptors: dump.own_descriptors.to_vec(),
    };
    let built = build(&memory, &placements, &facts, &xsave, writer.position())?;
    write_memory(&built, &memory, &files, &mut writer)?;
    let check = check(dump, &process)?;
    let manifest = manifest(dump, &process, &placements, &check);
    let criu = Archive::from_directory(dump.directory)
        .map_err(|cause| unreadable(dump.directory, cause))?;
    let contents = Contents {
        check: &check,
        plan: &built.plan,
        manifest: &manifest,
        criu: &criu,
        pages: &page_index(&process, &built),
    };
    Ok(writer.finish(&contents)?)
}

fn unreadable(path: &Path, source: std::io::Error) -> ProcessError {
    ProcessError::Read { path: path.to_owned(), source }
}

fn write_memory(
    built: &Built,
    memory: &Memory<'_>,
    files: &dyn FileContent,
    writer: &mut Writer,
) -> Result<(), SnapshotError> {
    let pages = &memory.process().pages;
    let dump = File::open(pages.file()).map_err(|cause| unreadable(pages.file(), cause))?;
    for piece in &built.memory {
        match piece {
            Piece::Dumped(range) => {
                for run in pages.within(range.clone()) {
                    let length = run.range.end - run.range.start;
                    match run.source {
                        PageSource::Dump(offset) => writer.append_file(&dump, offset, length)?,
                        PageSource::Adopted(offset) => {
                            let start = offset as usize;
                            writer.append(&pages.adopted()[start..start + length as usize])?
                        }
                    };
                }
            }
            Piece::Zero(length) => {
                writer.append(&vec![0; *length as usize])?;
            }
            Piece::File { path, range } => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                // What lies past the file's end reads as zeros in its last page.
                files.read_at(path, range.start, &mut bytes).map_err(|source| {
                    ProcessError::MappedFile { path: path.clone(), source }
                })?;
                writer.append(&bytes)?;
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
                pages_id: 1,
                address: run.range.start,
                length: run.range.end - run.range.start,
                offset: offset + (run.range.start - address),
            });
        }
    }
    index.sort_unstable_by_key(|run| run.address);
    index
}

/// Everything that has to be as it is now.
fn check(dump: &Dump<'_>, process: &Process) -> Result<Check, SnapshotError> {
    let mut paths: Vec<PathBuf> = process
        .vmas
        .iter()
        .filter_map(|vma| match &vma.kind {
            VmaKind::File { path, .. } => Some(path.clone()),
            _ => None,
        })
        .collect();
    paths.push(process.exe.clone());
    paths.sort_unstable();
    paths.dedup();
    let files = paths
        .iter()
        .map(|path| FileStamp::of(path).map_err(|cause| unreadable(path, cause)))
        .collect::<Result<_, _>>()?;
    Ok(Check {
        interpreter: dump.interpreter.to_owned(),
        argv0: dump.argv0.clone(),
        libc: libc_version(process),
        kernel: kernel_release(),
        machine: Machine::here(),
        files,
    })
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
    dump: &Dump<'_>,
    process: &Process,
    placements: &[Placement],
    check: &Check,
) -> Manifest {
    let ready = dump.ready;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Manifest {
        made_by: env!("CARGO_PKG_VERSION").into(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        python: Python {
            version: ready.python.version.clone(),
            implementation: ready.python.implementation.clone(),
            executable: ready.python.executable.clone(),
            interpreter: process.exe.display().to_string(),
            prefix: ready.python.prefix.clone(),
            base_prefix: ready.python.base_prefix.clone(),
            flags: Vec::new(),
        },
        recipe: dump.recipe.clone(),
        modules: ready
            .versions
            .iter()
            .map(|(name, version)| Module {
                name: name.clone(),
                version: Some(version.clone()),
                seconds: None,
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
            isolation: dump.isolation.clone(),
        },
        criu: dump.criu.clone(),
        threads: process.threads.iter().map(|thread| text(&thread.comm)).collect(),
        memory: figures(process, placements),
    }
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
    MemoryFigures { mapped: sum(How::Map), copied: sum(How::Copy), zero: sum(How::Zero), files }
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
