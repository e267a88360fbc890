//! What an interpreter, its C library and its dynamic loader heed only when they start.
//!
//! A frozen interpreter has started already. It may stand for a new one only where all of this is the
//! same for both; everything else on the command line and in the environment can be set in a
//! restored process, and is.
//!
//! Sources: CPython's Doc/using/cmdline.rst and Python/initconfig.c, Python/preconfig.c (3.10 to
//! 3.13; a name that one of them does not know yet costs time there, and harms nothing), ld.so(8),
//! mallopt(3), PEP 538 and PEP 540 for the encoding.

use std::collections::BTreeMap;

use super::CommandLine;
use crate::sys::locale;

/// Settings by name; what is at its default is absent, where that can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// All but the encoding.
    pub values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What the encoding of file names is made from.
    pub locale: Vec<u8>,
    /// What comes out of it, and whether CPython is in its UTF-8 mode. Known where it was asked for.
    pub encoding: Option<String>,
}

/// Options of `-X` with the variables that mean the same.
const EXTENDED: [(&str, &str); 11] = [
    ("cpu_count", "PYTHON_CPU_COUNT"),
    ("frozen_modules", "PYTHON_FROZEN_MODULES"),
    ("gil", "PYTHON_GIL"),
    ("importtime", "PYTHONPROFILEIMPORTTIME"),
    ("no_debug_ranges", "PYTHONNODEBUGRANGES"),
    ("perf", "PYTHONPERFSUPPORT"),
    ("perf_jit", "PYTHON_PERF_JIT_SUPPORT"),
    ("presite", "PYTHON_PRESITE"),
    ("showalloccount", "PYTHONSHOWALLOCCOUNT"),
    ("warn_default_encoding", "PYTHONWARNDEFAULTENCODING"),
    ("jit", "PYTHON_JIT"),
];

/// Variables whose text is the setting.
const VARIABLES: [&str; 6] = [
    "PYTHONDUMPREFS",
    "PYTHONDUMPREFSFILE",
    "PYTHONHOME",
    "PYTHONMALLOC",
    "PYTHONMALLOCSTATS",
    "PYTHONPLATLIBDIR",
];

impl Settings {
    /// Those of an interpreter that is started with these arguments (without its own name) and this
    /// environment; the first variable of a name counts, as for getenv(3).
    #[must_use]
    pub fn new<'a>(
        line: &'a CommandLine,
        environment: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Self {
        Resolver::new(line, environment).resolve()
    }

    /// Works the encoding out.
    #[must_use]
    pub fn with_encoding(mut self) -> Self {
        self.encoding = Some(encoding(&self.locale));
        self
    }

    /// Whether an interpreter that was started with the one may stand for one that would be started
    /// with the other.
    #[must_use]
    pub fn fits(&self, other: &Self) -> bool {
        self.values == other.values
            && (self.locale == other.locale || self.known_encoding() == other.known_encoding())
    }

    fn known_encoding(&self) -> String {
        self.encoding.clone().unwrap_or_else(|| encoding(&self.locale))
    }
}

