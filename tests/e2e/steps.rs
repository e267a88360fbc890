//! Faults at every step, by strace(1): system calls of the launcher and of the restorer fail in turn, or
//! are the last that the launcher makes. What comes of it is the right answer or status 125 with a
//! reason; nothing is left, an image is the old one or the new one, and the next run works.
//!
//! A sample of the calls; all of them with `PRELOADED_CRIU_TEST_LONG`.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;

use crate::support::image::{arguments, copy};
use crate::support::run::{Command, Running};
use crate::support::{
    Context, Engine, Outcome, Recipe, Who, as_root, everywhere, for_makers, once,
};

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
    /// The standard library reads two pipes with it at once, and makes something of each error.
    of_two_pipes: bool,
    line: String,
}

impl Call {
    /// As [`Self::inject`]; `renames` has the renames that there were.
    fn inject_beside(&self, what: &str, renames: &Path) -> Vec<String> {
        let mut words = self.inject(what);
        words.splice(2..4, ["-o".to_owned(), renames.to_str().unwrap().to_owned()]);
        let traced = words.iter_mut().find(|word| word.starts_with("trace=")).unwrap();
        traced.push_str(",renameat");
        words
    }

    fn inject(&self, what: &str) -> Vec<String> {
        let Self { name, nth, .. } = self;
        let expression = format!("inject={name}:{what}:when={nth}");
        let trace = format!("trace={name}");
        ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &expression]
            .map(str::to_owned)
            .into()
    }

    /// An error that this call really has, and what it is called.
    fn error(&self) -> (String, &'static str) {
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
        let words = match error {
            "EMFILE" => "Too many open files",
            "EIO" => "Input/output error",
            "ENOSPC" => "No space left on device",
            "EAGAIN" => "Resource temporarily unavailable",
            "EPERM" => "Operation not permitted",
            _ => "Cannot allocate memory",
        };
        (format!("error={error}"), words)
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
    let mut pipes = BTreeSet::new();
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
        let descriptor = rest.split([',', ')']).next().unwrap_or_default();
        if name == "ioctl" && rest.contains("FIONBIO") {
            pipes.insert(descriptor);
        } else if name == "close" {
            pipes.remove(descriptor);
        }
        if let Some(phase) = phase {
            let of_two_pipes = name == "read" && pipes.contains(descriptor);
            // The first exec is strace's own, and none of the program's.
            let nth = counts[name] - usize::from(name == "execve");
            found.push(Call { name: name.into(), nth, phase, of_two_pipes, line: line.into() });
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
    if is_long() {
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

/// Where there is time for all that can be, and not a sample of it.
fn is_long() -> bool {
    env::var_os("PRELOADED_CRIU_TEST_LONG").is_some()
}

/// A fault that has not come is shown by nothing: most of them must have done something.
#[track_caller]
fn most(of: &str, felt: usize, all: usize) {
    assert!(felt * 10 >= all * 8, "{of}: {felt} of {all}");
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
        let mut told = BTreeMap::<u8, BTreeSet<String>>::new();
        for call in some(calls, 10) {
            // Close is here, because the restorer closes descriptors that must not stay.
            if call.name != "close" && NEVER_FAIL.contains(&call.name.as_str()) {
                continue;
            }
            let (error, words) = call.error();
            let outcome = command.clone().through(call.inject(&error)).run();
            let well = match call.phase {
                // It says which error it was.
                Phase::Launcher => {
                    is_right(&outcome) || is_told(&outcome) && outcome.errors().contains(words)
                }
                Phase::Restorer => is_right(&outcome) || is_told(&outcome),
                // The loader and the interpreter say in their own words what they lack.
                Phase::Loader | Phase::Thawed => {
                    !outcome.status.success() || outcome.text() == "ran\n"
                }
            };
            assert!(well, "{call:?}: {outcome:?}");
            if !outcome.status.success() {
                told.entry(call.phase as u8).or_default().insert(call.name.clone());
            }
        }
        // Without an error that was felt, nothing was tried.
        for (phase, names) in [
            (Phase::Launcher, &["openat", "pread64", "statx", "memfd_create", "execve"][..]),
            (Phase::Restorer, &["mmap", "munmap", "open", "pread64", "clone", "rt_sigaction"]),
        ] {
            let told = &told[&(phase as u8)];
            assert!(names.iter().all(|name| told.contains(*name)), "{phase:?}: {told:?}");
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
        for name in ["mmap", "munmap", "mremap"] {
            let of_name = |call: &&Call| call.name == name && call.phase == Phase::Restorer;
            let maps: Vec<&Call> = calls.iter().filter(of_name).collect();
            let mut chosen = vec![maps[0], maps[1], maps[maps.len() / 2], maps[maps.len() - 1]];
            if is_long() {
                chosen.clone_from(&maps);
            }
            // From one of them on, each fails, as behind vm.max_map_count or an overcommit limit.
            for call in chosen {
                let from = format!("inject={name}:error=ENOMEM:when={}+", call.nth);
                let trace = format!("trace={name}");
                let strace = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &from];
                let outcome = command.clone().through(strace).run();
                assert!(is_told(&outcome), "{call:?}: {outcome:?}");
            }
        }
        works(it, &image);
    });
}

/// A setting of the whole machine. It is as before when this goes, also where the tests are killed.
struct Sysctl {
    /// At the end of its input it writes what was there.
    keeper: std::process::Child,
}

impl Sysctl {
    /// `None` where nobody may change it, as in most containers.
    fn set(settings: &[(&str, u64)]) -> Option<Self> {
        let path = |name: &str| format!("/proc/sys/vm/{name}");
        let mut back = vec!["trap '' HUP INT TERM; read -r _".to_owned()];
        for (name, _) in settings.iter().rev() {
            let before = fs::read_to_string(path(name)).ok()?;
            // Each of overcommit_kbytes and overcommit_ratio is 0 where the other one is set.
            if before.trim() != "0" || *name == "overcommit_memory" {
                back.push(format!("echo {} >{}", before.trim(), path(name)));
            }
        }
        let keeper = std::process::Command::new("sh")
            .args(["-c", &back.join("; ")])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let setting = Self { keeper };
        settings
            .iter()
            .all(|(name, value)| fs::write(path(name), value.to_string()).is_ok())
            .then_some(setting)
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

#[test]
fn a_run_is_killed_at_every_call() {
    once(|it| {
        let image = it.image(Recipe::Lively);
        let command = run(it, &image, Engine::Native);
        let calls = some(calls(it, &command), 6);
        let mut deaths = 0;
        for call in &calls {
            let outcome = command.clone().through(call.inject("signal=KILL")).run();
            // How often threads wait for each other depends on who is faster.
            let killed = outcome.status.signal() == Some(libc::SIGKILL);
            assert!(killed || is_right(&outcome), "{call:?}: {outcome:?}");
            deaths += usize::from(killed);
        }
        most("killed", deaths, calls.len());
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
        let step = if is_long() { 1 } else { 40 };
        let between = |call: &&Call| {
            // Where there are processes, and files of theirs.
            ["clone", "clone3", "memfd_create", "sendmsg", "mkdir", "wait4", "waitid"]
                .contains(&call.name.as_str())
        };
        let sample: Vec<&Call> =
            calls.iter().step_by(step).chain(calls.iter().filter(between)).collect();
        let mut deaths = 0;
        for call in &sample {
            let outcome = command.clone().through(call.inject("signal=KILL")).run();
            // How many calls there are depends a little on who is faster.
            let killed = outcome.status.signal() == Some(libc::SIGKILL);
            assert!(killed || is_right(&outcome), "{call:?}: {outcome:?}");
            deaths += usize::from(killed);
        }
        most("killed", deaths, sample.len());
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
    // An ordinary user's is made in namespaces, which end with it.
    for_makers(|it| {
        snapshot(it).run().succeeds();
        let image = it.work().join("snap.img");
        let all = calls(it, &snapshot(it));
        let step = if is_long() { 1 } else { all.len() / 12 };
        let last = |name: &str| all.iter().rev().find(|call| call.name == name);
        let chosen = ["linkat", "renameat", "fsync", "pwrite64", "recvmsg", "sendmsg", "clone"];
        let sample = all.iter().step_by(step).chain(chosen.iter().filter_map(|name| last(name)));
        let sample: Vec<&Call> = sample.collect();
        let mut deaths = 0;
        for call in &sample {
            let (before, _) = look(it, &image);
            // How many calls there are before it depends a little on who is faster.
            let renames = it.home().join("renames");
            let outcome = snapshot(it).through(call.inject_beside("signal=KILL", &renames)).run();
            let killed = outcome.status.signal() == Some(libc::SIGKILL);
            assert!(killed || outcome.status.success(), "{call:?}: {outcome:?}");
            deaths += usize::from(killed);
            let (after, mut beside) = look(it, &image);
            let was_renamed = fs::read_to_string(&renames).unwrap().contains("renameat(");
            assert!(after == before || was_renamed, "{call:?}");
            if call.name == "renameat" {
                // The whole image has a name of its own for that moment; the next snapshot removes it.
                beside.retain(|name| !name.starts_with(".preloaded-criu-"));
                clear(&image);
            }
            assert!(beside.is_empty(), "{call:?}: {beside:?}");
        }
        most("killed", deaths, sample.len());
        it.nothing_is_left();
        snapshot(it).run().succeeds();
    });
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
        all.retain(|call| !call.of_two_pipes);
        let mut right = 0;
        let mut told = BTreeSet::new();
        for call in some(all, 7) {
            let (before, _) = look(it, &image);
            let (error, words) = call.error();
            let outcome = snapshot(it).through(call.inject(&error)).run();
            let (after, beside) = look(it, &image);
            if outcome.status.success() {
                right += 1;
            } else {
                assert!(is_told(&outcome), "{call:?}: {outcome:?}");
                // The end of a directory is found by the same call as its entries, and a file that
                // cannot be looked at is none.
                let is_looking = ["getdents64", "statx"].contains(&call.name.as_str());
                let words = if is_looking { "" } else { words };
                outcome.is_refused(&[words]);
                assert!(after == before, "{call:?}: {outcome:?}");
                told.insert(call.name.clone());
            }
            assert!(beside.is_empty(), "{call:?}: {beside:?}");
        }
        assert!(right > 0);
        for name in
            ["openat", "read", "pread64", "pwrite64", "write", "ftruncate", "fsync", "mkdir"]
        {
            assert!(told.contains(name), "{name} is not among {told:?}");
        }
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
        let mut sizes = vec![4, 64, size / 2, size - 200];
        if is_long() {
            sizes = (4..size - 200).step_by(128).collect();
        }
        for kilobytes in &sizes {
            let outcome = at(*kilobytes);
            outcome.is_refused(&["room"]);
            assert_eq!(outcome.text(), "", "nothing is left on a disk of {kilobytes} kB");
        }
        assert_eq!(at(size + 2000).succeeds().text(), "snap.img\n");
        // Where the old image takes the room, it stays as it was.
        let old = it.image(Recipe::Nothing);
        let beside = |kilobytes: u64| {
            let script = format!(
                "mount -t tmpfs -o size={}k none {place}; cp --sparse=always {old} {place}/snap.img; \
                 \"$@\"; status=$?; ls -A {place}; cmp {old} {place}/snap.img >&2 && echo old; exit $status",
                size + 64 + kilobytes,
                place = place.display(),
                old = old.display(),
            );
            it.snapshot(arguments(it.seat, Recipe::Nothing))
                .args(["--force", "--output"])
                .args([&output])
                .through(["unshare", "--mount", "sh", "-c", &script, "sh"])
                .run()
        };
        for kilobytes in sizes {
            let outcome = beside(kilobytes);
            outcome.is_refused(&["room"]);
            assert_eq!(outcome.text(), "snap.img\nold\n", "{kilobytes} kB: {outcome:?}");
        }
        assert_eq!(beside(size + 2000).text(), "snap.img\n");
    });
}

#[test]
fn no_room_in_memory_for_crius_files() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        let within = |kilobytes: u64, command: Command<'_>, places: &str| {
            let script = format!(
                "for place in {places}; do mount -t tmpfs -o size={kilobytes}k none $place; done; \
                 \"$@\"; status=$?; ls -A {places} | grep -v -e : -e ^$ -e ^mount$ -e '^preloaded-criu\\(-0\\)\\?$'; \
                 exit $status"
            );
            command.through(["unshare", "--mount", "sh", "-c", &script, "sh"]).run()
        };
        let mut refused = 0;
        for kilobytes in [4, 8, 16, 32, 64, 128, 256, 512, 20_000] {
            // All places where they could be.
            let outcome = within(kilobytes, run(it, &image, Engine::Criu), "/run /dev/shm $TMPDIR");
            if outcome.status.success() {
                assert_eq!(outcome.text(), "ran\n", "{kilobytes} kB: {outcome:?}");
            } else {
                outcome.is_refused(&["/tmp/preloaded-criu-", "No space left on device", "room"]);
                assert_eq!(outcome.text(), "", "{kilobytes} kB: {outcome:?}");
                refused += 1;
            }
            // Another place has room, or none is needed.
            for engine in [Engine::Criu, Engine::Native] {
                let outcome = within(kilobytes, run(it, &image, engine), "/run /dev/shm");
                assert_eq!(outcome.succeeds().text(), "ran\n", "{kilobytes} kB");
            }
        }
        assert!((2..9).contains(&refused), "{refused}");
        it.nothing_is_left();
    });
}

