//! `snapshot --refresh`: what was typed when an image was made, from the image.

use std::env::current_dir;
use std::ffi::OsString;
use std::path::{Path, absolute};

use nix::unistd::{fchdir, geteuid};

use std::os::unix::fs::MetadataExt;

use super::args::{self, Command};
use super::report::{CliError, Failure};
use super::starter;
use crate::image::{Again, Image};
use crate::snapshot::{Interpreter, settings_of};
use crate::sys::way::{Blocked, open_directory, trusted_owners};

/// How an image can be made again, to be kept in it; `None` where paths or values are no text.
pub(super) fn again(arguments: &args::Snapshot) -> Option<Again> {
    let mut words = Vec::new();
    if let Some(python) = &arguments.python {
        let is_path = python.components().count() > 1;
        let python = if is_path { starter::full(python).ok()? } else { python.into() };
        words.extend(["--python".into(), python]);
    }
    words.extend(starter::anywhere(arguments.clone()).ok()?);
    let text = |word: OsString| word.into_string().ok();
    Some(Again {
        arguments: words.into_iter().map(text).collect::<Option<_>>()?,
        folder: text(current_dir().ok()?.into_os_string())?,
    })
}

/// Goes to the directory in which the image was made, if that is still one in which nobody else could have
/// put another: python imports what lies there. In no other directory is the image made, because other
/// modules may be found there.
fn go_to(folder: &Path) -> Result<(), Blocked> {
    let folder = open_directory(folder, &trusted_owners())?;
    Ok(fchdir(folder)?)
}

/// The arguments that the image was made with, and its place as the output. Goes to the directory in
/// which it was made.
pub(super) fn resolve(asked: args::Snapshot) -> Result<args::Snapshot, Failure> {
    let Some(path) = asked.refresh else { return Ok(asked) };
    let image = Image::open(&path)?;
    let owner = image.file().metadata().map_or(0, |metadata| metadata.uid());
    if owner != geteuid().as_raw() {
        return Err(CliError::NotYours { image: path, owner }.into());
    }
    let untold = || CliError::Untold(path.clone());
    let again = image.manifest()?.recipe.again.ok_or_else(untold)?;
    let line = ["preloaded-criu", "snapshot"].into_iter().map(OsString::from);
    let line = line.chain(again.arguments.iter().map(OsString::from)).collect();
    let Ok(Command::Snapshot(mut made)) = args::parse(line) else { return Err(untold().into()) };
    made.output = absolute(&path).map_err(CliError::Folder)?;
    made.force = true;
    made.json = asked.json;
    made.criu = asked.criu.or(made.criu);
    if asked.isolation != args::Isolation::Auto {
        made.isolation = asked.isolation;
    }
    if asked.engine != args::SnapshotEngine::Any {
        made.engine = asked.engine;
    }
    go_to(again.folder.as_ref()).map_err(|why| CliError::MadeElsewhere {
        image: path.clone(),
        folder: again.folder.into(),
        why,
    })?;
    let interpreter = &image.check().interpreter;
    // The one that is meant where none is named may be another one by now.
    let meant = Interpreter::find(made.python.as_deref()).ok();
    if meant.is_none_or(|meant| meant.path != *interpreter) {
        made.python = Some(interpreter.clone());
    }
    let (then, now) = (&image.check().settings, settings_of(&super::recipe(made.clone())?));
    if !then.fits(&now) {
        let differs = |name: &&Vec<u8>| then.values.get(*name) != now.values.get(*name);
        let mut names: Vec<String> = then
            .values
            .keys()
            .chain(now.values.keys())
            .filter(differs)
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        names.sort();
        names.dedup();
        if names.is_empty() {
            names.push("the locale".into());
        }
        return Err(CliError::OtherSettings { image: path, names }.into());
    }
    Ok(made)
}