struct Resolver<'a> {
    line: &'a CommandLine,
    variables: BTreeMap<&'a [u8], &'a [u8]>,
    isolated: bool,
    ignore_environment: bool,
    values: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<'a> Resolver<'a> {
    fn new(
        line: &'a CommandLine,
        environment: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Self {
        let mut variables = BTreeMap::new();
        for (name, value) in environment {
            if is_heeded(name) {
                variables.entry(name).or_insert(value);
            }
        }
        // Empty is as good as absent, to CPython and to the loader.
        variables.retain(|_, value| !value.is_empty());
        let isolated = line.has('I');
        let ignore_environment = isolated || line.has('E');
        Self { line, variables, isolated, ignore_environment, values: BTreeMap::new() }
    }

    fn resolve(mut self) -> Settings {
        let line = self.line;
        self.number("optimize", self.flag("PYTHONOPTIMIZE", Some('O')));
        self.number("debug", self.flag("PYTHONDEBUG", Some('d')));
        self.number("bytes_warning", line.count('b'));
        self.number("isolated", self.isolated.into());
        self.number("ignore_environment", self.ignore_environment.into());
        self.number("no_site", line.has('S').into());
        let no_user_site = self.isolated || self.flag("PYTHONNOUSERSITE", Some('s')) > 0;
        self.number("no_user_site", no_user_site.into());
        let safe_path = self.isolated || line.has('P') || self.python("PYTHONSAFEPATH").is_some();
        self.number("safe_path", safe_path.into());
        let dev_mode = line.x("dev").is_some() || self.flag("PYTHONDEVMODE", None) > 0;
        self.number("dev_mode", dev_mode.into());
        let seed = if line.has('R') { None } else { self.python("PYTHONHASHSEED") };
        self.text("hash_seed", seed.filter(|seed| *seed != b"random"));
        self.text("check_hash_based_pycs", line.check_hash_based_pycs());
        for (name, variable) in EXTENDED {
            self.text(name, line.x(name).or_else(|| self.python(variable)));
        }
        for variable in VARIABLES {
            self.text(variable, self.python(variable));
        }
        for (name, value) in &self.variables {
            if is_loaders(name) {
                self.values.insert(name.to_vec(), value.to_vec());
            }
        }
        let locale = self.locale();
        Settings { values: self.values, locale, encoding: None }
    }

    fn number(&mut self, name: &str, value: usize) {
        if value != 0 {
            self.values.insert(name.into(), value.to_string().into());
        }
    }

    fn text(&mut self, name: &str, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.values.insert(name.into(), value.into());
        }
    }

    /// A variable that is meant for Python.
    fn python(&self, name: &str) -> Option<&'a [u8]> {
        if self.ignore_environment {
            return None;
        }
        self.variables.get(name.as_bytes()).copied()
    }

    /// `_Py_get_env_flag`: the larger of what the letter and the variable say; text that is no number
    /// is a 1.
    fn flag(&self, variable: &str, letter: Option<char>) -> usize {
        let wished = self.python(variable).map_or(0, |text| {
            let number =
                std::str::from_utf8(text).ok().and_then(|text| text.trim_start().parse().ok());
            usize::try_from(number.unwrap_or(1_i32)).unwrap_or(1)
        });
        wished.max(letter.map_or(0, |letter| self.line.count(letter)))
    }

    /// The four texts that decide the encoding.
    fn locale(&self) -> Vec<u8> {
        let category = |name: &str| self.variables.get(name.as_bytes()).copied();
        let all = category("LC_ALL");
        let name = all.or_else(|| category("LC_CTYPE")).or_else(|| category("LANG"));
        let utf8 = match self.line.x("utf8") {
            Some(b"") => Some(&b"1"[..]),
            given => given.or_else(|| self.python("PYTHONUTF8")),
        };
        let coerce = self.python("PYTHONCOERCECLOCALE") != Some(b"0");
        let flags = [if all.is_some() { b'a' } else { b'-' }, if coerce { b'c' } else { b'-' }];
        [&flags[..], utf8.unwrap_or_default(), name.unwrap_or(b"C")].join(&b'\n')
    }
}

/// Whether a variable is any of ours to look at.
fn is_heeded(name: &[u8]) -> bool {
    [&b"PYTHON"[..], b"LC_", b"LANG"].iter().any(|start| name.starts_with(start))
        || is_loaders(name)
}

/// Variables of the dynamic loader and the C library's allocator.
fn is_loaders(name: &[u8]) -> bool {
    name.starts_with(b"LD_") || name.starts_with(b"MALLOC_") || name == b"GLIBC_TUNABLES"
}

