//! The options of `python3`, read as CPython reads them (Python/getopt.c and `config_parse_cmdline`
//! in Python/initconfig.c, the same from 3.10 to 3.13 but for `-P` and `--help-…`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Options before the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The letters without a value, in their order; `-c` and `-m` end them.
    letters: String,
    /// What was given to `-X`, in order.
    x: Vec<Vec<u8>>,
    /// What was given to `--check-hash-based-pycs` last.
    check_hash_based_pycs: Option<Vec<u8>>,
}

/// Letters that have a value.
const WITH_VALUE: &[u8] = b"cmWX";

impl CommandLine {
    /// Reads the arguments after the interpreter's own name. What CPython refuses ends the reading: it
    /// says so itself when it is given the same.
    #[must_use]
    pub fn parse<T: AsRef<OsStr>>(arguments: &[T]) -> Self {
        let mut found = Self::default();
        let mut arguments = arguments.iter().map(|argument| argument.as_ref().as_bytes());
        while let Some(argument) = arguments.next() {
            let Some(mut rest) = argument.strip_prefix(b"-") else { break };
            match rest {
                b"" | b"-" => break,
                // As `-h` and `-V`.
                b"-help" | b"-version" => continue,
                _ => {}
            }
            while let Some((&letter, following)) = rest.split_first() {
                rest = following;
                if letter == b'-' {
                    // A long one, also behind letters.
                    if rest != b"check-hash-based-pycs" {
                        break;
                    }
                    found.check_hash_based_pycs = arguments.next().map(<[u8]>::to_vec);
                    break;
                }
                if !WITH_VALUE.contains(&letter) {
                    found.letters.push(letter.into());
                    continue;
                }
                if matches!(letter, b'c' | b'm') {
                    return found;
                }
                let value = if rest.is_empty() { arguments.next() } else { Some(rest) };
                if letter == b'X' {
                    found.x.extend(value.map(<[u8]>::to_vec));
                }
                break;
            }
        }
        found
    }

    /// How often a letter was given.
    #[must_use]
    pub fn count(&self, letter: char) -> usize {
        self.letters.matches(letter).count()
    }

    /// Whether a letter was given.
    #[must_use]
    pub fn has(&self, letter: char) -> bool {
        self.letters.contains(letter)
    }

    /// The value of `-X NAME=VALUE`, empty for `-X NAME`; the first one counts
    /// (`config_get_xoption`).
    #[must_use]
    pub fn x(&self, name: &str) -> Option<&[u8]> {
        self.x.iter().find_map(|option| {
            let mut parts = option.splitn(2, |byte| *byte == b'=');
            (parts.next() == Some(name.as_bytes())).then(|| parts.next().unwrap_or_default())
        })
    }

    /// The value of `--check-hash-based-pycs`.
    #[must_use]
    pub fn check_hash_based_pycs(&self) -> Option<&[u8]> {
        self.check_hash_based_pycs.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::CommandLine;

    fn letters(line: &[&str]) -> String {
        CommandLine::parse(line).letters
    }

    #[test]
    fn letters_may_be_joined_and_end_where_the_program_begins() {
        for (line, wanted) in [
            (&[][..], ""),
            (&["x.py", "-O"], ""),
            (&["-O", "x.py", "-B"], "O"),
            (&["-uOB", "-E"], "uOBE"),
            (&["-c", "-O"], ""),
            (&["-uc", "pass", "-O"], "u"),
            (&["-uc-O"], "u"),
            (&["-m", "x", "-I"], ""),
            (&["-W", "-O", "-B", "x.py"], "B"),
            (&["-Werror", "-S"], "S"),
            (&["-", "-O"], ""),
            (&["--", "-O"], ""),
            (&["-u", "--version", "-O"], "uO"),
            (&["--check-hash-based-pycs", "-O", "-B"], "B"),
            (&["-u-check-hash-based-pycs", "-O", "-B"], "uB"),
            (&["-W"], ""),
            (&[""], ""),
        ] {
            assert_eq!(letters(line), wanted, "{line:?}");
        }
    }

    #[test]
    fn extended_options_have_names_and_values() {
        let line = CommandLine::parse(&["-Xdev", "-X", "utf8=0", "-uXa=b=c", "-X", "utf8", "x"]);
        assert_eq!(line.x("dev"), Some(&b""[..]));
        assert_eq!(line.x("utf8"), Some(&b"0"[..]));
        assert_eq!(line.x("a"), Some(&b"b=c"[..]));
        assert_eq!(line.x("u"), None);
        assert!(line.has('u') && !line.has('X'));
        let line = CommandLine::parse(&["--check-hash-based-pycs", "never"]);
        assert_eq!(line.check_hash_based_pycs(), Some(&b"never"[..]));
        assert_eq!(CommandLine::parse(&["-OOO"]).count('O'), 3);
    }
}
