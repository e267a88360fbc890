//! `starter`, and `start`, which starters are executed by.

use std::convert::Infallible;
use std::env::current_dir;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, absolute};

use super::args;
use super::recipe::Recipe;
use super::report::{self, CliError, Failure};
use crate::image::{Image, Manifest};
use crate::snapshot::Interpreter;
use crate::starter::{self, Regret, Starter};

/// Becomes python, whatever happens.
pub(super) fn start(arguments: args::Start) -> Result<Infallible, Failure> {
    let args::Start { starter, arguments } = arguments;
    let name = starter.clone();
    Ok(starter::start(&starter, arguments, |news| match news {
        Ok(image) if io::stderr().is_terminal() && !report::is_quiet() => {
            let (name, image) = (name.display(), image.display());
            let text = format!("preloaded-criu: {name} makes its image {image}, this once");
            // Nobody is left to tell if this fails.
            let _ = io::stderr().write_all(format!("{}\n", report::shown(&text)).as_bytes());
        }
        Ok(_) => {}
        Err(regret @ Regret::NotRenewed { .. }) => report::remark(regret),
        Err(regret) => report::regret(regret),
    })?)
}

/// Writes a starter.
pub(super) fn starter(arguments: args::Starter) -> Result<i32, Failure> {
    let args::Starter { image, max_age, snapshot } = arguments;
    let (output, force) = (snapshot.output.clone(), snapshot.force);
    let at = image.as_deref().map(absolute).transpose().map_err(CliError::Folder)?;
    let folder = current_dir().map_err(CliError::Folder)?;
    let asked = asks(&snapshot);
    let private = !snapshot.environment.is_empty();
    let python = snapshot.python.clone();
    let mut starter = Starter { at: at.clone(), folder, max_age, ..Starter::default() };
    if let (Some(image), false) = (&at, asked) {
        let image = Image::open(image)?;
        starter.python.clone_from(&image.check().interpreter);
        starter.snapshot = image.manifest().map(|made| again(&made)).unwrap_or_default();
    } else {
        starter.python = Interpreter::find(python.as_deref())?.path;
        starter.snapshot = words(snapshot, &starter.python)?;
    }
    starter::write(&starter, &output, force, private)?;
    Ok(0)
}

/// Whether it is said what is to be frozen.
fn asks(snapshot: &args::Snapshot) -> bool {
    !snapshot.imports.is_empty() || !snapshot.exec.is_empty() || snapshot.recipe.is_some()
}

/// What was typed, for `snapshot` in another directory.
fn words(snapshot: args::Snapshot, python: &Path) -> Result<Vec<OsString>, Failure> {
    let mut words: Vec<OsString> = vec!["--python".into(), python.into()];
    words.extend(anywhere(snapshot)?);
    Ok(words)
}

/// What was typed but for the interpreter and the output, for `snapshot` in another directory.
pub(super) fn anywhere(snapshot: args::Snapshot) -> Result<Vec<OsString>, Failure> {
    let args::Snapshot {
        imports,
        exec,
        recipe,
        python: _,
        environment,
        output: _,
        force: _,
        refresh: _,
        self_contained,
        isolation,
        engine,
        criu,
        json: _,
        options,
    } = snapshot;
    let mut words = options.words();
    let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
    if let Some(recipe) = recipe {
        // One that makes no sense is better known now.
        Recipe::load(&recipe)?;
        option("--recipe", if Recipe::is_file(&recipe) { full(recipe.as_ref())? } else { recipe });
    }
    for module in imports {
        option("--import", module.into());
    }
    for file in exec {
        option("--exec", full(&file)?);
    }
    for (name, value) in environment {
        option("--env", [name, value].join("=".as_ref()));
    }
    if let Some(criu) = criu {
        option("--criu", if criu.components().count() > 1 { full(&criu)? } else { criu.into() });
    }
    match isolation {
        args::Isolation::Auto => {}
        args::Isolation::Host => option("--isolation", "host".into()),
        args::Isolation::Userns => option("--isolation", "userns".into()),
    }
    if engine == args::SnapshotEngine::Criu {
        option("--engine", "criu".into());
    }
    if self_contained {
        words.push("--self-contained".into());
    }
    Ok(words)
}

pub(super) fn full(path: &Path) -> Result<OsString, Failure> {
    Ok(absolute(path).map_err(CliError::Folder)?.into())
}

/// How an image that is there was made, as far as it tells: nothing where it keeps something to itself
/// (values of variables, the code of a recipe of the user's own).
fn again(made: &Manifest) -> Vec<OsString> {
    let recipe = &made.recipe;
    let known = recipe.name.as_ref().map(|name| Recipe::load(name.as_ref()));
    let mut words: Vec<OsString> = vec!["--python".into(), (&made.python.executable).into()];
    let mut secret = recipe.environment.clone();
    match known {
        Some(Ok(known)) if recipe.imports.starts_with(&known.imports) => {
            words.extend(["--recipe".into(), (&known.name).into()]);
            secret.retain(|name| !known.environment.contains_key(name));
        }
        Some(_) => return Vec::new(),
        None => {}
    }
    let vague = recipe.exec.iter().any(|path| !path.starts_with('/') || path.contains('\u{fffd}'));
    if !secret.is_empty() || vague {
        return Vec::new();
    }
    words.extend(made.python.flags.iter().map(Into::into));
    words.extend(recipe.imports.iter().flat_map(|name| ["--import".into(), name.into()]));
    words.extend(recipe.exec.iter().flat_map(|path| ["--exec".into(), path.into()]));
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image;

    #[test]
    fn an_image_is_made_again_as_it_was_if_it_tells_how() {
        let made = |change: fn(&mut image::Recipe)| {
            let mut made = Manifest::default();
            made.python.executable = "/p".into();
            made.recipe.imports = vec!["numpy".into(), "json".into()];
            change(&mut made.recipe);
            let words = again(&made);
            words
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(made(|_| ()), "--python /p --import numpy --import json");
        assert_eq!(
            made(|recipe| recipe.exec = vec!["/x.py".into()]),
            "--python /p --import numpy --import json --exec /x.py"
        );
        assert_eq!(made(|recipe| recipe.exec = vec!["x.py".into()]), "");
        assert_eq!(made(|recipe| recipe.environment = vec!["KEY".into()]), "");
        assert_eq!(made(|recipe| recipe.name = Some("of my own".into())), "");
        assert!(
            made(|recipe| *recipe = image::Recipe {
                name: Some("numpy".into()),
                imports: Recipe::load("numpy".as_ref()).unwrap().imports,
                ..image::Recipe::default()
            })
            .starts_with("--python /p --recipe numpy")
        );
    }
}