/// Mappings by the thousand, which do not become one.
const MANY: &str = "import mmap\n\
    def one(number):\n\
    \x20   protection = mmap.PROT_READ | (mmap.PROT_WRITE if number % 2 else 0)\n\
    \x20   return mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protection)\n\
    kept = [one(number) for number in range(6000)]\n";

#[test]
fn limits_of_the_whole_machine() {
    // Other programs feel them too, if only for moments and with room to spare.
    if !is_long() {
        return;
    }
    as_root(|it| {
        it.file("many.py", MANY);
        let made = || {
            it.snapshot(arguments(it.seat, Recipe::Nothing)).args(["--import", "many", "--force"])
        };
        made().run().succeeds();
        let many = it.work().join("snap.img");
        let plain = it.image(Recipe::Plain);
        let few = Sysctl::set(&[("max_map_count", 3000)]);
        let Some(few) = few else { return };
        let told: Vec<Outcome> =
            [Engine::Native, Engine::Criu].map(|engine| run(it, &many, engine).run()).into();
        let others: Vec<Outcome> =
            [Engine::Native, Engine::Criu].map(|engine| run(it, &plain, engine).run()).into();
        let snapshot = made().run();
        drop(few);
        for outcome in told {
            outcome.is_refused(&["vm.max_map_count"]);
        }
        snapshot.is_refused(&["Cannot allocate memory"]);
        for engine in [Engine::Native, Engine::Criu] {
            assert_eq!(run(it, &many, engine).run().succeeds().text(), "ran\n");
        }
        // Memory is promised only as far as it is there.
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        let promised = meminfo.lines().find_map(|line| line.strip_prefix("Committed_AS:")).unwrap();
        let promised: u64 = promised.trim().trim_end_matches(" kB").parse().unwrap();
        let strict = Sysctl::set(&[
            ("overcommit_ratio", 90),
            ("overcommit_kbytes", promised + 4_000_000),
            ("overcommit_memory", 2),
        ]);
        let strict = strict.unwrap();
        let under = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
        let runs: Vec<Outcome> =
            [Engine::Native, Engine::Criu].map(|engine| run(it, &plain, engine).run()).into();
        let snapshot = snapshot_beside(it).run();
        drop(strict);
        assert_eq!(under.trim(), "2");
        for outcome in others.iter().chain(&runs) {
            assert!(is_right(outcome), "{outcome:?}");
        }
        snapshot.succeeds();
        it.nothing_is_left();
    });
}

