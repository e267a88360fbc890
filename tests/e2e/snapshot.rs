//! Making images.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::FILTER;
use crate::support::image::{arguments, digest};
use crate::support::run::Command;
use crate::support::{
    Context, Outcome, Recipe, Terminal, Who, as_root, everywhere, for_makers, once, shared,
};

/// `snapshot` with the seat's interpreter, writing `snap.img`.
fn snapshot<'a>(it: &'a Context, options: &[&str]) -> Command<'a> {
    it.snapshot(arguments(it.seat, Recipe::Nothing)).args(options)
}

fn written(it: &Context) -> PathBuf {
    it.work().join("snap.img")
}

/// The names in the working directory that the test has not put there.
fn made(it: &Context, own: &[&str]) -> Vec<String> {
    let names = fs::read_dir(it.work()).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !own.contains(&name.as_str()) && name != "__pycache__").collect()
}

/// Refused, for this reason, with no file left.
#[track_caller]
fn is_refused(it: &Context, module: &str, words: &[&str]) -> Outcome {
    it.file("owner.py", module);
    // Compiled code of a module that was changed within the same second would be used again.
    let outcome = snapshot(it, &["--import", "owner"]).env("PYTHONDONTWRITEBYTECODE", "1").run();
    outcome.is_refused(words);
    assert_eq!(made(it, &["owner.py"]), [""; 0], "{outcome:?}");
    it.nothing_is_left();
    outcome
}

#[test]
fn a_self_contained_image_needs_no_file_but_the_interpreter() {
    for_makers(|it| {
        snapshot(it, &["--import", "json", "--self-contained"]).run().succeeds();
        let told = it.program(["inspect", "snap.img"]).run().succeeds().text();
        assert!(told.contains("0 mappings of 0 files"), "{told}");
        let code = "import json, ctypes; print(json.dumps([1]), ctypes.sizeof(ctypes.c_int))";
        let outcome = it.program(["run", "snap.img", "-c", code]).run().succeeds();
        assert_eq!(outcome.text(), "[1] 4\n");
    });
}

#[test]
fn the_image_is_one_private_file() {
    for_makers(|it| {
        let outcome = snapshot(it, &["--import", "json"]).run().succeeds();
        assert_eq!(
            (outcome.text().as_str(), outcome.errors().as_str()),
            ("", ""),
            "silent when piped"
        );
        assert_eq!(made(it, &[]), ["snap.img"]);
        let metadata = fs::metadata(written(it)).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!(metadata.uid(), it.seat.who.uid().as_raw());
        it.nothing_is_left();
    });
}

#[test]
fn an_image_is_replaced_only_when_asked() {
    for_makers(|it| {
        it.file("snap.img", "precious");
        snapshot(it, &[]).run().is_refused(&["snap.img", "--force"]);
        assert_eq!(fs::read(written(it)).unwrap(), b"precious");
        snapshot(it, &["--force"]).run().succeeds();
        let first = digest(&written(it));
        snapshot(it, &["--force", "--import", "json"]).run().succeeds();
        assert_ne!(digest(&written(it)), first);
        assert_eq!(made(it, &[]), ["snap.img"]);
        fs::create_dir(it.work().join("folder")).unwrap();
        it.own(&it.work().join("folder"));
        snapshot(it, &["--force", "-o", "folder"]).run().is_refused(&["folder"]);
        snapshot(it, &["-o", "no/such/folder/x.img"]).run().is_refused(&["no/such/folder"]);
        snapshot(it, &["-o", "folder/x.img"]).run().succeeds();
    });
}

