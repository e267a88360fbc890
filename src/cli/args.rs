//! What can be typed: these types are the help text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::image;

/// Start heavy Python programs at once.
///
/// Imports Python libraries once, freezes the interpreter into one file with CRIU, and starts any
/// number of scripts from that file, each as fast as `python3 -c pass` and just as if `python3` had
/// been called.
#[derive(Debug, Parser)]
#[command(
    name = "preloaded-criu",
    version,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "\
Try it:
  preloaded-criu snapshot --import json --import decimal
  preloaded-criu run snap.img -c 'import decimal; print(decimal.Decimal(1) / 7)'

Exit status: that of the script; 125 when preloaded-criu itself has failed."
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    // Their texts are those of the types: a text here would hide the long one.
    Snapshot(Snapshot),
    Run(Run),
    Doctor(Doctor),
    Inspect(Inspect),
    Export(Export),
    Bench(Bench),
    Starter(Starter),
    #[command(hide = true)]
    Child(Child),
    #[command(hide = true)]
    Start(Start),
}

/// Import libraries once and freeze the interpreter into an image.
///
/// Starts the interpreter, imports the modules in the order given (the current directory and
/// PYTHONPATH count, as for `python3 -c`), executes the files, and freezes the process with CRIU at
/// that point. Open sockets, running child processes, an initialised GPU and the like cannot be
/// frozen: such an import is refused and named.
///
/// An image holds the memory of the interpreter: whatever secrets were imported are in it.
#[derive(Clone, Debug, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "\
Examples:
  preloaded-criu snapshot --recipe tensorflow -o tf.img
  preloaded-criu snapshot --import numpy --import myproject.model --exec warm-up.py
  preloaded-criu snapshot --python .venv/bin/python3 --import pandas --force"
)]
pub(super) struct Snapshot {
    /// Import a module; may be given several times
    #[arg(long = "import", value_name = "MODULE", value_delimiter = ',')]
    pub(super) imports: Vec<String>,

    /// Execute a file after the imports, for instance to load a model or to warm up; may be given
    /// several times
    #[arg(long, value_name = "FILE")]
    pub(super) exec: Vec<PathBuf>,

    /// Begin with a recipe: a TOML file, or one of those that come with the program
    #[arg(long, value_name = "NAME|FILE", long_help = super::recipe::help())]
    pub(super) recipe: Option<OsString>,

    /// The interpreter [default: the active virtual environment's, else python3]
    #[arg(long, value_name = "PYTHON")]
    pub(super) python: Option<PathBuf>,

    /// Set an environment variable while the image is made; may be given several times. A script
    /// that is run from the image has the environment that it is run with
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = AssignmentParser)]
    pub(super) environment: Vec<(OsString, OsString)>,

    /// The image to write
    #[arg(short, long, value_name = "IMAGE", default_value = "snap.img")]
    pub(super) output: PathBuf,

    /// Replace the image if there is one
    #[arg(short, long)]
    pub(super) force: bool,

    /// Make an image anew in the way in which it was made, in its place: with the libraries as they are
    /// now, and with another address layout, hash seed and stack canary
    #[arg(
        long,
        value_name = "IMAGE",
        conflicts_with_all = [
            "imports", "exec", "recipe", "python", "environment", "output", "force",
            "bytes_warning", "ignore_environment", "isolated", "optimize", "safe_path",
            "no_user_site", "no_site", "extended", "self_contained",
        ]
    )]
    pub(super) refresh: Option<PathBuf>,

    /// Put all that is mapped of libraries into the image, so that a run opens none of their files
    ///
    /// For environments on slow or distant disks. Without it, small extension modules are in the image
    /// and the rest is mapped from where it is installed.
    #[arg(long)]
    pub(super) self_contained: bool,

    /// How CRIU is given the rights that it needs. The image is the same either way
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(super) isolation: Isolation,

    /// Which engine shall be able to restore the image. With criu, also what only CRIU can restore is
    /// frozen: children that run, timers, pipes, pairs of sockets, descriptors of events
    #[arg(long, value_name = "WHO", default_value = "any")]
    pub(super) engine: SnapshotEngine,

    /// The criu program [default: $PRELOADED_CRIU_CRIU, else criu on PATH, else the private one]
    #[arg(long, value_name = "PROGRAM")]
    pub(super) criu: Option<PathBuf>,

    /// Say what happens as lines of JSON on standard output
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) options: PythonOptions,
}

