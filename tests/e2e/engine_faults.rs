//! What can go wrong while CRIU works: it ends with 125 and a reason, or is done again, and nothing is
//! left.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::support::run::{Command, Outcome};
use crate::support::{Context, Recipe, Seat, Who, as_root, for_makers, image};
use crate::terminal::visit;

/// The CRIU that is used here.
fn criu(it: &Context) -> String {
    let found = it.program(["doctor", "snapshot", "--json"]).run().text();
    let named = found.split('"').find_map(|part| {
        let mut words = part.split_whitespace().map(|word| word.trim_matches(['(', ')']));
        let path = words.find(|word| word.ends_with("/criu"));
        path.filter(|path| path.starts_with('/')).map(str::to_owned)
    });
    named.expect("the doctor names the CRIU that is used")
}

/// A program in the place of CRIU. When it is started for the time of that number (the first time it
/// is asked for its version), these lines of bash run first, with CRIU as `"${criu[@]}"`; they may put
/// another program around it, which must leave it the child that it is.
struct Interposed {
    program: PathBuf,
    count: PathBuf,
}

impl Interposed {
    fn new(it: &Context, lines: &str) -> Self {
        let count = it.work().join("count");
        let script = format!(
            "#!/bin/bash\necho >>{count}\ntime=$(wc -l <{count})\ncriu=({real} \"$@\")\n{lines}\n\
             exec \"${{criu[@]}}\"\n",
            count = count.display(),
            real = criu(it),
        );
        let program = it.file("criu", script);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { program, count }
    }

    /// strace(1) around the CRIU that restores or dumps; it is not its parent.
    fn injecting(it: &Context, calls: &str, what: &str) -> Self {
        Self::injecting_at(it, 2, calls, what)
    }

    /// The same around the CRIU that is started for the time of that number.
    fn injecting_at(it: &Context, time: u32, calls: &str, what: &str) -> Self {
        let strace = format!("strace -D -o /dev/null -e trace={calls} -e inject={calls}:{what}");
        Self::new(it, &format!("[ $time = {time} ] && criu=({strace} \"${{criu[@]}}\")"))
    }

    /// How often it was started.
    fn times(&self) -> usize {
        fs::read_to_string(&self.count).unwrap_or_default().lines().count()
    }

    fn run<'a>(&self, it: &'a Context, image: &Path, code: &str) -> Command<'a> {
        let run = it.program(["run", "--engine", "criu"]).args([image]).args(["-c", code]);
        run.env("PRELOADED_CRIU_CRIU", &self.program)
    }
}

/// Has no directory where CRIU could find what it knows about the kernel.
const FORGETFUL: [&str; 5] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tmpfs none /dev/shm; mount -t tmpfs none /run; \"$0\" \"$@\"",
];

#[test]
fn a_criu_that_is_killed_at_any_step_leaves_nothing() {
    as_root(|it| {
        let image = it.image(Recipe::Lively);
        let killed = |calls: &str, number: usize, forgetful: bool| -> Outcome {
            let what = format!("signal=KILL:when={number}");
            let run = Interposed::injecting(it, calls, &what).run(it, &image, "print('ran')");
            let run = if forgetful { run.through(FORGETFUL) } else { run };
            let outcome = run.run();
            if outcome.status.code() == Some(0) {
                assert_eq!(outcome.text(), "ran\n");
            } else {
                outcome.is_refused(&["CRIU ended before its work was done", "SIGKILL"]);
            }
            fs::remove_file(it.work().join("count")).unwrap();
            it.nothing_is_left();
            outcome
        };
        // Each line of its log, each notification and its answer are one of these; the step keeps it short.
        let deaths =
            (1..).step_by(9).take_while(|number| !killed("write", *number, false).status.success());
        assert!((8..100).contains(&deaths.count()), "not at some steps, and not for ever");
        // It asks for its processes' states as long as it is in their midst.
        let deaths = (1..).take_while(|number| !killed("wait4", *number, false).status.success());
        assert!(deaths.count() > 3);
        // It probes the kernel by processes, which it waits for.
        let deaths = (1..9).filter(|number| !killed("wait4", *number, true).status.success());
        assert_eq!(deaths.count(), 8);
    });
}