#[test]
fn modules_are_imported_in_order_from_where_python_would() {
    everywhere(|it| {
        if it.seat.who == Who::Stripped {
            return;
        }
        it.file("own.py", "import os, sys\nvalue = [os.environ.get('GIVEN'), sys.path[0], 'second' in sys.modules]");
        it.file("second.py", "import own; first = own.value");
        it.file(
            "lib/third.py",
            "import threading\nvalue = threading.current_thread() is threading.main_thread()",
        );
        it.file(
            "warm.py",
            "import own, sys, __main__\nown.warm = __name__, __file__, sys.argv, sys.path[0] != ''",
        );
        let options = [
            "--import",
            "own",
            "--import",
            "second,third",
            "--exec",
            "warm.py",
            "--env",
            "GIVEN=x=y",
            "--env",
            "OPENBLAS_NUM_THREADS=1",
        ];
        snapshot(it, &options).env("PYTHONPATH", it.work().join("lib")).run().succeeds();
        let image = it.keep("snap.img");
        let code = "import sys, os\nprint([name in sys.modules for name in ('own', 'second', 'third')])\nimport own, second, third\n\
                    print(own.value, second.first is own.value, third.value)\nprint(own.warm[0], own.warm[2], own.warm[3])\nprint(os.environ.get('GIVEN'), sys.argv)";
        // The modules' files go with the working directory.
        let run = it.code(code).image(&image).options(&["--check", "off"]);
        let outcome = run.thaw().succeeds();
        assert_eq!(
            outcome.text(),
            "[True, True, True]\n['x=y', '', False] True True\n__main__ ['warm.py'] True\nNone ['-c']\n"
        );
    });
}

#[test]
fn recipes_by_name_and_by_file() {
    for_makers(|it| {
        let python = Recipe::Numeric.interpreter(it.seat.python);
        let python = ["--python".as_ref(), python.as_os_str()];
        it.snapshot(["--recipe", "sklearn", "-o", "sklearn.img"]).args(python).run().succeeds();
        it.snapshot(["--recipe", "numpy", "-o", "numpy.img"]).args(python).run().succeeds();
        it.file("mine.toml", include_bytes!("../../images/numpy.toml"));
        it.snapshot(["--recipe", "mine.toml", "-o", "mine.img"]).args(python).run().succeeds();
        let images = ["sklearn.img", "numpy.img", "mine.img"].map(|image| it.keep(image));
        for image in images {
            let code = "import sys; print('numpy' in sys.modules); import numpy; print(numpy.ones((50, 50)).dot(numpy.ones(50)).sum())";
            assert_eq!(it.code(code).image(&image).thaw().succeeds().text(), "True\n2500.0\n");
        }
        it.snapshot(["--recipe", "no-such-recipe"]).run().is_refused(&["no-such-recipe"]);
        it.file("bad.toml", "imports = 3\n[nonsense");
        it.snapshot(["--recipe", "bad.toml"]).run().is_refused(&["bad.toml"]);
        assert_eq!(made(it, &["mine.toml", "bad.toml"]), [""; 0]);
    });
}