/// Options of `python3` that it heeds only when it starts. A run with other ones than its image was
/// made with is an ordinary start of the interpreter: no faster, and right.
#[derive(Clone, Debug, Default, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option of python3")]
#[command(
    next_help_heading = "Options of the interpreter, for an image of runs that have them too"
)]
pub(super) struct PythonOptions {
    /// Warn when bytes are compared with text; -bb: refuse it
    #[arg(short = 'b', action = ArgAction::Count)]
    bytes_warning: u8,

    /// Ignore the variables whose names begin with PYTHON
    #[arg(short = 'E')]
    ignore_environment: bool,

    /// Isolate from the environment and the user's own packages
    #[arg(short = 'I')]
    isolated: bool,

    /// Leave out assertions; -OO: docstrings too
    #[arg(short = 'O', action = ArgAction::Count)]
    optimize: u8,

    /// Keep the script's directory out of the module search path (3.11 or later)
    #[arg(short = 'P')]
    safe_path: bool,

    /// Leave out the user's own packages
    #[arg(short = 's')]
    no_user_site: bool,

    /// Leave out the module site
    #[arg(short = 'S')]
    no_site: bool,

    /// An extended option, for instance utf8 or dev; may be given several times
    #[arg(short = 'X', value_name = "NAME[=VALUE]")]
    extended: Vec<OsString>,
}

impl PythonOptions {
    /// As `python3` takes them.
    pub(super) fn words(&self) -> Vec<OsString> {
        let letters = [
            ('b', self.bytes_warning),
            ('E', self.ignore_environment.into()),
            ('I', self.isolated.into()),
            ('O', self.optimize),
            ('P', self.safe_path.into()),
            ('s', self.no_user_site.into()),
            ('S', self.no_site.into()),
        ];
        let letters = letters.into_iter().filter(|(_, count)| *count > 0);
        let words = letters
            .map(|(letter, count)| format!("-{}", letter.to_string().repeat(count.into())).into());
        words.chain(self.extended.iter().flat_map(|option| ["-X".into(), option.clone()])).collect()
    }
}

/// How CRIU is given the rights that it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Isolation {
    /// As host where the user has the rights, else as userns
    #[default]
    Auto,
    /// As the user that is calling: root, or one with CAP_CHECKPOINT_RESTORE
    Host,
    /// In a user namespace of its own: any user
    Userns,
}

/// Which engine an image is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum SnapshotEngine {
    /// Either; what native cannot restore is refused
    #[default]
    Any,
    /// CRIU; to run it takes root, or CAP_CHECKPOINT_RESTORE
    Criu,
}

/// Who brings the frozen process back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Engine {
    /// Native where the image allows it, else criu
    #[default]
    Auto,
    /// This process becomes the frozen one: any user, no rights needed
    Native,
    /// CRIU restores it as a child: root, or CAP_CHECKPOINT_RESTORE
    Criu,
}

/// Run a script, a module or the prompt from an image, as python3 would.
///
/// Everything after IMAGE is what `python3` would be given: options, `-c CODE`, `-m MODULE`, a
/// script, `-` for standard input, or nothing for the prompt. The script has the caller's
/// environment, working directory, descriptors, limits, signals and terminal, and its exit status is
/// the exit status.
#[derive(Debug, Default, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option")]
#[command(
    override_usage = "preloaded-criu run [OPTIONS] <IMAGE> [PYTHON ARGUMENTS]...",
    after_help = "\
Examples:
  preloaded-criu run snap.img script.py --flag x
  preloaded-criu run snap.img -m pytest tests
  preloaded-criu run snap.img"
)]
pub(super) struct Run {
    /// How much to compare with what the image was made from: quick takes less than a millisecond,
    /// full reads every file, off trusts you
    #[arg(long, value_name = "HOW", default_value = "quick")]
    pub(super) check: Depth,

    /// Let the interpreter take everything down at its end, what was frozen too. Takes as long as
    /// it does without an image. The variable PRELOADED_CRIU_FULL_EXIT asks for it as well
    #[arg(long)]
    pub(super) full_exit: bool,

    /// Copy the image's memory at the start, all of it, instead of mapping it: takes time and memory,
    /// and reads nothing of the image later
    #[arg(long)]
    pub(super) eager: bool,