#[test]
fn a_criu_that_is_killed_while_it_probes_the_kernel_makes_no_image() {
    as_root(|it| {
        for number in 1..9 {
            let what = format!("signal=KILL:when={number}");
            let criu = Interposed::injecting(it, "wait4", &what);
            let snapshot = it.snapshot(["--output", "snap.img"]).through(FORGETFUL);
            let outcome = snapshot.env("PRELOADED_CRIU_CRIU", &criu.program).run();
            outcome.is_refused(&["CRIU ended before its work was done", "SIGKILL"]);
            assert!(!it.work().join("snap.img").exists());
            fs::remove_file(&criu.count).unwrap();
            it.nothing_is_left();
        }
    });
}

/// One step of so many; each one where there is time for the long tests.
fn sampled(step: usize) -> usize {
    if env::var_os("PRELOADED_CRIU_TEST_LONG").is_some() { 1 } else { step }
}

#[test]
fn a_criu_that_is_killed_at_any_step_of_a_dump_leaves_the_old_image() {
    for_makers(|it| {
        let snapshot = || it.snapshot(image::arguments(it.seat, Recipe::Plain)).args(["--force"]);
        snapshot().run().succeeds();
        let old = it.work().join("snap.img");
        let inode = || fs::metadata(&old).unwrap().ino();
        let runs = || {
            let run = it.program(["run"]).args([&old]).args(["-c", "print('ran')"]).run();
            assert_eq!(run.succeeds().text(), "ran\n");
        };
        // It stops its process and looks at it; puts code of its own into it, which it then speaks
        // with; takes its memory; writes its files, each line of its log and its answer.
        for (call, step, least) in [
            ("ptrace", 23, 40),
            ("wait4", 5, 8),
            ("sendto", 11, 10),
            ("recvfrom", 11, 10),
            ("splice", 29, 20),
            ("unlinkat", 5, 4),
            ("write", 250, 400),
        ] {
            let mut died = 0;
            for number in (1..).step_by(sampled(step)) {
                let before = inode();
                let criu = Interposed::injecting(it, call, &format!("signal=KILL:when={number}"));
                let outcome = snapshot().env("PRELOADED_CRIU_CRIU", &criu.program).run();
                assert_eq!(criu.times(), 2, "{call} {number}: {outcome:?}");
                for file in [&criu.program, &criu.count] {
                    fs::remove_file(file).unwrap();
                }
                if outcome.status.success() {
                    // There are no more of these.
                    assert_ne!(inode(), before, "{call} {number}");
                    break;
                }
                outcome.is_refused(&["CRIU ended before its work was done", "SIGKILL"]);
                assert_eq!(inode(), before, "{call} {number}: the old image is there");
                let beside = fs::read_dir(it.work()).unwrap().count();
                assert_eq!(beside, 1, "{call} {number}");
                it.nothing_is_left();
                died = number;
            }
            assert!(died >= least.min(1 + least / step * step), "{call}: {died}");
            runs();
        }
        snapshot().run().succeeds();
        runs();
    });
}

