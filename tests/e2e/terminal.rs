//! At a terminal: the prompt, interrupts, job control, the window.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::support::run::{Command, Python};
use crate::support::terminal::Session;
use crate::support::{
    Context, Engine, Recipe, Terminal, as_root, everywhere, for_everyone, native_only,
};

/// What can be seen of a program in a terminal.
#[derive(Debug, PartialEq)]
struct Visit {
    status: ExitStatus,
    transcript: String,
    modes_are_kept: bool,
    history: Option<String>,
}

fn visit(it: &Context, command: &Command<'_>, dialogue: &dyn Fn(&mut Terminal, &Session)) -> Visit {
    for entry in fs::read_dir(it.home()).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    let mut terminal = Terminal::open();
    let side = terminal.side();
    let modes = terminal.modes();
    let session = terminal.start(command);
    dialogue(&mut terminal, &session);
    let status = session.finish();
    let modes_are_kept = modes == terminal.modes();
    let transcript = terminal.transcript();
    drop(side);
    let history = fs::read_to_string(it.home().join(".python_history")).ok();
    Visit { status, transcript, modes_are_kept, history }
}

/// The same dialogue with python itself and from an image: everything written is the same.
#[track_caller]
fn same(it: &Context, run: &Python<'_>, dialogue: impl Fn(&mut Terminal, &Session)) -> Visit {
    let stock = visit(it, &run.stock(), &dialogue);
    let thawed = visit(it, &run.thawed(), &dialogue);
    assert!(stock == thawed, "python3 itself: {stock:#?}\nfrom an image: {thawed:#?}");
    thawed
}

/// The prompt that reads lines with readline: 3.13 has another one, unless it is told not to.
fn prompt(it: &Context) -> Python<'_> {
    it.python([""; 0]).env("PYTHON_BASIC_REPL", "1").env("TERM", "dumb")
}

#[test]
fn the_prompt() {
    everywhere(|it| {
        let visit = same(it, &prompt(it), |terminal, _| {
            terminal.wait_for(">>> ");
            terminal.press("6 * 7\r");
            terminal.wait_for("42\r\n>>> ");
            terminal.press("import sys; sys.ps1, sys.argv, sys.flags.interactive\r");
            terminal.wait_for("[''], 0)\r\n>>> ");
            terminal.press("def f(x):\r");
            terminal.wait_for("... ");
            terminal.press("  return x + 1\r");
            terminal.wait_for("... ");
            terminal.press("\r");
            terminal.wait_for(">>> ");
            terminal.press("f(1), _\r");
            terminal.wait_for("(2, ");
            terminal.wait_for(">>> ");
            terminal.press("1 / 0\r");
            terminal.wait_for("ZeroDivisionError: division by zero\r\n>>> ");
            terminal.press("input('name: ')\r");
            terminal.wait_for("name: ");
            terminal.press("é\r");
            terminal.wait_for("'é'\r\n>>> ");
            terminal.press("\x04");
        });
        assert!(visit.status.success(), "{visit:?}");
        assert!(visit.modes_are_kept, "{visit:?}");
    });
}

#[test]
fn interrupts_and_history_at_the_prompt() {
    everywhere(|it| {
        let visit = same(it, &prompt(it), |terminal, _| {
            terminal.wait_for(">>> ");
            terminal.press("'unfinished");
            terminal.wait_for("unfinished");
            terminal.press("\x03");
            terminal.wait_for("KeyboardInterrupt\r\n>>> ");
            terminal.press("40 + 1\r");
            terminal.wait_for("41\r\n>>> ");
            // The last line again, changed at its end.
            terminal.press("\x1b[A");
            terminal.wait_for("40 + 1");
            terminal.press("00\r");
            terminal.wait_for("140\r\n>>> ");
            terminal.press("import time; time.sleep(100)\r");
            terminal.wait_for("\r\n");
            terminal.press("\x03");
            terminal.wait_for("KeyboardInterrupt\r\n>>> ");
            // Completion.
            terminal.press("import tim\t");
            terminal.press("\x15raise SystemExit(5)\r");
        });
        assert_eq!(visit.status.code(), Some(5), "{visit:?}");
        assert!(
            visit.history.as_ref().is_some_and(|lines| lines.contains("40 + 100")),
            "{visit:?}"
        );
    });
}

