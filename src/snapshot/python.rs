//! Which interpreter is frozen, and whether it can be.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sys::capabilities::starts_securely;
use crate::sys::lookup::{in_path, is_executable};
use crate::sys::{Explain, limits, null_device};

/// An interpreter that can be frozen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interpreter {
    /// The file to execute, by its absolute name: links are not resolved, because a virtual
    /// environment is known by the name that its python is called by.
    pub path: PathBuf,
    /// Major and minor version.
    pub version: (u32, u32),
}

/// Why an interpreter cannot be frozen.
#[derive(Debug, thiserror::Error)]
pub enum PythonError {
    /// There is no such file.
    #[error("there is no interpreter {}", .0.display())]
    NotFound(PathBuf),
    /// It cannot be executed.
    #[error("cannot execute the interpreter {}", path.display())]
    Execute {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// It does not say what it is.
    #[error("{} does not run as python does", path.display())]
    Mute {
        /// The file.
        path: PathBuf,
        /// What it prints instead.
        #[source]
        source: io::Error,
    },
    /// It is another python than can be frozen.
    #[error("{} is {what}, and CPython 3.10 or later is needed", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// It has no global interpreter lock.
    #[error("{} is a free-threaded CPython {}.{}, and one with a global interpreter lock is needed",
        path.display(), version.0, version.1)]
    FreeThreaded {
        /// The file.
        path: PathBuf,
        /// Major and minor version.
        version: (u32, u32),
    },
    /// The loader preloads nothing into it.
    #[error("{} gives rights to who starts it (setuid, setgid or `setcap`), so nothing can be loaded into it",
        .0.display())]
    Privileged(PathBuf),
    /// It is another kind of program than can be frozen.
    #[error("{} is {what}, and a program for x86-64 that is linked to glibc at start is needed",
        path.display())]
    Program {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
}

impl Explain for PythonError {
    fn hint(&self) -> String {
        match self {
            Self::NotFound(_) => "name one with --python, or activate a virtual environment".into(),
            Self::Execute { source, .. } | Self::Mute { source, .. } => {
                limits(source).unwrap_or("see that it starts by itself: `PYTHON -c pass`").into()
            }
            Self::Privileged(_) => {
                "freeze a copy without these rights (`cp` leaves capabilities behind), or use another one"
                    .into()
            }
            Self::FreeThreaded { version: (major, minor), .. } => format!(
                "name the ordinary build with --python: python{major}.{minor}, which is installed beside \
                 python{major}.{minor}t"
            ),
            Self::Other { .. } | Self::Program { .. } => {
                "name another one with --python: your distribution's, pyenv's, uv's and conda's will do"
                    .into()
            }
        }
    }
}

/// What the interpreter is asked: who it is, and what file to execute to get it.
const QUESTION: &str = "import sys
v = sys.version_info
name = getattr(getattr(sys, 'implementation', None), 'name', 'cpython')
print('%d %d %s%s' % (v[0], v[1], name, ' t' * ('t' in getattr(sys, 'abiflags', ''))))
print(sys.executable)";

impl Interpreter {
    /// Finds the interpreter: the one that was asked for, else the active virtual environment's,
    /// else `python3` in `PATH`; and sees that it can be frozen.
    ///
    /// # Errors
    ///
    /// [`PythonError`].
    pub fn find(asked: Option<&Path>) -> Result<Self, PythonError> {
        let found = match (asked, env::var_os("VIRTUAL_ENV").filter(|name| !name.is_empty())) {
            (Some(asked), _) => locate(asked),
            (None, Some(folder)) => {
                let folder = Path::new(&folder).join("bin");
                let names = ["python3", "python"].map(|name| folder.join(name));
                let found = names.iter().find(|path| is_executable(path)).cloned();
                found.ok_or_else(|| PythonError::NotFound(folder.join("python3")))
            }
            (None, None) => locate(Path::new("python3")),
        }?;
        Self::examine(found)
    }

