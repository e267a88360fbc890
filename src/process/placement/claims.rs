//! Who owns which addresses.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Why;

/// Ranges of addresses and what they were proven to be; no two overlap.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_start: BTreeMap<u64, (u64, Why)>,
}

impl Claims {
    /// Adds a range unless a part of it is taken: of two proofs that contradict each other the one
    /// that comes first wins, so the caller begins with the strongest.
    pub(super) fn add(&mut self, range: Range<u64>, why: Why) -> bool {
        let free = range.start < range.end && !self.touches(&range);
        if free {
            self.by_start.insert(range.start, (range.end, why));
        }
        free
    }

    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        let before = self.by_start.range(..range.end).next_back();
        before.is_some_and(|(_, (end, _))| *end > range.start)
    }

    /// `range` in pieces, each with its owner if it has one, in address order.
    pub(super) fn split(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<Why>)> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let first = self.by_start.range(..=range.start).next_back();
        let rest =
            self.by_start.range(range.start.saturating_add(1)..range.end.max(range.start + 1));
        for (start, (end, why)) in first.into_iter().chain(rest) {
            let claimed = (*start).max(range.start)..(*end).min(range.end);
            if claimed.start >= claimed.end {
                continue;
            }
            if at < claimed.start {
                pieces.push((at..claimed.start, None));
            }
            at = claimed.end;
            pieces.push((claimed, Some(*why)));
        }
        if at < range.end {
            pieces.push((at..range.end, None));
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Claims, Why};

    proptest! {
        #[test]
        fn pieces_agree_with_looking_at_each_address(
            wanted in prop::collection::vec((0_u64..60, 1_u64..12), 0..12), start in 0_u64..60, length in 0_u64..40
        ) {
            let mut claims = Claims::default();
            let mut owned = [false; 128];
            for (at, length) in wanted {
                let range = at..at + length;
                let free = range.clone().all(|at| !owned[at as usize]);
                prop_assert_eq!(claims.touches(&range), !free);
                prop_assert_eq!(claims.add(range.clone(), Why::Stack), free);
                if free {
                    range.for_each(|at| owned[at as usize] = true);
                }
            }
            let mut at = start;
            for (range, why) in claims.split(start..start + length) {
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end > range.start);
                prop_assert!(range.clone().all(|at| owned[at as usize] == why.is_some()));
                at = range.end;
            }
            prop_assert_eq!(at, start + length);
        }
    }
}
