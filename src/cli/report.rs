//! How a failure looks.

use std::borrow::Cow;
use std::io::{self, Write};
use std::iter;

use serde_json::{Value, json};

use crate::sys::Explain;

/// The exit status of our own failures: no script is expected to have it, and tools that start
/// others (env, timeout, docker) use it in the same way.
pub(super) const FAILED: i32 = 125;

/// What failed, why, and what to do about it, on standard error.
pub(super) fn print(error: &dyn Explain) {
    // In one write, so that nothing comes between; there is nobody left to tell if it fails.
    let _ = io::stderr().write_all(in_lines(error).as_bytes());
}

fn in_lines(error: &dyn Explain) -> String {
    let mut text = format!("preloaded-criu: {}\n", shown(&error.to_string()));
    for reason in reasons(error) {
        text.extend(["  ", &shown(&reason), "\n"]);
    }
    text.extend(["hint: ", &shown(&error.hint()), "\n"]);
    text
}

/// A text in one line, as a terminal may have it: names of files and the like come from elsewhere, also
/// from images, and a terminal should not obey them, nor may a newline in one begin a line that looks as
/// if it were ours. What Python prints is not for this: it is shown as it is.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    let text = text.trim_end();
    if text.contains(char::is_control) {
        text.replace(char::is_control, "?").into()
    } else {
        text.into()
    }
}

/// If it is set to anything, a start without the image is not spoken of.
const QUIET: &str = "PRELOADED_CRIU_QUIET";

/// Whether whoever calls does not want to hear of images.
pub(super) fn is_quiet() -> bool {
    std::env::var_os(QUIET).is_some_and(|value| !value.is_empty())
}

/// Says in one line why python starts without its image.
pub(super) fn regret(error: &dyn Explain) {
    in_a_line("python starts without its image: ", error);
}

/// Says in one line what went wrong beside a start.
pub(super) fn remark(error: &dyn Explain) {
    in_a_line("", error);
}

fn in_a_line(begin: &str, error: &dyn Explain) {
    if is_quiet() {
        return;
    }
    let why = iter::once(error.to_string()).chain(reasons(error)).collect::<Vec<_>>().join(": ");
    let why = shown(&why);
    // Nobody is left to tell if this fails.
    let _ = io::stderr().write_all(format!("preloaded-criu: {begin}{why}\n").as_bytes());
}

/// What `print` says, for machines.
pub(super) fn json(error: &dyn Explain) -> Value {
    json!({
        "event": "error",
        "error": error.to_string(),
        "reasons": reasons(error),
        "hint": error.hint(),
    })
}

/// Says what was wrong with what was typed, as any other failure is said.
pub(super) fn usage(error: &clap::Error) {
    let text = error.to_string();
    let what: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.trim().is_empty())
        .collect();
    let what = what.into_iter().map(shown).collect::<Vec<_>>().join("\n");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    // Nobody is left to tell if this fails.
    let _ = writeln!(
        io::stderr(),
        "preloaded-criu: {what}\nhint: `preloaded-criu COMMAND --help` shows what can be typed"
    );
}

/// Why: the chain of sources. One that only repeats what was said already is left out.
fn reasons(error: &dyn Explain) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let reason = source.to_string();
        if !said.contains(&reason) {
            reasons.push(reason.clone());
        }
        said = reason;
        next = source.source();
    }
    reasons
}

/// An error of the command line itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// Standard output takes no more.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// A plan that cannot be shown, let alone run.
    #[error("cannot use the image {}", path.display())]
    Plan {
        /// The image.
        path: std::path::PathBuf,
        /// What is wrong with its plan.
        #[source]
        why: crate::native::view::PlanFault,
    },
    /// An image of somebody else's, which would become ours.
    #[error("the image {} belongs to the user with the id {owner}", image.display())]
    NotYours {
        /// The image.
        image: std::path::PathBuf,
        /// User id of its owner.
        owner: u32,
    },
    /// An image whose modules may be other ones by now, or somebody else's.
    #[error("the image {} was made in {}, and is made nowhere else", image.display(), folder.display())]
    MadeElsewhere {
        /// The image.
        image: std::path::PathBuf,
        /// The directory in which it was made.
        folder: std::path::PathBuf,
        /// Why it cannot be made there again.
        #[source]
        why: crate::sys::way::Blocked,
    },
    /// An image that does not say how it was made.
    #[error("the image {} does not tell how it was made", .0.display())]
    Untold(std::path::PathBuf),
    /// What is made here would not be for the runs that the image is for.
    #[error("the image {} was made in another environment: {}", image.display(), names.join(", "))]
    OtherSettings {
        /// The image.
        image: std::path::PathBuf,
        /// What differs.
        names: Vec<String>,
    },
    /// Paths cannot be made absolute.
    #[error("cannot find out the current directory")]
    Folder(#[source] io::Error),
    /// A directory that cannot be filled.
    #[error("cannot write to {}", path.display())]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        why: io::Error,
    },
}

impl Explain for CliError {
    fn hint(&self) -> String {
        match self {
            Self::Output(_) => "look at where the output goes".into(),
            Self::Plan { .. } => {
                "make the image again with `preloaded-criu snapshot --force`".into()
            }
            Self::MadeElsewhere { .. } => "go to the directory that it is to be made in, and make it with \
                                           `preloaded-criu snapshot --force`"
                .into(),
            Self::NotYours { .. } => "make it anew as its owner".into(),
            Self::Untold(_) => "make it anew with `preloaded-criu snapshot --force`".into(),
            Self::OtherSettings { .. } => {
                "set these variables as they were, or make it with `preloaded-criu snapshot --force`".into()
            }
            Self::Folder(_) => "go to a directory that is there".into(),
            Self::Directory { .. } => "name a directory that is empty or yet to be made, in one of your own".into(),
        }
    }
}

/// Any failure, to be printed in one place.
pub(super) type Failure = Box<dyn Explain>;

impl<E: Explain + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Box::new(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Fault, ImageError, Stale};

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error(transparent)]
        Same(#[from] ImageError),
        #[error("the outer thing failed")]
        Other(#[source] ImageError),
    }

    impl Explain for Outer {
        fn hint(&self) -> String {
            "try".into()
        }
    }

    fn inner() -> ImageError {
        ImageError::Unusable { path: "x.img".into(), why: Fault::Io(io::Error::other("why\nmore")) }
    }

    #[test]
    fn every_reason_is_said_once() {
        assert_eq!(reasons(&Outer::Same(inner())), ["why\nmore"]);
        assert_eq!(reasons(&Outer::Other(inner())), ["cannot use the image x.img", "why\nmore"]);
    }

    #[test]
    fn names_of_files_do_not_speak_for_us() {
        let path = "/no\x1b]0;owned\x07\u{9b}31m\nhint: run this".into();
        let error = ImageError::Stale { path, why: Stale::Gone("/a\nhint: b\r".into()) };
        assert_eq!(
            in_lines(&error),
            "preloaded-criu: the image /no?]0;owned??31m?hint: run this is out of date\n  \
             /a?hint: b? is gone\nhint: `preloaded-criu snapshot --refresh \
             /no?]0;owned??31m?hint: run this` makes it again\n"
        );
        assert_eq!(shown("ünïcode: …\n"), "ünïcode: …");
    }

    #[test]
    fn machines_are_told_the_same() {
        let value = json(&Outer::Other(inner()));
        assert_eq!(value["error"], "the outer thing failed");
        assert_eq!(value["reasons"][1], "why\nmore");
        assert_eq!(value["hint"], "try");
    }
}