#[test]
fn the_interpreter_is_chosen_as_said() {
    for_makers(|it| {
        let named = |outcome: Outcome| {
            let errors = outcome.errors();
            assert!(outcome.status.success(), "{errors}");
            let manifest = it.program(["inspect", "--json", "snap.img"]).run().succeeds();
            fs::remove_file(written(it)).unwrap();
            manifest.text()
        };
        let venv = shared().libraries();
        let text = named(it.snapshot(["--import", "json"]).env("VIRTUAL_ENV", venv).run());
        assert!(text.contains(venv.to_str().unwrap()), "{text}");
        let text = named(it.snapshot(["--import", "json"]).run());
        assert!(text.contains("/usr/bin/python3"), "{text}");
        let text = named(it.snapshot(["--python", "python3"]).run());
        assert!(text.contains("/usr/bin/python3"), "{text}");
        // What pyenv puts into PATH.
        let root = it.home().join(".pyenv");
        let shim = "#!/usr/bin/env bash\nset -e\nprogram=\"${0##*/}\"\nexport PYENV_ROOT=\"$HOME/.pyenv\"\nexec \"$HOME/.pyenv/libexec/pyenv\" exec \"$program\" \"$@\"\n";
        let pyenv = "#!/bin/sh\nexport PYENV_VERSION=system\ncase $1 in exec) shift; program=$1; shift; exec /usr/bin/$program \"$@\";; which) echo /usr/bin/python3;; esac\n";
        for (name, content) in
            [("shims/python3", shim), ("libexec/pyenv", pyenv), ("bin/pyenv", pyenv)]
        {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{0}/shims:{0}/bin:/usr/bin:/bin", root.display());
        let text = named(
            it.snapshot(["--import", "json"]).env("PATH", path).env("PYENV_ROOT", &root).run(),
        );
        assert!(text.contains("/usr/bin/python3"), "{text}");
        it.snapshot(["--python", "/no/such/python"]).run().is_refused(&["/no/such/python"]);
        it.snapshot(["--python", "/bin/true"]).run().is_refused(&["/bin/true"]);
        let not_executable = it.file("text", "no program");
        it.snapshot(["--python"]).args([not_executable]).run().is_refused(&["text"]);
    });
}

#[test]
fn a_free_threaded_interpreter_is_refused_with_the_one_to_take() {
    for_makers(|it| {
        // It answers what such a build does.
        let script = "#!/bin/sh\nshift 2\nexec /usr/bin/python3 -S -c \"import sys; sys.abiflags = 't'\n$1\"\n";
        let python = it.file("python3t", script);
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        let (major, minor) = it.seat.python.version;
        let outcome = it.snapshot(["--python"]).args([python]).run();
        outcome.is_refused(&[
            &format!("is a free-threaded CPython {major}.{minor}"),
            &format!("--python: python{major}.{minor},"),
        ]);
        assert!(!it.work().join("snap.img").exists());
    });
}

#[test]
fn both_ways_to_isolate_give_images_that_run_alike() {
    for_makers(|it| {
        let ways: &[&str] = if it.seat.who == Who::Root {
            &["host", "userns", "auto"]
        } else {
            &["userns", "auto"]
        };
        let code = "import os, json, threading, sys\nprint(os.getpid() == threading.get_native_id(), json.dumps([1]), os.getuid(), os.listdir('/proc/self/task') == [str(os.getpid())])\n\
                    print([line.split()[-1] for line in open('/proc/self/mountinfo')] != [], os.readlink('/proc/self/ns/user') == os.environ['USERNS'])\n\
                    print(os.getgroups(), open('/proc/self/uid_map').read(), open('/proc/self/status').read().split('CapEff')[1][:20])";
        let namespace = fs::read_link("/proc/self/ns/user").unwrap();
        for way in ways {
            snapshot(it, &["--import", "json,threading", "--isolation", way]).run().succeeds();
            let image = it.keep("snap.img");
            it.code(code).image(&image).env("USERNS", &namespace).is_as_stock().succeeds();
            it.nothing_is_left();
        }
        if it.seat.who != Who::Root {
            snapshot(it, &["--isolation", "host"]).run().is_refused(&[]);
        }
    });
}

#[test]
fn progress_is_told_to_people_and_to_programs() {
    for_makers(|it| {
        let outcome = snapshot(it, &["--import", "json,decimal", "--json"]).run().succeeds();
        let lines: Vec<Value> =
            outcome.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.len() >= 3, "{outcome:?}");
        assert!(outcome.text().contains("decimal"), "{outcome:?}");
        fs::remove_file(written(it)).unwrap();

        let terminal = Terminal::open();
        let session = terminal.start(&snapshot(it, &["--import", "json,decimal"]));
        assert!(session.finish().success());
        let shown = terminal.transcript();
        for word in ["json", "decimal", "snap.img", "MB"] {
            assert!(shown.contains(word), "{word} is not in {shown:?}");
        }
    });
}

#[test]
fn a_failing_import_shows_its_own_traceback() {
    everywhere(|it| {
        if it.seat.who == Who::Stripped {
            return;
        }
        for (module, words) in [
            (
                "def f(): return 1 / 0\nf()",
                &["ZeroDivisionError: division by zero", "line 1, in f", "owner.py"][..],
            ),
            ("this is no python", &["SyntaxError", "owner.py"]),
            (
                "import no_such_module_at_all",
                &["ModuleNotFoundError: No module named 'no_such_module_at_all'"],
            ),
            ("raise SystemExit(3)", &["SystemExit"]),
            ("raise KeyboardInterrupt", &["KeyboardInterrupt"]),
            ("raise ExceptionGroup('g', [ValueError(1)])", &[][..]),
            ("import os; os._exit(0)", &[]),
            ("import os; os._exit(3)", &["3"]),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", &["SIGKILL"]),
            ("import ctypes; ctypes.string_at(0)", &["SIGSEGV"]),
        ] {
            let outcome = is_refused(it, module, words);
            assert!(!outcome.errors().contains("<preloaded-criu>"), "{outcome:?}");
        }
        let absent = snapshot(it, &["--import", "absent_module"]).run();
        absent
            .is_refused(&["ModuleNotFoundError: No module named 'absent_module'", "absent_module"]);
        it.file("warm.py", "print('said')\nraise ValueError('from the warm-up')");
        snapshot(it, &["--exec", "warm.py"])
            .run()
            .is_refused(&["ValueError: from the warm-up", "warm.py"]);
        snapshot(it, &["--exec", "absent.py"]).run().is_refused(&["absent.py"]);
    });
}

