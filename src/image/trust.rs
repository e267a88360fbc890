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
use std::path::{Component, Path, PathBuf};

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
    trusted.retain(|user| *user == 0 || !stands_for_many(*user));
    trusted
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
    let mut ahead: VecDeque<OsString> = steps(path).collect();
    let mut here = open_directory(if path.is_absolute() { "/" } else { "." })?;
    let mut walked = PathBuf::from(if path.is_absolute() { "/" } else { "" });
    let mut links = 0;
    while let Some(step) = ahead.pop_front() {
        let directory = look(here.as_fd())?;
        let next = match next(&here, &step, ahead.is_empty()) {
            Ok(next) => next,
            // What open(2) says of a socket.
            Err(Errno::ENXIO) => return Err(Fault::NotAFile("a socket")),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        // The way to a directory is checked by the directory's own name, as it was opened.
        if directory.st_mode & (WRITABLE_BY_ALL | STICKY) == WRITABLE_BY_ALL {
            return Err(Fault::OpenDirectory { directory: named(&walked) });
        }
        let found = look(next.as_fd())?;
        if is_link(&found) {
            if directory.st_mode & WRITABLE_BY_ALL != 0 && !trusted.contains(&found.st_uid) {
                return Err(Fault::LinkInOpenDirectory { link: walked.join(step) });
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::from(Errno::ELOOP).into());
            }
            let target = PathBuf::from(readlinkat(&next, "").map_err(io::Error::from)?);
            if target.is_absolute() {
                here = open_directory("/")?;
                walked = PathBuf::from("/");
            }
            for step in steps(&target).collect::<Vec<_>>().into_iter().rev() {
                ahead.push_front(step);
            }
        } else if ahead.is_empty() {
            return Ok(next);
        } else {
            here = next;
            walked.push(step);
        }
    }
    // Nothing but slashes and dots.
    Err(Fault::NotAFile("a directory"))
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
