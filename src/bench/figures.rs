//! What was measured.

use std::time::Duration;

use super::contestants::{Contestant, Kind};
use super::stopwatch::Outcome;

/// All that was measured, and whether everyone did the same.
#[derive(Clone, Debug)]
pub struct Report {
    /// The contestants, the standard first.
    pub entries: Vec<Entry>,
}

impl Report {
    /// Whether each run had the standard's output and status.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.entries.iter().all(|entry| entry.different == 0)
    }

    /// How many times as fast as python itself.
    #[must_use]
    pub fn times_faster(&self, entry: &Entry) -> Option<f64> {
        self.exit_of(|entry| entry.contestant.kind == Kind::Standard)
            .and_then(|standard| ratio(standard, entry.exit()?))
    }

    /// How many times as long as the python that does nothing.
    #[must_use]
    pub fn times_of_floor(&self, entry: &Entry) -> Option<f64> {
        self.exit_of(|entry| entry.contestant.kind == Kind::Floor)
            .and_then(|floor| ratio(entry.exit()?, floor))
    }

    fn exit_of(&self, is_it: impl Fn(&Entry) -> bool) -> Option<Duration> {
        self.entries.iter().find(|entry| is_it(entry))?.exit()
    }
}

fn ratio(of: Duration, to: Duration) -> Option<f64> {
    (!to.is_zero()).then(|| of.as_secs_f64() / to.as_secs_f64())
}

/// What came of one contestant.
#[derive(Clone, Debug)]
pub struct Entry {
    contestant: Contestant,
    turns: usize,
    exits: Vec<Duration>,
    first_outputs: Vec<Duration>,
    different: usize,
    left_out: Option<String>,
}

/// Figures of one kind of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Half of the runs took no longer.
    pub median: Duration,
    /// The fastest run.
    pub least: Duration,
    /// The slowest run.
    pub most: Duration,
}

impl Entry {
    /// One that is to be run.
    pub(super) fn new(contestant: Contestant, turns: usize) -> Self {
        Self {
            contestant,
            turns,
            exits: Vec::new(),
            first_outputs: Vec::new(),
            different: 0,
            left_out: None,
        }
    }

    /// One that cannot be run.
    pub(super) fn left_out(contestant: Contestant, why: String) -> Self {
        Self { left_out: Some(why), ..Self::new(contestant, 0) }
    }

    /// What was run.
    #[must_use]
    pub fn contestant(&self) -> &Contestant {
        &self.contestant
    }

    /// How often it is to be run.
    pub(super) fn turns(&self) -> usize {
        self.turns
    }

    /// How often it was timed.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.exits.len()
    }

    /// How many runs had another output or status than the standard's first.
    #[must_use]
    pub fn different(&self) -> usize {
        self.different
    }

    /// Why it could not be run.
    #[must_use]
    pub fn why_left_out(&self) -> Option<&str> {
        self.left_out.as_deref()
    }

    /// From the start to the first output, if each run had one.
    #[must_use]
    pub fn first_outputs(&self) -> Option<Figures> {
        if self.first_outputs.len() < self.exits.len() {
            return None;
        }
        figures(&self.first_outputs)
    }

    /// From the start to the end.
    #[must_use]
    pub fn exits(&self) -> Option<Figures> {
        figures(&self.exits)
    }

    fn exit(&self) -> Option<Duration> {
        self.exits().map(|figures| figures.median)
    }

    /// Takes a run into account.
    pub(super) fn add(&mut self, outcome: &Outcome, standard: &Outcome) {
        self.exits.push(outcome.ended);
        self.first_outputs.extend(outcome.first_output);
        self.compare(outcome, standard);
    }

    /// Takes into account only what a run has done.
    pub(super) fn compare(&mut self, outcome: &Outcome, standard: &Outcome) {
        let is_same = match self.contestant.kind {
            Kind::Floor => outcome.status.success(),
            _ => outcome.status == standard.status && outcome.output == standard.output,
        };
        self.different += usize::from(!is_same);
    }
}

fn figures(times: &[Duration]) -> Option<Figures> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let (least, most) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2,
        _ => sorted[middle],
    };
    Some(Figures { median, least, most })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn ended(milliseconds: u64, output: &str, code: i32) -> Outcome {
        Outcome {
            first_output: (!output.is_empty()).then(|| Duration::from_millis(milliseconds / 2)),
            ended: Duration::from_millis(milliseconds),
            output: output.into(),
            status: ExitStatus::from_raw(code << 8),
        }
    }

    /// One whose runs took so many milliseconds and had these outputs; the standard's is `hello`.
    pub(crate) fn entry(name: &'static str, kind: Kind, runs: &[(u64, &str)]) -> Entry {
        let outcomes = runs.iter().map(|(time, output)| ended(*time, output, 0));
        entry_of(name, kind, &outcomes.collect::<Vec<_>>())
    }

    fn entry_of(name: &'static str, kind: Kind, outcomes: &[Outcome]) -> Entry {
        let contestant = Contestant { name, kind, words: vec![name.into()] };
        let mut entry = Entry::new(contestant, outcomes.len());
        for outcome in outcomes {
            entry.add(outcome, &ended(0, "hello", 0));
        }
        entry
    }

    #[test]
    fn medians_are_in_the_middle() {
        let of = |times: &[u64]| {
            let times: Vec<_> = times.iter().map(|time| Duration::from_millis(*time)).collect();
            figures(&times).map(|figures| figures.median.as_millis())
        };
        assert_eq!(of(&[5, 1, 3]), Some(3));
        assert_eq!(of(&[5, 1, 3, 30]), Some(4));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn what_differs_is_counted() {
        let outcomes =
            [ended(8, "hello", 0), ended(8, "hullo", 0), ended(8, "hello", 1), ended(8, "", 0)];
        let entry = entry_of("run", Kind::Same, &outcomes);
        assert_eq!((entry.different(), entry.first_outputs()), (3, None));
        assert_eq!(entry_of("floor", Kind::Floor, &outcomes).different(), 1);
    }

    #[test]
    fn ratios_are_those_of_medians() {
        let report = Report {
            entries: vec![
                entry("python3", Kind::Standard, &[(400, "hello")]),
                entry("run", Kind::Same, &[(8, "hello")]),
                entry("python3 -c pass", Kind::Floor, &[(16, "")]),
            ],
        };
        assert!(report.is_same());
        assert_eq!(report.times_faster(&report.entries[1]), Some(50.0));
        assert_eq!(report.times_of_floor(&report.entries[1]), Some(0.5));
        let contestant = report.entries[1].contestant().clone();
        let absent = Entry::left_out(contestant, "no".into());
        assert_eq!(report.times_faster(&absent), None);
    }
}
