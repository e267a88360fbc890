//! The files that Python code of an image was read from.
//!
//! A run compares few of them: a library that a package manager has installed is known by its RECORD
//! (Binary Distribution Format, PyPA specifications), the standard library by one of its files. What
//! nobody keeps a record of, such as a project's own modules, is compared file by file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files of the modules, by what is to be looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// At every run.
    pub(super) quick: BTreeSet<PathBuf>,
    /// Only where everything is to be compared.
    pub(super) rest: BTreeSet<PathBuf>,
}

impl Sources {
    /// Sorts the files of modules, as the agent has reported them, and of the libraries that the image
    /// holds itself.
    pub(super) fn of(
        modules: &BTreeMap<String, Option<String>>,
        embedded: &BTreeSet<PathBuf>,
    ) -> Self {
        let file = |name: &str| modules.get(name)?.as_deref().and_then(existing);
        let marker = file("os");
        let library = marker.as_deref().and_then(Path::parent);
        let mut sources = Self::default();
        let mut records: BTreeMap<PathBuf, BTreeMap<PathBuf, PathBuf>> = BTreeMap::new();
        let modules = modules.values().flatten().filter_map(|file| existing(file));
        for path in modules.chain(embedded.iter().cloned()) {
            if let Some(site) = site_of(&path) {
                let records = records.entry(site.clone()).or_insert_with(|| owners(&site));
                if let Some(record) = records.get(&path) {
                    sources.quick.insert(record.clone());
                    sources.rest.insert(path);
                    continue;
                }
            } else if library.is_some_and(|library| path.starts_with(library)) {
                sources.rest.insert(path);
                continue;
            }
            sources.quick.insert(path);
        }
        sources.rest.extend(marker.clone());
        sources.quick.extend(marker);
        sources.rest.retain(|path| !sources.quick.contains(path));
        sources
    }
}

/// The file, or the archive that it is in.
fn existing(file: &str) -> Option<PathBuf> {
    let path = Path::new(file);
    let found = path.ancestors().find(|step| step.is_file())?;
    path.is_absolute().then(|| found.to_owned())
}

/// The directory of installed packages that a file is in.
fn site_of(path: &Path) -> Option<PathBuf> {
    let is_site = |step: &&Path| {
        step.file_name().is_some_and(|name| name == "site-packages" || name == "dist-packages")
    };
    path.ancestors().find(is_site).map(Path::to_owned)
}

/// Which RECORD each file is in.
fn owners(site: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let mut owners = BTreeMap::new();
    for entry in fs::read_dir(site).into_iter().flatten().flatten() {
        let record = entry.path().join("RECORD");
        // A package that is installed where it is developed has its files elsewhere.
        for line in fs::read_to_string(&record).unwrap_or_default().lines() {
            let name = line
                .strip_prefix('"')
                .map_or_else(|| line.split(',').next(), |quoted| quoted.split('"').next());
            if let Some(name) = name.filter(|name| !name.is_empty()) {
                owners.insert(site.join(name), record.clone());
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_record_is_known_by_it() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        };
        let os = make("lib/os.py", "");
        let json = make("lib/json/__init__.py", "");
        let owned = make("lib/site-packages/owned/__init__.py", "");
        let quoted = make("lib/site-packages/odd,name.py", "");
        let loose = make("lib/site-packages/loose.py", "");
        let own = make("project/model.py", "");
        let library = make("system/library.so", "");
        let archive = make("project/archive.zip", "");
        let list = "owned/__init__.py,sha256=x,0\n\"odd,name.py\",,\nowned-1.dist-info/RECORD,,\n";
        let record = make("lib/site-packages/owned-1.dist-info/RECORD", list);
        let text = |path: &Path| Some(path.to_str().unwrap().to_owned());
        let modules = [
            ("os", text(&os)),
            ("json", text(&json)),
            ("owned", text(&owned)),
            ("odd", text(&quoted)),
            ("loose", text(&loose)),
            ("model", text(&own)),
            ("zipped", text(&archive.join("zipped.py"))),
            ("relative", Some("relative.py".into())),
            ("sys", None),
        ];
        let modules = modules.map(|(name, file)| (name.to_owned(), file)).into();
        let sources = Sources::of(&modules, &[library.clone()].into());
        assert_eq!(sources.quick, [os, record, loose, own, archive, library.clone()].into());
        assert_eq!(sources.rest, [json, owned, quoted].into());
    }
}
