//! One run of a program, timed from outside.

use std::ffi::OsString;
use std::io::{self, Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What came of a run.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// From before the start to the first bytes on standard output, if there were any.
    pub(super) first_output: Option<Duration>,
    /// From before the start to the end of output and process.
    pub(super) ended: Duration,
    /// All of standard output.
    pub(super) output: Vec<u8>,
    /// How it ended.
    pub(super) status: ExitStatus,
}

/// What becomes of standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errors {
    /// It is handed back.
    Kept,
    /// Nobody reads it.
    Discarded,
}

/// Runs a program to its end, with nothing on standard input; with what it has written to standard
/// error, if that is kept.
pub(super) fn time(words: &[OsString], errors: Errors) -> io::Result<(Outcome, String)> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut kept = match errors {
        Errors::Kept => Some(tempfile::tempfile()?),
        Errors::Discarded => None,
    };
    let (mut output, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(writer);
    command.stderr(match &kept {
        Some(file) => file.try_clone()?.into(),
        None => Stdio::null(),
    });
    let start = Instant::now();
    let mut child = command.spawn()?;
    // It holds the pipe's other end.
    drop(command);
    let read = read(&mut output, start);
    let status = child.wait()?;
    let ended = start.elapsed();
    let (first_output, output) = read?;
    let mut said = Vec::new();
    if let Some(file) = &mut kept {
        file.rewind()?;
        file.read_to_end(&mut said)?;
    }
    let outcome = Outcome { first_output, ended, output, status };
    Ok((outcome, String::from_utf8_lossy(&said).into_owned()))
}

/// Reads to the end, and takes the time at the first bytes.
fn read(stream: &mut impl Read, start: Instant) -> io::Result<(Option<Duration>, Vec<u8>)> {
    let mut all = vec![0; 1 << 16];
    let count = loop {
        match stream.read(&mut all) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    let first = (count > 0).then(|| start.elapsed());
    all.truncate(count);
    stream.read_to_end(&mut all)?;
    Ok((first, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str, errors: Errors) -> (Outcome, String) {
        time(&["/bin/sh".into(), "-c".into(), line.into()], errors).unwrap()
    }

    #[test]
    fn a_run_is_seen_as_a_whole() {
        let (outcome, said) = shell("echo a; echo c >&2; sleep 0.05; echo b; exit 3", Errors::Kept);
        assert_eq!((outcome.output.as_slice(), said.as_str()), (&b"a\nb\n"[..], "c\n"));
        assert_eq!(outcome.status.code(), Some(3));
        let first = outcome.first_output.unwrap();
        // How soon the output is seen is chance.
        assert!(outcome.ended >= first.max(Duration::from_millis(50)), "{outcome:?}");
    }

    #[test]
    fn silence_has_no_first_output() {
        let (outcome, said) = shell("echo c >&2", Errors::Discarded);
        assert_eq!((outcome.first_output, said.as_str()), (None, ""));
        assert!(outcome.status.success());
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        assert!(time(&["/no/such/program".into()], Errors::Discarded).is_err());
        assert!(time(&[], Errors::Discarded).is_err());
    }
}
