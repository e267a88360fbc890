//! Opening an image: an image is code that runs as whoever runs it, so it is used only when nobody
//! but its user and root could have written it, or put another one in its place. `docs/security.md`
//! has the reasons.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf, absolute};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{geteuid, getuid};

use super::error::Fault;
use crate::sys::capabilities::exceeds_its_caller;

/// How many symbolic links are followed: as many as the kernel follows (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

const WRITABLE_BY_ALL: u32 = 0o002;
/// With an access control list, the bits of the group are the most that anyone in the list may do
/// (acl(5), "Correspondence between ACL entries and file permission bits").
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// In such a directory everyone renames and removes what is their own only (inode(7)).
const STICKY: u32 = 0o1000;

/// Opens the file for reading, or says why it must not be used. What is checked is what is opened:
/// whatever happens to the name afterwards does not matter.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), Fault> {
    let trusted = trusted_owners();
    let file = File::from(walk(path, &trusted)?);
    let metadata = file.metadata()?;
    if let Some(kind) = not_a_file(&metadata) {
        return Err(Fault::NotAFile(kind));
    }
    vouch(metadata.uid(), metadata.mode(), &trusted)?;
    Ok((file, metadata))
}

/// Where an image lies, or will lie: its directory and its name there, with no link on the way that is
/// still to be followed.
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
    /// Finds the place to write what `path` names. It must be one from which an image would be read; and
    /// links are followed only where they are the caller's own or root's, wherever they are: who follows
    /// somebody else's to write replaces a file of that one's choice.
    ///
    /// # Errors
    ///
    /// Why nothing should be written there.
    pub fn find(path: &Path) -> Result<Self, Fault> {
        let path = absolute(path)?;
        let trusted = known([0, geteuid().as_raw()]);
        Walk::begin(&path)?.into_place(&trusted)
    }
}

/// What it is, if it is no regular file.
pub(super) fn not_a_file(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

fn vouch(owner: u32, mode: u32, trusted: &[u32]) -> Result<(), Fault> {
    if !trusted.contains(&owner) {
        return Err(Fault::ForeignOwner { owner });
    }
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(Fault::WritableByOthers { mode });
    }
    Ok(())
}