fn snapshot_beside(it: &Context) -> Command<'_> {
    it.snapshot(arguments(it.seat, Recipe::Nothing)).args(["--output", "beside.img"])
}

#[test]
fn limits_of_a_run_by_criu() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        let mut refused = BTreeSet::new();
        for (limit, words) in [
            ("-n 8", &["open files", "ulimit -n"][..]),
            ("-n 24", &["open files", "ulimit -n"]),
            ("-n 210", &["open files", "ulimit -n"]),
            ("-n 215", &["open files", "ulimit -n"]),
            ("-n 220", &["ulimit -n"]),
            ("-n 1000", &[]),
            ("-v 20000", &["ulimit -v"]),
            ("-v 4000000", &[]),
            ("-d 1000", &["ulimit -d"]),
            ("-d 8000", &["ulimit -d"]),
            ("-d 1000000", &[]),
            ("-m 0", &[]),
            ("-s 64", &[]),
            ("-s unlimited", &[]),
            ("-f 0", &["ulimit -f"]),
            ("-f 100000", &[]),
        ] {
            let outcome =
                run(it, &image, Engine::Criu).shell(&format!("ulimit {limit}; exec \"$@\"")).run();
            if outcome.status.success() {
                assert!(is_right(&outcome), "{limit}: {outcome:?}");
            } else {
                assert!(!words.is_empty(), "{limit}: {outcome:?}");
                outcome.is_refused(words);
                assert!(!outcome.errors().contains("install"), "{limit}: {outcome:?}");
                refused.insert(&limit[..2]);
            }
            it.nothing_is_left();
        }
        assert_eq!(refused, BTreeSet::from(["-d", "-f", "-n", "-v"]));
        assert!(is_right(&run(it, &image, Engine::Criu).run()));
    });
}