#[test]
fn what_cannot_be_frozen_is_refused_with_its_owner() {
    for_makers(|it| {
        for (module, word) in [
            ("import socket; s = socket.socket()", "socket"),
            ("import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()", "socket"),
            ("import socket; pair = socket.socketpair()", "socket"),
            ("import subprocess; p = subprocess.Popen(['sleep', '1000'])", "process"),
            ("import os\nif not os.fork():\n  import time; time.sleep(1000)", "process"),
            ("f = open('log', 'w')", "log"),
            ("f = open('log', 'a'); f.write('x')", "log"),
            ("import os; f = open('gone', 'w+'); os.unlink('gone')", "gone"),
            (
                "import os; open('gone', 'w').write('x'); f = open('gone'); os.unlink('gone')",
                "gone",
            ),
            ("import os; r, w = os.pipe()", "pipe"),
            ("import select; e = select.epoll()", "epoll"),
            ("import mmap; m = mmap.mmap(-1, 4096); m[0] = 1", "shared"),
            (
                "import mmap; f = open('file', 'w+b'); f.write(bytes(4096)); f.flush(); m = mmap.mmap(f.fileno(), 0); f.close()",
                "file",
            ),
            ("import signal; signal.setitimer(signal.ITIMER_REAL, 1000)", "timer"),
            ("import ctypes; ctypes.CDLL(None).inotify_init()", "inotify"),
            ("import ctypes; ctypes.CDLL(None).eventfd(0, 0)", "eventfd"),
        ] {
            let own = ["owner.py", "log", "file", "gone"];
            it.file("owner.py", module);
            let outcome = snapshot(it, &["--import", "json", "--import", "owner"]);
            let outcome = outcome.env("PYTHONDONTWRITEBYTECODE", "1").run();
            assert!(outcome.status.code() == Some(125), "{module}: {outcome:?}");
            outcome.is_refused(&[word, "owner"]);
            assert_eq!(made(it, &own), [""; 0], "{module}");
            for name in &own[1..] {
                let _ = fs::remove_file(it.work().join(name));
            }
        }
        it.nothing_is_left();
    });
}

#[test]
fn a_seccomp_filter_that_an_import_installs_is_refused_by_its_name() {
    for_makers(|it| {
        let in_a_thread = format!(
            "import threading, time\ndef work():\n  global installed\n  {}\n  installed = True\n  time.sleep(1000)\n\
             installed = False; threading.Thread(target=work, daemon=True).start()\n\
             while not installed: time.sleep(0.01)",
            FILTER.replace('\n', "\n  "),
        );
        for module in [FILTER, &in_a_thread] {
            it.file("owner.py", module);
            for engine in ["native", "criu"] {
                let options = ["--engine", engine, "--import", "json", "--import", "owner"];
                let options = if engine == "criu" { &options[..] } else { &options[2..] };
                let outcome = snapshot(it, options).env("PYTHONDONTWRITEBYTECODE", "1").run();
                outcome
                    .is_refused(&["a seccomp filter, there since import owner", "let the script"]);
                assert_eq!(made(it, &["owner.py"]), [""; 0]);
            }
        }
        it.nothing_is_left();
    });
}

