//! Why there is no native restore.

use std::path::PathBuf;

use super::view::PlanFault;
use crate::process::ProcessError;
use crate::sys::{Explain, MOUNT_PROC, limits};

/// What went wrong between the frozen process and the interpreter that is to become it.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The dump cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A dump without a thread.
    #[error("the dump has no thread")]
    NoThread,
    /// A thread whose stack has no room for its own restore.
    #[error("thread {thread} has no room below its stack pointer {address:#x}")]
    Stack {
        /// TID at dump time.
        thread: u32,
        /// Its stack pointer.
        address: u64,
    },
    /// A mapping that a plan cannot say.
    #[error("the mapping at {start:#x} cannot be restored: {kind}")]
    Mapping {
        /// Its first address.
        start: u64,
        /// What it is.
        kind: String,
    },
    /// A path that cannot be opened by name.
    #[error("a mapped file has no usable path: {path}")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The main thread is not in the resident's read(2).
    #[error("the main thread was frozen at {address:#x}, which is not the sync point")]
    NotAtSyncPoint {
        /// Its instruction pointer.
        address: u64,
    },
    /// The vDSO and its data pages are not in one row.
    #[error("the vDSO lies apart from its data pages")]
    Vdso,
    /// A plan that the launcher would refuse.
    #[error("no run would accept the restore plan")]
    Plan(#[from] PlanFault),
    /// The restorer cannot be handed over.
    #[error("the restorer cannot be handed to the interpreter")]
    Handover(#[source] std::io::Error),
    /// The restorer cannot be named.
    #[error("/proc does not show this process")]
    NoProc(#[source] std::io::Error),
    /// An argument with a NUL byte.
    #[error("an argument holds a NUL byte")]
    Argument(#[from] std::ffi::NulError),
    /// The interpreter cannot be started.
    #[error("cannot start {interpreter}")]
    Exec {
        /// Its path.
        interpreter: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: std::io::Error,
    },
}

impl Explain for NativeError {
    fn hint(&self) -> String {
        match self {
            Self::Process(error) => error.hint(),
            Self::Handover(_) => {
                "allow files in memory to be executed (sysctl vm.memfd_noexec=1), and raise \
                 'ulimit -n' and 'ulimit -f'"
                    .into()
            }
            Self::NoProc(why) => limits(why).unwrap_or(MOUNT_PROC).into(),
            Self::Exec { .. } => "make the snapshot anew with the interpreter that is there".into(),
            Self::Argument(_) => "leave the NUL byte out".into(),
            _ => "leave out the import that did this, and tell us about it".into(),
        }
    }
}
