//! A run that is watched, before the image is finished: the memory that it writes to is what every run
//! writes to, from the caller's environment over the standard streams to the way out.
//!
//! It runs an empty script, and nothing of the user's: no hook, no function that an import wants to be
//! called at exit. Where it cannot be watched, or does not end as it should, nothing is known, and the
//! image is as good as it can be without.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use nix::unistd::Pid;
use restore_plan::{OPTION_REHEARSAL, PAGE, SOURCE_IMAGE};

use super::frozen::Frozen;
use crate::image::Section;
use crate::native::exec::{Launch, exec};
use crate::native::view::PlanView;
use crate::sys::observe::at_its_end;
use crate::sys::private::write_new;
use crate::sys::procfs::ProcessDirectory;

const PATIENCE: Duration = Duration::from_secs(20);
const PROT_WRITE: u32 = 2;

/// The private memory of the image that a run writes to, in the order of its addresses; none where that
/// could not be seen.
pub(super) fn touched(
    frozen: &Frozen,
    image: &File,
    plan: &Section,
    view: &PlanView<'_>,
) -> Vec<Range<u64>> {
    watch(frozen, image, plan, view).ok().flatten().unwrap_or_default()
}

fn watch(
    frozen: &Frozen,
    image: &File,
    plan: &Section,
    view: &PlanView<'_>,
) -> io::Result<Option<Vec<Range<u64>>>> {
    // Its directory is searched for modules, and has none; whatever becomes of us, it is removed.
    let script = frozen.directory.join("script.py");
    write_new(&script, b"")?;
    let name = frozen.arguments.first().cloned();
    let launch = Launch {
        image: OwnedFd::from(image.try_clone()?),
        plan_offset: plan.offset,
        plan_length: plan.length,
        interpreter: frozen.interpreter.path.clone(),
        arguments: vec![name.unwrap_or_else(|| OsString::from("python3")), script.clone().into()],
        least_descriptor: view.least_descriptor(),
        options: OPTION_REHEARSAL,
        children: None,
    };
    let turn = || -> Option<Infallible> { exec(launch).ok() };
    let seen = at_its_end(PATIENCE, turn, |process| written(process, image, view));
    fs::remove_file(script)?;
    seen?.transpose()
}

/// Which pages of the image's private mappings a process has copies of (the kernel's
/// Documentation/admin-guide/mm/pagemap.rst).
fn written(process: Pid, image: &File, view: &PlanView<'_>) -> io::Result<Vec<Range<u64>>> {
    const WORD: usize = 8;
    const PRESENT: u64 = 1 << 63;
    const OF_A_FILE: u64 = 1 << 61;
    let mut written: Vec<Range<u64>> = Vec::new();
    let process = ProcessDirectory::open(process)?;
    if !has_mapped(&process, image)? {
        return Ok(written);
    }
    let pagemap = process.file("pagemap")?;
    let source = view.sources().find(|source| source.kind == SOURCE_IMAGE);
    let mappings = source.into_iter().flat_map(|source| view.mappings_of(&source));
    let mut words = Vec::new();
    let mut mappings: Vec<_> = mappings.filter(|mapping| mapping.prot & PROT_WRITE != 0).collect();
    mappings.sort_unstable_by_key(|mapping| mapping.start);
    for mapping in mappings {
        let first = mapping.start / PAGE;
        words.resize((mapping.length / PAGE) as usize * WORD, 0);
        pagemap.read_exact_at(&mut words, first * WORD as u64)?;
        for (page, word) in (first..).zip(words.chunks_exact(WORD)) {
            let word = word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
            if word & PRESENT == 0 || word & OF_A_FILE != 0 {
                continue;
            }
            match written.last_mut() {
                Some(last) if last.end == page * PAGE => last.end += PAGE,
                _ => written.push(page * PAGE..(page + 1) * PAGE),
            }
        }
    }
    Ok(written)
}

/// Whether it has become the frozen process: where that cannot be, it is a new interpreter.
fn has_mapped(process: &ProcessDirectory, image: &File) -> io::Result<bool> {
    let inode = image.metadata()?.ino().to_string();
    Ok(process
        .text("maps")?
        .lines()
        .any(|line| line.split_ascii_whitespace().nth(4) == Some(inode.as_str())))
}
