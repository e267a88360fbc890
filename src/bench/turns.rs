//! Who runs when: everyone as often as time allows, and the rare runs of the slow ones spread over
//! the whole measurement.

use std::time::Duration;

use super::LEAST_RUNS;

/// How many of `most` turns one takes part in whose run takes `each`.
pub(super) fn turns(each: Duration, budget: Duration, most: usize) -> usize {
    let fitting = budget.as_nanos() / each.as_nanos().max(1);
    usize::try_from(fitting).unwrap_or(usize::MAX).max(LEAST_RUNS).min(most)
}

/// Whether one that takes part in `count` of `all` turns takes part in this one.
pub(super) fn is_due(count: usize, all: usize, turn: usize) -> bool {
    let before = |turn: usize| turn * count / all.max(1);
    before(turn) < before(turn + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn slow_ones_run_less_often() {
        assert_eq!(turns(SECOND / 100, 10 * SECOND, 30), 30);
        assert_eq!(turns(SECOND, 10 * SECOND, 30), 10);
        assert_eq!(turns(60 * SECOND, 10 * SECOND, 30), LEAST_RUNS);
        assert_eq!(turns(60 * SECOND, 10 * SECOND, 1), 1);
        assert_eq!(turns(Duration::ZERO, 10 * SECOND, 30), 30);
    }

    proptest! {
        #[test]
        fn every_turn_is_taken_and_they_are_spread(all in 1_usize..200, part in 0_usize..200) {
            let count = part.min(all);
            let due: Vec<usize> = (0..all).filter(|turn| is_due(count, all, *turn)).collect();
            prop_assert_eq!(due.len(), count);
            for pair in due.windows(2) {
                prop_assert!(pair[1] - pair[0] <= all / count + 1);
            }
        }
    }
}
