//! Directories for this user alone, in places where others may make theirs.
//!
//! Whoever watches such a place learns the name of what is made there. So each directory has a name of
//! its own, nothing that is there already is ever taken for ours, and a place where somebody else could
//! rename what is ours is none.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::geteuid;

use super::way::{Blocked, open_directory, trusted_owners};

/// What to do where no place will do because others rename there.
pub const SAFE_PLACE: &str = "set TMPDIR to a directory of your own, with none above it that others may rename in: \
                              `mkdir -m 700 ~/tmp`";

/// How long a directory is emptied again and again, and how often.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// A private directory that is there, or might be. It is removed when this goes, if this has made it.
#[derive(Debug)]
pub struct Private {
    place: PathBuf,
    name: String,
    is_made: Cell<bool>,
}

impl Private {
    /// One in that place, under a name that nobody can guess. It is not made yet.
    #[must_use]
    pub fn new(place: PathBuf) -> Self {
        Self::named(place, unguessable("preloaded-criu-"))
    }

    fn named(place: PathBuf, name: String) -> Self {
        Self { place, name, is_made: Cell::new(false) }
    }

    /// Where it is, or would be.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.place.join(&self.name)
    }

    /// Makes it, unless this has been done, and returns its path.
    ///
    /// # Errors
    ///
    /// [`Blocked`] where others could rename it, and the kernel's reason where it cannot be made: also
    /// that there is something of its name.
    pub fn make(&self) -> Result<PathBuf, Blocked> {
        if !self.is_made.get() {
            let place = open_directory(&self.place, &trusted_owners())?;
            mkdirat(&place, self.name.as_str(), Mode::S_IRWXU)?;
            self.is_made.set(true);
        }
        Ok(self.path())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if self.is_made.get() {
            remove(&self.path());
        }
    }
}

/// A name that begins so and that nobody can guess.
#[must_use]
pub fn unguessable(prefix: &str) -> String {
    format!("{prefix}{:016x}", RandomState::new().hash_one(std::process::id()))
}

/// Removes what is private and is this user's, if it is there: a file, or a directory with all that is in it.
/// Who has that open may still write there: a CRIU that has just lost its launcher. So it is emptied until it
/// is gone.
pub(super) fn remove(path: &Path) {
    let found = fs::symlink_metadata(path);
    let Some(ours) = found.ok().filter(|found| found.uid() == geteuid().as_raw()) else { return };
    // Nobody is left to be told.
    if ours.is_file() {
        let _ = fs::remove_file(path);
    }
    if !ours.is_dir() {
        return;
    }
    let end = Instant::now() + PATIENCE;
    // No link in it is followed.
    while fs::remove_dir_all(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::DirectoryNotEmpty)
        && Instant::now() < end
    {
        thread::sleep(PAUSE);
    }
}

/// Writes a new file that only this user can read.
///
/// # Errors
///
/// The kernel's reason: also that there is something of its name.
pub fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    let mut file: File = options.open(path)?;
    file.write_all(content)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::ErrorKind;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::thread;

    use nix::unistd::{Uid, chown, geteuid};

    use super::{Private, remove, write_new};
    use crate::sys::way::Blocked;

    fn is_there(error: &Blocked) -> bool {
        matches!(error, Blocked::Io(error) if error.kind() == ErrorKind::AlreadyExists)
    }

    #[test]
    fn each_has_a_name_of_its_own_and_goes_when_it_has_been_made() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = [0, 1].map(|_| Private::new(folder.path().to_owned()));
        assert_ne!(one.path(), other.path());
        let path = one.make().unwrap();
        assert_eq!(one.make().unwrap(), path, "once");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        write_new(&path.join("file"), b"content").unwrap();
        assert_eq!(fs::metadata(path.join("file")).unwrap().mode() & 0o7777, 0o600);
        drop((one, other));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_file_of_ones_own_is_removed_and_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        remove(&file);
        write_new(&file, b"content").unwrap();
        symlink(&file, &link).unwrap();
        remove(&link);
        assert!(link.is_symlink() && file.exists());
        if geteuid().is_root() {
            chown(&file, Some(Uid::from_raw(12345)), None).unwrap();
            remove(&file);
            assert!(file.exists());
            chown(&file, Some(geteuid()), None).unwrap();
        }
        remove(&file);
        assert!(!file.exists());
    }

    #[test]
    fn what_is_there_already_is_neither_used_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let squatted = folder.path().join("wanted");
        fs::create_dir(&squatted).unwrap();
        fs::write(squatted.join("theirs"), "").unwrap();
        let wanted = || Private::named(folder.path().to_owned(), "wanted".into());
        assert!(is_there(&wanted().make().unwrap_err()), "even one's own");
        assert!(squatted.join("theirs").exists());
        if geteuid().is_root() {
            chown(&squatted, Some(Uid::from_raw(12345)), None).unwrap();
            assert!(is_there(&wanted().make().unwrap_err()));
            remove(&squatted);
            assert!(squatted.join("theirs").exists());
        }
        let link = folder.path().join("link");
        symlink(&squatted, &link).unwrap();
        let wanted = Private::named(folder.path().to_owned(), "link".into());
        assert!(is_there(&wanted.make().unwrap_err()));
        drop(wanted);
        remove(&link);
        assert!(link.is_symlink() && squatted.join("theirs").exists());
    }

    #[test]
    fn it_goes_while_somebody_still_writes_there() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("private");
        fs::create_dir(&place).unwrap();
        let open = fs::File::open(&place).unwrap();
        let writer = thread::spawn(move || {
            let name = |number| format!("/proc/self/fd/{}/{number}", open.as_raw_fd());
            // As CRIU, it comes to an end: one that is faster than we are is never done with.
            (0..300_u32).take_while(|number| fs::write(name(*number), b"late").is_ok()).count()
        });
        while fs::read_dir(&place).unwrap().next().is_none() {}
        remove(&place);
        assert!(!place.exists());
        assert!(writer.join().unwrap() > 0);
    }

    #[test]
    fn a_file_that_is_there_already_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, target] = ["file", "link", "target"].map(|name| folder.path().join(name));
        fs::write(&file, "before").unwrap();
        symlink(&target, &link).unwrap();
        for path in [&file, &link] {
            let error = write_new(path, b"after").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read(&file).unwrap(), b"before");
        assert!(!target.exists());
    }

    #[test]
    fn a_place_where_everyone_renames_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let [open, closed] = ["open", "closed"].map(|name| folder.path().join(name));
        for place in [&open, &closed] {
            fs::create_dir(place).unwrap();
        }
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        let [in_open, in_closed] = [&open, &closed].map(|place| Private::new(place.clone()));
        assert!(in_closed.make().unwrap().starts_with(&closed));
        let error = in_open.make().unwrap_err();
        assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
        assert!(matches!(error, Blocked::OpenDirectory { .. }), "{error:?}");
    }
}