    fn examine(mut path: PathBuf) -> Result<Self, PythonError> {
        let execute = |path: &Path, source| PythonError::Execute { path: path.into(), source };
        let mut head = Head::read(&path).map_err(|source| execute(&path, source))?;
        if let Some(Err(what)) = head.program() {
            return Err(PythonError::Program { path, what });
        }
        let answer = Answer::ask(&path)?;
        if head.program().is_none() {
            // A script, such as pyenv's, that executes the interpreter: which one may depend on the
            // current directory.
            path = answer.executable;
            head = Head::read(&path).map_err(|source| execute(&path, source))?;
            match head.program() {
                Some(Ok(())) => {}
                Some(Err(what)) => return Err(PythonError::Program { path, what }),
                None => return Err(PythonError::Program { path, what: "a script" }),
            }
        }
        if answer.implementation != "cpython" || answer.version < (3, 10) {
            let (major, minor) = answer.version;
            let what = format!("{} {major}.{minor}", answer.implementation);
            return Err(PythonError::Other { path, what });
        }
        if answer.is_free_threaded {
            return Err(PythonError::FreeThreaded { path, version: answer.version });
        }
        if starts_securely(&path) {
            return Err(PythonError::Privileged(path));
        }
        Ok(Self { path, version: answer.version })
    }
}

/// The file that a shell would execute.
fn locate(name: &Path) -> Result<PathBuf, PythonError> {
    let missing = || PythonError::NotFound(name.to_owned());
    if name.components().count() > 1 || name.is_absolute() {
        let path = std::path::absolute(name).map_err(|_| missing())?;
        return if is_executable(&path) { Ok(path) } else { Err(missing()) };
    }
    in_path(name.as_os_str()).ok_or_else(missing)
}

/// What an interpreter says of itself.
#[derive(Debug, Eq, PartialEq)]
struct Answer {
    version: (u32, u32),
    implementation: String,
    is_free_threaded: bool,
    executable: PathBuf,
}

impl Answer {
    fn ask(path: &Path) -> Result<Self, PythonError> {
        // Without the site's own code, which may print.
        let ask = |null| Command::new(path).args(["-S", "-c", QUESTION]).stdin(null).output();
        let output = null_device()
            .and_then(ask)
            .map_err(|source| PythonError::Execute { path: path.into(), source })?;
        let mute =
            |text: String| PythonError::Mute { path: path.into(), source: io::Error::other(text) };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(mute(format!("{} ({})", complaint(&said), output.status)));
        }
        Self::parse(&output.stdout).ok_or_else(|| {
            mute(format!("it answers {:?}", String::from_utf8_lossy(&output.stdout)))
        })
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut lines = text.splitn(2, |byte| *byte == b'\n');
        let first = std::str::from_utf8(lines.next()?).ok()?;
        let mut words = first.split(' ');
        let version = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let implementation = words.next()?.to_owned();
        let is_free_threaded = words.next() == Some("t");
        let executable = lines.next()?.strip_suffix(b"\n")?;
        let executable = PathBuf::from(OsString::from_vec(executable.to_vec()));
        executable.is_absolute().then_some(Self {
            version,
            implementation,
            is_free_threaded,
            executable,
        })
    }
}

/// The line of an error output that says what is wrong: Python's last one, another program's first.
fn complaint(said: &str) -> &str {
    let mut lines = said.lines().filter(|line| !line.trim().is_empty());
    let python = said.starts_with("Traceback") || said.starts_with("Fatal Python");
    let line = if python { lines.next_back() } else { lines.next() };
    line.unwrap_or("it prints nothing")
}

/// The beginning of a file that can be executed.
struct Head(Vec<u8>);

/// More than an ELF header, its program headers and the loader's name take.
const HEAD: u64 = 4096;

impl Head {
    fn read(path: &Path) -> io::Result<Self> {
        let mut head = Vec::new();
        File::open(path)?.take(HEAD).read_to_end(&mut head)?;
        Ok(Self(head))
    }

