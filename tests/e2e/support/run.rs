//! Commands, what comes of them, and python run twice: by itself and from an image.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::context::Context;
use super::engine::Engine;
use super::image::Recipe;
use super::rest::asleep;
use super::shared::shared;

/// How long anything may take: what hangs fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// A command of a context.
#[derive(Clone)]
pub(crate) struct Command<'a> {
    context: &'a Context,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
    around: Vec<OsString>,
    input: Input,
    folder: PathBuf,
}

#[derive(Clone)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    Held,
}

impl<'a> Command<'a> {
    pub(super) fn new(context: &'a Context, program: &Path) -> Self {
        Self {
            context,
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            around: Vec::new(),
            input: Input::Nothing,
            folder: context.work(),
        }
    }

    /// More arguments.
    pub(crate) fn args<I>(mut self, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// A variable, in addition to the context's.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// No such variable.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.environment.push((name.into(), None));
        self
    }

    /// A command that ends by executing its arguments, such as `nice -n 5`: between the account and
    /// the program.
    pub(crate) fn through<I>(mut self, command: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.around.extend(command.into_iter().map(|part| part.as_ref().to_owned()));
        self
    }

    /// A line of bash, in which `"$@"` is the program with its arguments.
    pub(crate) fn shell(self, line: &str) -> Self {
        self.through(["bash", "-c", line, "bash"])
    }

    /// What the standard input, a pipe, has to offer; without it, it is `/dev/null`.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Standard input is a pipe that the test writes to.
    pub(crate) fn holding_stdin(mut self) -> Self {
        self.input = Input::Held;
        self
    }

    /// Another working directory.
    pub(crate) fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// The words of the command line.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let mut words = self.context.seat.who.command();
        words.extend(self.around.iter().cloned());
        words.push(self.program.clone().into_os_string());
        words.extend(self.arguments.iter().cloned());
        words
    }

    /// The command for the standard library, without its streams.
    pub(crate) fn prepare(&self, before: &[&str]) -> process::Command {
        let mut words = before.iter().map(OsString::from).chain(self.words());
        let mut command = process::Command::new(words.next().unwrap());
        command.args(words).current_dir(&self.folder).env_clear().envs(self.context.environment());
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Starts it.
    pub(crate) fn spawn(&self) -> Running {
        let mut command = self.prepare(&[]);
        let input =
            if matches!(self.input, Input::Nothing) { Stdio::null() } else { Stdio::piped() };
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let out = Reader::start(child.stdout.take().unwrap());
        let err = Reader::start(child.stderr.take().unwrap());
        let mut stdin = child.stdin.take();
        if let Input::Bytes(bytes) = &self.input {
            let bytes = bytes.clone();
            let mut stdin = stdin.take().unwrap();
            // A program need not read what it is given.
            thread::spawn(move || drop(stdin.write_all(&bytes)));
        }
        let words = format!("{command:?}");
        Running { pid: child.id(), child, stdin, out, err, ended: false, words }
    }

    /// Runs it to its end.
    pub(crate) fn run(&self) -> Outcome {
        self.spawn().finish()
    }
}

/// What was read so far, and whether that is all.
type Text = (Mutex<(Vec<u8>, bool)>, Condvar);

/// A stream that is read as it comes.
struct Reader {
    text: Arc<Text>,
}

impl Reader {
    fn start(mut stream: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Text::default());
        let reader = Self { text: Arc::clone(&shared) };
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let count = stream.read(&mut buffer).unwrap_or(0);
                let mut text = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                text.0.extend(&buffer[..count]);
                text.1 = count == 0;
                shared.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        reader
    }

    /// Waits until the text is as wanted, or the stream has ended; what there is then.
    fn wait(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let guard = self.text.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = self
            .text
            .1
            .wait_timeout_while(guard, patience, |(text, ended)| !*ended && !wanted(text))
            .unwrap_or_else(PoisonError::into_inner);
        guard.0.clone()
    }
}

/// A command that runs.
pub(crate) struct Running {
    /// Its process.
    pub(crate) pid: u32,
    child: Child,
    stdin: Option<ChildStdin>,
    out: Reader,
    err: Reader,
    ended: bool,
    /// What to call it.
    words: String,
}

impl Running {
    /// Waits until standard output has this in it.
    pub(crate) fn wait_for(&self, text: &str) {
        let out = self.out.wait(PATIENCE, |out| contains(out, text));
        assert!(contains(&out, text), "{text:?} did not come, but {}", lossy(&out));
    }