    /// Who brings the frozen process back
    #[arg(long, value_name = "WHO", default_value = "auto")]
    pub(super) engine: Engine,

    /// Start the interpreter without the image where the image cannot be used, with a line that says
    /// so on standard error (none if PRELOADED_CRIU_QUIET is set). Where only an environment variable
    /// that the imports have read is another one, that is done without this option
    #[arg(long)]
    pub(super) fallback: bool,

    /// Let child processes be ordinary ones. Without this, a script that starts its own interpreter
    /// (subprocess with sys.executable, multiprocessing) has it started from the image as well
    #[arg(long)]
    pub(super) no_children: bool,

    /// The image
    #[arg(value_name = "IMAGE")]
    pub(super) image: PathBuf,

    /// What python3 would be given
    #[arg(value_name = "PYTHON ARGUMENTS")]
    pub(super) arguments: Vec<OsString>,
}

/// Time a script from an image beside the same script by python3.
///
/// Everything after IMAGE is what `python3` would be given, as for `run`. It is run by python3 itself,
/// from the image, from the image with everything that makes it fast left out, and through CRIU where
/// you may; beside that, a python3 that does nothing. All take turns, so that a busy machine slows all of
/// them alike: what counts are the ratios. Standard input is empty, standard error is thrown away.
///
/// Exit status 1: not every run had the output and the status that python3 has.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "preloaded-criu bench [OPTIONS] <IMAGE> [PYTHON ARGUMENTS]...",
    after_help = "\
Examples:
  preloaded-criu bench snap.img script.py --flag x
  preloaded-criu bench --runs 100 --json snap.img -c 'import numpy'"
)]
pub(super) struct Bench {
    /// How often everything is run
    #[arg(long, value_name = "COUNT", default_value = "30")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) runs: u16,

    /// How long the runs of each may take together; what is slow is run less often, but three times
    #[arg(long, value_name = "COUNT", default_value = "10")]
    pub(super) seconds: u32,

    /// Print the figures as JSON
    #[arg(long)]
    pub(super) json: bool,

    /// The image
    #[arg(value_name = "IMAGE")]
    pub(super) image: PathBuf,

    /// What python3 would be given
    #[arg(value_name = "PYTHON ARGUMENTS")]
    pub(super) arguments: Vec<OsString>,
}

/// Write a small executable that is used in the place of python3.
///
/// A starter runs an image as `preloaded-criu run` does, and can be named wherever python3 can: in the
/// first line of a script, as a notebook's kernel, as a test runner's interpreter. Where the image
/// cannot be used, it starts the ordinary interpreter, and says so in one line on standard error unless
/// PRELOADED_CRIU_QUIET is set.
///
/// Told what to import, it makes the image when it is first used, and again when it is out of date. The
/// one who comes first waits for that, everyone else starts without meanwhile. What cannot be made is
/// tried again after a day. Without IMAGE, the image is a file in XDG_CACHE_HOME or ~/.cache.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "preloaded-criu starter [OPTIONS] --output <STARTER> <IMAGE>\n       \
                      preloaded-criu starter [OPTIONS] --output <STARTER> --import <MODULE> [IMAGE]",
    mut_arg("output", |arg| {
        arg.required(true).default_value(None::<&str>).value_name("STARTER").help("The starter to write")
    }),
    mut_arg("force", |arg| arg.help("Replace the starter if there is one")),
    mut_arg("json", |arg| arg.hide(true)),
    mut_arg("refresh", |arg| arg.hide(true)),
    // A starter's process becomes the frozen one.
    mut_arg("engine", |arg| arg.hide(true)),
    mut_arg("environment", |arg| {
        arg.help("Set an environment variable while the image is made; may be given several times. \
                  Only you can use the starter then, because it holds the value")
    }),
    after_help = "\
Examples:
  preloaded-criu starter snap.img -o ~/bin/python-data
  preloaded-criu starter --recipe tensorflow -o ~/bin/python-tf
  printf '#!%s\\nimport tensorflow\\n' ~/bin/python-tf > script; chmod +x script; ./script"
)]
pub(super) struct Starter {
    /// The image: one that is there, or with --import, --exec or --recipe one that is yet to be made
    #[arg(value_name = "IMAGE", required_unless_present_any = ["imports", "exec", "recipe"])]
    pub(super) image: Option<PathBuf>,

