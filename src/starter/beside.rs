//! The files that a starter has beside its image: the lock while the image is made, and the note that it
//! could not be made.
//!
//! The directory may be one that others write to, and the names are known to everyone. So neither file
//! is ever opened through a link, and neither counts unless it is a file of the caller's or root's that
//! has no other name: whoever plants something there neither has another file overwritten nor stops the
//! image from being made.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, geteuid, unlinkat};

use crate::image::Fault;
use crate::sys::places::create_new;
use crate::sys::private::unguessable;
use crate::sys::way::Place;

/// How often a lock is tried anew that its holder has taken away in the moment between.
const ATTEMPTS: usize = 5;

/// The place of an image, and what a starter has beside it.
pub(super) struct Beside {
    place: Place,
}

/// Why there is no lock.
pub(super) enum NoLock {
    /// Another start of this user's, or of root's, has it.
    Held,
    /// It can never be had; why, as a sentence.
    Unusable(String),
}

/// The lock, while the image is made: a file of one's own, because flock(2) asks for no more than that a
/// file can be opened, and what others can read, they could lock for good. Nothing is left of it.
pub(super) struct Lock<'a> {
    beside: &'a Beside,
    file: Flock<File>,
}

/// The file that has the image's name, if there is one; another one is another value.
#[derive(PartialEq, Eq)]
pub(super) struct Stamp(Option<(u64, u64, i64, i64)>);

impl Beside {
    /// Finds the place, where an image may be made.
    pub(super) fn find(image: &Path) -> Result<Self, Fault> {
        Ok(Self { place: Place::find(image)? })
    }

    /// The image by its own name, absolute: no link is followed to it any more.
    pub(super) fn image(&self) -> &Path {
        &self.place.path
    }

