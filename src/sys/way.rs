//! The way to a file or a directory, gone step by step, so that each directory and each symbolic link
//! on it is seen: whoever may rename what lies on the way decides what is found at its end.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf, absolute};

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
    /// Following it to write would replace a file of that one's choice.
    #[error("{} is somebody else's symbolic link", link.display())]
    ForeignLink {
        /// The link.
        link: PathBuf,
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

/// Where a file lies, or will lie: its directory and its name there, with no link on the way that is still
/// to be followed.
#[derive(Debug)]
pub struct Place {
    /// The directory, opened with `O_PATH`.
    pub directory: OwnedFd,
    /// The name in it.
    pub name: OsString,
    /// Both as a path, absolute.
    pub path: PathBuf,
}

impl Place {
    /// Finds the place to write what `path` names. It must be one that files would be read from; and links
    /// are followed only where they are those of [`trusted_owners`], wherever they are: who follows
    /// somebody else's to write replaces a file of that one's choice.
    ///
    /// # Errors
    ///
    /// Why nothing should be written there: [`Blocked`], but for `ForeignDirectory`.
    pub fn find(path: &Path) -> Result<Self, Blocked> {
        let path = absolute(path).map_err(Blocked::Io)?;
        Walk::begin(&path)?.into_place(&trusted_owners())
    }
}

/// Opens a file for reading, if nobody but the `trusted` and the owners of the directories above it
/// could have put it there.
///
/// # Errors
///
/// [`Blocked`], but for `ForeignDirectory` and `ForeignLink`.
pub fn open_file(path: &Path, trusted: &[u32]) -> Result<OwnedFd, Blocked> {
    Walk::begin(path)?.into_file(trusted)
}

/// Opens a directory (`O_PATH`), if nobody but the `trusted` can rename what they make in it.
///
/// # Errors
///
/// [`Blocked`], but for `NotAFile` and `ForeignLink`.
pub fn open_directory(path: &Path, trusted: &[u32]) -> Result<OwnedFd, Blocked> {
    Walk::begin(path)?.into_directory(trusted)
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
    known(trusted)
}

/// Those of the users who are somebody.
fn known(users: impl IntoIterator<Item = u32>) -> Vec<u32> {
    users.into_iter().filter(|user| *user == 0 || !stands_for_many(*user)).collect()
}

/// How far one has come.
struct Walk {
    here: OwnedFd,
    walked: PathBuf,
    ahead: VecDeque<OsString>,
    links: usize,
}

impl Walk {
    fn begin(path: &Path) -> Result<Self, Blocked> {
        Ok(Self {
            here: open_start(if path.is_absolute() { "/" } else { "." })?,
            walked: PathBuf::from(if path.is_absolute() { "/" } else { "" }),
            ahead: steps(path).collect(),
            links: 0,
        })
    }

    /// The directory that one is in. One in which everyone may rename is refused: the way to a directory
    /// is checked by the directory's own name, as it was opened.
    fn directory(&self) -> Result<FileStat, Blocked> {
        let directory = fstat(&self.here)?;
        if directory.st_mode & (WRITABLE_BY_ALL | STICKY) == WRITABLE_BY_ALL {
            return Err(Blocked::OpenDirectory { directory: named(&self.walked) });
        }
        Ok(directory)
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<(), Blocked> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::ELOOP.into());
        }
        let target = PathBuf::from(readlinkat(link, "")?);
        if target.is_absolute() {
            self.here = open_start("/")?;
            self.walked = PathBuf::from("/");
        }
        for step in steps(&target).collect::<Vec<_>>().into_iter().rev() {
            self.ahead.push_front(step);
        }
        Ok(())
    }

    fn enter(&mut self, directory: OwnedFd, step: &OsStr) {
        self.here = directory;
        if step == ".." && self.walked.file_name().is_some() {
            // No link is in it any more.
            self.walked.pop();
        } else if step != ".." || !self.walked.has_root() {
            self.walked.push(step);
        }
    }

    /// Follows a link, unless somebody else may have put it into this directory.
    fn follow_here(
        &mut self,
        step: &OsStr,
        (link, found): (&OwnedFd, &FileStat),
        directory: &FileStat,
        trusted: &[u32],
    ) -> Result<(), Blocked> {
        if directory.st_mode & WRITABLE_BY_ALL != 0 && !trusted.contains(&found.st_uid) {
            return Err(Blocked::LinkInOpenDirectory { link: self.walked.join(step) });
        }
        self.follow(link)
    }

    fn into_file(mut self, trusted: &[u32]) -> Result<OwnedFd, Blocked> {
        while let Some(step) = self.ahead.pop_front() {
            let next = match next(&self.here, &step, self.ahead.is_empty()) {
                Ok(next) => next,
                // What open(2) says of a socket.
                Err(Errno::ENXIO) => return Err(Blocked::NotAFile("a socket")),
                Err(error) => return Err(error.into()),
            };
            let directory = self.directory()?;
            let found = fstat(&next)?;
            if is_link(&found) {
                self.follow_here(&step, (&next, &found), &directory, trusted)?;
            } else if self.ahead.is_empty() {
                return Ok(next);
            } else {
                self.enter(next, &step);
            }
        }
        // Nothing but slashes and dots.
        Err(Blocked::NotAFile("a directory"))
    }

    fn into_directory(mut self, trusted: &[u32]) -> Result<OwnedFd, Blocked> {
        while let Some(step) = self.ahead.pop_front() {
            let directory = self.owned(trusted)?;
            let next = next(&self.here, &step, false)?;
            let found = fstat(&next)?;
            if is_link(&found) {
                self.follow_here(&step, (&next, &found), &directory, trusted)?;
            } else {
                self.enter(next, &step);
            }
        }
        let found = self.owned(trusted)?;
        if found.st_mode & nix::libc::S_IFMT != nix::libc::S_IFDIR {
            return Err(Errno::ENOTDIR.into());
        }
        Ok(self.here)
    }

    /// The directory that one is in, if its owner is trusted: sticky or not, that one renames all in it.
    fn owned(&self, trusted: &[u32]) -> Result<FileStat, Blocked> {
        let directory = self.directory()?;
        let owner = directory.st_uid;
        if !trusted.contains(&owner) && Some(owner) != outsider() {
            return Err(Blocked::ForeignDirectory { directory: named(&self.walked), owner });
        }
        Ok(directory)
    }

    /// Goes on to the directory of the last step, which need not be there.
    fn into_place(mut self, trusted: &[u32]) -> Result<Place, Blocked> {
        while let Some(step) = self.ahead.pop_front() {
            self.directory()?;
            let last = self.ahead.is_empty() && step != "..";
            let next = match next(&self.here, &step, false) {
                Err(Errno::ENOENT) if last => None,
                next => Some(next?),
            };
            let found = next.as_ref().map(fstat).transpose()?;
            match (next, found) {
                (Some(link), Some(found)) if is_link(&found) => {
                    if !trusted.contains(&found.st_uid) {
                        return Err(Blocked::ForeignLink { link: self.walked.join(step) });
                    }
                    self.follow(&link)?;
                }
                (Some(directory), _) if !last => self.enter(directory, &step),
                _ => {
                    let path = self.walked.join(&step);
                    return Ok(Place { directory: self.here, name: step, path });
                }
            }
        }
        Err(Blocked::NotAFile("a directory"))
    }
}