    /// Make the image anew at the first start after this time, for instance 12h or 7d: all starts from
    /// one image have the same address layout, hash seed and stack canary
    #[arg(long, value_name = "TIME", value_parser = super::units::parse_time)]
    pub(super) max_age: Option<Duration>,

    #[command(flatten)]
    pub(super) snapshot: Snapshot,
}

/// Do what a starter is for: `start STARTER [ARGUMENTS]...`, as the first line of a starter has it. Not
/// for people.
#[derive(Debug, clap::Args)]
pub(super) struct Start {
    /// The starter
    pub(super) starter: PathBuf,
    /// The arguments of python
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) arguments: Vec<OsString>,
}

impl Start {
    /// Everything after the command's name, as it comes: none of it is to be understood here.
    fn read(arguments: &mut Vec<OsString>) -> Option<Self> {
        if arguments.len() < 3 || arguments[1] != crate::starter::COMMAND {
            return None;
        }
        let mut rest = arguments.drain(2..);
        Some(Self { starter: rest.next()?.into(), arguments: rest.collect() })
    }
}

/// Stand in for an interpreter that a program run from an image starts: `child IMAGE PROGRAM NAME
/// [ARGUMENTS]...`. Not for people.
#[derive(Debug, clap::Args)]
pub(super) struct Child {
    /// The image
    pub(super) image: PathBuf,
    /// The interpreter's path, as it was to be executed
    pub(super) program: PathBuf,
    /// What it is called
    pub(super) name: OsString,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) arguments: Vec<OsString>,
}

impl Child {
    /// Everything after the command's name, as it comes: none of it is to be understood here.
    fn read(arguments: &mut Vec<OsString>) -> Option<Self> {
        if arguments.len() < 5 || arguments[1].as_bytes() != restore_plan::CHILD_COMMAND.to_bytes()
        {
            return None;
        }
        let mut rest = arguments.drain(2..);
        let mut next = || rest.next();
        let (image, program, name) = (next()?.into(), next()?.into(), next()?);
        Some(Self { image, program, name, arguments: rest.collect() })
    }
}

/// How much a run compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Depth {
    /// Nothing but kernel and processor
    Off,
    /// Length and time of libraries, packages and own modules
    #[default]
    Quick,
    /// The content of every file
    Full,
}

impl From<Depth> for image::Depth {
    fn from(depth: Depth) -> Self {
        match depth {
            Depth::Off => Self::Off,
            Depth::Quick => Self::Quick,
            Depth::Full => Self::Full,
        }
    }
}

/// Say what this machine allows, and what to do about what it does not.
///
/// Tries what `run` and `snapshot` need and prints each finding, with its fix where something is
/// missing. Exit status 0: both will work (or the one that was asked for); 1: something is missing.
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// Look only at what one of them needs
    #[arg(value_name = "COMMAND")]
    pub(super) subject: Option<Subject>,

    /// Which engine shall be able to restore the image. With criu, also what only CRIU can restore is
    /// frozen: children that run, timers, pipes, pairs of sockets, descriptors of events
    #[arg(long, value_name = "WHO", default_value = "any")]
    pub(super) engine: SnapshotEngine,

    /// The criu program [default: $PRELOADED_CRIU_CRIU, else criu on PATH, else the private one]
    #[arg(long, value_name = "PROGRAM")]
    pub(super) criu: Option<PathBuf>,

    /// Print the findings as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What the doctor is to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Subject {
    /// What running images needs
    Run,
    /// What making images needs
    Snapshot,
}

/// Say what an image holds.
///
/// What was frozen, where and when, and how its memory, threads and signals come back.
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(super) image: PathBuf,

    /// Print everything as JSON, every mapping too
    #[arg(long)]
    pub(super) json: bool,

    /// List every mapping of the memory
    #[arg(long)]
    pub(super) map: bool,

    /// Read the whole image and compare it with its checksums
    #[arg(long)]
    pub(super) verify: bool,
}

/// Write an image's content as the directory that CRIU's own tools read.
///
/// `crit` shows what is in it, and `criu restore` restores it.
#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(super) image: PathBuf,

    /// A directory, empty or yet to be made
    #[arg(value_name = "DIRECTORY")]
    pub(super) directory: PathBuf,
}