#[test]
fn what_an_import_changes_of_its_own_process_is_refused_by_its_name() {
    for_makers(|it| {
        let prctl =
            |arguments: &str| format!("import ctypes\nctypes.CDLL(None).prctl({arguments})");
        let sandbox = prctl("38, 1, 0, 0, 0");
        let in_a_thread = "import threading, time\ndef work():\n  import ctypes\n  ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n  done.set()\n  \
             time.sleep(1000)\ndone = threading.Event(); threading.Thread(target=work, daemon=True).start(); done.wait()";
        for (module, what) in [
            (&sandbox, "no_new_privs"),
            (&in_a_thread.to_owned(), "no_new_privs"),
            (&prctl("4, 0, 0, 0, 0"), "PR_SET_DUMPABLE"),
            (&prctl("29, 100000, 0, 0, 0"), "PR_SET_TIMERSLACK"),
            (&"import os; os.chdir('/')".to_owned(), "the working directory"),
            (&"import os; os.nice(2)".to_owned(), "the nice value"),
            (
                &"import resource as r; r.setrlimit(r.RLIMIT_NPROC, (7, 7))".to_owned(),
                "the limit 'Max processes'",
            ),
        ] {
            it.file("owner.py", module);
            for engine in ["native", "criu"] {
                let options = ["--engine", engine, "--import", "json", "--import", "owner"];
                let options = if engine == "criu" { &options[..] } else { &options[2..] };
                let outcome = snapshot(it, options).env("PYTHONDONTWRITEBYTECODE", "1").run();
                let told = format!("a change of {what}, there since import owner");
                outcome.is_refused(&[&told, "let the script"]);
                assert_eq!(made(it, &["owner.py"]), [""; 0]);
            }
        }
        it.nothing_is_left();
    });
}

#[test]
fn what_root_gives_up_in_an_import_is_refused_by_its_name() {
    as_root(|it| {
        for (module, what) in [
            (
                "import os; os.setgroups([]); os.setresgid(7, 7, 7); os.setresuid(7, 7, 7)",
                "the user or the groups",
            ),
            ("import ctypes; ctypes.CDLL(None).prctl(24, 21, 0, 0, 0)", "the capabilities"),
            ("import ctypes; ctypes.CDLL(None).prctl(28, 1, 0, 0, 0)", "PR_SET_SECUREBITS"),
            ("import ctypes; assert not ctypes.CDLL(None).unshare(0x4000000)", "the uts namespace"),
        ] {
            is_refused(it, module, &[&format!("a change of {what}, there since import owner")]);
        }
    });
}

#[test]
fn the_umask_and_the_name_that_an_import_has_set_are_the_scripts() {
    for_makers(|it| {
        let code = "import owner, os; print(oct(os.umask(0)), open('/proc/self/comm').read())";
        let module = "import os; os.umask(0o37); open('/proc/self/comm', 'w').write('renamed')";
        it.file("owner.py", module);
        snapshot(it, &["--import", "owner"]).run().succeeds();
        let image = it.keep("snap.img");
        let run = it.code(code).image(&image).file("owner.py", module).options(&["--check", "off"]);
        assert_eq!(run.thaw().succeeds().text(), "0o37 renamed\n\n");
    });
}

#[test]
fn files_open_for_reading_come_back() {
    for_makers(|it| {
        it.file("data.txt", "first\nsecond\nthird\n");
        it.file("owner.py", "import random\nfile = open('data.txt'); first = file.readline()\nrandom_device = open('/dev/urandom', 'rb', buffering=0)");
        snapshot(it, &["--import", "owner"]).run().succeeds();
        let image = it.keep("snap.img");
        let code = "import owner; print(owner.file.fileno() > 2, owner.file.read(), len(owner.random_device.read(4)))";
        // The working directory is laid out anew, so the file is another one: its name counts.
        let run = it.code(code).image(&image).file("data.txt", "first\nsecond\nthird\n");
        let run = run.options(&["--check", "off"]);
        assert_eq!(run.thaw().succeeds().text(), "True second\nthird\n 4\n");
    });
}

