//! The command line: what was typed becomes a call of the library, what comes back becomes text and
//! an exit status. The only place that prints or decides how the program ends.

mod args;
mod bench;
mod doctor;
mod export;
mod inspect;
mod progress;
mod recipe;
mod refresh;
mod report;
mod starter;
mod units;

use std::env;
use std::io::{self, Write};

use nix::sys::signal::{Signal, raise};

use crate::sys::{self, Explain};
use crate::{run, snapshot};

use self::args::Command;
use self::progress::Progress;
use self::recipe::Recipe;
use self::report::{CliError, FAILED, Failure};

/// The program: its exit status, for as far as it has one of its own. `run` becomes the frozen
/// interpreter and comes back only when that fails.
#[must_use]
pub fn main() -> i32 {
    let command = match args::parse(env::args_os().collect()) {
        Ok(command) => command,
        Err(help) if !help.use_stderr() => {
            let Err(why) = help.print() else { return 0 };
            report::print(&CliError::Output(why));
            return FAILED;
        }
        Err(usage) => {
            report::usage(&usage);
            return FAILED;
        }
    };
    match execute(command) {
        Ok(status) => status,
        Err(failure) => {
            report::print(&*failure);
            FAILED
        }
    }
}

fn execute(command: Command) -> Result<i32, Failure> {
    let command = match command {
        Command::Run(arguments) => return run(arguments),
        Command::Child(arguments) => return child(arguments),
        Command::Start(arguments) => match starter::start(arguments)? {},
        command => command,
    };
    // Whatever these commands open must not take the place of a closed standard descriptor, or
    // they would print into it. A script finds its descriptors as the caller left them.
    sys::fill_standard_descriptors();
    match command {
        Command::Run(arguments) => run(arguments),
        Command::Child(arguments) => child(arguments),
        Command::Start(arguments) => match starter::start(arguments)? {},
        Command::Starter(arguments) => starter::starter(arguments),
        Command::Snapshot(arguments) => snapshot(arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
        Command::Inspect(arguments) => inspect::inspect(&arguments),
        Command::Export(arguments) => export::export(&arguments),
        Command::Bench(arguments) => bench::bench(arguments),
    }
}

fn run(arguments: args::Run) -> Result<i32, Failure> {
    let args::Run { check, full_exit, eager, engine, fallback, no_children, image, arguments } =
        arguments;
    let check = check.into();
    let request = run::Request {
        image,
        arguments,
        check,
        full_exit,
        eager,
        no_children,
        ..Default::default()
    };
    let ended = match engine {
        args::Engine::Auto => run::run_by_either(&request),
        args::Engine::Native => run::run(&request).map(|never| match never {}),
        args::Engine::Criu => run::run_through_criu(&request),
    };
    let why = match ended {
        Err(why) if fallback || why.is_for_a_new_start() => why,
        ended => return Ok(ended?),
    };
    report::regret(&why);
    match run::run_without(&request, None)? {}
}

/// Nobody has asked for an image here: where it cannot be used, nothing is said.
fn child(arguments: args::Child) -> Result<i32, Failure> {
    let args::Child { image, program, name, arguments } = arguments;
    let (program, name) = (Some(program), Some(name));
    let request = run::Request { image, program, name, arguments, ..Default::default() };
    let Err(_) = run::run(&request);
    match run::run_without(&request, None)? {}
}

fn snapshot(arguments: args::Snapshot) -> Result<i32, Failure> {
    // Somebody who stops reading must not stop a snapshot in the middle, nor may a limit without
    // a word.
    sys::survive_failed_writes();
    let json = arguments.json;
    let mut progress = Progress::new(json);
    let taken = make(arguments, &mut progress);
    if let (Err(failure), true) = (&taken, json) {
        let _ = writeln!(io::stdout(), "{}", report::json(&**failure));
    }
    taken
}

fn make(arguments: args::Snapshot, progress: &mut Progress) -> Result<i32, Failure> {
    let arguments = match arguments.refresh {
        Some(_) => refresh::resolve(arguments)?,
        None => arguments,
    };
    let options = snapshot::Options {
        criu: arguments.criu.clone(),
        isolation: match arguments.isolation {
            args::Isolation::Auto => snapshot::Choice::Auto,
            args::Isolation::Host => snapshot::Choice::Host,
            args::Isolation::Userns => snapshot::Choice::UserNamespace,
        },
        engines: match arguments.engine {
            args::SnapshotEngine::Any => snapshot::Engines::Both,
            args::SnapshotEngine::Criu => snapshot::Engines::Criu,
        },
        temporary: None,
        output: None,
        self_contained: arguments.self_contained,
    };
    let (output, force) = (arguments.output.clone(), arguments.force);
    let recipe = recipe(arguments)?;
    match snapshot::make(&recipe, &options, &output, force, progress) {
        Ok(()) => Ok(0),
        Err(error) => {
            // A terminal has seen the output as it was printed.
            let output = error.output().filter(|_| !matches!(progress, Progress::Terminal { .. }));
            for text in output.into_iter().chain(error.traceback()) {
                let _ = io::stderr().write_all(text.as_bytes());
            }
            match error.signal() {
                Some(signal) => Ok(end_by(signal, &error)),
                None => Err(error.into()),
            }
        }
    }
}

/// Ends as programs do that a signal asked to end: by that signal, so that a shell knows and stops
/// its script too. Returns the status that a shell would see, should the signal be blocked.
fn end_by(signal: Signal, error: &dyn Explain) -> i32 {
    report::print(error);
    // It comes at once, or not at all.
    let _ = raise(signal);
    128 + signal as i32
}

/// What was typed, with its recipe: the recipe comes first, and what was typed wins.
fn recipe(arguments: args::Snapshot) -> Result<snapshot::Recipe, Failure> {
    let again = refresh::again(&arguments);
    let recipe = arguments.recipe.as_deref().map(Recipe::load).transpose()?;
    let name = recipe.as_ref().map(|recipe| recipe.name.clone());
    let Recipe { mut imports, environment, warm_up, .. } = recipe.unwrap_or_default();
    imports.extend(arguments.imports);
    let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into()));
    Ok(snapshot::Recipe {
        name,
        python: arguments.python,
        flags: arguments.options.words(),
        imports,
        warm_up,
        exec: arguments.exec,
        environment: environment.chain(arguments.environment).collect(),
        again,
    })
}

/// Writes the answer of a command to standard output, as a whole.
fn answer(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    written.map_err(|why| Box::new(CliError::Output(why)) as Box<dyn Explain>)
}
