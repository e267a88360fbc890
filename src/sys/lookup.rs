//! Which file a program's name means.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf, absolute};

/// The file that a shell would execute for a name without a slash: the first of that name in `PATH`,
/// as an absolute path.
#[must_use]
pub fn in_path(name: &OsStr) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| is_executable(path))
        .and_then(|path| absolute(path).ok())
}

/// Whether it is a file that somebody may execute.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Whether an interpreter that is executed by the path `program` and called `name` goes by `program`:
/// CPython takes a name with a slash for its path, and looks for any other in `PATH`
/// (Modules/getpath.py, "CALCULATE program").
#[must_use]
pub fn goes_by(name: &OsStr, program: &Path) -> bool {
    if name.as_encoded_bytes().contains(&b'/') {
        return name == program;
    }
    in_path(name).is_some_and(|found| found == program)
}

/// The python that is meant where none is named: the active virtual environment's, else `python3`.
#[must_use]
pub fn usual_python() -> Option<PathBuf> {
    let environment = env::var_os("VIRTUAL_ENV").filter(|folder| !folder.is_empty());
    let own = environment.map(|folder| Path::new(&folder).join("bin/python3"));
    own.filter(|path| is_executable(path)).or_else(|| in_path("python3".as_ref()))
}

#[cfg(test)]
mod tests {
    use super::{goes_by, in_path};
    use std::path::Path;

    #[test]
    fn names_are_looked_up_as_a_shell_does() {
        let shell = in_path("sh".as_ref()).expect("there is a shell");
        assert!(shell.is_absolute());
        assert!(goes_by("sh".as_ref(), &shell));
        assert!(goes_by(shell.as_os_str(), &shell));
        assert!(!goes_by("./sh".as_ref(), &shell));
        assert!(!goes_by("sh".as_ref(), Path::new("/elsewhere/sh")));
        assert!(!goes_by("".as_ref(), &shell));
    }
}
