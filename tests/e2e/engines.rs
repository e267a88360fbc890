//! What the engine of CRIU has to do itself, and the native one has for nothing: the launcher stays, and
//! must not be noticed. (The tests of `run` are run for both engines: `scripts/test`.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::tempdir;

use crate::support::run::Python;
use crate::support::shared::copy_program;
use crate::support::{Context, Engine, Recipe, Seat, Who, as_root, image, shared};

fn through_criu<'a>(it: &'a Context, code: &str) -> Python<'a> {
    it.code(code).by(Engine::Criu)
}

#[test]
fn it_is_a_child_of_the_launcher_with_a_number_that_it_believes() {
    as_root(|it| {
        let code = "import os, threading\n\
            task = [int(tid) for tid in os.listdir('/proc/self/task')]\n\
            print(os.getpid(), os.getppid(), threading.get_native_id(), task)";
        let outcome = through_criu(it, code).thaw().succeeds();
        let text = outcome.text();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_ne!(words[0], outcome.pid.to_string(), "{outcome:?}");
        assert_eq!(words[1], outcome.pid.to_string(), "{outcome:?}");
        assert_eq!(words[0], words[2], "{outcome:?}");
        assert_eq!(words[3], format!("[{}]", words[0]), "{outcome:?}");
    });
}

#[test]
fn its_end_is_the_launchers() {
    as_root(|it| {
        for code in [
            "raise SystemExit(7)",
            "raise SystemExit('said')",
            "1 / 0",
            "raise KeyboardInterrupt",
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
            "import os; os._exit(255)",
        ] {
            through_criu(it, code).is_as_stock();
        }
    });
}

#[test]
fn appended_files_are_appended_to_and_closed_ones_stay_closed() {
    as_root(|it| {
        let code = "import os; print('x', flush=True); print(sorted(os.listdir('/proc/self/fd')))";
        let run = through_criu(it, code).file("log", "first\n");
        run.clone().shell("exec \"$@\" >> log").is_as_stock();
        run.clone().shell("exec 7< log 300< log \"$@\" > out").is_as_stock();
        run.clone().shell("exec 202< log \"$@\" > out").is_as_stock();
        run.shell("exec \"$@\" <&- > out 2>&-").is_as_stock();
    });
}

#[test]
fn a_pipe_that_it_closes_is_closed() {
    as_root(|it| {
        let code = "import os, time\n\
            os.close(1)\n\
            while not os.path.exists('seen'): time.sleep(0.01)";
        // `cat` ends when nobody holds the pipe any more.
        let outcome = through_criu(it, code)
            .shell("\"$@\" | { cat; echo > seen; echo closed; }")
            .thaw()
            .succeeds();
        assert_eq!(outcome.text(), "closed\n", "{outcome:?}");
    });
}

const COUNTING: &str = "import signal, sys, time\n\
    seen = []\n\
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))\n\
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(len(seen)))\n\
    print('ready', flush=True)\n\
    told = 0\n\
    while True:\n\
    \x20   time.sleep(0.005)\n\
    \x20   if told != len(seen): told = len(seen); print('got', told, flush=True)";

#[test]
fn a_signal_to_the_launcher_reaches_it_once() {
    as_root(|it| {
        let outcome = through_criu(it, COUNTING).thaw_when(|running| {
            running.wait_for("ready");
            for count in 1..=3 {
                running.signal(Signal::SIGUSR1);
                running.wait_for(&format!("got {count}"));
            }
            running.signal(Signal::SIGTERM);
        });
        assert_eq!(outcome.status.code(), Some(3), "{outcome:?}");
    });
}

#[test]
fn a_signal_to_the_group_reaches_it_once() {
    as_root(|it| {
        let outcome =
            through_criu(it, COUNTING).through(["setsid", "--wait"]).thaw_when(|running| {
                running.wait_for("ready");
                let group = running.pid;
                for count in 1..=3 {
                    let status = Command::new("/bin/kill")
                        .args(["-USR1", "--", &format!("-{group}")])
                        .status()
                        .unwrap();
                    assert!(status.success());
                    running.wait_for(&format!("got {count}"));
                }
                let status =
                    Command::new("/bin/kill").args(["-TERM", "--", &format!("-{group}")]).status();
                assert!(status.unwrap().success());
            });
        assert_eq!(outcome.status.code(), Some(3), "{outcome:?}");
    });
}