    /// Writes to standard input.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Waits until it waits for something itself.
    pub(crate) fn wait_until_asleep(&self) {
        asleep(|| Some(self.pid));
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.process(), signal).unwrap();
    }

    /// Whether it has ended already.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> Outcome {
        drop(self.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let (out, err) = (
                    self.out.wait(Duration::ZERO, |_| true),
                    self.err.wait(Duration::ZERO, |_| true),
                );
                panic!("{} hangs; so far: {}\n{}", self.words, lossy(&out), lossy(&err));
            }
            thread::sleep(Duration::from_millis(1));
        };
        self.ended = true;
        let rest = Duration::from_secs(20);
        let (out, err) = (self.out.wait(rest, |_| false), self.err.wait(rest, |_| false));
        Outcome { pid: self.pid, status, out, err, files: BTreeMap::new() }
    }

    fn process(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid).unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = killpg(self.process(), Signal::SIGKILL);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What came of a command.
pub(crate) struct Outcome {
    /// The process that was started.
    pub(crate) pid: u32,
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Standard output.
    pub(crate) out: Vec<u8>,
    /// Standard error.
    pub(crate) err: Vec<u8>,
    /// The files in the working directory.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Outcome {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        lossy(&self.out)
    }

    /// Standard error as text.
    pub(crate) fn errors(&self) -> String {
        lossy(&self.err)
    }

    /// Fails unless it ended with 0.
    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        assert!(self.status.success(), "{self:?}");
        self
    }

    /// Fails unless it is one of our own failures: status 125, a sentence that says what, why, and
    /// a hint; and both have these words.
    #[track_caller]
    pub(crate) fn is_refused(&self, words: &[&str]) {
        let errors = self.errors();
        assert_eq!(self.status.code(), Some(125), "{self:?}");
        let lines: Vec<&str> = errors.lines().collect();
        assert!(lines.iter().any(|line| line.starts_with("preloaded-criu: ")), "{self:?}");
        assert!(lines.iter().any(|line| line.starts_with("hint: ")), "{self:?}");
        assert!(!errors.contains("panicked"), "{self:?}");
        for word in words {
            assert!(errors.contains(word), "{word:?} is not said: {self:?}");
        }
    }
}

impl Outcome {
    /// All of it in words, with so many bytes of each stream.
    fn report(&self, most: usize) -> String {
        let shorten = |bytes: &[u8]| match bytes.get(..most) {
            Some(start) => format!("{} … ({} bytes)", lossy(start), bytes.len()),
            None => lossy(bytes),
        };
        let mut text = format!("{} ({:#x})\n", self.status, self.status.into_raw());
        let streams = [("standard output", &self.out), ("standard error", &self.err)];
        let files = self.files.iter().map(|(name, content)| (name.as_str(), content));
        for (name, content) in streams.into_iter().chain(files) {
            text = format!("{text}--- {name}\n{}\n", shorten(content));
        }
        text
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report(8000))
    }
}

/// A command line for python: run from an image, it is to do what it does by itself.
#[derive(Clone)]
pub(crate) struct Python<'a> {
    command: Command<'a>,
    recipe: Recipe,
    image: Option<PathBuf>,
    engine: Engine,
    options: Vec<OsString>,
    files: Vec<(String, Vec<u8>)>,
    masks: Vec<fn(&str) -> String>,
}

