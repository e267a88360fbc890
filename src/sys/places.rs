//! Directories that are written in: who writes as root must not be led elsewhere by what others have put on
//! the way, before or while it writes. So such a directory is found step by step ([`super::way`]), and what is
//! written in it goes by its descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf, absolute};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::way::{Blocked, open_directory, trusted_owners};

/// Opens a directory in which nobody else renames, as [`open_directory`] does. Those that are not there, also
/// above it, are made for this user alone.
///
/// # Errors
///
/// As [`open_directory`], and the kernel's reason where one cannot be made.
pub fn make_directory(path: &Path) -> Result<OwnedFd, Blocked> {
    let path = absolute(path).map_err(Blocked::Io)?;
    let trusted = trusted_owners();
    let missing = match open_directory(&path, &trusted) {
        Err(Blocked::Io(error)) if error.kind() == io::ErrorKind::NotFound => error,
        opened => return opened,
    };
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Blocked::Io(missing));
    };
    match mkdirat(&make_directory(above)?, name, Mode::S_IRWXU) {
        // One that another process has made meanwhile is looked at like any other.
        Ok(()) | Err(Errno::EEXIST) => open_directory(&path, &trusted),
        Err(errno) => Err(errno.into()),
    }
}

/// A path that leads to an open file or directory, whatever has its name by now.
#[must_use]
pub fn by_descriptor(open: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", open.as_raw_fd()).into()
}

/// Makes a new file that only this user can read or write, in an open directory.
///
/// # Errors
///
/// The kernel's reason: also that there is something of its name.
pub fn create_new(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
}

/// Why nothing is written there, as what a system call says.
#[must_use]
pub fn reason(blocked: Blocked) -> io::Error {
    match blocked {
        Blocked::Io(error) => error,
        blocked => io::Error::other(blocked),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

    use nix::unistd::geteuid;

    use super::*;

    #[test]
    fn directories_are_made_where_nobody_else_leads() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b/c");
        let made = make_directory(&inner).unwrap();
        assert_eq!(fs::metadata(&inner).unwrap().mode() & 0o777, 0o700);
        fs::write(by_descriptor(&made).join("file"), "text").unwrap();
        assert_eq!(fs::read_to_string(inner.join("file")).unwrap(), "text");
        assert!(make_directory(&inner).is_ok(), "one that is there");
        symlink("nowhere", folder.path().join("dangling")).unwrap();
        assert!(make_directory(&folder.path().join("dangling/x")).is_err());
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(make_directory(&open.join("a/b")), Err(Blocked::OpenDirectory { .. })));
        if geteuid().is_root() {
            fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
            symlink(&inner, open.join("link")).unwrap();
            lchown(&open, Some(12345), None).unwrap();
            let refused = make_directory(&open.join("link/new"));
            assert!(matches!(refused, Err(Blocked::ForeignDirectory { .. })));
        }
        assert_eq!(
            fs::read_dir(&open)
                .unwrap()
                .filter(|it| it.as_ref().is_ok_and(|it| it.file_name() != "link"))
                .count(),
            0
        );
        assert!(!inner.join("new").exists());
    }
}