#[test]
fn every_call_of_the_launcher_of_a_criu_run_fails() {
    as_root(|it| {
        let image = it.image(Recipe::Lively);
        let command = run(it, &image, Engine::Criu);
        let mut calls = calls(it, &command);
        calls.retain(|call| !NEVER_FAIL.contains(&call.name.as_str()));
        // There is a descriptor, or there is none.
        calls.retain(|call| !call.line.contains("F_GETF"));
        let mut told = BTreeSet::new();
        for call in some(calls, 4) {
            // What the script's own file system identity is, is told by the same call that sets it.
            if call.name.starts_with("setfs") {
                continue;
            }
            let (error, words) = call.error();
            let outcome = command.clone().through(call.inject(&error)).run();
            let well = is_right(&outcome) || is_told(&outcome);
            assert!(well, "{call:?}: {outcome:?}");
            if !outcome.status.success() {
                // The end of a directory is found by the same call as its entries, and a file that
                // cannot be looked at is none.
                let is_looking = ["getdents64", "statx"].contains(&call.name.as_str());
                // CRIU has a reason of its own where it was given a wrong number.
                let is_crius = outcome.errors().contains("CRIU could not restore");
                let words = if is_looking || is_crius { "" } else { words };
                outcome.is_refused(&[words]);
                told.insert(call.name);
            }
        }
        for name in ["openat", "write", "sendmsg", "recvmsg", "socketpair", "memfd_create", "clone"]
        {
            assert!(told.contains(name), "{name} is not among {told:?}");
        }
        it.nothing_is_left();
        works(it, &image);
        assert!(is_right(&run(it, &image, Engine::Criu).run()));
    });
}

