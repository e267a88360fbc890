//! The command lines that are compared.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// A command line in the measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contestant {
    /// What it is called.
    pub name: &'static str,
    /// What is expected of it.
    pub kind: Kind,
    /// The program and its arguments.
    pub words: Vec<OsString>,
}

/// What is expected of a contestant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The script by python itself: the standard for all others.
    Standard,
    /// The script by other means: it must do the same.
    Same,
    /// The same, where the caller is allowed to.
    Optional,
    /// The least that starting this python costs: it does nothing.
    Floor,
}

impl Contestant {
    /// The program that is started.
    pub(super) fn program(&self) -> PathBuf {
        self.words.first().map(PathBuf::from).unwrap_or_default()
    }
}

/// All of them, the standard first.
pub(super) fn field(
    launcher: &Path,
    python: PathBuf,
    image: &Path,
    arguments: &[OsString],
) -> Vec<Contestant> {
    let python = python.into_os_string();
    let ours = |name, kind, options: &[&str]| {
        let mut words: Vec<OsString> = vec![launcher.into(), "run".into()];
        words.extend(options.iter().map(OsString::from));
        words.push(unmistakable(image));
        words.extend_from_slice(arguments);
        Contestant { name, kind, words }
    };
    let floor = |name, options: &[&str]| {
        let options = options.iter().map(OsString::from);
        let words = [python.clone()].into_iter().chain(options).collect();
        Contestant { name, kind: Kind::Floor, words }
    };
    let script = [python.clone()].into_iter().chain(arguments.iter().cloned()).collect();
    vec![
        Contestant { name: "python3", kind: Kind::Standard, words: script },
        ours("run", Kind::Same, &["--engine", "native"]),
        ours(
            "run --eager --full-exit",
            Kind::Same,
            &["--engine", "native", "--eager", "--full-exit"],
        ),
        ours("run --engine criu", Kind::Optional, &["--engine", "criu"]),
        floor("python3 -c pass", &["-c", "pass"]),
        floor("python3 -I -S -c pass", &["-I", "-S", "-c", "pass"]),
    ]
}

/// A path that no command line takes for an option.
fn unmistakable(image: &Path) -> OsString {
    match image.as_os_str().as_encoded_bytes() {
        [b'-', ..] => Path::new(".").join(image).into_os_string(),
        _ => <Path as AsRef<OsStr>>::as_ref(image).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_the_scripts_arguments_and_floors_do_not() {
        let arguments = ["x.py".into(), "--runs".into()];
        let field = field(Path::new("/b"), "/py".into(), Path::new("-i.img"), &arguments);
        assert_eq!(field[0].words, ["/py", "x.py", "--runs"]);
        assert_eq!(field[0].kind, Kind::Standard);
        for contestant in &field[1..] {
            match contestant.kind {
                Kind::Floor => assert_eq!(contestant.words.last().unwrap(), "pass"),
                _ => assert!(contestant.words.ends_with(&[
                    "./-i.img".into(),
                    "x.py".into(),
                    "--runs".into()
                ])),
            }
        }
    }
}