/// Understands the arguments of the program, its own name first.
pub(super) fn parse(mut arguments: Vec<OsString>) -> Result<Command, clap::Error> {
    if let Some(child) = Child::read(&mut arguments) {
        return Ok(Command::Child(child));
    }
    if let Some(start) = Start::read(&mut arguments) {
        return Ok(Command::Start(start));
    }
    // What comes after the image is python's, whatever it looks like: clap must not see it.
    let is = |wanted: &str| arguments.get(1).is_some_and(|name| name == wanted);
    let is_run = is("run");
    let is_python_after = is_run || is("bench");
    let python =
        if is_python_after { arguments.split_off(image_end(&arguments)) } else { Vec::new() };
    let mut command = match arguments.as_slice() {
        // The usual run does without clap, which takes longer than opening the image.
        [_, _, image] if is_run && !is_option(image) => {
            Command::Run(Run { image: image.into(), ..Run::default() })
        }
        _ => Cli::try_parse_from(arguments)?.command,
    };
    match &mut command {
        Command::Run(run) => run.arguments.extend(python),
        Command::Bench(bench) => bench.arguments.extend(python),
        _ => {}
    }
    Ok(command)
}

/// One past the place of the image among the arguments of a command: the first that is neither an
/// option nor an option's value.
fn image_end(arguments: &[OsString]) -> usize {
    let mut place = 2;
    while let Some(argument) = arguments.get(place) {
        place += 1;
        if !is_option(argument) {
            break;
        }
        if takes_value(&arguments[1], argument) {
            place += 1;
        }
    }
    place.min(arguments.len())
}

fn is_option(argument: &OsStr) -> bool {
    argument.as_encoded_bytes().starts_with(b"-")
}

/// Whether this option of a command has its value in the argument that follows.
fn takes_value(name: &OsStr, option: &OsStr) -> bool {
    let command = Cli::command();
    let Some(command) = command.find_subcommand(name) else { return false };
    let is_it = |arg: &&Arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        [long, short].into_iter().flatten().any(|name| option == name.as_str())
    };
    command.get_opts().find(is_it).is_some_and(|arg| arg.get_action().takes_values())
}

/// Reads `NAME=VALUE`, whatever bytes the value has.
#[derive(Clone)]
struct AssignmentParser;