/// Whose images are run: one's own, root's, and as root under sudo those of the one who called it. A
/// program that its caller has not the rights of believes no variable of the caller's.
fn trusted_owners() -> Vec<u32> {
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

/// Whether everybody whom this user namespace does not know goes by this number
/// (user_namespaces(7), "Unmapped user and group IDs").
fn stands_for_many(user: u32) -> bool {
    /// `DEFAULT_OVERFLOWUID` of the kernel's include/linux/highuid.h.
    const USUAL: u32 = 65534;
    const ALL: u64 = u32::MAX as u64;
    let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    let overflow = overflow.and_then(|number| number.trim().parse().ok()).unwrap_or(USUAL);
    if user != overflow {
        return false;
    }
    // Lines of three numbers: from, to, and how many.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let numbers: Vec<u64> =
        map.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    numbers != [0, 0, ALL]
}

fn open_flags() -> OFlag {
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW
}

/// Goes the way to the file step by step, so that each link and each directory on it is seen.
fn walk(path: &Path, trusted: &[u32]) -> Result<OwnedFd, Fault> {
    let mut walk = Walk::begin(path)?;
    while let Some(step) = walk.ahead.pop_front() {
        let next = match next(&walk.here, &step, walk.ahead.is_empty()) {
            Ok(next) => next,
            // What open(2) says of a socket.
            Err(Errno::ENXIO) => return Err(Fault::NotAFile("a socket")),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let is_open_to_all = walk.is_open_to_all()?;
        let found = look(next.as_fd())?;
        if is_link(&found) {
            if is_open_to_all && !trusted.contains(&found.st_uid) {
                return Err(Fault::LinkInOpenDirectory { link: walk.walked.join(step) });
            }
            walk.follow(&next)?;
        } else if walk.ahead.is_empty() {
            return Ok(next);
        } else {
            walk.enter(next, &step);
        }
    }
    // Nothing but slashes and dots.
    Err(Fault::NotAFile("a directory"))
}

/// How far one has come on the way to a file.
struct Walk {
    here: OwnedFd,
    walked: PathBuf,
    ahead: VecDeque<OsString>,
    links: usize,
}

impl Walk {
    fn begin(path: &Path) -> Result<Self, Fault> {
        Ok(Self {
            here: open_directory(if path.is_absolute() { "/" } else { "." })?,
            walked: PathBuf::from(if path.is_absolute() { "/" } else { "" }),
            ahead: steps(path).collect(),
            links: 0,
        })
    }

    /// Whether everyone may write to this directory. One in which everyone may rename, too, is refused:
    /// the way to a directory is checked by the directory's own name, as it was opened.
    fn is_open_to_all(&self) -> Result<bool, Fault> {
        let directory = look(self.here.as_fd())?;
        if directory.st_mode & (WRITABLE_BY_ALL | STICKY) == WRITABLE_BY_ALL {
            return Err(Fault::OpenDirectory { directory: named(&self.walked) });
        }
        Ok(directory.st_mode & WRITABLE_BY_ALL != 0)
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<(), Fault> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(io::Error::from(Errno::ELOOP).into());
        }
        let target = PathBuf::from(readlinkat(link, "").map_err(io::Error::from)?);
        if target.is_absolute() {
            self.here = open_directory("/")?;
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

    /// Goes on to the directory of the last step, which need not be there.
    fn into_place(mut self, trusted: &[u32]) -> Result<Place, Fault> {
        while let Some(step) = self.ahead.pop_front() {
            self.is_open_to_all()?;
            let last = self.ahead.is_empty() && step != "..";
            let next = match next(&self.here, &step, false) {
                Err(Errno::ENOENT) if last => None,
                next => Some(next.map_err(io::Error::from)?),
            };
            let found = next.as_ref().map(|next| look(next.as_fd())).transpose()?;
            match (next, found) {
                (Some(link), Some(found)) if is_link(&found) => {
                    if !trusted.contains(&found.st_uid) {
                        return Err(Fault::ForeignLink { link: self.walked.join(step) });
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
        Err(Fault::NotAFile("a directory"))
    }
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

fn open_directory(path: &str) -> Result<OwnedFd, Fault> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(AT_FDCWD, path, flags, Mode::empty()).map_err(io::Error::from)?)
}

fn look(descriptor: BorrowedFd<'_>) -> Result<FileStat, Fault> {
    Ok(fstat(descriptor).map_err(io::Error::from)?)
}

fn is_link(file: &FileStat) -> bool {
    file.st_mode & nix::libc::S_IFMT == nix::libc::S_IFLNK
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn read(path: &Path) -> Result<String, Fault> {
        let (mut file, _) = open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snap.img");
        fs::write(&file, "content").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        (folder, file)
    }

    #[test]
    fn a_file_of_ones_own_is_opened() {
        let (_folder, file) = place();
        assert_eq!(read(&file).unwrap(), "content");
    }

    #[test]
    fn a_file_that_others_may_write_to_is_refused() {
        let (_folder, file) = place();
        for mode in [0o620, 0o602, 0o666] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read(&file), Err(Fault::WritableByOthers { .. })));
        }
    }

    #[test]
    fn only_trusted_owners_are_trusted() {
        assert!(vouch(1000, 0o100_600, &[0, 1000]).is_ok());
        assert!(vouch(0, 0o100_644, &[0, 1000]).is_ok());
        assert!(matches!(
            vouch(1001, 0o100_600, &[0, 1000]),
            Err(Fault::ForeignOwner { owner: 1001 })
        ));
    }

    #[test]
    fn links_are_followed_but_not_those_that_others_may_have_put_there() {
        let (folder, file) = place();
        let open_directory = folder.path().join("open");
        let closed = folder.path().join("closed");
        fs::create_dir(&open_directory).unwrap();
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&open_directory, Permissions::from_mode(0o1777)).unwrap();
        for directory in [&open_directory, &closed] {
            symlink(&file, directory.join("absolute")).unwrap();
            symlink("../snap.img", directory.join("relative")).unwrap();
            symlink("..", directory.join("above")).unwrap();
        }
        // One's own links may be anywhere.
        for name in ["absolute", "relative", "above/snap.img", "../closed/./relative"] {
            assert_eq!(read(&closed.join(name)).unwrap(), "content", "{name}");
            assert_eq!(read(&open_directory.join(name)).unwrap(), "content", "{name}");
        }
        let ways = ["absolute", "relative", "above/snap.img"];
        for name in ways {
            let stranger = walk(&open_directory.join(name), &[u32::MAX]);
            let fault = stranger.unwrap_err();
            assert!(matches!(fault, Fault::LinkInOpenDirectory { .. }), "{name}: {fault}");
            assert!(walk(&closed.join(name), &[u32::MAX]).is_ok(), "{name}");
        }
        symlink(open_directory.join("absolute"), closed.join("chain")).unwrap();
        let Err(Fault::LinkInOpenDirectory { link }) = walk(&closed.join("chain"), &[u32::MAX])
        else {
            panic!("the second link of a chain counts too");
        };
        assert_eq!(link, open_directory.join("absolute"));
    }

    #[test]
    fn a_place_to_write_is_where_ones_own_links_lead() {
        let (folder, file) = place();
        let folder = folder.path().canonicalize().unwrap();
        let file = folder.join(file.file_name().unwrap());
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
        assert!(matches!(found(&folder.join("nowhere")), Err(Fault::Missing)));
        assert!(matches!(found(&closed.join("..")), Err(Fault::NotAFile(_))));
        // A link of somebody else's is not followed, wherever it is.
        let strange = Walk::begin(&folder.join("chain")).unwrap().into_place(&[u32::MAX]);
        assert!(
            matches!(strange, Err(Fault::ForeignLink { link }) if link == folder.join("chain"))
        );
        fs::set_permissions(&closed, Permissions::from_mode(0o777)).unwrap();
        for name in ["link", "absent"] {
            assert!(
                matches!(found(&closed.join(name)), Err(Fault::OpenDirectory { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn directories_in_which_everyone_may_rename_files_are_refused() {
        let (folder, _) = place();
        let [open, inner] = ["open", "open/inner"].map(|name| folder.path().join(name));
        fs::create_dir_all(&inner).unwrap();
        for directory in [&open, &inner] {
            fs::copy(folder.path().join("snap.img"), directory.join("snap.img")).unwrap();
        }
        for (mode, is_open) in [(0o777, true), (0o1777, false), (0o775, false), (0o755, false)] {
            fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
            for directory in [&open, &inner] {
                let read = read(&directory.join("snap.img"));
                match read {
                    Err(Fault::OpenDirectory { directory }) if is_open => {
                        assert_eq!(directory, open);
                    }
                    read => assert!(!is_open && read.is_ok(), "{mode:o}"),
                }
            }
        }
    }

    #[test]
    fn what_is_read_is_what_was_checked() {
        let (folder, file) = place();
        let (mut opened, _) = open(&file).unwrap();
        fs::write(folder.path().join("other"), "another").unwrap();
        fs::rename(folder.path().join("other"), &file).unwrap();
        let mut text = String::new();
        opened.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    #[test]
    fn links_that_lead_nowhere_end() {
        let (folder, _) = place();
        let circle = folder.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(matches!(read(&circle), Err(Fault::Io(_))));
        let dangling = folder.path().join("dangling");
        symlink("nothing", &dangling).unwrap();
        assert!(matches!(read(&dangling), Err(Fault::Missing)));
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting_for_it() {
        let (folder, _) = place();
        assert!(matches!(read(folder.path()), Err(Fault::NotAFile("a directory"))));
        assert!(matches!(read(Path::new("/dev/null")), Err(Fault::NotAFile("a device"))));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&pipe), Err(Fault::NotAFile("a pipe"))));
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(read(&socket), Err(Fault::NotAFile("a socket"))));
        assert!(matches!(read(&folder.path().join("absent")), Err(Fault::Missing)));
    }
}