#[test]
fn nothing_is_left_of_a_snapshot_that_is_ended() {
    for_makers(|it| {
        it.file("slow.py", "import time, numpy\nfor n in range(20): time.sleep(0.02)\nblock = bytearray(300 << 20)");
        let python = Recipe::Numeric.interpreter(it.seat.python);
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
            for delay in [
                5, 60, 150, 300, 500, 700, 800, 900, 1000, 1100, 1200, 1300, 1400, 1600, 1900, 2200,
            ] {
                let running = it.snapshot(["--import", "slow", "--python"]).args([&python]).spawn();
                thread::sleep(Duration::from_millis(delay));
                running.signal(signal);
                let outcome = running.finish();
                let images = made(it, &["slow.py"]);
                // What was late came when the image was there: then it is whole.
                assert!(images.is_empty() || images == ["snap.img"], "{images:?}: {outcome:?}");
                assert!(!outcome.status.success() || !images.is_empty(), "{outcome:?}");
                if !images.is_empty() {
                    it.program(["inspect", "--verify", "snap.img"]).run().succeeds();
                    fs::remove_file(written(it)).unwrap();
                }
                it.nothing_is_left();
            }
        }
    });
}

#[test]
fn control_c_at_a_terminal_ends_it_and_all_its_children() {
    for_makers(|it| {
        it.file("slow.py", "import time\nfor n in range(100): time.sleep(0.1)");
        let mut terminal = Terminal::open();
        let session = terminal.start(&snapshot(it, &["--import", "slow"]));
        terminal.wait_for("slow");
        thread::sleep(Duration::from_millis(200));
        terminal.press("\x03");
        assert!(!session.finish().success());
        assert_eq!(made(it, &["slow.py"]), [""; 0]);
        it.nothing_is_left();
    });
}

#[test]
fn many_snapshots_at_once() {
    once(|it| {
        let running: Vec<_> = (0..4)
            .map(|number| {
                snapshot(it, &["--import", "json", "-o", &format!("{number}.img")]).spawn()
            })
            .collect();
        for run in running {
            run.finish().succeeds();
        }
        for number in 0..4 {
            let kept = it.keep(&format!("{number}.img"));
            assert_eq!(
                it.program(["run"]).args([&kept]).args(["-c", "print(1)"]).run().text(),
                "1\n"
            );
        }
    });
}

#[test]
fn what_the_imports_print_does_not_get_lost() {
    for_makers(|it| {
        it.file("owner.py", "import sys, os\nprint('printed')\nprint('complained', file=sys.stderr)\nos.write(2, b'raw')\nprint('no newline', end='')");
        snapshot(it, &["--import", "owner"]).run().succeeds();
        let image = it.keep("snap.img");
        let run = it.code("print('script')").image(&image).options(&["--check", "off"]);
        let outcome = run.thaw().succeeds();
        assert_eq!((outcome.text().as_str(), outcome.errors().as_str()), ("script\n", ""));
    });
}

#[test]
fn nobody_elses_arguments_are_needed_to_find_the_image_again() {
    for_makers(|it| {
        snapshot(it, &["--import", "json"]).run().succeeds();
        // A name without a slash, one with a link before it, and a descriptor.
        for name in ["snap.img", "./snap.img", "../work/snap.img"] {
            let outcome = it.program(["run", name, "-c", "print(2)"]).run();
            assert_eq!(outcome.succeeds().text(), "2\n");
        }
        assert!(Path::new(&written(it)).exists());
    });
}

#[test]
fn devices_that_keep_nothing_may_be_open_for_writing_too() {
    for_makers(|it| {
        it.file(
            "devices.py",
            "null = open('/dev/null', 'w')\nlog = open('/dev/null', 'ab')\nrandom = open('/dev/urandom', 'rb')",
        );
        snapshot(it, &["--import", "devices"]).run().succeeds();
        let code = "import devices as d, fcntl\nprint(d.null.write('x'), d.log.write(b'y'), d.random.seekable(), len(d.random.read(7)))\n\
                    d.null.flush(); d.log.flush()\nprint([oct(fcntl.fcntl(file, fcntl.F_GETFL)) for file in (d.null, d.log, d.random)])";
        let options = ["--check", "off"];
        let run = it.code(code).image(it.keep("snap.img")).options(&options).thaw().succeeds();
        assert_eq!(run.text(), "1 1 True 7\n['0o100001', '0o102001', '0o100000']\n");
    });
}
