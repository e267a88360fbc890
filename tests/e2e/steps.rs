//! Faults at every step, by strace(1): system calls of the launcher and of the restorer fail in turn, or
//! are the last that the launcher makes. What comes of it is the right answer or status 125 with a
//! reason; nothing is left, an image is the old one or the new one, and the next run works.
//!
//! A sample of the calls; all of them with `PRELOADED_CRIU_TEST_LONG`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::support::image::{arguments, copy};
use crate::support::run::{Command, Running};
use crate::support::{Context, Engine, Outcome, Recipe, as_root, everywhere, for_makers, once};

const SCRIPT: &str = "print('ran')";

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The launcher's, from the image's opening on: what comes before is its own start.
    Launcher,
    /// The dynamic loader's, in the interpreter that is to become the frozen one.
    Loader,
    /// The restorer's and the resident's.
    Restorer,
    /// The interpreter's, before the script's own.
    Thawed,
}

/// A system call, by its place among those of its name, which is how strace counts.
#[derive(Clone, Debug)]
struct Call {
    name: String,
    nth: usize,
    phase: Phase,
    #[expect(dead_code, reason = "told where a test fails")]
    line: String,
}

impl Call {
    fn inject(&self, what: &str) -> Vec<String> {
        let Self { name, nth, .. } = self;
        let expression = format!("inject={name}:{what}:when={nth}");
        let trace = format!("trace={name}");
        ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &expression]
            .map(str::to_owned)
            .into()
    }

    /// An error that this call really has.
    fn error(&self) -> String {
        let error = match self.name.as_str() {
            "open" | "openat" | "memfd_create" | "fcntl" | "pipe2" | "socketpair" | "signalfd4" => {
                "EMFILE"
            }
            "read" | "pread64" | "fsync" | "getdents64" => "EIO",
            "write" | "pwrite64" | "ftruncate" | "linkat" | "renameat" | "rename" | "mkdir" => {
                "ENOSPC"
            }
            "clone" | "clone3" | "fork" => "EAGAIN",
            "prctl" | "ioctl" => "EPERM",
            _ => "ENOMEM",
        };
        format!("error={error}")
    }
}

/// Calls that cannot fail, or whose results no program looks at: an injected error would be no error of
/// this world. `brk` says what the break is, `recvfrom` is the standard library's own wait for an exec.
const NEVER_FAIL: [&str; 24] = [
    "brk",
    "close",
    "exit",
    "exit_group",
    "flock",
    "futex",
    "geteuid",
    "getegid",
    "getgid",
    "getpid",
    "getppid",
    "getrandom",
    "getuid",
    "ioctl",
    "kill",
    "poll",
    "recvfrom",
    "rt_sigreturn",
    "rt_sigtimedwait",
    "shutdown",
    "set_tid_address",
    "umask",
    "wait4",
    "waitid",
];

/// The system calls of a command's own process.
fn calls(it: &Context, command: &Command<'_>) -> Vec<Call> {
    let log = it.home().join("calls");
    let log = log.to_str().unwrap();
    command.clone().through(["strace", "-qq", "-o", log]).run().succeeds();
    let text = fs::read_to_string(log).unwrap();
    fs::remove_file(log).unwrap();
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut found = Vec::new();
    let mut phase = None;
    for line in text.lines() {
        let Some((name, rest)) = line.split_once('(') else { continue };
        if !name.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'_') {
            continue;
        }
        let count = counts.entry(name).or_default();
        *count += 1;
        phase = match (phase, name) {
            (None, "openat") if rest.contains("O_PATH") || rest.contains("O_TMPFILE") => {
                Some(Phase::Launcher)
            }
            (Some(Phase::Loader), "rt_sigprocmask") => Some(Phase::Restorer),
            _ => phase,
        };
        if name == "write" && rest.starts_with("1, \"ran") {
            break;
        }
        if let Some(phase) = phase {
            // The first exec is strace's own, and none of the program's.
            let nth = counts[name] - usize::from(name == "execve");
            found.push(Call { name: name.into(), nth, phase, line: line.into() });
        }
        phase = match (phase, name) {
            (Some(Phase::Launcher), "execve") => Some(Phase::Loader),
            (Some(Phase::Restorer), "rt_sigreturn") => Some(Phase::Thawed),
            _ => phase,
        };
    }
    assert!(found.len() > 20, "{text}");
    found
}

