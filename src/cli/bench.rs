//! `bench`: how fast an image is, as a table or as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::{Entry, Figures, Kind, Report, Request, bench as measure};

use super::report::{Failure, shown};
use super::{answer, args};

/// The exit status when not every run did what python itself does.
const DIFFERENT: i32 = 1;

/// Measures and prints the figures.
pub(super) fn bench(arguments: args::Bench) -> Result<i32, Failure> {
    let args::Bench { runs, seconds, json, image, arguments } = arguments;
    let request = Request {
        image,
        arguments,
        runs: runs.into(),
        budget: Duration::from_secs(seconds.into()),
    };
    let report = measure(&request)?;
    let text = if json { format!("{:#}\n", as_json(&request, &report)) } else { in_words(&report) };
    answer(&text)?;
    Ok(if report.is_same() { 0 } else { DIFFERENT })
}

fn in_words(report: &Report) -> String {
    let mut text = format!(
        "{:<24}{:>5}{:>15}{:>13}{:>11}{:>13}\n",
        "medians", "runs", "first output", "exit", "faster", "of -c pass"
    );
    for entry in &report.entries {
        let name = entry.contestant().name;
        // Writing to a string does not fail.
        let _ = match (entry.exits(), entry.why_left_out()) {
            (_, Some(why)) => {
                writeln!(text, "{name:<24}    -  {}", shown(why))
            }
            (Some(exits), None) => writeln!(
                text,
                "{name:<24}{:>5}{:>15}{:>13}{:>11}{:>13}",
                entry.runs(),
                entry.first_outputs().map(milliseconds).unwrap_or_default(),
                milliseconds(exits),
                faster(report, entry),
                times(report.times_of_floor(entry)),
            ),
            (None, None) => Ok(()),
        };
    }
    for entry in report.entries.iter().filter(|entry| entry.different() > 0) {
        let _ = writeln!(text, "{}", complaint(entry));
    }
    text
}

/// What went differently.
fn complaint(entry: &Entry) -> String {
    let (name, count) = (entry.contestant().name, entry.different());
    // The first run, which does not count for the times, is compared too.
    let all = entry.runs() + 1;
    match entry.contestant().kind {
        Kind::Standard => format!(
            "NOT COMPARED: in {count} of {all} runs, output or status of {name} were not those of its first"
        ),
        Kind::Floor => format!("NOT RIGHT: {name} failed in {count} of {all} runs"),
        Kind::Same | Kind::Optional => format!(
            "NOT RIGHT: in {count} of {all} runs, output or status of {name} were not those of python3"
        ),
    }
}

/// Of what python itself is compared with, only what has the same to do.
fn faster(report: &Report, entry: &Entry) -> String {
    match entry.contestant().kind {
        Kind::Floor => String::new(),
        _ => times(report.times_faster(entry)),
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or(String::new(), |ratio| match ratio {
        large if large >= 99.5 => format!("{large:.0} x"),
        medium if medium >= 9.95 => format!("{medium:.1} x"),
        small => format!("{small:.2} x"),
    })
}

fn milliseconds(figures: Figures) -> String {
    let milliseconds = in_milliseconds(figures.median);
    let digits = usize::from(milliseconds < 99.95) + usize::from(milliseconds < 9.995);
    format!("{milliseconds:.digits$} ms")
}

fn in_milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn as_json(request: &Request, report: &Report) -> Value {
    let figures = |figures: Option<Figures>| {
        figures.map(|figures| {
            json!({
                "median": in_milliseconds(figures.median),
                "least": in_milliseconds(figures.least),
                "most": in_milliseconds(figures.most),
            })
        })
    };
    let entries = report.entries.iter().map(|entry| {
        let words = entry.contestant().words.iter().map(|word| word.to_string_lossy());
        json!({
            "name": entry.contestant().name,
            "command": words.collect::<Vec<_>>(),
            "runs": entry.runs(),
            "first_output_ms": figures(entry.first_outputs()),
            "exit_ms": figures(entry.exits()),
            "times_faster": report.times_faster(entry),
            "times_of_pass": report.times_of_floor(entry),
            "different": entry.different(),
            "left_out": entry.why_left_out(),
        })
    });
    json!({
        "image": request.image.to_string_lossy(),
        "arguments": request.arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>(),
        "same": report.is_same(),
        "contestants": entries.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::testing::entry;

    fn report(output: &str) -> Report {
        Report {
            entries: vec![
                entry("python3", Kind::Standard, &[(400, "hello")]),
                entry("run", Kind::Same, &[(8, output)]),
                entry("python3 -c pass", Kind::Floor, &[(16, "")]),
            ],
        }
    }

    #[test]
    fn the_table_has_times_and_ratios() {
        let expected = "\
medians                  runs   first output         exit     faster   of -c pass
python3                     1         200 ms       400 ms     1.00 x       25.0 x
run                         1        4.00 ms      8.00 ms     50.0 x       0.50 x
python3 -c pass             1                     16.0 ms                  1.00 x
";
        assert_eq!(in_words(&report("hello")), expected);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = in_words(&report("hullo"));
        assert!(text.ends_with(
            "NOT RIGHT: in 1 of 2 runs, output or status of run were not those of python3\n"
        ));
    }

    #[test]
    fn machines_are_told_the_same() {
        let request = Request {
            image: "snap.img".into(),
            arguments: vec!["x.py".into()],
            runs: 1,
            budget: Duration::ZERO,
        };
        let value = as_json(&request, &report("hello"));
        assert_eq!(value["same"], true);
        assert_eq!(value["contestants"][1]["exit_ms"]["median"], 8.0);
        assert_eq!(value["contestants"][1]["times_of_pass"], 0.5);
        assert_eq!(as_json(&request, &report(""))["same"], false);
    }
}
