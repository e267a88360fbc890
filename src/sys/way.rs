//! The way to a file or a directory, gone step by step, so that each directory and each symbolic link
//! on it is seen: whoever may rename what lies on the way decides what is found at its end.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{geteuid, getuid};

use super::capabilities::exceeds_its_caller;

/// How many symbolic links are followed: as many as the kernel follows (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

const WRITABLE_BY_ALL: u32 = 0o002;
/// In such a directory everyone renames and removes what is their own only (inode(7)).
const STICKY: u32 = 0o1000;

/// Why a way is not gone to its end.
#[derive(Debug, thiserror::Error)]
pub enum Blocked {
    /// The system refused.
    #[error("{0}")]
    Io(io::Error),
    /// Its end is no file.
    #[error("it is {0}, not a file")]
    NotAFile(&'static str),
    /// Anyone could have put something else in its place.
    #[error("everyone may rename and replace files in {}", directory.display())]
    OpenDirectory {
        /// The directory on the way.
        directory: PathBuf,
    },
    /// Somebody else could put something else in its place.
    #[error("{} belongs to the user with the id {owner}, who may rename and replace files in it",
        directory.display())]
    ForeignDirectory {
        /// The directory on the way.
        directory: PathBuf,
        /// User id of its owner.
        owner: u32,
    },
    /// Others could have put the link there.
    #[error("{} is somebody else's symbolic link in a directory that everyone may write to",
        link.display())]
    LinkInOpenDirectory {
        /// The link.
        link: PathBuf,
    },
}

impl From<Errno> for Blocked {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// What is to be found at the end of a way.
#[derive(Clone, Copy, Eq, PartialEq)]
enum End {
    /// A file to be read; its owner vouches for it, and not those of the directories above it.
    File,
    /// A directory to make something in that nobody else can rename.
    Place,
}

/// Opens a file for reading, if nobody but the `trusted` and the owners of the directories above it
/// could have put it there.
///
/// # Errors
///
/// [`Blocked`], but for `ForeignDirectory`.
pub fn open_file(path: &Path, trusted: &[u32]) -> Result<OwnedFd, Blocked> {
    walk(path, trusted, End::File)
}

/// Opens a directory (`O_PATH`), if nobody but the `trusted` can rename what they make in it.
///
/// # Errors
///
/// [`Blocked`], but for `NotAFile`.
pub fn open_place(path: &Path, trusted: &[u32]) -> Result<OwnedFd, Blocked> {
    walk(path, trusted, End::Place)
}

/// Whose files are believed: one's own, root's, and as root under sudo those of the one who called it.
/// A program that its caller has not the rights of believes no variable of the caller's.
#[must_use]
pub fn trusted_owners() -> Vec<u32> {
    let caller = geteuid();
    let mut trusted = vec![0, caller.as_raw()];
    if caller.is_root() && getuid().is_root() && !exceeds_its_caller() {
        let invoker = env::var("SUDO_UID").ok().and_then(|uid| uid.parse::<u32>().ok());
        trusted.extend(invoker);
    }
    trusted
}

fn walk(path: &Path, trusted: &[u32], end: End) -> Result<OwnedFd, Blocked> {
    let mut ahead: VecDeque<OsString> = steps(path).collect();
    let mut here = open_directory(if path.is_absolute() { "/" } else { "." })?;
    let mut walked = PathBuf::from(if path.is_absolute() { "/" } else { "" });
    let mut links = 0;
    while let Some(step) = ahead.pop_front() {
        let directory = fstat(&here)?;
        let next = match next(&here, &step, ahead.is_empty() && end == End::File) {
            Ok(next) => next,
            // What open(2) says of a socket.
            Err(Errno::ENXIO) => return Err(Blocked::NotAFile("a socket")),
            Err(error) => return Err(error.into()),
        };
        // The way to a directory is checked by the directory's own name, as it was opened.
        vouch(&directory, &walked, trusted, end)?;
        let found = fstat(&next)?;
        if is_link(&found) {
            if directory.st_mode & WRITABLE_BY_ALL != 0 && !trusted.contains(&found.st_uid) {
                return Err(Blocked::LinkInOpenDirectory { link: walked.join(step) });
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP.into());
            }
            let target = PathBuf::from(readlinkat(&next, "")?);
            if target.is_absolute() {
                here = open_directory("/")?;
                walked = PathBuf::from("/");
            }
            for step in steps(&target).collect::<Vec<_>>().into_iter().rev() {
                ahead.push_front(step);
            }
        } else if ahead.is_empty() && end == End::File {
            return Ok(next);
        } else {
            here = next;
            walked.push(step);
        }
    }
    let found = fstat(&here)?;
    if end == End::File {
        // Nothing but slashes and dots.
        return Err(Blocked::NotAFile("a directory"));
    }
    if found.st_mode & nix::libc::S_IFMT != nix::libc::S_IFDIR {
        return Err(Errno::ENOTDIR.into());
    }
    vouch(&found, &walked, trusted, end)?;
    Ok(here)
}