#[test]
fn the_prompt_with_editing_of_its_own() {
    everywhere(|it| {
        if it.seat.python.version < (3, 13) {
            return;
        }
        let run = it.python([""; 0]).env("TERM", "xterm");
        for command in [run.stock(), run.thawed()] {
            let visit = visit(it, &command, &|terminal, _| {
                terminal.wait_for(">>> ");
                terminal.press("6 * 7\r");
                terminal.wait_for("42");
                terminal.wait_for(">>> ");
                // The arrow key of a terminal in application mode.
                terminal.press("\x1bOA");
                terminal.press("1\r");
                terminal.wait_for("426");
                terminal.wait_for(">>> ");
                terminal.press("exit\r");
            });
            assert!(visit.status.success() && visit.modes_are_kept, "{visit:#?}");
        }
    });
}

#[test]
fn what_a_script_sees_of_its_terminal() {
    // It says whether it leads its session.
    if native_only("The script is a child") {
        return;
    }
    everywhere(|it| {
        let code = "import os, sys, termios, getpass\n\
            print([os.isatty(n) for n in range(3)], os.ttyname(0) == os.ttyname(2), os.ctermid(), os.tcgetpgrp(0) == os.getpid() == os.getsid(0))\n\
            print(os.get_terminal_size(), open('/dev/tty', 'w').isatty(), sys.stdout.line_buffering)\n\
            print(int(open('/proc/self/stat').read().rsplit(')', 1)[1].split()[4]) == os.stat(0).st_rdev)\n\
            termios.tcgetattr(0)\nprint(getpass.getpass())\nprint(input('> '))";
        let visit = same(it, &it.code(code), |terminal, session| {
            assert!(session.pid() > 0);
            terminal.wait_for("Password: ");
            terminal.press("secret\r");
            terminal.wait_for("> ");
            terminal.press("line\r");
        });
        assert!(visit.status.success(), "{visit:?}");
    });
}

#[test]
fn the_window_changes_its_size() {
    everywhere(|it| {
        let code = "import os, signal, time\nseen = []\n\
            def changed(*_): seen.append(1); os.write(1, b'now (%d, %d)\\n' % os.get_terminal_size()[::-1])\n\
            signal.signal(signal.SIGWINCH, changed)\n\
            print('ready', os.get_terminal_size()[::-1], flush=True)\nwhile len(seen) < 2: time.sleep(0.01)";
        let visit = same(it, &it.code(code), |terminal, _| {
            terminal.wait_for("ready (24, 80)");
            terminal.set_lines(50);
            terminal.wait_for("now (50, 80)");
            terminal.set_columns(132);
            terminal.wait_for("now (50, 132)");
        });
        assert!(visit.status.success(), "{visit:?}");
    });
}

#[test]
fn control_c_control_backslash_and_hanging_up() {
    everywhere(|it| {
        let code = "import time; print('up', flush=True); time.sleep(100)";
        let visit = same(it, &it.code(code), |terminal, _| {
            terminal.wait_for("up\r\n");
            terminal.press("\x03");
        });
        assert_eq!(visit.status.signal(), Some(2), "{visit:?}");
        let visit = same(it, &it.code(code), |terminal, _| {
            terminal.wait_for("up\r\n");
            terminal.press("\x1c");
        });
        assert_eq!(visit.status.signal(), Some(3), "{visit:?}");
        let caught = "import time\ntry:\n  print('up', flush=True); time.sleep(100)\nexcept KeyboardInterrupt:\n  print('caught'); raise SystemExit(4)";
        let visit = same(it, &it.code(caught), |terminal, _| {
            terminal.wait_for("up\r\n");
            terminal.press("\x03");
        });
        assert_eq!(visit.status.code(), Some(4), "{visit:?}");
        for command in [it.code(code).stock(), it.code(code).thawed()] {
            let mut terminal = Terminal::open();
            let session = terminal.start(&command);
            terminal.wait_for("up\r\n");
            drop(terminal);
            assert_eq!(session.finish().signal(), Some(1));
        }
    });
}

#[test]
fn a_lively_image_at_a_terminal() {
    for_everyone(|it| {
        let code = "import lively; print('up', flush=True)\ntry: input('> ')\nexcept KeyboardInterrupt: print(lively.ask(lambda: 5)[0])";
        let run = it.code(code).from(Recipe::Lively);
        let visit = visit(it, &run.thawed(), &|terminal, _| {
            terminal.wait_for("> ");
            terminal.press("\x03");
            terminal.wait_for("5\r\n");
        });
        assert!(visit.status.success(), "{visit:?}");
    });
}