#[test]
fn snapshots_and_runs_of_one_image_at_once() {
    for_makers(|it| {
        snapshot(it).run().succeeds();
        let image = it.work().join("snap.img");
        // Two make it anew all the time; that many times it is another one while runs go on.
        let goal = if is_long() { 200 } else { 8 };
        let mut makers: Vec<Running> = (0..2).map(|_| snapshot(it).spawn()).collect();
        let by_criu = it.seat.who == Who::Root;
        let (mut runs, mut images) = (0, BTreeSet::new());
        let mut made = 0;
        while made < goal || runs < 60 {
            let engine = |number: i32| match number % 4 {
                0 if by_criu => Engine::Criu,
                _ => Engine::Native,
            };
            let running: Vec<Running> =
                (0..20).map(|number| run(it, &image, engine(number)).spawn()).collect();
            for each in running {
                assert_eq!(each.finish().succeeds().text(), "ran\n");
                images.insert(fs::metadata(&image).unwrap().ino());
                runs += 1;
            }
            for maker in &mut makers {
                if maker.has_ended() {
                    std::mem::replace(maker, snapshot(it).spawn()).finish().succeeds();
                    made += 1;
                }
            }
        }
        assert!(images.len() > 2, "it was replaced while they ran: {images:?}");
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

/// Refuses what reserves room for the restorer, and nothing else: mmap(2) with its flags (seccomp(2), a filter
/// that stays over execve).
const NO_ROOM_ANYWHERE: &str = "import ctypes, os, struct, sys\n\
    MMAP, FLAGS, EEXIST = 9, 0x104022, 17\n\
    LOAD, IS, RETURN, ERRNO, ALLOW = 0x20, 0x15, 0x06, 0x50000, 0x7fff0000\n\
    step = lambda *parts: struct.pack('HBBI', *parts)\n\
    steps = [step(LOAD, 0, 0, 0), step(IS, 0, 3, MMAP), step(LOAD, 0, 0, 40), step(IS, 0, 1, FLAGS),\n\
    \x20   step(RETURN, 0, 0, ERRNO + EEXIST), step(RETURN, 0, 0, ALLOW)]\n\
    filter = ctypes.create_string_buffer(b''.join(steps))\n\
    program = struct.pack('HxxxxxxQ', len(steps), ctypes.addressof(filter))\n\
    prctl = ctypes.CDLL(None).prctl\n\
    assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program) == 0\n\
    os.execvp(sys.argv[1], sys.argv[1:])\n";

#[test]
fn a_killed_snapshot_leaves_no_image_that_must_have_a_name() {
    once(|it| {
        it.file("slow.py", "import time; time.sleep(2)");
        let folder = it.work().join("images");
        fs::create_dir(&folder).unwrap();
        it.own(&folder);
        let names = || fs::read_dir(&folder).unwrap().count();
        // As on a file system that has no file without a name.
        let command = it.snapshot(["--import", "slow", "-o"]).args([folder.join("x.img")]);
        let running = command
            .through([
                // The program itself is ours to kill.
                "strace",
                "-D",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=openat",
                "-e",
                "inject=openat:error=EOPNOTSUPP:when=2",
                "-P",
            ])
            .through([&folder])
            .spawn();
        let end = Instant::now() + Duration::from_secs(60);
        while names() == 0 {
            assert!(Instant::now() < end, "it has no name");
            std::thread::sleep(Duration::from_millis(10));
        }
        // Until the keeper is there, the file is empty.
        std::thread::sleep(Duration::from_secs(1));
        running.signal(Signal::SIGKILL);
        drop(running);
        while names() > 0 {
            assert!(Instant::now() < end, "it is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

/// What comes of a command, and what strace(1) with these options writes of it.
fn logged(it: &Context, command: Command<'_>, options: &[&str]) -> (Outcome, String) {
    let log = it.home().join("log");
    let strace = ["strace", "-qq", "-o", log.to_str().unwrap()];
    let outcome = command.through(strace).through(options).run();
    let text = fs::read_to_string(&log).unwrap();
    fs::remove_file(log).unwrap();
    (outcome, text)
}

#[test]
fn an_address_that_is_taken_once_is_another_one_next_time() {
    once(|it| {
        let image = it.image(Recipe::Plain);
        // What the first attempt has said to the process must not be there in the second.
        let code =
            "import os, sys; print(sys.argv, sorted(os.environ), os.listdir('/proc/self/fd'))";
        let command = it.program(["run"]).args([&image]).args(["-c", code, "one", "two"]);
        let expected = command.run().succeeds().text();
        let trace = ["-e", "trace=mmap,execve"];
        let (_, text) = logged(it, command.clone(), &trace);
        let maps = text.lines().filter(|line| line.starts_with("mmap("));
        let first = 1 + maps.take_while(|line| !line.contains("MAP_FIXED_NOREPLACE")).count();
        // Each hole of the image is tried at seven places.
        let mut executions = 0;
        for tries in (7..=70).step_by(7) {
            let last = first + tries - 1;
            let inject = format!("inject=mmap:error=EEXIST:when={first}..{last}");
            let (outcome, text) =
                logged(it, command.clone(), &[&trace[..], &["-e", &inject]].concat());
            assert_eq!(outcome.succeeds().text(), expected, "{tries}");
            let of = |what: &str| text.lines().filter(|line| line.contains(what)).count();
            assert_eq!(of("INJECTED"), tries, "{text}");
            executions = of("execve(");
            if executions > 2 {
                break;
            }
        }
        assert_eq!(executions, 3, "the launcher's, the interpreter's, and that once more");
        works(it, &image);
    });
}

#[test]
fn an_address_that_is_taken_each_time_is_told() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        let without = ["/usr/bin/python3", "-c", NO_ROOM_ANYWHERE];
        let command = run(it, &image, Engine::Native);
        let trace = ["-e", "trace=execve"];
        let (outcome, ordinary) = logged(it, command.clone(), &trace);
        assert!(is_right(&outcome), "{outcome:?}");
        let (outcome, text) = logged(it, command, &[&trace[..], &without].concat());
        outcome.is_refused(&["an address that the image needs was taken each time"]);
        assert_eq!(outcome.text(), "");
        // The filter's interpreter, and sixteen attempts more than usual.
        assert_eq!(text.lines().count(), 1 + ordinary.lines().count() + 16, "{text}");
        // CRIU needs no room beside the image.
        let by_criu = run(it, &image, Engine::Criu).through(without).run();
        assert!(is_right(&by_criu), "{by_criu:?}");
        works(it, &image);
        it.nothing_is_left();
    });
}

#[test]
fn a_mapping_whose_address_is_taken_is_told() {
    once(|it| {
        let image = it.image(Recipe::Plain);
        let command = run(it, &image, Engine::Native);
        let (_, text) = logged(it, command.clone(), &["-e", "trace=mmap"]);
        let maps = (1..).zip(text.lines().filter(|line| line.starts_with("mmap(")));
        let placed = maps.filter(|(_, line)| line.contains("MAP_FIXED_NOREPLACE"));
        // Without the restorer's own, for which there is another place.
        let placed: Vec<usize> = placed.map(|(nth, _)| nth).skip(1).collect();
        for nth in [placed[0], placed[placed.len() / 2], placed[placed.len() - 1]] {
            let inject = format!("inject=mmap:error=EEXIST:when={nth}");
            let options = ["-e", "trace=mmap", "-e", &inject];
            let (outcome, text) = logged(it, command.clone(), &options);
            assert!(text.contains("INJECTED"), "{text}");
            outcome.is_refused(&["the address is taken (EEXIST)"]);
            assert_eq!(outcome.text(), "");
        }
        works(it, &image);
        it.nothing_is_left();
    });
}