/// At most so many calls of each name, the first and the last among them.
fn some(calls: Vec<Call>, most: usize) -> Vec<Call> {
    if env::var_os("PRELOADED_CRIU_TEST_LONG").is_some() {
        return calls;
    }
    let mut by_name = BTreeMap::<(String, u8), Vec<Call>>::new();
    for call in calls {
        by_name.entry((call.name.clone(), call.phase as u8)).or_default().push(call);
    }
    let thin = |calls: Vec<Call>| {
        let last = calls.len() - 1;
        let taken = most.min(calls.len());
        let place = move |index: usize| if taken == 1 { last } else { index * last / (taken - 1) };
        (0..taken).map(move |index| calls[place(index)].clone())
    };
    by_name.into_values().flat_map(thin).collect()
}

fn run<'a>(it: &'a Context, image: &Path, engine: Engine) -> Command<'a> {
    it.program(["run"]).args(engine.option()).args([image]).args(["-c", SCRIPT])
}

#[track_caller]
fn works(it: &Context, image: &Path) {
    let outcome = run(it, image, Engine::Native).run();
    assert_eq!(outcome.succeeds().text(), "ran\n");
}

fn is_told(outcome: &Outcome) -> bool {
    let errors = outcome.errors();
    outcome.status.code() == Some(125)
        && errors.starts_with("preloaded-criu: ")
        && !errors.contains("panicked")
}

fn is_right(outcome: &Outcome) -> bool {
    outcome.status.success() && outcome.text() == "ran\n" && outcome.errors().is_empty()
}

#[test]
fn every_call_of_a_run_fails() {
    once(|it| {
        let image = it.image(Recipe::Lively);
        let command = run(it, &image, Engine::Native);
        let calls = calls(it, &command);
        for phase in [Phase::Launcher, Phase::Loader, Phase::Restorer, Phase::Thawed] {
            assert!(calls.iter().any(|call| call.phase == phase), "{phase:?}");
        }
        for call in some(calls, 10) {
            // Close is here, because the restorer closes descriptors that must not stay.
            if call.name != "close" && NEVER_FAIL.contains(&call.name.as_str()) {
                continue;
            }
            let outcome = command.clone().through(call.inject(&call.error())).run();
            let well = match call.phase {
                Phase::Launcher | Phase::Restorer => is_right(&outcome) || is_told(&outcome),
                // The loader and the interpreter say in their own words what they lack.
                Phase::Loader | Phase::Thawed => {
                    !outcome.status.success() || outcome.text() == "ran\n"
                }
            };
            assert!(well, "{call:?}: {outcome:?}");
        }
        works(it, &image);
        it.nothing_is_left();
    });
}

#[test]
fn no_more_mappings_are_to_be_had() {
    once(|it| {
        let image = it.image(Recipe::Plain);
        let command = run(it, &image, Engine::Native);
        let calls = calls(it, &command);
        let maps: Vec<&Call> = calls
            .iter()
            .filter(|call| call.name == "mmap" && call.phase == Phase::Restorer)
            .collect();
        // From one of them on, each fails, as behind vm.max_map_count or an overcommit limit.
        for call in [maps[0], maps[1], maps[maps.len() / 2], maps[maps.len() - 1]] {
            let from = format!("inject=mmap:error=ENOMEM:when={}+", call.nth);
            let strace = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=mmap", "-e", &from];
            let outcome = command.clone().through(strace).run();
            assert!(is_told(&outcome), "{call:?}: {outcome:?}");
        }
        works(it, &image);
    });
}

#[test]
fn a_run_is_killed_at_every_call() {
    once(|it| {
        let image = it.image(Recipe::Lively);
        let command = run(it, &image, Engine::Native);
        for call in some(calls(it, &command), 6) {
            let outcome = command.clone().through(call.inject("signal=KILL")).run();
            // How often threads wait for each other depends on who is faster.
            let killed = outcome.status.signal() == Some(libc::SIGKILL);
            assert!(killed || is_right(&outcome), "{call:?}: {outcome:?}");
        }
        it.nothing_is_left();
        works(it, &image);
    });
}

