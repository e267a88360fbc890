//! Which pages were dumped, and where their bytes are.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// Page size of x86-64.
pub const PAGE: u64 = 4096;

/// Where the bytes of a run of pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSource {
    /// In CRIU's `pages-N.img`, at this offset.
    Dump(u64),
    /// In the bytes that [`Process::adopt`](super::Process::adopt) kept, at this offset.
    Adopted(u64),
}

/// Neighbouring pages whose bytes lie one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Their addresses.
    pub range: Range<u64>,
    /// Where the bytes are.
    pub source: PageSource,
}

impl PageRun {
    fn clip(&self, within: &Range<u64>) -> Option<Self> {
        let range = self.range.start.max(within.start)..self.range.end.min(within.end);
        let skipped = range.start.checked_sub(self.range.start)?;
        let source = match self.source {
            PageSource::Dump(offset) => PageSource::Dump(offset + skipped),
            PageSource::Adopted(offset) => PageSource::Adopted(offset + skipped),
        };
        (range.start < range.end).then_some(Self { range, source })
    }
}

/// The pages of the frozen process that have content of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    runs: Vec<PageRun>,
    file: PathBuf,
    adopted: Vec<u8>,
}

impl Pages {
    /// `runs` must be in address order and must not overlap.
    pub(crate) fn new(runs: Vec<PageRun>, file: PathBuf) -> Self {
        debug_assert!(runs.is_sorted_by(|a, b| a.range.end <= b.range.start));
        Self { runs, file, adopted: Vec::new() }
    }

    /// All runs, in address order.
    #[must_use]
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// CRIU's `pages-N.img`.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The bytes that [`PageSource::Adopted`] refers to.
    #[must_use]
    pub fn adopted(&self) -> &[u8] {
        &self.adopted
    }

    /// The runs that lie in `range`, cut to it.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = PageRun> + '_ {
        let first = self.runs.partition_point(|run| run.range.end <= range.start);
        self.runs[first..]
            .iter()
            .take_while({
                let end = range.end;
                move |run| run.range.start < end
            })
            .filter_map(move |run| run.clip(&range))
    }

    /// Sum of the runs' lengths in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.range.end - run.range.start).sum()
    }

    /// Adds the pages of `range` that have no content yet, with `bytes` from the range's start on;
    /// what lies past the last page that `bytes` reaches stays without.
    pub(crate) fn fill(&mut self, range: &Range<u64>, bytes: &[u8]) {
        let reach = (bytes.len() as u64).next_multiple_of(PAGE);
        let filled = range.start..range.end.min(range.start.saturating_add(reach));
        let mut gaps = Vec::new();
        let mut at = filled.start;
        for run in self.within(filled.clone()) {
            gaps.push(at..run.range.start);
            at = run.range.end;
        }
        gaps.push(at..filled.end);
        for gap in gaps.into_iter().filter(|gap| gap.start < gap.end) {
            let offset = self.adopted.len();
            let from = (gap.start - range.start) as usize;
            let to = bytes.len().min((gap.end - range.start) as usize);
            self.adopted.extend_from_slice(&bytes[from..to]);
            self.adopted.resize(offset + (gap.end - gap.start) as usize, 0);
            self.runs.push(PageRun { range: gap, source: PageSource::Adopted(offset as u64) });
        }
        self.runs.sort_unstable_by_key(|run| run.range.start);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{PAGE, PageRun, PageSource, Pages};

    fn pages(runs: &[(u64, u64)]) -> Pages {
        let mut offset = 0;
        let runs = runs.iter().map(|&(first, count)| {
            let run = PageRun {
                range: first * PAGE..(first + count) * PAGE,
                source: PageSource::Dump(offset),
            };
            offset += count * PAGE;
            run
        });
        Pages::new(runs.collect(), "pages-1.img".into())
    }

    #[test]
    fn runs_are_cut_to_the_range_with_their_offsets() {
        let pages = pages(&[(1, 4), (10, 2)]);
        let found: Vec<_> = pages.within(3 * PAGE..11 * PAGE).collect();
        assert_eq!(
            found,
            [
                PageRun { range: 3 * PAGE..5 * PAGE, source: PageSource::Dump(2 * PAGE) },
                PageRun { range: 10 * PAGE..11 * PAGE, source: PageSource::Dump(4 * PAGE) },
            ]
        );
        assert_eq!(pages.within(5 * PAGE..10 * PAGE).count(), 0);
    }

    #[test]
    fn filling_keeps_what_was_dumped_and_ends_with_the_bytes() {
        let mut pages = pages(&[(11, 1)]);
        let bytes: Vec<u8> = (0..2 * PAGE + 100).map(|at| (at / PAGE) as u8 + 1).collect();
        pages.fill(&(10 * PAGE..20 * PAGE), &bytes);
        let ranges: Vec<_> = pages.runs().iter().map(|run| run.range.clone()).collect();
        assert_eq!(ranges, [10 * PAGE..11 * PAGE, 11 * PAGE..12 * PAGE, 12 * PAGE..13 * PAGE]);
        assert_eq!(pages.runs()[1].source, PageSource::Dump(0));
        assert_eq!(pages.adopted().len() as u64, 2 * PAGE);
        assert_eq!(pages.adopted()[0], 1);
        assert_eq!(pages.adopted()[PAGE as usize + 99], 3);
        assert_eq!(pages.adopted()[PAGE as usize + 100], 0);
    }

    proptest! {
        #[test]
        fn within_agrees_with_looking_at_each_page(
            runs in prop::collection::vec((1_u64..5, 1_u64..5), 0..10), start in 0_u64..60, length in 0_u64..30
        ) {
            let mut at = 0;
            let runs: Vec<_> = runs.iter().map(|&(gap, count)| { at += gap; let first = at; at += count; (first, count) }).collect();
            let pages = pages(&runs);
            let found: Vec<u64> = pages.within(start * PAGE..(start + length) * PAGE)
                .flat_map(|run| (run.range.start / PAGE..run.range.end / PAGE).collect::<Vec<_>>()).collect();
            let expected: Vec<u64> = runs.iter().flat_map(|&(first, count)| first..first + count)
                .filter(|page| (start..start + length).contains(page)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