/// Whether what lies in a directory on the way can be renamed by others.
fn vouch(found: &FileStat, walked: &Path, trusted: &[u32], end: End) -> Result<(), Blocked> {
    if found.st_mode & (WRITABLE_BY_ALL | STICKY) == WRITABLE_BY_ALL {
        return Err(Blocked::OpenDirectory { directory: named(walked) });
    }
    let owner = found.st_uid;
    if end == End::Place && !trusted.contains(&owner) && Some(owner) != outsider() {
        return Err(Blocked::ForeignDirectory { directory: named(walked), owner });
    }
    Ok(())
}

/// As whom everybody appears who has no number in this user namespace, root of the machine among them
/// (user_namespaces(7), "Unmapped user and group IDs"); `None` where everybody has one.
fn outsider() -> Option<u32> {
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    let mut ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().ok());
        let (first, _, length) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some((first, length))
    });
    let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?.trim().parse().ok()?;
    let has_number = ranges.any(|(first, length)| {
        (first..first.saturating_add(length)).contains(&u64::from(overflow))
    });
    (!has_number).then_some(overflow)
}

/// The next file on the way: to look at, or where it is the `last` and no link, to be read.
fn next(here: &OwnedFd, step: &OsStr, last: bool) -> Result<OwnedFd, Errno> {
    if last {
        match openat(here, step, open_flags(), Mode::empty()) {
            // It is a link.
            Err(Errno::ELOOP) => {}
            other => return other,
        }
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(here, step, flags, Mode::empty())
}

fn open_flags() -> OFlag {
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW
}

fn named(directory: &Path) -> PathBuf {
    if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory.to_owned() }
}

/// The names on the way, without the root and the dots.
fn steps(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::from_bytes(b"..").to_owned()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}

fn open_directory(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, path, flags, Mode::empty())
}

fn is_link(file: &FileStat) -> bool {
    file.st_mode & nix::libc::S_IFMT == nix::libc::S_IFLNK
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::unistd::{Uid, chown, geteuid};

    use super::*;

    #[test]
    fn links_are_followed_but_not_those_that_others_may_have_put_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snap.img");
        fs::write(&file, "content").unwrap();
        let open = folder.path().join("open");
        let closed = folder.path().join("closed");
        fs::create_dir(&open).unwrap();
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
        for directory in [&open, &closed] {
            symlink(&file, directory.join("absolute")).unwrap();
            symlink("../snap.img", directory.join("relative")).unwrap();
            symlink("..", directory.join("above")).unwrap();
        }
        for name in ["absolute", "relative", "above/snap.img"] {
            let fault = open_file(&open.join(name), &[u32::MAX]).unwrap_err();
            assert!(matches!(fault, Blocked::LinkInOpenDirectory { .. }), "{name}: {fault}");
            assert!(open_file(&closed.join(name), &[u32::MAX]).is_ok(), "{name}");
        }
        symlink(open.join("absolute"), closed.join("chain")).unwrap();
        let Err(Blocked::LinkInOpenDirectory { link }) =
            open_file(&closed.join("chain"), &[u32::MAX])
        else {
            panic!("the second link of a chain counts too");
        };
        assert_eq!(link, open.join("absolute"));
    }

    #[test]
    fn a_place_is_one_where_nobody_else_renames() {
        let folder = tempfile::tempdir().unwrap();
        let [outer, inner] = ["outer", "outer/inner"].map(|name| folder.path().join(name));
        fs::create_dir_all(&inner).unwrap();
        let trusted = trusted_owners();
        for (mode, is_open) in [(0o777, true), (0o1777, false), (0o775, false), (0o700, false)] {
            fs::set_permissions(&outer, Permissions::from_mode(mode)).unwrap();
            for place in [&outer, &inner] {
                match open_place(place, &trusted) {
                    Err(Blocked::OpenDirectory { directory }) if is_open => {
                        assert_eq!(directory, outer);
                    }
                    opened => assert!(!is_open && opened.is_ok(), "{mode:o}: {opened:?}"),
                }
            }
        }
        fs::write(outer.join("file"), "").unwrap();
        assert!(matches!(open_place(&outer.join("file"), &trusted), Err(Blocked::Io(_))));
        assert!(matches!(open_place(&outer.join("absent"), &trusted), Err(Blocked::Io(_))));
        if !geteuid().is_root() {
            return;
        }
        // Sticky or not, the owner of a directory renames all that is in it.
        for mode in [0o1777, 0o755] {
            fs::set_permissions(&outer, Permissions::from_mode(mode)).unwrap();
            chown(&outer, Some(Uid::from_raw(12345)), None).unwrap();
            for place in [&outer, &inner] {
                let fault = open_place(place, &trusted).unwrap_err();
                let Blocked::ForeignDirectory { directory, owner: 12345 } = fault else {
                    panic!("{fault:?}");
                };
                assert_eq!(directory, outer);
            }
            assert!(open_place(&inner, &[0, 12345]).is_ok());
        }
    }
}