#[test]
fn the_launcher_of_a_criu_run_is_killed() {
    as_root(|it| {
        let image = it.image(Recipe::Lively);
        let command = run(it, &image, Engine::Criu);
        let calls = calls(it, &command);
        let step = if env::var_os("PRELOADED_CRIU_TEST_LONG").is_some() { 1 } else { 40 };
        let between = |call: &&Call| {
            // Where there are processes, and files of theirs.
            ["clone", "clone3", "memfd_create", "sendmsg", "mkdir", "wait4", "waitid"]
                .contains(&call.name.as_str())
        };
        let sample = calls.iter().step_by(step).chain(calls.iter().filter(between));
        for call in sample {
            let outcome = command.clone().through(call.inject("signal=KILL")).run();
            // How many calls there are depends a little on who is faster.
            let killed = outcome.status.signal() == Some(libc::SIGKILL);
            assert!(killed || is_right(&outcome), "{call:?}: {outcome:?}");
        }
        it.nothing_is_left();
        works(it, &image);
        assert!(is_right(&run(it, &image, Engine::Criu).run()));
    });
}

/// `snapshot --force` of nothing, in the place of an image that is there.
fn snapshot(it: &Context) -> Command<'_> {
    it.snapshot(arguments(it.seat, Recipe::Nothing)).args(["--force"])
}

/// An image that is whole, and what else is beside it.
fn look(it: &Context, image: &Path) -> (u64, Vec<String>) {
    it.program(["inspect", "--verify"]).args([image]).run().succeeds();
    works(it, image);
    let names = fs::read_dir(image.parent().unwrap()).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let inode = fs::metadata(image).unwrap().ino();
    (inode, names.filter(|name| name != "snap.img").collect())
}

#[test]
fn a_snapshot_is_killed_at_every_call() {
    once(|it| {
        snapshot(it).run().succeeds();
        let image = it.work().join("snap.img");
        let all = calls(it, &snapshot(it));
        let step =
            if env::var_os("PRELOADED_CRIU_TEST_LONG").is_some() { 1 } else { all.len() / 12 };
        let last = |name: &str| all.iter().rev().find(|call| call.name == name);
        let chosen = ["linkat", "renameat", "fsync", "pwrite64", "recvmsg", "sendmsg", "clone"];
        let sample = all.iter().step_by(step).chain(chosen.iter().filter_map(|name| last(name)));
        for call in sample {
            let (before, _) = look(it, &image);
            let outcome = snapshot(it).through(call.inject("signal=KILL")).run();
            // How many calls there are depends a little on who is faster.
            let killed = outcome.status.signal() == Some(libc::SIGKILL);
            assert!(killed || outcome.status.success(), "{call:?}: {outcome:?}");
            let (after, mut beside) = look(it, &image);
            let was_renamed = !killed
                || all.iter().any(|each| {
                    each.name == "renameat"
                        && each.nth == 1
                        && position(&all, each) < position(&all, call)
                });
            assert!(after == before || was_renamed, "{call:?}");
            if call.name == "renameat" {
                // The whole image has a name of its own for that moment; the next snapshot removes it.
                beside.retain(|name| !name.starts_with(".preloaded-criu-"));
                clear(&image);
            }
            assert!(beside.is_empty(), "{call:?}: {beside:?}");
        }
        it.nothing_is_left();
        snapshot(it).run().succeeds();
    });
}

fn position(all: &[Call], call: &Call) -> usize {
    all.iter().position(|each| each.name == call.name && each.nth == call.nth).unwrap()
}