impl<'a> Python<'a> {
    pub(super) fn new<I>(context: &'a Context, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Self {
            command: Command::new(context, Path::new("")).args(arguments),
            recipe: Recipe::Plain,
            image: None,
            engine: Engine::tested(),
            options: Vec::new(),
            files: Vec::new(),
            masks: Vec::new(),
        }
    }

    /// From which image: [`Recipe::Plain`] if nothing is said.
    pub(crate) fn from(mut self, recipe: Recipe) -> Self {
        self.recipe = recipe;
        self
    }

    /// From this image.
    pub(crate) fn image(mut self, image: impl Into<PathBuf>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// By this engine: the one that the tests are run for if nothing is said.
    pub(crate) fn by(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Options of `preloaded-criu run`.
    pub(crate) fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(OsString::from));
        self
    }

    /// A file in the working directory, made anew before each run.
    pub(crate) fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.into(), content.into()));
        self
    }

    /// What is done to both outputs before they are compared.
    pub(crate) fn mask(mut self, mask: fn(&str) -> String) -> Self {
        self.masks.push(mask);
        self
    }

    fn change(mut self, change: impl FnOnce(Command<'a>) -> Command<'a>) -> Self {
        self.command = change(self.command);
        self
    }

    /// See [`Command::args`].
    pub(crate) fn args<I>(self, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.change(|command| command.args(arguments))
    }

    /// See [`Command::env`].
    pub(crate) fn env(self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.change(|command| command.env(name, value))
    }

    /// See [`Command::through`].
    pub(crate) fn through<I>(self, around: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.change(|command| command.through(around))
    }

    /// See [`Command::shell`].
    pub(crate) fn shell(self, line: &str) -> Self {
        self.change(|command| command.shell(line))
    }

    /// See [`Command::stdin`].
    pub(crate) fn stdin(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.change(|command| command.stdin(bytes))
    }

    /// See [`Command::holding_stdin`].
    pub(crate) fn holding_stdin(self) -> Self {
        self.change(Command::holding_stdin)
    }

    /// See [`Command::folder`].
    pub(crate) fn folder(self, folder: impl Into<PathBuf>) -> Self {
        self.change(|command| command.folder(folder))
    }

    /// The command that runs it without an image.
    pub(crate) fn stock(&self) -> Command<'a> {
        let mut command = self.command.clone();
        command.program = self.recipe.interpreter(command.context.seat.python);
        command
    }

    /// The command that runs it from the image.
    pub(crate) fn thawed(&self) -> Command<'a> {
        let mut command = self.command.clone();
        let image = self.image.clone();
        let image = image.unwrap_or_else(|| command.context.image(self.recipe));
        shared().binary().clone_into(&mut command.program);
        let ours = ["run"].into_iter().chain(self.engine.option()).map(OsString::from);
        let ours = ours.chain(self.options.iter().cloned());
        let ours = ours.chain([image.into_os_string()]);
        command.arguments = ours.chain(command.arguments).collect();
        command
    }

    /// Runs it from the image.
    pub(crate) fn thaw(&self) -> Outcome {
        self.lay_out();
        self.collect(self.thawed().run())
    }

    /// Runs it from the image, and lets the test play its part.
    pub(crate) fn thaw_when(&self, play: impl FnOnce(&mut Running)) -> Outcome {
        self.lay_out();
        let mut running = self.thawed().spawn();
        play(&mut running);
        self.collect(running.finish())
    }

    /// Runs it both ways and compares everything that can be seen.
    #[track_caller]
    pub(crate) fn is_as_stock(&self) -> Outcome {
        self.is_as_stock_when(|_| ())
    }

    /// Runs it both ways with the test playing its part, and compares everything that can be seen.
    #[track_caller]
    pub(crate) fn is_as_stock_when(&self, play: impl Fn(&mut Running)) -> Outcome {
        let run = |command: Command<'_>| {
            self.lay_out();
            let mut running = command.spawn();
            play(&mut running);
            self.collect(running.finish())
        };
        let stock = run(self.stock());
        let thawed = run(self.thawed());
        let seen = |outcome: &Outcome| {
            let text = |bytes: &[u8]| {
                if self.masks.is_empty() {
                    return bytes.to_vec();
                }
                self.masks.iter().fold(lossy(bytes), |text, mask| mask(&text)).into_bytes()
            };
            (outcome.status, text(&outcome.out), text(&outcome.err), outcome.files.clone())
        };
        assert!(
            seen(&stock) == seen(&thawed),
            "{:?}, by itself and from an image:\n{}",
            self.command.words(),
            difference(&stock, &thawed),
        );
        thawed
    }

    fn lay_out(&self) {
        let work = self.command.context.work();
        for entry in fs::read_dir(&work).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
        for (name, content) in &self.files {
            self.command.context.file(name, content);
        }
    }

    fn collect(&self, outcome: Outcome) -> Outcome {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.command.context.work()).unwrap().flatten() {
            if entry.file_type().unwrap().is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                // One may be closed to whoever tests.
                files.insert(name, fs::read(entry.path()).unwrap_or_default());
            }
        }
        Outcome { files, ..outcome }
    }
}

/// The lines that differ, from shortly before the place where they do; all lines where there are not
/// as many of them.
fn difference(stock: &Outcome, thawed: &Outcome) -> String {
    let (one, other) = (stock.report(usize::MAX), thawed.report(usize::MAX));
    if one.lines().count() != other.lines().count() {
        return format!("{stock:?}\n=== from an image\n{thawed:?}");
    }
    let pairs = one.lines().zip(other.lines()).filter(|(one, other)| one != other);
    let cut = |(one, other): (&str, &str)| {
        let same = one.chars().zip(other.chars()).take_while(|(one, other)| one == other).count();
        let part = |line: &str| -> String {
            line.chars().skip(same.saturating_sub(60)).take(400).collect()
        };
        format!("- {}\n+ {}\n", part(one), part(other))
    };
    pairs.map(cut).collect::<Vec<_>>().concat()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Bytes as text.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Addresses and thread idents, which differ from run to run.
pub(crate) fn without_addresses(text: &str) -> String {
    let mut pieces = text.split("0x");
    let mut masked = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        masked.push_str("0x…");
        masked.push_str(piece.trim_start_matches(|digit: char| digit.is_ascii_hexdigit()));
    }
    masked
}
