//! Opening an image: an image is code that runs as whoever runs it, so it is used only when nobody
//! but its user and root could have written it, or put another one in its place. `docs/security.md`
//! has the reasons.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::error::Fault;
use crate::sys::way::{open_file, trusted_owners};

/// With an access control list, the bits of the group are the most that anyone in the list may do
/// (acl(5), "Correspondence between ACL entries and file permission bits").
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Opens the file for reading, or says why it must not be used. What is checked is what is opened:
/// whatever happens to the name afterwards does not matter.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), Fault> {
    let trusted = trusted_owners();
    let file = File::from(open_file(path, &trusted)?);
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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use nix::sys::stat::Mode;

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
    fn ones_own_links_are_followed() {
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