/// The number of everybody whom this user namespace does not know.
fn overflow_number() -> u32 {
    /// `DEFAULT_OVERFLOWUID` of the kernel's include/linux/highuid.h.
    const USUAL: u32 = 65534;
    let number = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    number.and_then(|number| number.trim().parse().ok()).unwrap_or(USUAL)
}

/// The users that this user namespace knows: ranges of numbers, the first of each and how many.
fn known_numbers() -> Vec<(u64, u64)> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().ok());
        let (first, _, length) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some((first, length))
    };
    map.lines().filter_map(range).collect()
}

/// Whether everybody whom this user namespace does not know goes by this number, also where somebody has it
/// (user_namespaces(7), "Unmapped user and group IDs").
fn stands_for_many(user: u32) -> bool {
    const ALL: (u64, u64) = (0, u32::MAX as u64);
    user == overflow_number() && known_numbers() != [ALL]
}

/// As whom everybody appears who has no number in this user namespace, root of the machine among them;
/// `None` where somebody has that number.
fn outsider() -> Option<u32> {
    let overflow = overflow_number();
    let has = |(first, length): &(u64, u64)| {
        (*first..first.saturating_add(*length)).contains(&u64::from(overflow))
    };
    (!known_numbers().iter().any(has)).then_some(overflow)
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
    if !last {
        // Only where a directory is looked for, what is mounted when it is needed is mounted (autofs).
        match openat(here, step, flags | OFlag::O_DIRECTORY, Mode::empty()) {
            Err(Errno::ENOTDIR) => {}
            other => return other,
        }
    }
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

fn open_start(path: &str) -> Result<OwnedFd, Errno> {
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
    fn a_place_to_write_is_where_ones_own_links_lead() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().canonicalize().unwrap();
        let file = folder.join("snap.img");
        fs::write(&file, "content").unwrap();
        let closed = folder.join("closed");
        fs::create_dir(&closed).unwrap();
        symlink("../snap.img", closed.join("link")).unwrap();
        symlink(closed.join("link"), folder.join("chain")).unwrap();
        symlink("closed/new.img", folder.join("dangling")).unwrap();
        symlink("no/new.img", folder.join("nowhere")).unwrap();
        let found = |path: &Path| Place::find(path).map(|place| place.path);
        assert_eq!(found(&file).unwrap(), file);
        assert_eq!(found(&folder.join("chain")).unwrap(), file);
        assert_eq!(found(&closed.join("../closed/./link")).unwrap(), file);
        assert_eq!(found(&folder.join("dangling")).unwrap(), closed.join("new.img"));
        assert_eq!(found(&closed.join("absent")).unwrap(), closed.join("absent"));
        assert!(matches!(found(&folder.join("nowhere")), Err(Blocked::Io(_))));
        assert!(matches!(found(&closed.join("..")), Err(Blocked::NotAFile(_))));
        // A link of somebody else's is not followed, wherever it is.
        let strange = Walk::begin(&folder.join("chain")).unwrap().into_place(&[u32::MAX]);
        assert!(
            matches!(strange, Err(Blocked::ForeignLink { link }) if link == folder.join("chain"))
        );
        fs::set_permissions(&closed, Permissions::from_mode(0o777)).unwrap();
        for name in ["link", "absent"] {
            assert!(
                matches!(found(&closed.join(name)), Err(Blocked::OpenDirectory { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn a_directory_is_one_where_nobody_else_renames() {
        let folder = tempfile::tempdir().unwrap();
        let [outer, inner] = ["outer", "outer/inner"].map(|name| folder.path().join(name));
        fs::create_dir_all(&inner).unwrap();
        let trusted = trusted_owners();
        for (mode, is_open) in [(0o777, true), (0o1777, false), (0o775, false), (0o700, false)] {
            fs::set_permissions(&outer, Permissions::from_mode(mode)).unwrap();
            for place in [&outer, &inner] {
                match open_directory(place, &trusted) {
                    Err(Blocked::OpenDirectory { directory }) if is_open => {
                        assert_eq!(directory, outer);
                    }
                    opened => assert!(!is_open && opened.is_ok(), "{mode:o}: {opened:?}"),
                }
            }
        }
        fs::write(outer.join("file"), "").unwrap();
        assert!(matches!(open_directory(&outer.join("file"), &trusted), Err(Blocked::Io(_))));
        assert!(matches!(open_directory(&outer.join("absent"), &trusted), Err(Blocked::Io(_))));
        if !geteuid().is_root() {
            return;
        }
        // Sticky or not, the owner of a directory renames all that is in it.
        for mode in [0o1777, 0o755] {
            fs::set_permissions(&outer, Permissions::from_mode(mode)).unwrap();
            chown(&outer, Some(Uid::from_raw(12345)), None).unwrap();
            for place in [&outer, &inner] {
                let fault = open_directory(place, &trusted).unwrap_err();
                let Blocked::ForeignDirectory { directory, owner: 12345 } = fault else {
                    panic!("{fault:?}");
                };
                assert_eq!(directory, outer);
            }
            assert!(open_directory(&inner, &[0, 12345]).is_ok());
        }
    }
}
