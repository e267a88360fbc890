//! Why there is no snapshot.

use std::fmt::Write as _;
use std::io;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

use super::python::PythonError;
use super::scratch::ScratchError;
use crate::criu::CriuError;
use crate::image::ImageError;
use crate::native::NativeError;
use crate::process::ProcessError;
use crate::sys::Explain;
use crate::sys::keeper::KeeperError;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The interpreter is not to be found or cannot be frozen.
    #[error(transparent)]
    Python(#[from] PythonError),
    /// CRIU is missing or has failed.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// Programs cannot be started as they have to be.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// There is no place for the temporary files.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// CRIU's files make no process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The process has what no plan can bring back.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The image cannot be written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Memory that has to be in the image, and that the dump does not have.
    #[error("the dump lacks the memory at {address:#x}")]
    Unreadable {
        /// Where.
        address: u64,
    },
    /// A processor, or a kernel, from before 2011.
    #[error("this machine has no XSAVE, by which registers are restored")]
    Xsave,
    /// An import or a file ended with an exception; [`SnapshotError::traceback`] is what Python says.
    #[error("{what} failed")]
    Failed {
        /// `import MODULE` or `exec FILE`.
        what: String,
        /// What Python prints.
        traceback: String,
        /// What was printed before, the end of it.
        output: String,
        /// Names of the caller's variables that it did not have, because they look like secrets.
        withheld: Vec<String>,
    },
    /// Python ended by itself.
    #[error("python ended before it could be frozen ({status}){}", during(step.as_deref()))]
    Ended {
        /// How.
        status: ExitStatus,
        /// What it was at.
        step: Option<String>,
        /// What it printed, the end of it.
        output: String,
    },
    /// Something is there that cannot be frozen.
    #[error("the process holds what cannot be frozen: {}", list(.0))]
    Refused(Vec<Refusal>),
    /// It was frozen, and cannot be brought back here.
    #[error("the image could not be restored when that was tried: {why}")]
    NotRestored {
        /// The restorer's reason.
        why: String,
        /// What it says is to be done.
        hint: String,
    },
    /// Someone asked to stop.
    #[error("interrupted ({0})")]
    Interrupted(Signal),
    /// Python reports what is no report.
    #[error("python's report makes no sense")]
    Report(#[source] serde_json::Error),
    /// The system refused something that it hardly ever does.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// Something that cannot be frozen, and who made it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// As a phrase: `an open socket (descriptor 5)`.
    pub what: String,
    /// After which step it was there, if that is known: `import MODULE`.
    pub owner: Option<String>,
}

impl SnapshotError {
    /// The error of a python that did not have these variables of the caller's.
    #[must_use]
    pub(super) fn without(mut self, variables: &[String]) -> Self {
        if let Self::Failed { withheld, .. } = &mut self {
            *withheld = variables.to_vec();
        }
        self
    }

    /// What the imported code printed before it failed, the end of it: to be shown where it was not
    /// shown when it was printed.
    #[must_use]
    pub fn output(&self) -> Option<&str> {
        match self {
            Self::Failed { output, .. } | Self::Ended { output, .. } => Some(output),
            _ => None,
        }
        .map(String::as_str)
        .filter(|output| !output.is_empty())
    }

    /// What Python says about a failing import: to be shown before the error itself.
    #[must_use]
    pub fn traceback(&self) -> Option<&str> {
        match self {
            Self::Failed { traceback, .. } => Some(traceback),
            _ => None,
        }
    }

    /// The signal that asked to stop, for whoever wants to end by it.
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        match self {
            Self::Interrupted(signal) => Some(*signal),
            _ => None,
        }
    }
}

/// What python prints where the agent does not find its first module beyond the built-in ones.
const NO_JSON: &str = "No module named 'json'";

/// What Python, the resident (before there is a Python to say it) and the C++ library print for want of
/// memory.
const TOO_LITTLE: [&str; 3] = ["MemoryError", "cannot read the agent", "std::bad_alloc"];