#[test]
fn a_criu_that_is_killed_at_a_request_or_a_notification() {
    as_root(|it| {
        let native = it.image(Recipe::Lively);
        // What it is asked first is its version. Each message is looked at and then read.
        let killed = |time: u32, number: usize, run: &dyn Fn(&Interposed) -> Outcome| {
            let what = format!("signal=KILL:when={number}");
            let criu = Interposed::injecting_at(it, time, "recvfrom", &what);
            let outcome = run(&criu);
            if !outcome.status.success() {
                let words: &[&str] =
                    if time == 1 { &["criu"] } else { &["CRIU ended before its work was done"] };
                outcome.is_refused(&[words, &["SIGKILL"]].concat());
            }
            assert!(criu.times() >= usize::try_from(time).unwrap(), "{outcome:?}");
            fs::remove_file(&criu.count).unwrap();
            it.nothing_is_left();
            outcome
        };
        let run = |criu: &Interposed| criu.run(it, &native, "print('ran')").run();
        let snapshot = |criu: &Interposed| {
            let snapshot = it.snapshot(["--output", "snap.img"]);
            let outcome = snapshot.env("PRELOADED_CRIU_CRIU", &criu.program).run();
            assert_eq!(it.work().join("snap.img").exists(), outcome.status.success());
            outcome
        };
        for number in 1..=2 {
            killed(1, number, &run).is_refused(&[]);
            killed(1, number, &snapshot).is_refused(&[]);
            killed(2, number, &snapshot).is_refused(&[]);
        }
        // The request of a restore, and the answers to four notifications: before and after the
        // process is there, before and after it goes on.
        let outcomes: Vec<Outcome> = (1..=11).map(|number| killed(2, number, &run)).collect();
        let (last, deaths) = outcomes.split_last().unwrap();
        assert_eq!(last.text(), "ran\n", "there is an eleventh: {last:?}");
        for outcome in deaths {
            assert!(!outcome.status.success() || outcome.text() == "ran\n", "{outcome:?}");
        }
        assert!(deaths.iter().filter(|outcome| !outcome.status.success()).count() >= 6);
        assert_eq!(plain(it, native.clone()).run().succeeds().text(), "ran\n");
    });
}

#[test]
fn a_disk_that_fills_while_criu_writes_leaves_the_old_image() {
    as_root(|it| {
        let place = it.work().join("place");
        fs::create_dir(&place).unwrap();
        let output = it.work().join("snap.img");
        let snapshot = || {
            it.snapshot(image::arguments(it.seat, Recipe::Plain))
                .args(["--force", "--output"])
                .args([&output])
        };
        snapshot().run().succeeds();
        let mut refused = 0;
        for left in [0, 4, 64, 512, 2048, 8192] {
            let before = fs::metadata(&output).unwrap().ino();
            // Somebody else takes the room when it was found to be enough.
            let lines = format!(
                "[ $time = 2 ] && head -c $((($(stat -f -c '%a * %S' {0}) - {left} * 1024) / 4096 * 4096)) \
                 /dev/zero >{0}/full",
                place.display()
            );
            let criu = Interposed::new(it, &lines);
            let script = format!(
                "mount -t tmpfs -o size=60m none {0}; \"$@\"; status=$?; ls -A {0}; exit $status",
                place.display()
            );
            let outcome = snapshot()
                .env("PRELOADED_CRIU_CRIU", &criu.program)
                .env("TMPDIR", &place)
                .through(["unshare", "--mount", "sh", "-c", &script, "sh"])
                .run();
            assert_eq!(outcome.text(), "full\n", "{left} kB: {outcome:?}");
            assert_eq!(criu.times(), 2, "{left} kB: {outcome:?}");
            fs::remove_file(&criu.count).unwrap();
            if !outcome.status.success() {
                outcome.is_refused(&["No space left on device", "TMPDIR"]);
                assert_eq!(fs::metadata(&output).unwrap().ino(), before, "{left} kB");
                refused += 1;
            }
            it.nothing_is_left();
        }
        assert!(refused >= 4, "{refused}");
        let run = it.program(["run"]).args([&output]).args(["-c", "print('ran')"]).run();
        assert_eq!(run.succeeds().text(), "ran\n");
        snapshot().run().succeeds();
    });
}

