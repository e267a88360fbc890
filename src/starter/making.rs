//! The image of a starter is made by the first who misses it.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::utsname::uname;

use super::beside::{Beside, NoLock};
use super::{Regret, Starter};
use crate::image::{Fault, Image, ImageError, Stale};
use crate::run::{Request, RunError, run};
use crate::sys::places::{by_descriptor, make_directory};
use crate::sys::way::{Blocked, open_directory, trusted_owners};

/// How long an image that could not be made is not tried again: each try takes longer than a start
/// without it.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes the image that `why` says is of no use, and runs it. `file` is the starter itself.
///
/// # Errors
///
/// Why no image is run; the process is as it was.
pub(super) fn make(
    starter: &Starter,
    file: &Path,
    request: &Request,
    why: RunError,
    begin: impl FnOnce(&Path),
) -> Result<Infallible, Regret> {
    let image = &request.image;
    if starter.snapshot.is_empty() || !helps(&why, image) {
        return Err(Regret::Run(why));
    }
    let not_made = |why: String| Regret::NotMade { image: image.clone(), why };
    let beside = place(image).map_err(not_made)?;
    if given_up(&beside, file) {
        return Err(Regret::GivenUp { image: image.clone(), note: beside.note_path() });
    }
    let before = beside.stamp();
    // Somebody may have made it meanwhile.
    let Err(why) = run(request);
    if !helps(&why, image) {
        return Err(Regret::Run(why));
    }
    let lock = match beside.lock() {
        Ok(lock) => lock,
        Err(NoLock::Held) => return Err(Regret::Busy(image.clone())),
        Err(NoLock::Unusable(why)) => return Err(not_made(why)),
    };
    // Or while the lock was taken; then there is nothing left to do here, whatever comes of it.
    if beside.stamp() == before {
        let folder = folder(starter).map_err(not_made)?;
        begin(image);
        if let Err(why) = snapshot(starter, &folder, beside.image()) {
            if why.lasts {
                beside.note(&why.said);
            }
            return Err(not_made(why.said));
        }
        beside.forget();
    }
    // Whoever waits for the lock finds the image; and an exec would leave the lock's file.
    drop(lock);
    let Err(why) = run(request);
    Err(Regret::Run(why))
}

/// Makes an image anew that is older than the starter wants. Nobody waits for it: who does not get the
/// lock, or comes after a try that has failed, runs the image that there is. So does, without a word, who
/// may not write where it lies: it is not theirs to renew.
///
/// # Errors
///
/// Why it could not be made; the image that there is can still be used.
pub(super) fn renew(
    starter: &Starter,
    file: &Path,
    image: &Path,
    begin: impl FnOnce(&Path),
) -> Result<(), Regret> {
    if starter.snapshot.is_empty() || !is_too_old(starter, image) {
        return Ok(());
    }
    let not_renewed = |why: String| Regret::NotRenewed { image: image.to_owned(), why };
    let beside = Beside::find(image).map_err(|fault| not_renewed(fault.to_string()))?;
    if !beside.is_writable() || given_up(&beside, file) {
        return Ok(());
    }
    let _lock = match beside.lock() {
        Ok(lock) => lock,
        Err(NoLock::Held) => return Ok(()),
        Err(NoLock::Unusable(why)) => return Err(not_renewed(why)),
    };
    if !is_too_old(starter, image) {
        return Ok(());
    }
    let folder = folder(starter).map_err(not_renewed)?;
    begin(image);
    if let Err(why) = snapshot(starter, &folder, beside.image()) {
        if why.lasts {
            beside.note(&why.said);
        }
        return Err(not_renewed(why.said));
    }
    beside.forget();
    Ok(())
}

/// Finds the place of an image that is to be made, or says why none can be made there. Directories that
/// are not there are made.
fn place(image: &Path) -> Result<Beside, String> {
    let found = match (Beside::find(image), image.parent()) {
        (Err(Fault::Missing), Some(folder)) => {
            let made = make_directory(folder);
            made.map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
            Beside::find(image)
        }
        (found, _) => found,
    };
    let beside = found.map_err(|fault| fault.to_string())?;
    // Else each start would start a snapshot to find this out: no note can be left here.
    if beside.is_writable() {
        Ok(beside)
    } else {
        let folder = beside.image().parent().unwrap_or(image);
        Err(format!("{} cannot be written to", folder.display()))
    }
}

