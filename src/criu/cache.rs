//! Where CRIU keeps what it has found out about the kernel.
//!
//! Each start of CRIU probes the kernel for up to 0.1 s unless it finds `criu.kdat` in
//! `XDG_RUNTIME_DIR`. It writes that file on a tmpfs only, so that it goes with the boot, and takes
//! any file of the right size for its own. So it gets a directory that is private to one version of
//! it in one kind of namespace, inside the user's own runtime directory or in `/dev/shm`.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::geteuid;

use super::version::Version;
use crate::sys::capabilities::exceeds_its_caller;
use crate::sys::keeper::Isolation;

/// What CRIU keeps.
const PROBED: &str = "criu.kdat";
/// The file that CRIU writes before it gives it its name; one that was left behind keeps CRIU from
/// ever writing again.
const UNFINISHED: &str = "criu.kdat.tmp";
/// CRIU needs a fraction of that.
const ABANDONED: Duration = Duration::from_secs(60);

/// The directory for CRIU to keep its knowledge in, made if need be; `None` where this user has no
/// directory on a tmpfs, and CRIU has to look at the kernel each time.
#[must_use]
pub fn runtime_directory(version: Version, isolation: Isolation) -> Option<PathBuf> {
    // CRIU believes what it finds there.
    if exceeds_its_caller() {
        return None;
    }
    let user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let root = geteuid().is_root().then(|| PathBuf::from("/run"));
    user.into_iter()
        .chain(root)
        .filter(|path| is_ours_on_tmpfs(path))
        .chain(shared_memory())
        .find_map(|path| prepare(&path, version, isolation))
}

/// Whether a CRIU of this version has probed this kernel and found it fit: it keeps nothing otherwise.
#[must_use]
pub(super) fn has_probed(version: Version, isolation: Isolation) -> bool {
    runtime_directory(version, isolation).is_some_and(|directory| directory.join(PROBED).exists())
}

/// A directory of ours where everybody may make one: containers have no other tmpfs. Nobody else can
/// have made it, or it is not ours.
fn shared_memory() -> Option<PathBuf> {
    let path = PathBuf::from(format!("/dev/shm/preloaded-criu-{}", geteuid()));
    // It may be there already.
    let _ = DirBuilder::new().mode(0o700).create(&path);
    is_ours_on_tmpfs(&path).then_some(path)
}

fn prepare(base: &Path, version: Version, isolation: Isolation) -> Option<PathBuf> {
    let kind = match isolation {
        Isolation::Host => "host",
        Isolation::UserNamespace => "userns",
    };
    let directory = base.join("preloaded-criu").join(format!("criu-{version}-{kind}"));
    DirBuilder::new().recursive(true).mode(0o700).create(&directory).ok()?;
    if !is_ours_on_tmpfs(&directory) {
        return None;
    }
    let unfinished = directory.join(UNFINISHED);
    let age = fs::metadata(&unfinished).and_then(|file| file.modified());
    if age.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED)) {
        // Somebody else may have removed it.
        let _ = fs::remove_file(&unfinished);
    }
    Some(directory)
}

fn is_ours_on_tmpfs(directory: &Path) -> bool {
    let ours = fs::symlink_metadata(directory).is_ok_and(|found| {
        found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0
    });
    ours && directory.is_absolute()
        && statfs(directory).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;
    use std::time::{Duration, SystemTime};

    use super::{UNFINISHED, is_ours_on_tmpfs, prepare};
    use crate::criu::Version;
    use crate::sys::keeper::Isolation;

    #[test]
    fn each_kind_has_a_private_directory_without_leftovers() {
        let Ok(base) = tempfile::tempdir_in("/dev/shm") else { return };
        if !is_ours_on_tmpfs(base.path()) {
            return;
        }
        let host = prepare(base.path(), Version::FLOOR, Isolation::Host).expect("a directory");
        let user = prepare(base.path(), Version::FLOOR, Isolation::UserNamespace).expect("another");
        assert_ne!(host, user);
        assert_eq!(fs::metadata(&host).expect("it is there").mode() & 0o777, 0o700);
        let unfinished = File::create(host.join(UNFINISHED)).expect("a file");
        prepare(base.path(), Version::FLOOR, Isolation::Host).expect("again");
        assert!(host.join(UNFINISHED).exists(), "it may be in use");
        unfinished.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("older");
        prepare(base.path(), Version::FLOOR, Isolation::Host).expect("again");
        assert!(!host.join(UNFINISHED).exists());
    }
}
