//! How a snapshot in the making is told: a line for each step on a terminal, lines of JSON for
//! machines, nothing otherwise.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde_json::json;

use super::report::shown;
use super::units;
use crate::snapshot::{self, Event};

/// Longest name that is shown in a line.
const NAME_WIDTH: usize = 44;

/// Tells somebody about the events of a snapshot.
#[derive(Debug)]
pub(super) enum Progress {
    /// A person: finished steps, and the one at hand in a line that is written over.
    Terminal {
        /// Whether the terminal can write over a line.
        rewrites: bool,
    },
    /// A machine.
    Json,
    /// Nobody.
    Silent,
}

impl Progress {
    /// What suits where our output goes.
    pub(super) fn new(json: bool) -> Self {
        if json {
            Self::Json
        } else if io::stderr().is_terminal() {
            Self::Terminal { rewrites: env::var_os("TERM").is_some_and(|term| term != "dumb") }
        } else {
            Self::Silent
        }
    }
}

impl snapshot::Progress for Progress {
    /// Tells one event. That somebody stopped listening does not stop a snapshot.
    fn event(&mut self, event: Event<'_>) {
        let _ = match self {
            Self::Json => as_json(&event).map_or(Ok(()), |line| writeln!(io::stdout(), "{line}")),
            Self::Terminal { rewrites } => match event {
                Event::Output(bytes) => {
                    let start = start(*rewrites).as_bytes();
                    io::stderr().write_all(&[start, bytes].concat())
                }
                _ => io::stderr().write_all(as_line(&event, *rewrites).as_bytes()),
            },
            // An image that takes rights to run is not made without a word.
            Self::Silent => match event {
                Event::OnlyCriu { .. } => io::stderr().write_all(as_line(&event, false).as_bytes()),
                _ => Ok(()),
            },
        };
    }
}

/// An event as one object; what imports print is not one.
fn as_json(event: &Event<'_>) -> Option<serde_json::Value> {
    Some(match event {
        Event::Withheld { variables } => json!({"event": "withheld", "variables": variables}),
        Event::Importing { module } => json!({"event": "importing", "module": module}),
        Event::Imported { module, seconds } => {
            json!({"event": "imported", "module": module, "seconds": seconds})
        }
        Event::Executing { path } => json!({"event": "executing", "path": path}),
        Event::Output(_) => return None,
        Event::Dumping { bytes } => json!({"event": "dumping", "bytes": bytes}),
        Event::Dumped { bytes, seconds } => {
            json!({"event": "dumped", "bytes": bytes, "seconds": seconds})
        }
        Event::OnlyCriu { reasons } => json!({"event": "only-criu", "reasons": reasons}),
        Event::Writing { path } => json!({"event": "writing", "image": path.to_string_lossy()}),
        Event::Written { path, bytes, seconds } => json!({
            "event": "written",
            "image": path.to_string_lossy(),
            "bytes": bytes,
            "seconds": seconds,
        }),
    })
}

fn as_line(event: &Event<'_>, rewrites: bool) -> String {
    match event {
        // A name may have control characters, which are not for the terminal.
        Event::Withheld { variables } => format!(
            "without {} (what looks like a secret is given with --env)\n",
            variables.join(", ").escape_debug()
        ),
        Event::Importing { module } => begun("import", module, rewrites),
        Event::Imported { module, seconds } => done("import", module, *seconds, rewrites),
        Event::Executing { path } => begun("exec", path, rewrites),
        Event::Output(_) => String::new(),
        Event::Dumping { bytes } => begun("dump", &units::bytes(*bytes), rewrites),
        Event::Dumped { bytes, seconds } => done("dump", &units::bytes(*bytes), *seconds, rewrites),
        Event::OnlyCriu { reasons } => format!(
            "{}preloaded-criu: only --engine criu can run this image: {}\n",
            start(rewrites),
            shown(&reasons.join("; "))
        ),
        Event::Writing { .. } => begun("write", "", rewrites),
        Event::Written { path, bytes, seconds } => {
            let text = format!("{} ({})", path.display(), units::bytes(*bytes));
            done("write", &text, *seconds, rewrites)
        }
    }
}

/// Clears the line at hand.
fn start(rewrites: bool) -> &'static str {
    if rewrites { "\r\x1b[K" } else { "" }
}

fn begun(verb: &str, what: &str, rewrites: bool) -> String {
    if rewrites { format!("\r\x1b[K{verb:<7}{} ...", shortened(what)) } else { String::new() }
}

fn done(verb: &str, what: &str, seconds: f64, rewrites: bool) -> String {
    let (start, what) = (start(rewrites), shortened(what));
    format!(
        "{start}{verb:<7}{what:<NAME_WIDTH$} {:>8}\n",
        units::duration(Duration::from_secs_f64(seconds.max(0.0)))
    )
}

/// Keeps the end of a long name, where paths and modules differ. Control characters of a file's
/// name are not for the terminal.
fn shortened(what: &str) -> Cow<'_, str> {
    let length = what.chars().count();
    if length <= NAME_WIDTH {
        return shown(what);
    }
    let cut = (length + 3).saturating_sub(NAME_WIDTH).max(3);
    let end = what.chars().skip(cut).collect::<String>();
    format!("...{}", shown(&end)).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_terminal_sees_one_line_for_each_step() {
        let seconds = 3.214;
        let begun = Event::Importing { module: "tensorflow" };
        let done = Event::Imported { module: "tensorflow", seconds };
        assert_eq!(as_line(&begun, true), "\r\x1b[Kimport tensorflow ...");
        assert_eq!(as_line(&begun, false), "");
        let line = as_line(&done, false);
        assert!(
            line.starts_with("import tensorflow  ") && line.ends_with("  3.21 s\n"),
            "{line:?}"
        );
        assert_eq!(as_line(&done, true), format!("\r\x1b[K{line}"));
        let path = Path::new("snap.img");
        let written = as_line(&Event::Written { path, bytes: 183_000_000, seconds }, false);
        assert!(written.contains("snap.img (183 MB)"), "{written:?}");
    }

    #[test]
    fn lines_stay_within_a_terminal_and_harmless() {
        let long = format!("{}/end.py", "directory/".repeat(20));
        let line = as_line(&Event::Executing { path: &long }, true);
        assert!(line.ends_with("/end.py ...") && line.chars().count() < 79, "{line:?}");
        assert_eq!(shortened("a\x1b[2Jb"), "a?[2Jb");
        let wide = "ä".repeat(NAME_WIDTH + 1);
        assert_eq!(shortened(&wide).chars().count(), NAME_WIDTH);
    }

    #[test]
    fn machines_read_one_object_a_line() {
        let value = as_json(&Event::Imported { module: "json", seconds: 1.5 }).unwrap();
        assert_eq!(value, json!({"event": "imported", "module": "json", "seconds": 1.5}));
        let value = as_json(&Event::Executing { path: "a\nb" }).unwrap();
        assert!(!value.to_string().contains('\n'));
        assert_eq!(as_json(&Event::Output(b"text")), None);
    }
}
