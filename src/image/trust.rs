//! Opening an image: an image is code that runs as whoever runs it, so it is used only when nobody
//! but its user and root could have written it.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::geteuid;

use super::error::Fault;

/// How many symbolic links are followed: as many as the kernel follows (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

const WRITABLE_BY_ALL: u32 = 0o002;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Opens the file for reading, or says why it must not be used. What is checked is what is opened:
/// whatever happens to the name afterwards does not matter.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), Fault> {
    let how = OpenHow::new().flags(open_flags()).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let descriptor = match openat2(AT_FDCWD, path, how) {
        Ok(descriptor) => descriptor,
        // A link somewhere on the way (ELOOP), or a sandbox that does not know the call.
        Err(Errno::ELOOP | Errno::ENOSYS | Errno::EPERM) => walk(path)?,
        // What open(2) says of a socket.
        Err(Errno::ENXIO) => return Err(Fault::NotAFile("a socket")),
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let file = File::from(descriptor);
    let metadata = file.metadata()?;
    if let Some(kind) = not_a_file(&metadata) {
        return Err(Fault::NotAFile(kind));
    }
    vouch(metadata.uid(), metadata.mode(), &trusted_owners())?;
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

/// Whose images are run: one's own, root's, and as root under sudo those of the one who called it.
fn trusted_owners() -> Vec<u32> {
    let caller = geteuid();
    let mut trusted = vec![0, caller.as_raw()];
    if caller.is_root() {
        let invoker = env::var("SUDO_UID").ok().and_then(|uid| uid.parse::<u32>().ok());
        trusted.extend(invoker);
    }
    trusted
}

fn open_flags() -> OFlag {
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK
}

/// Goes the way to the file step by step, so that each link on it is seen.
fn walk(path: &Path) -> Result<OwnedFd, Fault> {
    let mut ahead: VecDeque<OsString> = steps(path).collect();
    let mut here = open_directory(if path.is_absolute() { "/" } else { "." })?;
    let mut walked = PathBuf::from(if path.is_absolute() { "/" } else { "" });
    let mut links = 0;
    while let Some(step) = ahead.pop_front() {
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let next = openat(&here, step.as_os_str(), look, Mode::empty()).map_err(io::Error::from)?;
        if is_link(next.as_fd())? {
            if fstat(&here).map_err(io::Error::from)?.st_mode & WRITABLE_BY_ALL != 0 {
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
            let flags = open_flags() | OFlag::O_NOFOLLOW;
            let file = openat(&here, step.as_os_str(), flags, Mode::empty());
            return Ok(file.map_err(io::Error::from)?);
        } else {
            here = next;
            walked.push(step);
        }
    }
    // Nothing but slashes and dots.
    Err(Fault::NotAFile("a directory"))
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

fn is_link(descriptor: BorrowedFd<'_>) -> Result<bool, Fault> {
    let mode = fstat(descriptor).map_err(io::Error::from)?.st_mode;
    Ok(mode & nix::libc::S_IFMT == nix::libc::S_IFLNK)
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
    fn links_are_followed_but_not_from_where_everyone_may_put_one() {
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
        for name in ["absolute", "relative", "above/snap.img", "../closed/./relative"] {
            assert_eq!(read(&closed.join(name)).unwrap(), "content", "{name}");
        }
        for name in ["absolute", "relative", "above/snap.img"] {
            let fault = read(&open_directory.join(name)).unwrap_err();
            assert!(matches!(fault, Fault::LinkInOpenDirectory { .. }), "{name}: {fault}");
        }
        symlink(open_directory.join("absolute"), closed.join("chain")).unwrap();
        let Err(Fault::LinkInOpenDirectory { link }) = read(&closed.join("chain")) else {
            panic!("the second link of a chain counts too");
        };
        assert_eq!(link, open_directory.join("absolute"));
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