impl clap::builder::TypedValueParser for AssignmentParser {
    type Value = (OsString, OsString);

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let bytes = value.as_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) if at > 0 => Ok((
                OsStr::from_bytes(&bytes[..at]).to_owned(),
                OsStr::from_bytes(&bytes[at + 1..]).to_owned(),
            )),
            _ => {
                let option = argument.map(ToString::to_string).unwrap_or_default();
                Err(clap::Error::raw(
                    clap::error::ErrorKind::ValueValidation,
                    format!("{} is not NAME=VALUE, which '{option}' wants\n", value.display()),
                )
                .with_cmd(command))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn command(line: &[&str]) -> Result<Command, clap::Error> {
        parse(["preloaded-criu"].iter().chain(line).map(Into::into).collect())
    }

    fn run(line: &[&str]) -> Run {
        match command(line) {
            Ok(Command::Run(run)) => run,
            other => panic!("{other:?}"),
        }
    }

    fn snapshot(line: &[&str]) -> Snapshot {
        match command(line) {
            Ok(Command::Snapshot(snapshot)) => snapshot,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_image_is_pythons() {
        for python in [
            &["-c", "x", "-u", "--flag"][..],
            &["--full-exit"],
            &["--help"],
            &["-h"],
            &["--version", "-V"],
            &["--", "script.py"],
            &["-"],
            &[""],
            &["-m", "pytest", "--json", "-o", "x=y"],
            &["script.py", "run", "snapshot"],
            &[],
        ] {
            for ours in [&["run", "snap.img"][..], &["run", "--full-exit", "snap.img"]] {
                let run = run(&[ours, python].concat());
                assert_eq!(run.image.as_os_str(), "snap.img");
                assert_eq!(run.arguments, python);
                assert_eq!(run.full_exit, ours.len() == 3);
            }
        }
    }

    #[test]
    fn a_bench_has_what_a_run_has_behind_the_image() {
        let bench = |line: &[&str]| match command(line) {
            Ok(Command::Bench(bench)) => bench,
            other => panic!("{other:?}"),
        };
        let plain = bench(&["bench", "snap.img"]);
        assert_eq!((plain.runs, plain.arguments.len()), (30, 0));
        let full =
            bench(&["bench", "--runs", "5", "--json", "snap.img", "x.py", "--runs", "--json"]);
        assert_eq!((full.runs, full.json, full.image.as_os_str()), (5, true, "snap.img".as_ref()));
        assert_eq!(full.arguments, ["x.py", "--runs", "--json"]);
        assert!(command(&["bench", "--runs", "0", "snap.img"]).is_err());
    }

    #[test]
    fn names_and_arguments_need_not_be_text() {
        use std::os::unix::ffi::OsStringExt;

        let bytes = || OsString::from_vec(vec![b'a', 0xff]);
        for options in [vec![], vec!["--full-exit".into()]] {
            let mut line = vec!["preloaded-criu".into(), "run".into()];
            line.extend(options);
            line.extend([bytes(), bytes()]);
            let Ok(Command::Run(run)) = parse(line) else { panic!() };
            assert_eq!((run.image.into_os_string(), run.arguments), (bytes(), vec![bytes()]));
        }
    }

    #[test]
    fn what_precedes_the_image_is_ours() {
        let kind = |line: &[&str]| command(line).unwrap_err().kind();
        assert_eq!(kind(&["run"]), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind(&["run", "-c", "pass"]), ErrorKind::UnknownArgument);
        assert_eq!(kind(&["run", "--unknown", "snap.img"]), ErrorKind::UnknownArgument);
        assert_eq!(kind(&["run", "--help"]), ErrorKind::DisplayHelp);
        assert_eq!(kind(&["run", "-h", "snap.img", "-c", "x"]), ErrorKind::DisplayHelp);
        assert_eq!(kind(&["--version"]), ErrorKind::DisplayVersion);
        assert_eq!(kind(&[]), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        assert_eq!(kind(&["snap.img"]), ErrorKind::InvalidSubcommand);
    }

    #[test]
    fn a_snapshot_is_described_in_full() {
        let plain = snapshot(&["snapshot", "--import", "json"]);
        assert_eq!(plain.output.as_os_str(), "snap.img");
        assert_eq!(plain.isolation, Isolation::Auto);
        assert!(!plain.force);

        let full = snapshot(&[
            "snapshot",
            "--import",
            "a,b",
            "--exec",
            "x.py",
            "--import",
            "c.d",
            "--exec",
            "y.py",
            "--recipe",
            "numpy",
            "--python",
            "py",
            "--env",
            "A=1",
            "--env",
            "B==",
            "--env",
            "C=",
            "-o",
            "out.img",
            "--force",
            "--isolation",
            "userns",
            "--criu",
            "/criu",
            "--json",
        ]);
        assert_eq!(full.imports, ["a", "b", "c.d"]);
        assert_eq!(full.exec, [PathBuf::from("x.py"), PathBuf::from("y.py")]);
        let pair = |name: &str, value: &str| (name.into(), value.into());
        assert_eq!(full.environment, [pair("A", "1"), pair("B", "="), pair("C", "")]);
        assert_eq!(full.isolation, Isolation::Userns);
        for wrong in ["A", "=1", ""] {
            let error = command(&["snapshot", "--env", wrong]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ValueValidation);
        }
    }

    /// `cargo test --release --lib parsing_costs -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn parsing_costs() {
        for line in [&["run", "snap.img", "-c", "pass"][..], &["run", "--full-exit", "snap.img"]] {
            let start = std::time::Instant::now();
            (0..1000).for_each(|_| drop(run(line)));
            println!("{line:?}: {:?}", start.elapsed() / 1000);
        }
    }

    #[test]
    fn options_of_the_interpreter_are_as_python_has_them() {
        let words = |line: &[&str]| snapshot(line).options.words();
        assert_eq!(words(&["snapshot"]), [""; 0]);
        assert_eq!(
            words(&["snapshot", "-OO", "-sE", "-X", "utf8", "-Xdev", "--import", "x"]),
            ["-E", "-OO", "-s", "-X", "utf8", "-X", "dev"]
        );
    }

    #[test]
    fn options_with_values_are_known_as_such() {
        let takes_value = |name: &str, option: &str| takes_value(name.as_ref(), option.as_ref());
        assert!(!takes_value("run", "--full-exit"));
        assert!(!takes_value("run", "--unknown"));
        assert!(takes_value("run", "--engine"));
        assert!(takes_value("bench", "--runs"));
        assert!(!takes_value("bench", "--json"));
    }
}