/// Takes one of the numbers that the launcher keeps as soon as it is free (`clone3` of clone(2),
/// `set_tid`). CRIU is its parent, and would take its end for that of a process that it restores.
const THIEF: &str = "import ctypes, os, struct, sys, time\n\
    launcher, place = sys.argv[1:]\n\
    parent = os.getppid()\n\
    children = open(f'/proc/{launcher}/task/{launcher}/children').read().split()\n\
    held = [pid for pid in children if b'pause' in open(f'/proc/{pid}/syscall', 'rb').read()\n\
    \x20   or open(f'/proc/{pid}/syscall').read().startswith('34 ')]\n\
    wanted = int(held[int(place)])\n\
    tid = ctypes.c_int(wanted)\n\
    arguments = struct.pack('11Q', *[0] * 4, 17, 0, 0, 0, ctypes.addressof(tid), 1, 0)\n\
    clone = ctypes.CDLL(None).syscall\n\
    open('ready', 'w').close()\n\
    end = time.monotonic() + 60\n\
    while time.monotonic() < end:\n\
    \x20   got = clone(435, arguments, len(arguments))\n\
    \x20   if got == 0:\n\
    \x20       time.sleep(3); os._exit(0)\n\
    \x20   if got > 0:\n\
    \x20       open('stolen', 'w').close(); break\n\
    while os.getppid() == parent and time.monotonic() < end:\n\
    \x20   time.sleep(0.01)\n";

#[test]
fn a_number_that_somebody_else_takes_is_another_one_next_time() {
    as_root(|it| {
        // The process's own, and a thread's.
        for place in ["0", "-1"] {
            it.file("thief.py", THIEF);
            let lines = format!(
                "if [ $time = 2 ]; then\n\
                 /usr/bin/python3 thief.py $PPID {place} 200>&- 201>&- 202>&- 203>&- 2>thief.log &\n\
                 while [ ! -e ready ] && kill -0 $!; do :; done\n\
                 criu=(strace -D -o /dev/null -e trace=clone3 \
                 -e inject=clone3:delay_enter=700000 \"${{criu[@]}}\")\n\
                 fi"
            );
            let criu = Interposed::new(it, &lines);
            let image = it.image(Recipe::Lively);
            let outcome = criu.run(it, &image, "print('ran')").folder(it.work()).run();
            let told = fs::read_to_string(it.work().join("thief.log")).unwrap();
            assert!(it.work().join("stolen").exists(), "{place}: {told}\n{outcome:?}");
            assert_eq!(outcome.text(), "ran\n", "{outcome:?}");
            assert_eq!(criu.times(), 3, "{outcome:?}");
            for name in ["stolen", "ready", "count"] {
                fs::remove_file(it.work().join(name)).unwrap();
            }
        }
    });
}

#[test]
fn what_criu_refuses_is_told_with_its_reason_and_its_log() {
    as_root(|it| {
        let criu = Interposed::injecting(it, "clone3", "error=EPERM:when=1");
        let outcome = criu.run(it, &it.image(Recipe::Plain), "print('ran')").run();
        outcome.is_refused(&["CRIU could not restore the process", "Operation not permitted"]);
        let errors = outcome.errors();
        let log = errors.split_once("the whole log is ").unwrap().1.split(')').next().unwrap();
        let log = fs::read_to_string(log).unwrap();
        assert!(log.contains("Restoring FAILED"), "{log}");
        assert_eq!(criu.times(), 2, "it is not tried again");
    });
}

/// As an ordinary user with the one capability.
fn as_user(run: Command<'_>) -> Command<'_> {
    run.folder("/").through([
        "setpriv",
        "--reuid=54321",
        "--regid=54321",
        "--clear-groups",
        "--inh-caps=+checkpoint_restore",
        "--ambient-caps=+checkpoint_restore",
        "--bounding-set=-all,+checkpoint_restore",
    ])
}

fn plain(it: &Context, image: PathBuf) -> Command<'_> {
    it.program(["run", "--engine", "criu"]).args([image]).args(["-c", "print('ran')"])
}

