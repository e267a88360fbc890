//! A user, mount and process namespace of one's own (user_namespaces(7)), in which an ordinary user
//! has the capabilities that CRIU asks for.

use std::fmt;
use std::fs;
use std::io;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};

/// A step on the way into the namespaces, for the one who has to hear that it failed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Step {
    /// A process of its own to live in.
    Fork,
    /// The namespaces themselves.
    Unshare,
    /// The user's own number inside.
    Identity,
    /// Mounts that do not show outside.
    Mounts,
    /// `/proc` with the processes inside.
    Proc,
    /// A session for the programs to be started.
    Session,
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Fork => "start a helper process",
            Self::Unshare => "make a user namespace",
            Self::Identity => "keep the user's identity in a user namespace",
            Self::Mounts => "make mounts private in a user namespace",
            Self::Proc => "mount /proc in a user namespace",
            Self::Session => "start a session",
        })
    }
}

/// A step and why the kernel refused it.
pub(super) type Refused = (Step, io::Error);

/// Moves this process into a user and a mount namespace, and its next child into a process
/// namespace. The user keeps the number that it has, and nothing else is mapped.
pub(super) fn enter() -> Result<(), Refused> {
    let (user, group) = (geteuid(), getegid());
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    unshare(flags).map_err(|errno| (Step::Unshare, errno.into()))?;
    let identity = |error| (Step::Identity, error);
    fs::write("/proc/self/uid_map", format!("{user} {user} 1")).map_err(identity)?;
    // Without this the kernel lets no ordinary user map its group.
    fs::write("/proc/self/setgroups", "deny").map_err(identity)?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1")).map_err(identity)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|errno| (Step::Mounts, errno.into()))
}

/// Lets `/proc` show the process namespace that this process is the first one of.
pub(super) fn mount_proc() -> Result<(), Refused> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)
        .map_err(|errno| (Step::Proc, errno.into()))
}
