//! What the plan of a native restore says, in CRIU's terms.

use std::collections::BTreeMap;

use restore_plan::{GUARD_INSTALL, PROTECT, SOURCE_FILE, SOURCE_IMAGE, Special};

use crate::criu::restore::{Content, Copied, Memory, Part};
use crate::image::PageRun;
use crate::native::view::PlanView;
use crate::process::PAGE;

/// The memory of a run. `pages` is the image's index; `eager`, whether what would be mapped from the image
/// is copied.
#[must_use]
pub fn memory(view: &PlanView<'_>, pages: Vec<PageRun>, eager: bool) -> Memory {
    // The frozen process's own are the first.
    let first = pages.first().map(|run| run.pages_id);
    let (own, rest): (Vec<_>, Vec<_>) =
        pages.into_iter().partition(|run| Some(run.pages_id) == first);
    let mut others: BTreeMap<u32, Vec<Copied>> = BTreeMap::new();
    for run in rest {
        others.entry(run.pages_id).or_default().push(copied(&run));
    }
    let advice = view
        .advices()
        // Guard regions are in CRIU's own list of mappings.
        .filter(|advice| advice.call != PROTECT && advice.value != GUARD_INSTALL)
        .map(|advice| (advice.start..advice.start + advice.length, advice.value))
        .collect();
    Memory { parts: parts(view, eager), copies: copies(&own, view, eager), others, advice }
}

/// Signals whose handler yields to a caller who ignores them, bit N-1 for signal N.
#[must_use]
pub fn yielding(view: &PlanView<'_>) -> u64 {
    let yielding = view.signals().filter(|signal| signal.yields != 0);
    yielding.fold(0, |set, signal| set | 1 << (signal.number - 1))
}

fn parts(view: &PlanView<'_>, eager: bool) -> Vec<Part> {
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned();
    let mut parts: Vec<Part> = view
        .sources()
        .flat_map(|source| {
            view.mappings_of(&source).map(move |mapping| Part {
                range: mapping.start..mapping.start + mapping.length,
                content: match source.kind {
                    SOURCE_IMAGE if eager => Content::Anonymous(anonymous),
                    SOURCE_IMAGE => Content::Image(mapping.offset),
                    SOURCE_FILE => Content::File(mapping.offset),
                    _ => Content::Anonymous(mapping.flags),
                },
            })
        })
        .collect();
    parts.sort_unstable_by_key(|part| part.range.start);
    parts
}

fn copied(run: &PageRun) -> Copied {
    Copied { range: run.address..run.address + run.length, offset: run.offset }
}

/// What is copied in a native restore too, but for the signal frames, which CRIU makes itself; and
/// the vDSO, which CRIU compares with the kernel's.
fn copies(own: &[PageRun], view: &PlanView<'_>, eager: bool) -> Vec<Copied> {
    let whole = |number: u64| number.is_multiple_of(PAGE);
    let mut copies: Vec<Copied> = view
        .copies()
        .filter(|copy| whole(copy.address) && whole(copy.length))
        .map(|copy| Copied { range: copy.address..copy.address + copy.length, offset: copy.offset })
        .collect();
    let of_image = view.sources().filter(|source| eager && source.kind == SOURCE_IMAGE);
    copies.extend(of_image.flat_map(|source| view.mappings_of(&source)).map(|mapping| Copied {
        range: mapping.start..mapping.start + mapping.length,
        offset: mapping.offset,
    }));
    let specials: Vec<_> = view.specials().collect();
    for run in own {
        let is_special = |special: &Special| {
            (special.start..special.start + special.length).contains(&run.address)
        };
        if specials.iter().any(is_special) {
            copies.push(copied(run));
        }
    }
    copies.sort_unstable_by_key(|copy| copy.range.start);
    copies
}