    /// Whether this program can be frozen (elf(5)); `None` for a script.
    fn program(&self) -> Option<Result<(), &'static str>> {
        if self.0.starts_with(b"#!") {
            return None;
        }
        Some(self.elf())
    }

    fn elf(&self) -> Result<(), &'static str> {
        const CLASS_64_LITTLE: &[u8] = &[2, 1];
        const X86_64: u16 = 62;
        const INTERPRETER: u32 = 3;
        if !self.0.starts_with(b"\x7fELF") {
            return Err("no program");
        }
        let half = |at: usize| -> Option<u16> {
            Some(u16::from_le_bytes(self.0.get(at..at + 2)?.try_into().ok()?))
        };
        if self.0.get(4..6) != Some(CLASS_64_LITTLE) || half(18) != Some(X86_64) {
            return Err("for another processor");
        }
        let table = self.word(32).ok_or("cut short")?;
        let size = u64::from(half(54).ok_or("cut short")?);
        let count = u64::from(half(56).ok_or("cut short")?);
        for number in 0..count {
            let header = table.saturating_add(number * size);
            let Some(kind) = usize::try_from(header).ok().and_then(|at| self.kind(at)) else {
                break;
            };
            if kind == INTERPRETER {
                let loader = self.loader(header).unwrap_or_default();
                let glibc = loader.windows(8).any(|part| part == b"ld-linux");
                return if glibc { Ok(()) } else { Err("linked to another C library") };
            }
        }
        Err("linked statically")
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.0.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    fn word(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        Some(u64::from_le_bytes(self.0.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }

    fn loader(&self, header: u64) -> Option<&[u8]> {
        let offset = usize::try_from(self.word(header.checked_add(8)?)?).ok()?;
        let length = usize::try_from(self.word(header.checked_add(32)?)?).ok()?;
        self.0.get(offset..offset.checked_add(length)?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::{Answer, Head, Interpreter, PythonError, locate};

    #[test]
    fn an_answer_has_version_name_and_file() {
        let answer = Answer::parse(b"3 11 cpython\n/usr/bin/python3\n").expect("an answer");
        assert_eq!((answer.version, answer.is_free_threaded), ((3, 11), false));
        let answer_of_free_threaded = Answer::parse(b"3 13 cpython t\n/usr/bin/python3\n");
        assert!(answer_of_free_threaded.is_some_and(|answer| answer.is_free_threaded));
        assert_eq!(answer.executable, Path::new("/usr/bin/python3"));
        assert_eq!(Answer::parse(b"3 11 cpython\n\n"), None);
        assert_eq!(Answer::parse(b"hello\n"), None);
        assert_eq!(Answer::parse(b""), None);
    }

    #[test]
    fn a_program_that_is_no_python_is_refused() {
        let error = Interpreter::find(Some(Path::new("/bin/true"))).expect_err("no python");
        assert!(matches!(error, PythonError::Mute { .. }), "{error:?}");
        let error = Interpreter::find(Some(Path::new("/no/such/file"))).expect_err("nothing");
        assert!(matches!(error, PythonError::NotFound(_)), "{error:?}");
        assert!(locate(Path::new("sh")).is_ok_and(|path| path.is_absolute()));
    }

    #[test]
    fn what_runs_here_is_a_program_of_glibc() {
        let head = Head::read(Path::new("/bin/sh")).expect("there is a shell");
        assert_eq!(head.program(), Some(Ok(())));
        assert_eq!(Head(b"#!/bin/sh\n".to_vec()).program(), None);
        assert_eq!(Head(b"\x7fELF\x01\x01".to_vec()).program(), Some(Err("for another processor")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(
            bytes in proptest::collection::vec(any::<u8>(), 0..256),
            elf in any::<bool>(),
        ) {
            let mut file = if elf { b"\x7fELF\x02\x01".to_vec() } else { Vec::new() };
            file.extend(bytes);
            if elf && file.len() > 20 {
                file[18..20].copy_from_slice(&62_u16.to_le_bytes());
            }
            let _ = Head(file).program();
        }
    }
}