#[test]
fn it_dies_with_a_launcher_that_is_killed_and_its_daemons_live() {
    as_root(|it| {
        let code = "import os, subprocess, time\n\
            daemon = subprocess.Popen(['sleep', '1000'], start_new_session=True,\n\
                stdin=-3, stdout=-3, stderr=-3)\n\
            print(os.getpid(), daemon.pid, 'ready', flush=True)\n\
            time.sleep(1000)";
        let outcome = through_criu(it, code).thaw_when(|running| {
            running.wait_for("ready");
            running.signal(Signal::SIGKILL);
        });
        let text = outcome.text();
        let mut words = text.split_whitespace();
        let script = words.next().unwrap();
        let daemon = words.next().unwrap();
        let state = |pid: &str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
        };
        // Standard output has ended, so the script is gone or on its way out.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !matches!(state(script), None | Some('Z' | 'X')) {
            assert!(Instant::now() < deadline, "{:?}", state(script));
            thread::sleep(Duration::from_millis(2));
        }
        assert!(matches!(state(daemon), Some('R' | 'S' | 'D')), "{:?}", state(daemon));
        assert!(Command::new("/bin/kill").arg(daemon).status().unwrap().success());
    });
}

#[test]
fn many_at_once_have_numbers_and_bytes_of_their_own() {
    as_root(|it| {
        let code = "import os; print(os.getpid(), os.urandom(8).hex())";
        let run = through_criu(it, code);
        let running: Vec<_> = (0..8).map(|_| run.thawed().spawn()).collect();
        let texts: Vec<String> =
            running.into_iter().map(|running| running.finish().succeeds().text()).collect();
        for column in 0..2 {
            let mut column: Vec<&str> =
                texts.iter().map(|text| text.split_whitespace().nth(column).unwrap()).collect();
            column.sort_unstable();
            column.dedup();
            assert_eq!(column.len(), texts.len(), "{texts:?}");
        }
    });
}

#[test]
fn frozen_threads_work() {
    as_root(|it| {
        let code =
            "import numpy as n; a = n.arange(40000.).reshape(200, 200); print((a @ a).sum())";
        through_criu(it, code).from(Recipe::Numeric).is_as_stock();
    });
}

/// The ordinary user's image.
fn theirs() -> std::path::PathBuf {
    image::image(Seat { who: Who::User, ..Seat::first() }, Recipe::Plain)
}

const USER: [&str; 4] = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"];
const RIGHTS: &str = "import os\n\
    print(os.getresuid(), os.getgroups())\n\
    print([line for line in open('/proc/self/status') if line.startswith(('Cap', 'NoNew'))])";

#[test]
fn one_capability_is_enough() {
    as_root(|it| {
        through_criu(it, RIGHTS)
            .image(theirs())
            .folder("/")
            .through(USER)
            .through([
                "--inh-caps=+checkpoint_restore",
                "--ambient-caps=+checkpoint_restore",
                "--bounding-set=-all,+checkpoint_restore",
            ])
            .is_as_stock()
            .succeeds();
    });
}

#[test]
fn a_capability_of_the_file_is_not_the_scripts() {
    as_root(|it| {
        let folder = tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("preloaded-criu");
        copy_program(shared().binary(), &program);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let given = Command::new("setcap").arg("cap_checkpoint_restore+ep").arg(&program).status();
        assert!(given.unwrap().success());
        let run = |code: &str| {
            it.command(&program)
                .args(["run", "--engine", "criu"])
                .args([theirs()])
                .args(["-c", code])
        };
        let stock = it.code(RIGHTS).image(theirs()).folder("/").through(USER).stock().run();
        let capped = run(RIGHTS).folder("/").through(USER).run().succeeds();
        assert_eq!(capped.text(), stock.text());
        // A CRIU that the caller names would have the capability.
        let named = folder.path().join("criu");
        fs::write(&named, "#!/bin/sh\ntouch /tmp/preloaded-criu-was-executed\n").unwrap();
        fs::set_permissions(&named, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", folder.path().display());
        let run = run("print(1)").folder("/").through(USER);
        let outcome = run.env("PRELOADED_CRIU_CRIU", &named).env("PATH", path).run();
        assert_eq!(outcome.text(), "1\n", "{outcome:?}");
        assert!(!std::path::Path::new("/tmp/preloaded-criu-was-executed").exists());
    });
}

#[test]
fn who_may_not_is_told_so() {
    as_root(|it| {
        let run = through_criu(it, "print(1)").image(theirs()).folder("/").through(USER);
        run.through(["--inh-caps=-all"]).thaw().is_refused(&["CAP_CHECKPOINT_RESTORE", "native"]);
    });
}

#[test]
fn where_neither_engine_can_both_reasons_are_told() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        let run = it.program(["run"]).args([image]).args(["-c", "print(1)"]);
        // Enough to start the launcher, and not to hand anything on.
        let outcome = run.shell("ulimit -n 5; exec \"$@\"").run();
        outcome.is_refused(&["native: ", "criu: "]);
    });
}
