//! What this machine allows: probes, what they found, and what to do about it.
//!
//! Each side gathers facts first and judges them afterwards, so that the judgement can be tested
//! without the machine that it is about.

mod run;
mod snapshot;
mod system;

use std::path::Path;

/// What the machine was examined for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Running images.
    Run,
    /// Making images.
    Snapshot,
}

impl Subject {
    /// Its name: that of the command.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Snapshot => "snapshot",
        }
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Good,
    /// It works, but may not for every image, or not as fast as it could.
    Doubtful,
    /// It does not work.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in one or two words that do not change.
    pub name: &'static str,
    /// How bad it is.
    pub status: Status,
    /// What was found, as a sentence without its dot.
    pub text: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Finding {
    fn good(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, status: Status::Good, text: text.into(), fix: None }
    }

    fn doubtful(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Doubtful, text: text.into(), fix: Some(fix.into()) }
    }

    fn missing(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Missing, text: text.into(), fix: Some(fix.into()) }
    }
}

/// All that was found for one subject.
#[derive(Clone, Debug)]
pub struct Report {
    /// What for.
    pub subject: Subject,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether it will work.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.status != Status::Missing)
    }
}

/// Examines the machine. `criu` is the program to look at, if one was named.
#[must_use]
pub fn examine(subject: Subject, criu: Option<&Path>) -> Report {
    let findings = match subject {
        Subject::Run => run::Facts::gather().judge(),
        Subject::Snapshot => snapshot::Facts::gather(criu).judge(),
    };
    Report { subject, findings }
}
