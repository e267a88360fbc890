//! Options that CPython heeds only when it starts.
//!
//! A frozen interpreter has started already. Given one of these, a run is the interpreter's own: as
//! slow as ever, and right.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Options whose effect is over when the interpreter has started: optimisation, isolation, site,
/// search path, warnings about bytes.
const FIXED: &[u8] = b"OEIsSPbd";
/// Names for `-X` that are heeded afterwards as well; the rest is not.
const LATE: [&[u8]; 4] = [b"faulthandler", b"tracemalloc", b"showrefcount", b"pycache_prefix"];

/// Whether a command line has an option that only a new interpreter can heed. Reads options as CPython
/// does (Python/getopt.c): letters may be joined, `-c` and `-m` end them, `-W` and `-X` have a value.
#[must_use]
pub(super) fn needs_a_start(arguments: &[OsString]) -> bool {
    let mut arguments = arguments.iter().map(|argument| argument.as_bytes());
    while let Some(argument) = arguments.next() {
        let Some(letters) = argument.strip_prefix(b"-") else { return false };
        if letters.is_empty() || letters == b"-" {
            return false;
        }
        if let Some(name) = letters.strip_prefix(b"-") {
            if name == b"check-hash-based-pycs" {
                arguments.next();
            }
            continue;
        }
        for (place, letter) in letters.iter().enumerate() {
            match letter {
                b'c' | b'm' => return false,
                b'W' | b'X' => {
                    let rest = &letters[place + 1..];
                    let value =
                        if rest.is_empty() { arguments.next().unwrap_or_default() } else { rest };
                    let name = value.split(|byte| *byte == b'=').next().unwrap_or_default();
                    if *letter == b'X' && !LATE.contains(&name) {
                        return true;
                    }
                    break;
                }
                letter if FIXED.contains(letter) => return true,
                _ => {}
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::needs_a_start;

    fn needs(line: &[&str]) -> bool {
        needs_a_start(&line.iter().map(Into::into).collect::<Vec<_>>())
    }

    #[test]
    fn options_that_are_heeded_at_the_start_are_found() {
        for line in [
            &["-O", "x.py"][..],
            &["-uOB", "x.py"],
            &["-I"],
            &["-W", "error", "-S"],
            &["-Xutf8", "x.py"],
            &["-X", "dev"],
            &["--check-hash-based-pycs", "always", "-E"],
        ] {
            assert!(needs(line), "{line:?}");
        }
    }

    #[test]
    fn what_belongs_to_the_program_is_none_of_them() {
        for line in [
            &[][..],
            &["x.py", "-O"],
            &["-c", "-O"],
            &["-uc", "pass", "-O"],
            &["-m", "x", "-I"],
            &["-W", "-O", "x.py"],
            &["-Xfaulthandler", "x.py"],
            &["-", "-O"],
            &["--", "-O"],
        ] {
            assert!(!needs(line), "{line:?}");
        }
    }
}