impl Explain for SnapshotError {
    fn hint(&self) -> String {
        match self {
            Self::Python(error) => error.hint(),
            Self::Criu(error) => error.hint(),
            Self::Keeper(error) => error.hint(),
            Self::Scratch(error) => error.hint(),
            Self::Process(error) => error.hint(),
            Self::Native(error) => error.hint(),
            Self::Image(error) => error.hint(),
            Self::Xsave => "use a processor with AVX and a kernel that uses it".to_owned(),
            Self::Failed { withheld, .. } if !withheld.is_empty() => format!(
                "make it work with this python first; it was made without variables that look like \
                 secrets ({}): what an import really needs is given with --env NAME=VALUE",
                withheld.join(", ")
            ),
            Self::Failed { .. } => {
                "make it work with this python first: the import sees the same current directory, \
                 PYTHONPATH and environment as `python3 -c` does"
                    .to_owned()
            }
            Self::Ended { output, .. } if output.contains(NO_JSON) => {
                "install the interpreter's whole standard library (Debian: python3, not \
                 python3-minimal alone)"
                    .to_owned()
            }
            Self::Ended { output, .. } if TOO_LITTLE.iter().any(|part| output.contains(part)) => {
                "it lacks memory: raise the limits (ulimit -v, -d; of a container: --memory), or import less"
                    .to_owned()
            }
            Self::Ended { .. } => {
                "what is imported must not end the process; what it printed may say more".to_owned()
            }
            Self::Refused(refusals) => advice(refusals).to_owned(),
            Self::NotRestored { hint, .. } => hint.clone(),
            Self::Interrupted(_) => "nothing was written; start again when it suits you".to_owned(),
            Self::Report(_) | Self::System { .. } | Self::Unreadable { .. } => {
                "`preloaded-criu doctor snapshot` looks at this machine".to_owned()
            }
        }
    }
}

fn advice(refusals: &[Refusal]) -> &'static str {
    let some = |part: &str| refusals.iter().any(|refusal| refusal.what.contains(part));
    if some("which is not CPython") {
        "name another interpreter with --python"
    } else if some("CUDA") || some("GPU") {
        "a GPU's memory is not in the process: leave its initialisation to the script, or hide the \
         GPU from the imports (--env CUDA_VISIBLE_DEVICES=)"
    } else if some("seccomp filter") {
        "nobody can take a filter away again: let the script install it, not the import"
    } else if some("a change of ") {
        "a run has of this what its caller has: let the script change it, not the import"
    } else if some("socket") {
        "let the module connect when it is used, not when it is imported, or close the connection in \
         an --exec file; a pair within the process can be frozen for CRIU's own restore: --engine criu"
    } else if some("child process") {
        "end the child processes in an --exec file, or let the script start them; or freeze them too, for \
         CRIU's own restore, which takes rights to run: --engine criu"
    } else if ["timer", "pipe", "eventfd", "epoll", "signalfd"].iter().any(|part| some(part)) {
        "close it in an --exec file, or let the script make it; or freeze it too, for CRIU's own restore, \
         which takes rights to run: --engine criu"
    } else {
        "close it in an --exec file, or let the script open it"
    }
}

fn during(step: Option<&str>) -> String {
    step.map_or_else(String::new, |step| format!(" during {step}"))
}

pub(super) fn list(refusals: &[Refusal]) -> String {
    let mut text = String::new();
    for refusal in refusals {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&refusal.what);
        if let Some(owner) = &refusal.owner {
            let _ = write!(text, ", there since {owner}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Refusal, SnapshotError};
    use crate::sys::Explain;

    #[test]
    fn a_refusal_names_the_owner() {
        let refused = |what: &str, owner: Option<&str>| Refusal {
            what: what.to_owned(),
            owner: owner.map(ToOwned::to_owned),
        };
        let error = SnapshotError::Refused(vec![
            refused("an open socket (descriptor 5)", Some("import redis")),
            refused("a file lock", None),
        ]);
        assert_eq!(
            error.to_string(),
            "the process holds what cannot be frozen: an open socket (descriptor 5), there since \
             import redis; a file lock"
        );
        assert!(error.hint().contains("connect"));
    }

    #[test]
    fn a_failing_import_shows_what_python_says() {
        let error = SnapshotError::Failed {
            what: "import nosuch".into(),
            traceback: "ModuleNotFoundError: No module named 'nosuch'\n".into(),
            output: "hello\n".into(),
            withheld: Vec::new(),
        };
        assert_eq!(error.to_string(), "import nosuch failed");
        assert_eq!(error.output(), Some("hello\n"));
        assert!(error.traceback().is_some_and(|text| text.starts_with("ModuleNotFoundError")));
    }
}