/// The ordinary user's image.
fn theirs() -> PathBuf {
    image::image(Seat { who: Who::User, ..Seat::first() }, Recipe::Lively)
}

#[test]
fn where_processes_are_few_it_runs_or_says_so() {
    as_root(|it| {
        let mut refused = 0;
        for limit in [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 64] {
            let line = format!("ulimit -u {limit} && exec \"$@\"");
            let outcome = as_user(plain(it, theirs())).shell(&line).run();
            if outcome.status.success() {
                assert_eq!(outcome.text(), "ran\n", "{limit}: {outcome:?}");
            } else {
                outcome.is_refused(&[]);
                refused += 1;
            }
            it.nothing_is_left();
        }
        assert!(refused > 0, "a limit of one process is not felt");
    });
}

/// The first process of a namespace in which so many numbers are free: those below 300 are given out once
/// only (kernel/pid.c, `alloc_pid`). Runs a command, and says what it has left running.
const SHORT_OF_NUMBERS: &str = "import os, subprocess, sys, time\n\
    LIMIT, free = 400, int(sys.argv[1])\n\
    open('/proc/sys/kernel/pid_max', 'w').write(str(LIMIT))\n\
    def fork(life):\n\
    \x20   child = os.fork()\n\
    \x20   if not child: time.sleep(life); os._exit(0)\n\
    \x20   return child\n\
    while (child := fork(0)) < 299: os.waitpid(child, 0)\n\
    os.waitpid(child, 0)\n\
    kept = [fork(1000) for _ in range(LIMIT - 300 - free)]\n\
    status = subprocess.run(sys.argv[2:]).returncode\n\
    there = [int(name) for name in os.listdir('/proc') if name.isdigit()]\n\
    left = [number for number in there if number not in [1, *kept]]\n\
    if left: print('left running:', left, file=sys.stderr)\n\
    sys.exit(status)\n";

#[test]
fn where_numbers_are_few_it_runs_or_says_so() {
    as_root(|it| {
        // Until then the limit was one of the machine (Documentation/admin-guide/sysctl/kernel.rst).
        if kernel() < (6, 14) {
            return;
        }
        let short = |free: u32| {
            let namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
            let first = ["/usr/bin/python3", "-c", SHORT_OF_NUMBERS].map(str::to_owned);
            namespace.map(str::to_owned).into_iter().chain(first).chain([free.to_string()])
        };
        let image = it.image(Recipe::Lively);
        for free in [64, 16, 13, 12, 11, 10, 9, 8, 6, 4, 2] {
            let outcome = plain(it, image.clone()).through(short(free)).run();
            assert!(!outcome.errors().contains("left running"), "{free}: {outcome:?}");
            // As many threads as the image has, CRIU and its helpers.
            if free >= 16 || free > 6 && outcome.status.success() {
                assert_eq!(outcome.succeeds().text(), "ran\n", "{free}");
            } else {
                outcome.is_refused(&["kernel.pid_max"]);
                assert_eq!(outcome.text(), "");
            }
        }
        // A number for each thread is all that the native engine takes.
        let native = it.program(["run"]).args([&image]).args(["-c", "print('ran')"]);
        assert_eq!(native.clone().through(short(9)).run().succeeds().text(), "ran\n");
        native.through(short(3)).run().is_refused(&["a thread cannot be started"]);
    });
}

/// Version and revision of the kernel.
fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn what_is_hidden_in_proc_is_not_missed() {
    as_root(|it| {
        let hidden = |lines: &str| {
            ["unshare", "--mount", "sh", "-c", &format!("{lines}; exec \"$@\""), "sh"]
                .map(str::to_owned)
        };
        // What container engines mask, and processes of other users.
        let masked = hidden(
            "mount -t proc -o hidepid=invisible none /proc; for one in keys timer_list; do \
             [ ! -e /proc/$one ] || mount --bind /dev/null /proc/$one; done; \
             mount --bind -o ro /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys",
        );
        let root = plain(it, it.image(Recipe::Lively));
        let user = as_user(plain(it, theirs()).through(masked.clone()));
        for run in [root.clone().through(masked), user] {
            let outcome = run.run();
            assert_eq!(outcome.text(), "ran\n", "{outcome:?}");
        }
        root.through(hidden("mount -t tmpfs none /proc")).run().is_refused(&["/proc"]);
    });
}

