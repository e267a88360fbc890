//! What goes wrong with CRIU.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use super::version::Version;
use crate::sys::{Explain, FILE_LIMITS, PROCESS_LIMITS, limits};

/// Why the work of CRIU was not done.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// No CRIU on this machine is of use; each one looked at has its reason.
    #[error("there is no CRIU on this machine that works")]
    NotFound(#[source] Reason),
    /// The CRIU that was asked for is too old.
    #[error("{} is CRIU {version}, and {} or later is needed", path.display(), Version::FLOOR)]
    TooOld {
        /// Its file.
        path: PathBuf,
        /// What it says that it is.
        version: Version,
    },
    /// The program cannot be executed.
    #[error("cannot execute CRIU ({})", path.display())]
    Execute {
        /// Its file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The program does not speak CRIU's protocol.
    #[error("{} does not answer as CRIU does", path.display())]
    Silent {
        /// Its file.
        path: PathBuf,
        /// What came instead of an answer.
        #[source]
        source: io::Error,
    },
    /// The connection to CRIU broke.
    #[error("the connection to CRIU failed")]
    Connection(#[source] io::Error),
    /// CRIU ended before it answered.
    #[error("CRIU ended before its work was done ({})", Ending(*status))]
    Died {
        /// How it ended, where that is known.
        status: Option<ExitStatus>,
        /// What its log says.
        #[source]
        source: Reason,
    },
    /// CRIU answered that it cannot do it.
    #[error("CRIU could not freeze the process")]
    Failed(#[source] Reason),
    /// CRIU answered that it cannot restore it.
    #[error("CRIU could not restore the process")]
    NotRestored(#[source] Reason),
}

/// What CRIU, or its log, gives as the reason.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reason {
    /// One sentence.
    pub text: String,
    /// Every error in the log, those that are not told too.
    pub errors: Vec<String>,
    /// Where the whole log is.
    pub log: Option<PathBuf>,
}

impl std::error::Error for Reason {}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text.trim_end_matches('.'))?;
        match &self.log {
            Some(log) => write!(formatter, " (the whole log is {})", log.display()),
            None => Ok(()),
        }
    }
}

/// How a program ended, for a sentence.
struct Ending(Option<ExitStatus>);

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => status.fmt(formatter),
            None => formatter.write_str("nobody knows how"),
        }
    }
}

const MEMORY: &str =
    "raise the memory limits (ulimit -v, -d; of a container: --memory; sysctl vm.max_map_count)";

/// Whether a program was not executed for want of processes, memory or descriptors: then it is not the
/// program's fault, and another one would not be executed either.
pub(super) fn is_want(error: &io::Error) -> bool {
    limits(error).is_some()
}

/// Parts of CRIU's messages, and what can be done about them.
const ADVICE: [(&str, &str); 15] = [
    // criu/servicefd.c.
    ("service_fd_base", FILE_LIMITS),
    (
        "No space left on device",
        "point TMPDIR at a directory with room for the memory of the process",
    ),
    ("Resource temporarily unavailable", PROCESS_LIMITS),
    ("Cannot allocate memory", MEMORY),
    // -ENOMEM (criu/pie/restorer.c).
    ("0xfffffffffffffff4", MEMORY),
    // It was not forked (criu/vdso.c).
    ("Compat vdso helper", PROCESS_LIMITS),
    ("sysctl", "it has to see /proc/sys: in a container, do not mask it"),
    (
        "seccomp",
        "it would have to look through a seccomp filter, and may not: take the snapshot outside of the \
         filter (in a container, and where its image is built: --security-opt seccomp=unconfined)",
    ),
    ("vDSO", "this CRIU does not know this kernel: install a newer one (scripts/install-criu)"),
    // criu/page-xfer.c. Guard regions have no content, and CRIU passes them over since 4.2.
    (
        "Can't splice all pages",
        "it cannot read a part of the memory: guard regions (madvise(2), MADV_GUARD_INSTALL; threads' \
         stacks have them since glibc 2.42) need CRIU 4.2 or later; a mapped file may have been cut off",
    ),
    (
        "VMA-s are not sorted",
        "the image has guard regions (madvise(2), MADV_GUARD_INSTALL), which need CRIU 4.2 or later; the \
         native engine restores them without CRIU",
    ),
    ("file locks", "let the imported code release its file locks before it returns"),
    ("Operation not permitted", "`preloaded-criu doctor snapshot` says what this machine forbids"),
    ("Permission denied", "`preloaded-criu doctor snapshot` says what this machine forbids"),
    ("inet", "let the imported code close its network connections before it returns"),
];

impl Explain for CriuError {
    fn hint(&self) -> String {
        if let Self::Execute { source, .. } | Self::Connection(source) = self
            && let Some(limits) = limits(source)
        {
            return limits.to_owned();
        }
        match self {
            Self::NotFound(_) | Self::TooOld { .. } => format!(
                "run scripts/install-criu, or install CRIU {} or later from your distribution",
                Version::FLOOR
            ),
            Self::Execute { .. } | Self::Silent { .. } => {
                "see what --criu, PRELOADED_CRIU_CRIU or PATH name; scripts/install-criu installs one \
                 that works"
                    .to_owned()
            }
            Self::Connection(_) => "try again".to_owned(),
            Self::Died { source, .. } | Self::Failed(source) | Self::NotRestored(source) => ADVICE
                .iter()
                .find(|(part, _)| source.text.contains(part))
                .map_or("`preloaded-criu doctor snapshot` checks CRIU and this machine", |found| found.1)
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::{CriuError, Reason};
    use crate::sys::Explain;

    #[test]
    fn a_death_is_told_with_its_signal() {
        let source = Reason {
            text: "Can't write: No space left on device.".into(),
            errors: Vec::new(),
            log: None,
        };
        let error = CriuError::Died { status: Some(ExitStatus::from_raw(9)), source };
        let text = error.to_string();
        assert!(text.contains("signal: 9"), "{text}");
        assert!(error.hint().contains("TMPDIR"));
    }

    #[test]
    fn a_reason_tells_where_the_log_is() {
        let reason = Reason {
            text: "it broke.".into(),
            errors: Vec::new(),
            log: Some("/x/criu.log".into()),
        };
        assert_eq!(reason.to_string(), "it broke (the whole log is /x/criu.log)");
    }
}