/// The directory in which the image is made: python imports what lies there, so it must be one that nobody
/// else could have put there. A starter outlives its directory, and is taken to where there is none such;
/// then the image is made in the root directory, which holds nobody's modules: imports that need the
/// other one fail there, and say so.
fn folder(starter: &Starter) -> Result<OwnedFd, String> {
    let root = Path::new("/");
    // One that is named by no whole path is none of those that are written.
    let folder = root.join(&starter.folder);
    let trusted = trusted_owners();
    match open_directory(&folder, &trusted) {
        Err(Blocked::Io(_)) => open_directory(root, &trusted),
        opened => opened,
    }
    .map_err(|why| format!("nothing is imported in {}: {why}", folder.display()))
}

/// Whether an image that is there is older than the starter wants.
fn is_too_old(starter: &Starter, image: &Path) -> bool {
    let Some(most) = starter.max_age else { return false };
    let written = fs::metadata(image).and_then(|metadata| metadata.modified());
    let Ok(written) = written else { return false };
    let now = SystemTime::now();
    let is_old = |time| is_older(time, most, now);
    if written <= now && is_old(written) {
        return true;
    }
    // A copy has another time, and a file can be given any. What cannot be read is for the run to tell.
    let created = Image::created(image).ok().map(Duration::from_secs);
    let created = created.and_then(|created| SystemTime::UNIX_EPOCH.checked_add(created));
    created.is_some_and(|created| is_old(created.min(written)))
}

/// Whether what is of that `time` is older than `most`. What is from the future is of a clock that was
/// wrong, and might be of any time.
fn is_older(time: SystemTime, most: Duration, now: SystemTime) -> bool {
    now.duration_since(time).map_or(true, |age| age > most)
}

/// Whether the image can be used when it is made anew: by us, here.
fn helps(why: &RunError, image: &Path) -> bool {
    match why {
        RunError::Image(ImageError::Unusable { why, .. }) => matches!(
            why,
            Fault::Missing
                | Fault::Empty
                | Fault::Older { .. }
                | Fault::CutOff { .. }
                | Fault::WrongLength { .. }
                | Fault::Damaged(_)
                | Fault::Malformed { .. }
        ),
        RunError::Plan { .. }
        | RunError::Image(ImageError::Stale {
            why: Stale::Gone(_) | Stale::Changed(_) | Stale::NoFile(_),
            ..
        }) => true,
        // Callers with different variables, and machines that share an image, would make it in turns,
        // a container at each of its starts.
        RunError::Image(ImageError::Stale {
            why: Stale::Variable(_) | Stale::Unreadable { .. },
            ..
        }) => false,
        RunError::Image(ImageError::Stale { .. }) => made_here(image),
        _ => false,
    }
}

fn made_here(image: &Path) -> bool {
    let manifest = Image::open(image).and_then(|image| image.manifest());
    let Ok(here) = uname() else { return false };
    manifest.is_ok_and(|manifest| here.nodename() == manifest.host.name.as_str())
}

/// Whether it was tried not long ago, with the starter as it is.
fn given_up(beside: &Beside, starter: &Path) -> bool {
    let Some(tried) = beside.noted(PATIENCE) else { return false };
    let made = fs::metadata(starter).and_then(|metadata| metadata.modified());
    made.is_ok_and(|made| made < tried)
}

/// Why there is no image.
struct Failure {
    said: String,
    /// Whether it would be so the next time.
    lasts: bool,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { said: error.to_string(), lasts: false }
    }
}

/// Has this program make the image: in a process of its own, because this one is to become python.
fn snapshot(starter: &Starter, folder: &OwnedFd, image: &Path) -> Result<(), Failure> {
    let done = Command::new("/proc/self/exe")
        .arg("snapshot")
        .args(&starter.snapshot)
        .args(["--force", "--output"])
        .arg(image)
        .current_dir(by_descriptor(folder))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let ours = said.lines().skip_while(|line| !line.starts_with("preloaded-criu: "));
    let line = ours.map(|line| line.trim_start_matches("preloaded-criu: ").trim());
    let words: Vec<&str> = line.take_while(|line| !line.starts_with("hint: ")).collect();
    let said = if words.is_empty() { done.status.to_string() } else { words.join(": ") };
    Err(Failure { said, lasts: done.status.code().is_some() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_from_the_future_is_too_old() {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        for (time, is_old) in
            [(now, false), (now - hour, false), (now - hour * 2, true), (now + hour, true)]
        {
            assert_eq!(is_older(time, hour, now), is_old, "{time:?}");
        }
    }
}