#[test]
fn children_that_the_launcher_was_left_with_live() {
    as_root(|it| {
        let criu = Interposed::injecting(it, "clone3", "error=EPERM:when=1");
        let run = criu.run(it, &it.image(Recipe::Plain), "print('ran')");
        let before = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >child; exec \"$@\"";
        run.shell(before).run().is_refused(&["CRIU could not restore the process"]);
        let child = fs::read_to_string(it.work().join("child")).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap();
        assert!(stat.contains("(sleep) S"), "{stat}");
        let ended = std::process::Command::new("/bin/kill").arg(child.trim()).status().unwrap();
        assert!(ended.success());
    });
}

/// The terminal's interrupt comes when CRIU has been started for the time of that number and has not begun:
/// this line of bash says so, and goes on when there is a file `go`.
fn waiting(time: u32) -> String {
    format!(
        "[ $time = {time} ] && {{ echo starting >/dev/tty; until [ -e go ]; do sleep 0.01; done; }}"
    )
}

#[test]
fn control_c_while_criu_restores_ends_the_run() {
    as_root(|it| {
        // CRIU dies of it too, also when it is asked for its version; or it restores the process to its end.
        for lines in [waiting(1), waiting(2), format!("trap '' INT; {}", waiting(2))] {
            let criu = Interposed::new(it, &lines);
            let run = criu.run(it, &it.image(Recipe::Lively), "print('ran')");
            let seen = visit(it, &run, &|terminal, _| {
                terminal.wait_for("starting\r\n");
                terminal.press("\x03");
                terminal.wait_for("^C");
                it.file("go", "");
            });
            assert_eq!(seen.status.signal(), Some(2), "{seen:?}");
            assert!(seen.modes_are_kept && !format!("{seen:?}").contains("ran\\r"), "{seen:?}");
            for name in ["go", "count"] {
                fs::remove_file(it.work().join(name)).unwrap();
            }
            it.nothing_is_left();
        }
    });
}

#[test]
fn control_c_that_is_ignored_does_not_end_a_run_by_criu() {
    as_root(|it| {
        let criu = Interposed::new(it, &format!("trap '' INT; {}", waiting(2)));
        let code = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN, 'ran')";
        let run = criu.run(it, &it.image(Recipe::Lively), code);
        let seen = visit(it, &run.shell("trap '' INT; exec \"$@\""), &|terminal, _| {
            terminal.wait_for("starting\r\n");
            terminal.press("\x03");
            terminal.wait_for("^C");
            it.file("go", "");
            terminal.wait_for("True ran\r\n");
        });
        assert!(seen.status.success(), "{seen:?}");
    });
}

#[test]
fn who_is_continued_while_criu_restores_runs() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        // CRIU may wait for ever then, for a stop whose status its own handler of SIGCHLD has taken.
        for moment in (0..100).step_by(sampled(5)) {
            let running = plain(it, image.clone()).through(["setsid", "--wait"]).spawn();
            let group = Pid::from_raw(i32::try_from(running.pid).unwrap());
            thread::sleep(Duration::from_micros(8000 + moment * 300));
            // CRIU, and what it restores, are in the group by then, as with `fg` in a shell.
            let _ = killpg(group, Signal::SIGCONT);
            let outcome = running.finish();
            assert_eq!(outcome.text(), "ran\n", "{moment}: {outcome:?}");
            it.nothing_is_left();
        }
    });
}