/// An interactive shell in which `p` is python, by itself or from an image.
fn in_a_shell(it: &Context, run: &Python<'_>, dialogue: impl Fn(&mut Terminal)) {
    let quote =
        |word: &std::ffi::OsString| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"));
    let seen = [run.stock(), run.thawed()].map(|command| {
        let own = it.seat.who.command().len();
        let words = command.words().iter().skip(own).map(quote).collect::<Vec<_>>().join(" ");
        let script = it.home().join("p");
        fs::write(&script, format!("#!/bin/sh\nexec {words} \"$@\"\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&script, mode).unwrap();
        let path = format!("{}:/usr/bin:/bin", it.home().display());
        let shell = it
            .command("/bin/bash")
            .args(["--norc", "--noprofile", "--noediting", "-i"])
            .env("PS1", "$ ")
            .env("PATH", path)
            .without("PROMPT_COMMAND");
        let mut terminal = Terminal::open();
        let session = terminal.start(&shell);
        terminal.wait_for("$ ");
        dialogue(&mut terminal);
        terminal.press("exit 0\r");
        assert!(session.finish().success());
        terminal.transcript()
    });
    let [stock, thawed] = seen.map(|transcript| without_job_numbers(&transcript));
    assert!(stock == thawed, "python3 itself:\n{stock}\nfrom an image:\n{thawed}");
}

/// A shell says `[1] 4711` of a process that it starts in the background, and `job 1[4711]` of one
/// that has stopped.
fn without_job_numbers(transcript: &str) -> String {
    let mask = |line: &str| {
        if line.contains("[1] ") || line.contains("job 1[") {
            line.replace(|digit: char| digit.is_ascii_digit(), "")
        } else {
            line.to_owned()
        }
    };
    transcript.split("\r\n").map(mask).collect::<Vec<_>>().join("\n")
}

#[test]
fn jobs_of_a_shell() {
    everywhere(|it| {
        let code = "import time\nprint('up', flush=True)\nline = input()\nprint('got', line, flush=True)\ntime.sleep(100)";
        in_a_shell(it, &it.code(code), |terminal| {
            terminal.press("p\r");
            terminal.wait_for("up\r\n");
            terminal.press("\x1a");
            terminal.wait_for("Stopped");
            terminal.wait_for("$ ");
            terminal.press("jobs\r");
            terminal.wait_for("Stopped");
            terminal.wait_for("$ ");
            terminal.press("fg\r");
            terminal.wait_for("p\r\n");
            terminal.press("line\r");
            terminal.wait_for("got line\r\n");
            terminal.press("\x03");
            terminal.wait_for("KeyboardInterrupt");
            terminal.wait_for("$ ");
            terminal.press("echo status $?\r");
            terminal.wait_for("status 130\r\n");
            terminal.wait_for("$ ");
        });
    });
}

#[test]
fn jobs_in_the_background() {
    everywhere(|it| {
        let code = "import signal, sys\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)\nprint('read', sys.stdin.readline(), flush=True)";
        in_a_shell(it, &it.code(code), |terminal| {
            // It wants to read from the terminal, which is the shell's.
            terminal.press("p & wait\r");
            terminal.wait_for("True\r\n");
            terminal.wait_for("Stopped");
            terminal.wait_for("$ ");
            terminal.press("fg\r");
            terminal.press("words\r");
            terminal.wait_for("read words");
            terminal.wait_for("$ ");
        });
    });
}

#[test]
fn through_sudo() {
    as_root(|it| {
        it.file(
            "script.py",
            "import os, sys\n\
             print(sys.argv, os.getuid(), os.environ['SUDO_UID'], os.isatty(0), os.get_terminal_size())\n\
             print(os.getsid(0) != os.getpid(), os.tcgetpgrp(0) == os.getpgrp())\n\
             print('read', input('type: '))\n\
             try: input('wait: ')\n\
             except KeyboardInterrupt: sys.exit(7)\n",
        );
        let run = it.python(["script.py", "--flag", "x"]).by(Engine::Criu);
        let visit = same(it, &run.through(["sudo", "--"]), |terminal, _| {
            terminal.wait_for("type: ");
            terminal.press("a line\r");
            terminal.wait_for("read a line");
            terminal.wait_for("wait: ");
            terminal.press("\x03");
        });
        assert_eq!(visit.status.code(), Some(7), "{visit:#?}");
    });
}
