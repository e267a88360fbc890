//! Where each dumped page lies, so that CRIU's `pages-N.img` can be made again.
//!
//! A record is four numbers (u64): the N of `pages-N.img`, address, length, offset in the image.

use std::ops::Range;

use super::bytes::Cursor;
use super::format::PAGE;

/// A run of pages that follow each other in `pages-N.img`, in memory and in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The N of `pages-N.img`.
    pub pages_id: u32,
    /// Address in the frozen process.
    pub address: u64,
    /// Length in bytes, a multiple of the page.
    pub length: u64,
    /// Offset in the image, a multiple of the page.
    pub offset: u64,
}

/// The index as bytes. The runs of one `pages_id` must be in the order of that file.
#[must_use]
pub(super) fn encode(runs: &[PageRun]) -> Vec<u8> {
    let fields =
        runs.iter().flat_map(|run| [run.pages_id.into(), run.address, run.length, run.offset]);
    fields.flat_map(u64::to_le_bytes).collect()
}

/// Reads an index. `None` unless every run is whole pages of the part of the image that is `memory`.
#[must_use]
pub fn decode(bytes: &[u8], memory: &Range<u64>) -> Option<Vec<PageRun>> {
    let mut runs = Vec::new();
    let mut cursor = Cursor::new(bytes);
    while !cursor.is_at_end() {
        let run = PageRun {
            pages_id: u32::try_from(cursor.u64()?).ok()?,
            address: cursor.u64()?,
            length: cursor.u64()?,
            offset: cursor.u64()?,
        };
        let aligned = [run.address, run.length, run.offset].iter().all(|n| n.is_multiple_of(PAGE));
        let end = run.offset.checked_add(run.length)?;
        run.address.checked_add(run.length)?;
        if !aligned || run.length == 0 || run.offset < memory.start || end > memory.end {
            return None;
        }
        runs.push(run);
    }
    Some(runs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEMORY: Range<u64> = PAGE..10 * PAGE;

    fn run() -> PageRun {
        PageRun { pages_id: 1, address: 0x7f00_0000_0000, length: 2 * PAGE, offset: PAGE }
    }

    #[test]
    fn it_is_read_as_it_was_made() {
        let runs = [run(), PageRun { pages_id: 2, offset: 8 * PAGE, ..run() }];
        assert_eq!(decode(&encode(&runs), &MEMORY).unwrap(), runs);
        assert_eq!(decode(b"", &MEMORY), Some(vec![]));
    }

    #[test]
    fn runs_outside_the_memory_are_refused() {
        for wrong in [
            PageRun { offset: 9 * PAGE, ..run() },
            PageRun { offset: 0, ..run() },
            PageRun { offset: PAGE + 1, ..run() },
            PageRun { length: 0, ..run() },
            PageRun { length: PAGE - 1, ..run() },
            PageRun { length: PAGE.wrapping_neg(), ..run() },
            PageRun { address: PAGE.wrapping_neg(), ..run() },
            PageRun { address: 1, ..run() },
        ] {
            assert_eq!(decode(&encode(&[wrong]), &MEMORY), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(runs) = decode(&bytes, &MEMORY) {
                prop_assert_eq!(encode(&runs), bytes);
            }
        }
    }
}
