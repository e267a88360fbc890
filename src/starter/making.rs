//! The image of a starter is made by the first who misses it.

use std::convert::Infallible;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::utsname::uname;

use super::{Regret, Starter};
use crate::image::{Fault, Image, ImageError, Stale};
use crate::run::{Request, RunError, run};

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
    let note = note(image);
    if given_up(&note, file) {
        return Err(Regret::GivenUp { image: image.clone(), note });
    }
    let Some(lock) = lock(file) else { return Err(Regret::Busy(image.clone())) };
    // Somebody may have made it before the lock was free.
    let Err(why) = run(request);
    if !helps(&why, image) {
        return Err(Regret::Run(why));
    }
    begin(image);
    if let Err(why) = snapshot(starter, image) {
        // If it cannot be noted, it cannot be helped.
        let _ = why.lasts.then(|| fs::write(&note, &why.said));
        return Err(Regret::NotMade { image: image.clone(), why: why.said });
    }
    let _ = fs::remove_file(&note);
    // Whoever waits for the lock finds the image.
    drop(lock);
    let Err(why) = run(request);
    Err(Regret::Run(why))
}

/// Makes an image anew that is older than the starter wants. Nobody waits for it: who does not get the
/// lock, or comes after a try that has failed, runs the image that there is.
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
    let note = note(image);
    if starter.snapshot.is_empty() || !is_too_old(starter, image) || given_up(&note, file) {
        return Ok(());
    }
    let Some(_lock) = lock(file).filter(|_| is_too_old(starter, image)) else { return Ok(()) };
    begin(image);
    if let Err(why) = snapshot(starter, image) {
        let _ = why.lasts.then(|| fs::write(&note, &why.said));
        return Err(Regret::NotRenewed { image: image.to_owned(), why: why.said });
    }
    let _ = fs::remove_file(&note);
    Ok(())
}

/// Whether an image that is there is older than the starter wants. An image is never written again, so
/// its file's time is when it was made.
fn is_too_old(starter: &Starter, image: &Path) -> bool {
    let Some(most) = starter.max_age else { return false };
    let made = fs::metadata(image).and_then(|metadata| metadata.modified());
    // One from the future is new.
    made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > most))
}

/// The starter is the lock: it is there, every user of it can open it, and nothing is left.
fn lock(starter: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(starter).ok()?, FlockArg::LockExclusiveNonblock).ok()
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
        | RunError::Image(ImageError::Stale { why: Stale::Gone(_) | Stale::Changed(_), .. }) => {
            true
        }
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

/// The file that says why an image could not be made.
fn note(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".failed");
    name.into()
}

/// Whether it was tried not long ago, with the starter as it is.
fn given_up(note: &Path, starter: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let Ok(tried) = modified(note) else { return false };
    let recent = tried.elapsed().is_ok_and(|age| age < PATIENCE);
    recent && modified(starter).is_ok_and(|made| made < tried)
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
fn snapshot(starter: &Starter, image: &Path) -> Result<(), Failure> {
    if let Some(folder) = image.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let folder = if starter.folder.is_dir() { &starter.folder } else { Path::new("/") };
    let done = Command::new("/proc/self/exe")
        .arg("snapshot")
        .args(&starter.snapshot)
        .args(["--force", "--output"])
        .arg(image)
        .current_dir(folder)
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