    /// Whether this user can write an image here.
    pub(super) fn is_writable(&self) -> bool {
        // As the effective user, who would write it.
        faccessat(&self.place.directory, ".", AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
    }

    /// The image as it is at the moment.
    pub(super) fn stamp(&self) -> Stamp {
        let found = self.look(&self.place.name).ok();
        Stamp(found.map(|it| (it.st_dev, it.st_ino, it.st_ctime, it.st_ctime_nsec)))
    }

    /// Takes the lock, or says why not; waits for nobody.
    pub(super) fn lock(&self) -> Result<Lock<'_>, NoLock> {
        let (name, path) = (self.named(".lock"), self.path(".lock"));
        let unusable = |why: &dyn std::fmt::Display| {
            NoLock::Unusable(format!("cannot lock {}: {why}", path.display()))
        };
        for _ in 0..ATTEMPTS {
            let flags = OFlag::O_RDWR
                | OFlag::O_CREAT
                | OFlag::O_NOFOLLOW
                | OFlag::O_NONBLOCK
                | OFlag::O_NOCTTY
                | OFlag::O_CLOEXEC;
            let opened = openat(&self.place.directory, name.as_os_str(), flags, private());
            let file = File::from(opened.map_err(|errno| match errno {
                Errno::ELOOP => unusable(&"it is a symbolic link"),
                errno => unusable(&io::Error::from(errno)),
            })?);
            let ours = fstat(&file).map_err(|errno| unusable(&io::Error::from(errno)))?;
            if ours.st_nlink == 0 {
                continue;
            }
            if !is_ours(&ours) || ours.st_mode & 0o077 != 0 {
                return Err(unusable(&"it is not a file that this user alone can open"));
            }
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Err(NoLock::Held),
                Err((_, errno)) => return Err(unusable(&io::Error::from(errno))),
            };
            // Whoever had it has removed it before letting it go, and somebody may have made another one.
            let there = self.look(&name);
            if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)) {
                return Ok(Lock { beside: self, file });
            }
        }
        Err(NoLock::Held)
    }

    /// When it was noted that the image could not be made, if that was in the last `patience`.
    pub(super) fn noted(&self, patience: Duration) -> Option<SystemTime> {
        let note = self.look(&self.named(".failed")).ok().filter(is_ours)?;
        let seconds = Duration::from_secs(note.st_mtime.try_into().ok()?);
        let rest = Duration::from_nanos(note.st_mtime_nsec.try_into().ok()?);
        let noted = SystemTime::UNIX_EPOCH.checked_add(seconds + rest)?;
        noted.elapsed().is_ok_and(|age| age < patience).then_some(noted)
    }

    /// Notes why the image could not be made: in a new file, which takes the place of whatever has the
    /// name. If it cannot be noted, it cannot be helped.
    pub(super) fn note(&self, why: &str) {
        let directory = &self.place.directory;
        // Of those that a snapshot into this directory removes, should this one be killed.
        let temporary = unguessable(".preloaded-criu-");
        let Ok(mut file) = create_new(directory, &temporary) else { return };
        // On a full disk it is an empty one.
        let _ = file.write_all(why.as_bytes());
        let name = self.named(".failed");
        if renameat(directory, temporary.as_str(), directory, name.as_os_str()).is_err() {
            self.remove(temporary.as_ref());
        }
    }

    /// Takes the note away.
    pub(super) fn forget(&self) {
        self.remove(&self.named(".failed"));
    }

    /// The note's path, for messages.
    pub(super) fn note_path(&self) -> PathBuf {
        self.path(".failed")
    }

    fn named(&self, suffix: &str) -> OsString {
        let mut name = self.place.name.clone();
        name.push(suffix);
        name
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.place.path.with_file_name(self.named(suffix))
    }

    fn look(&self, name: &OsStr) -> nix::Result<FileStat> {
        fstatat(&self.place.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    fn remove(&self, name: &OsStr) {
        // What is not there any more needs no removing, and what others keep there is theirs.
        let _ = unlinkat(self.place.directory.as_fd(), name, UnlinkatFlags::NoRemoveDir);
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        let name = self.beside.named(".lock");
        let same = |ours: FileStat, there: FileStat| {
            (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
        };
        // While it is locked: who opens it from now on finds that its name is gone.
        if let (Ok(ours), Ok(there)) = (fstat(&*self.file), self.beside.look(&name))
            && same(ours, there)
        {
            self.beside.remove(&name);
        }
    }
}

fn private() -> Mode {
    Mode::S_IRUSR | Mode::S_IWUSR
}

/// Whether it is a file that the caller or root has put there: with a second name, it may be one of
/// theirs that somebody else has linked to.
fn is_ours(file: &FileStat) -> bool {
    let is_file = SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    is_file && file.st_nlink == 1 && [0, geteuid().as_raw()].contains(&file.st_uid)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::unistd::mkfifo;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn place() -> (tempfile::TempDir, PathBuf, Beside) {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().canonicalize().unwrap().join("snap.img");
        let beside = Beside::find(&image).unwrap();
        (folder, image, beside)
    }

    fn names(folder: &tempfile::TempDir) -> Vec<OsString> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn one_has_the_lock_and_nothing_is_left_of_it() {
        let (folder, image, beside) = place();
        let lock = beside.lock().unwrap_or_else(|_| panic!("the lock is free"));
        let path = image.with_file_name("snap.img.lock");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Beside::find(&image).unwrap().lock(), Err(NoLock::Held)));
        drop(lock);
        assert!(names(&folder).is_empty());
        // One that a killed start has left is free.
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        drop(beside.lock().unwrap_or_else(|_| panic!("the lock is free")));
        assert!(names(&folder).is_empty());
    }

    #[test]
    fn many_at_once_have_it_one_after_the_other() {
        let (folder, image, _) = place();
        let (holders, turns) =
            (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicUsize::new(0));
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let beside = Beside::find(&image).unwrap();
                    for _ in 0..500 {
                        if let Ok(_lock) = beside.lock() {
                            assert_eq!(holders.fetch_add(1, order), 0, "two have the lock");
                            turns.fetch_add(1, order);
                            holders.fetch_sub(1, order);
                        }
                    }
                });
            }
        });
        assert!(turns.into_inner() > 0);
        assert!(names(&folder).is_empty());
    }

    #[test]
    fn what_others_could_lock_is_no_lock() {
        let (folder, image, beside) = place();
        let (lock, other) = (image.with_file_name("snap.img.lock"), folder.path().join("other"));
        fs::write(&other, "precious").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
        let is_refused = |what: &str| {
            let Err(NoLock::Unusable(why)) = beside.lock() else { panic!("{what} is no lock") };
            assert!(why.contains("snap.img.lock"), "{why}");
            fs::remove_file(&lock).unwrap();
        };
        symlink(&other, &lock).unwrap();
        is_refused("a link");
        symlink(folder.path().join("absent"), &lock).unwrap();
        is_refused("a link to nothing");
        fs::hard_link(&other, &lock).unwrap();
        is_refused("another name of a file");
        mkfifo(&lock, private()).unwrap();
        is_refused("a pipe");
        fs::write(&lock, "").unwrap();
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
        is_refused("what everyone can read");
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
        assert_eq!(names(&folder), ["other"]);
    }

    #[test]
    fn a_note_replaces_what_has_its_name_and_nothing_else() {
        let (folder, image, beside) = place();
        let (note, other) = (image.with_file_name("snap.img.failed"), folder.path().join("other"));
        assert_eq!(beside.note_path(), note);
        assert!(beside.noted(LONG).is_none());
        fs::write(&other, "precious").unwrap();
        symlink(&other, &note).unwrap();
        assert!(beside.noted(LONG).is_none(), "a link is no note");
        beside.note("why");
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&note).unwrap(), "why");
        let kept = fs::symlink_metadata(&note).unwrap();
        assert!(kept.is_file() && kept.permissions().mode() & 0o777 == 0o600);
        assert!(beside.noted(LONG).is_some() && beside.noted(Duration::ZERO).is_none());
        beside.forget();
        assert!(beside.noted(LONG).is_none());
        fs::hard_link(&other, &note).unwrap();
        assert!(beside.noted(LONG).is_none(), "another name of a file is no note");
        fs::remove_file(&note).unwrap();
        fs::create_dir(&note).unwrap();
        assert!(beside.noted(LONG).is_none(), "a directory is no note");
        beside.note("why");
        fs::remove_dir(&note).unwrap();
        assert_eq!(names(&folder), ["other"]);
    }

    #[test]
    fn a_new_image_has_another_stamp() {
        let (_folder, image, beside) = place();
        let absent = beside.stamp();
        fs::write(&image, "1").unwrap();
        let first = beside.stamp();
        assert!(first != absent && first == beside.stamp());
        fs::write(image.with_extension("new"), "2").unwrap();
        fs::rename(image.with_extension("new"), &image).unwrap();
        assert!(beside.stamp() != first);
    }
}
