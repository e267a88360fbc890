//! A run that is watched, before the image is finished: the memory that it writes to is what every run
//! writes to, from the caller's environment over the standard streams to the way out.
//!
//! It runs an empty script, and nothing of the user's: no hook, no function that an import wants to be
//! called at exit. Where it cannot be watched, or does not end as it should, nothing is known, and the
//! image is as good as it can be without; but one that cannot be restored here is none.

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
/// How the restorer and the resident end where they fail, and how what they say of it begins.
const OUR_FAILURE: i32 = 125;
const OUR_NAME: &str = "preloaded-criu: ";

/// What came of it.
pub(super) enum Rehearsal {
    /// The private memory of the image that a run writes to, in the order of its addresses; none where that
    /// could not be seen.
    Touched(Vec<Range<u64>>),
    /// The image could not be restored.
    Failed {
        /// Why.
        why: String,
        /// What to do.
        hint: String,
    },
}

/// Holds it.
pub(super) fn rehearse(
    frozen: &Frozen,
    image: &File,
    plan: &Section,
    view: &PlanView<'_>,
) -> Rehearsal {
    watch(frozen, image, plan, view).unwrap_or_else(|_| Rehearsal::Touched(Vec::new()))
}

fn watch(
    frozen: &Frozen,
    image: &File,
    plan: &Section,
    view: &PlanView<'_>,
) -> io::Result<Rehearsal> {
    // Its directory is searched for modules, and has none; whatever becomes of us, it is removed.
    let script = frozen.directory.join("script.py");
    let said = frozen.directory.join("script.err");
    write_new(&script, b"")?;
    write_new(&said, b"")?;
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
    let errors = File::options().append(true).open(&said)?;
    let seen = at_its_end(PATIENCE, &errors, turn, |process, status| {
        (written(process, image, view), status)
    });
    let text = String::from_utf8_lossy(&fs::read(&said)?).into_owned();
    for file in [script, said] {
        fs::remove_file(file)?;
    }
    Ok(match (seen?, failure(&text)) {
        (Some((_, Some(OUR_FAILURE))), Some(failed)) => failed,
        (Some((touched, _)), _) => Rehearsal::Touched(touched?),
        (None, _) => Rehearsal::Touched(Vec::new()),
    })
}

/// What the restorer or the resident has said: the reason stands alone in the second line.
fn failure(said: &str) -> Option<Rehearsal> {
    let mut lines = said.strip_prefix(OUR_NAME)?.lines().skip(1);
    let why = lines.next()?.trim().to_owned();
    let hint = lines.find_map(|line| line.strip_prefix("hint: "))?.to_owned();
    Some(Rehearsal::Failed { why, hint })
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