/// `1` or `0` for the UTF-8 mode, and the encoding of file names (Python/preconfig.c).
fn encoding(locale: &[u8]) -> String {
    let mut parts = locale.splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (flags, utf8, name) = (part(), part(), part());
    let codeset = if name == b"C" || name == b"POSIX" { None } else { locale::codeset(name) };
    // A locale that is not there leaves the C library at the one called C.
    let is_c = codeset.is_none();
    let mut codeset = codeset.unwrap_or_else(|| "ASCII".into());
    if is_c && flags == b"-c" {
        "UTF-8".clone_into(&mut codeset);
    }
    match utf8 {
        b"1" => "1 UTF-8".into(),
        // Also where the locale is coerced: which one it was decides before.
        b"" if is_c => "1 UTF-8".into(),
        b"" | b"0" => format!("0 {codeset}"),
        // CPython does not start.
        other => String::from_utf8_lossy(other).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(line: &[&str], environment: &[(&str, &str)]) -> Settings {
        let line = CommandLine::parse(line);
        Settings::new(
            &line,
            environment.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())),
        )
    }

    fn fit(one: (&[&str], &[(&str, &str)]), other: (&[&str], &[(&str, &str)])) -> bool {
        settings(one.0, one.1).with_encoding().fits(&settings(other.0, other.1))
    }

    #[test]
    fn what_is_heeded_later_makes_no_difference() {
        for line in [
            &["-u", "x.py", "-O"][..],
            &["-iqBvxW", "error", "-X", "faulthandler", "-Xtracemalloc=5", "x"],
            &["-X", "anything", "-"],
            &["-R"],
            &["-c", "pass", "-I"],
        ] {
            assert!(fit((&[], &[]), (line, &[])), "{line:?}");
        }
        for (name, value) in [
            ("PYTHONPATH", "/x"),
            ("PYTHONWARNINGS", "error"),
            ("PYTHONHASHSEED", "random"),
            ("PYTHONOPTIMIZE", ""),
            ("PYTHONOPTIMIZE", "0"),
            ("PYTHONHOME", ""),
            ("HOME", "/"),
            ("LD_PRELOAD", ""),
            ("LC_TIME", "de_DE"),
            ("PYTHONCOERCECLOCALE", "warn"),
        ] {
            assert!(fit((&[], &[]), (&[], &[(name, value)])), "{name}={value}");
        }
    }

    #[test]
    fn what_is_heeded_at_the_start_makes_one() {
        for line in [
            "-O",
            "-E",
            "-I",
            "-s",
            "-S",
            "-P",
            "-b",
            "-d",
            "-Xdev",
            "-Xutf8=0",
            "-Ximporttime",
            "-uOB",
            "-Xfrozen_modules=off",
        ] {
            assert!(!fit((&[], &[]), (&[line], &[])), "{line}");
            assert!(fit((&[line], &[]), (&[line, "x"], &[])), "{line}");
        }
        for (name, value) in [
            ("PYTHONHASHSEED", "0"),
            ("PYTHONHASHSEED", "nonsense"),
            ("PYTHONOPTIMIZE", "1"),
            ("PYTHONOPTIMIZE", "x"),
            ("PYTHONUTF8", "0"),
            ("PYTHONUTF8", "x"),
            ("PYTHONHOME", "/x"),
            ("PYTHONMALLOC", "malloc"),
            ("PYTHONSAFEPATH", "0"),
            ("PYTHONNOUSERSITE", "1"),
            ("LC_ALL", "C.UTF-8"),
            ("LD_PRELOAD", "x.so"),
            ("LD_LIBRARY_PATH", "/x"),
            ("MALLOC_ARENA_MAX", "1"),
            ("GLIBC_TUNABLES", "glibc.malloc.check=3"),
        ] {
            assert!(!fit((&[], &[]), (&[], &[(name, value)])), "{name}={value}");
        }
    }

    #[test]
    fn the_same_by_another_way_is_the_same() {
        assert!(fit((&["-O"], &[]), (&[], &[("PYTHONOPTIMIZE", "1")])));
        assert!(fit((&["-OO"], &[]), (&["-O"], &[("PYTHONOPTIMIZE", "2")])));
        assert!(fit((&["-I"], &[]), (&["-I"], &[("PYTHONOPTIMIZE", "1")])));
        assert!(fit((&["-X", "utf8"], &[]), (&[], &[("PYTHONUTF8", "1")])));
        assert!(fit((&["-s"], &[]), (&[], &[("PYTHONNOUSERSITE", "1")])));
        assert!(!fit((&["-s"], &[]), (&["-I"], &[])));
        assert!(fit((&[], &[("LC_ALL", "C.UTF-8")]), (&[], &[("LANG", "C.UTF-8")])));
        // The C locale brings the UTF-8 mode along, coerced or not.
        assert!(fit((&[], &[]), (&[], &[("LC_ALL", "C")])));
        assert!(fit((&[], &[("LANG", "POSIX")]), (&[], &[("LC_CTYPE", "no_SUCH.locale")])));
        assert!(fit((&[], &[]), (&[], &[("PYTHONCOERCECLOCALE", "0")])));
        assert!(!fit((&[], &[]), (&[], &[("LANG", "C.UTF-8")])));
        assert!(!fit((&[], &[("LC_ALL", "C.UTF-8")]), (&[], &[("LC_ALL", "POSIX")])));
        let twice = [("PYTHONHASHSEED", "1"), ("PYTHONHASHSEED", "2")];
        assert!(fit((&[], &twice), (&[], &twice[..1])));
    }
}