fn clear(image: &Path) {
    for entry in fs::read_dir(image.parent().unwrap()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".preloaded-criu-") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn calls_of_a_snapshot_fail() {
    once(|it| {
        snapshot(it).run().succeeds();
        let image = it.work().join("snap.img");
        let mut all = calls(it, &snapshot(it));
        all.retain(|call| !NEVER_FAIL.contains(&call.name.as_str()));
        // The standard library makes something of each error of these two when it reads two pipes.
        all.retain(|call| call.name != "read" && call.name != "statx");
        let mut right = 0;
        for call in some(all, 2) {
            let (before, _) = look(it, &image);
            let outcome = snapshot(it).through(call.inject(&call.error())).run();
            let (after, beside) = look(it, &image);
            if outcome.status.success() {
                right += 1;
            } else {
                assert!(is_told(&outcome), "{call:?}: {outcome:?}");
                outcome.is_refused(&[]);
                assert!(after == before, "{call:?}: {outcome:?}");
            }
            assert!(beside.is_empty(), "{call:?}: {beside:?}");
        }
        assert!(right > 0);
        it.nothing_is_left();
    });
}

#[test]
fn disks_of_every_size() {
    as_root(|it| {
        let place = it.work().join("place");
        fs::create_dir(&place).unwrap();
        let output = place.join("snap.img");
        // Pages of zeros take no room.
        let size = fs::metadata(it.image(Recipe::Nothing)).unwrap().blocks() / 2;
        let at = |kilobytes: u64| {
            let script = format!(
                "mount -t tmpfs -o size={kilobytes}k none {0}; \"$@\"; status=$?; ls -A {0}; exit $status",
                place.display()
            );
            it.snapshot(arguments(it.seat, Recipe::Nothing))
                .args(["--output".as_ref(), output.as_path()])
                .through(["unshare", "--mount", "sh", "-c", &script, "sh"])
                .run()
        };
        for kilobytes in [4, 64, size / 2, size - 200] {
            let outcome = at(kilobytes);
            outcome.is_refused(&["room"]);
            assert_eq!(outcome.text(), "", "nothing is left on a disk of {kilobytes} kB");
        }
        assert_eq!(at(size + 2000).succeeds().text(), "snap.img\n");
    });
}

#[test]
fn no_room_in_memory_for_crius_files() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        let script = "mount -t tmpfs -o size=16k none /dev/shm; \"$@\"; status=$?; ls -A /dev/shm; exit $status";
        let within = |command: Command<'_>| {
            command.through(["unshare", "--mount", "sh", "-c", script, "sh"]).run()
        };
        let outcome = within(run(it, &image, Engine::Criu));
        if !outcome.status.success() {
            outcome.is_refused(&["shm"]);
            assert_eq!(outcome.text(), "");
        }
        assert_eq!(within(run(it, &image, Engine::Native)).succeeds().text(), "ran\n");
    });
}

#[test]
fn snapshots_and_runs_of_one_image_at_once() {
    for_makers(|it| {
        snapshot(it).run().succeeds();
        let image = it.work().join("snap.img");
        let makers: Vec<Running> = (0..2).map(|_| snapshot(it).spawn()).collect();
        let mut runs = 0;
        for _ in 0..3 {
            let running: Vec<Running> =
                (0..20).map(|_| run(it, &image, Engine::Native).spawn()).collect();
            for each in running {
                assert_eq!(each.finish().succeeds().text(), "ran\n");
                runs += 1;
            }
        }
        assert_eq!(runs, 60);
        for maker in makers {
            maker.finish().succeeds();
        }
        assert_eq!(look(it, &image).1, [""; 0]);
        // Without --force, one of them comes first.
        fs::remove_file(&image).unwrap();
        let plain = || it.snapshot(arguments(it.seat, Recipe::Nothing)).spawn();
        let outcomes: Vec<Outcome> = [plain(), plain()].into_iter().map(Running::finish).collect();
        let (made, refused): (Vec<_>, Vec<_>) =
            outcomes.iter().partition(|outcome| outcome.status.success());
        assert_eq!(made.len(), 1, "{outcomes:?}");
        refused[0].is_refused(&["there already"]);
        assert_eq!(look(it, &image).1, [""; 0]);
    });
}

#[test]
fn addresses_that_are_taken() {
    everywhere(|it| {
        let image: PathBuf = copy(it, Recipe::Plain, "copy.img");
        // Another layout each: the image's own addresses, a stack as large as can be, many mappings.
        for around in [
            &["setarch", "--addr-no-randomize"][..],
            &["prlimit", "--stack=unlimited"],
            &["prlimit", "--stack=4000000000"],
        ] {
            for _ in 0..4 {
                let outcome = run(it, &image, Engine::Native).through(around).run();
                assert!(is_right(&outcome) || is_told(&outcome), "{around:?}: {outcome:?}");
            }
        }
        works(it, &image);
    });
}
