//! Recipes: well-known snapshots, written down.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::sys::Explain;

/// Those that come with the program, by name.
const KNOWN: [(&str, &str); 4] = [
    ("numpy", include_str!("../../images/numpy.toml")),
    ("sklearn", include_str!("../../images/sklearn.toml")),
    ("tensorflow", include_str!("../../images/tensorflow.toml")),
    ("torch", include_str!("../../images/torch.toml")),
];

/// What to import and to execute, and in which environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recipe {
    /// Its name: that of its file, without `.toml`.
    #[serde(skip)]
    pub(super) name: String,
    /// One line about it.
    pub(super) summary: String,
    /// Modules, in order.
    #[serde(default)]
    pub(super) imports: Vec<String>,
    /// Environment variables for the time in which the image is made.
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    /// Python code to be executed after the imports.
    #[serde(default)]
    pub(super) warm_up: Option<String>,
}

/// Why there is no recipe.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecipeError {
    /// No recipe has this name.
    #[error("there is no recipe called {0}")]
    Unknown(String),
    /// The file cannot be read.
    #[error("cannot read the recipe {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        why: io::Error,
    },
    /// The file makes no sense.
    #[error("the recipe {name} is not valid")]
    Invalid {
        /// The recipe, or its file.
        name: String,
        /// Where and why.
        #[source]
        why: Box<toml::de::Error>,
    },
}

impl Explain for RecipeError {
    fn hint(&self) -> String {
        match self {
            Self::Unknown(_) => format!(
                "the program knows {}; a file is named with its directory or with .toml",
                names().join(", ")
            ),
            Self::Unreadable { .. } => "name a file that you may read".into(),
            Self::Invalid { .. } => {
                "a recipe has summary, imports, environment and warm_up; `preloaded-criu snapshot \
                 --help` shows one"
                    .into()
            }
        }
    }
}

impl Recipe {
    /// The recipe of this name, or in this file.
    pub(super) fn load(name_or_file: &OsStr) -> Result<Self, RecipeError> {
        let path = Path::new(name_or_file);
        if Self::is_file(name_or_file) {
            let text = fs::read_to_string(path)
                .map_err(|why| RecipeError::Unreadable { path: path.to_owned(), why })?;
            let name = path.file_stem().unwrap_or(name_or_file).to_string_lossy().into_owned();
            let recipe = Self::parse(&path.to_string_lossy(), &text)?;
            return Ok(Self { name, ..recipe });
        }
        match KNOWN.into_iter().find(|(name, _)| name_or_file == *name) {
            Some((name, text)) => Self::parse(name, text),
            None => Err(RecipeError::Unknown(name_or_file.to_string_lossy().into_owned())),
        }
    }

    /// Whether this names a file, and not a recipe of the program.
    pub(super) fn is_file(name_or_file: &OsStr) -> bool {
        name_or_file.as_encoded_bytes().contains(&b'/')
            || Path::new(name_or_file).extension().is_some_and(|extension| extension == "toml")
    }

    fn parse(name: &str, text: &str) -> Result<Self, RecipeError> {
        let recipe = toml::from_str::<Self>(text);
        let recipe = recipe
            .map_err(|why| RecipeError::Invalid { name: name.to_owned(), why: Box::new(why) })?;
        Ok(Self { name: name.to_owned(), ..recipe })
    }
}

fn names() -> Vec<&'static str> {
    KNOWN.iter().map(|(name, _)| *name).collect()
}

/// The help text of `--recipe`.
pub(super) fn help() -> String {
    let begin = "Begin with a recipe: a TOML file, or one of those that come with the program\n\n";
    let known = KNOWN.iter().filter_map(|(name, text)| Recipe::parse(name, text).ok());
    let known = known.map(|recipe| format!("- {}: {}\n", recipe.name, recipe.summary));
    begin.to_owned()
        + &known.collect::<String>()
        + "\nA file looks like this, all but the summary optional:\n\
            \n  summary = \"what it is for\"\
            \n  imports = [\"numpy\", \"myproject.model\"]\
            \n  environment = { MODEL = \"small\" }\
            \n  warm_up = \"myproject.model.predict([1, 2, 3])\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_of_the_program_is_valid_and_named() {
        for name in names() {
            let recipe = Recipe::load(name.as_ref()).unwrap();
            assert_eq!(recipe.name, name);
            assert!(!recipe.summary.is_empty() && !recipe.imports.is_empty());
            assert!(help().contains(&recipe.summary));
        }
    }

    #[test]
    fn a_file_is_a_recipe_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        let load = |text: &str| {
            fs::write(&path, text).unwrap();
            Recipe::load(path.as_os_str())
        };
        let recipe = load("summary = 'x'\nimports = ['a.b']\nenvironment = { K = 'v' }").unwrap();
        assert_eq!(
            (recipe.name.as_str(), recipe.imports.as_slice()),
            ("mine", &["a.b".into()][..])
        );
        assert_eq!(recipe.environment["K"], "v");
        assert!(matches!(load("summary = 'x'\nimport = ['a']"), Err(RecipeError::Invalid { .. })));
        assert!(matches!(load("= "), Err(RecipeError::Invalid { .. })));
        let absent = folder.path().join("absent.toml");
        assert!(matches!(Recipe::load(absent.as_os_str()), Err(RecipeError::Unreadable { .. })));
        let unknown = Recipe::load("absent".as_ref()).unwrap_err();
        assert!(unknown.hint().contains("numpy, sklearn, tensorflow, torch"));
    }
}
