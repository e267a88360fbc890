//! Standard input, output and error, each of every kind.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::support::{
    Context, Terminal, everywhere, for_everyone, once, shared, without_addresses,
};

/// Writes what the streams are into a file, since they may be closed.
const LOOK: &str = "import probe\nwith open('seen', 'w') as file:\n  \
                    print(*probe.streams(), sep='\\n', file=file)\n\
                    print('to output')\nimport sys\nprint('to error', file=sys.stderr)";

const INPUTS: [&str; 6] = ["<in", "<&-", "</dev/null", "< <(cat in)", "<$TTY", "<>in"];
const OUTPUTS: [&str; 7] =
    [">out", ">>out", ">&-", ">/dev/null", "> >(cat >piped)", ">$TTY", "<>out"];
const ERRORS: [&str; 7] = ["2>err", "2>>err", "2>&-", "2>/dev/null", "2>&1", "2>$TTY", "2<>err"];

fn look(it: &Context, terminal: &Terminal, redirections: &str) {
    let name = terminal.name().to_str().unwrap();
    it.python(["script.py"])
        .file("script.py", LOOK)
        .file("in", "a line\nanother\n")
        .file("out", "there before, and longer than what is written\n")
        .file("err", "there before, and longer than what is written\n")
        .env("PYTHONPATH", shared().modules())
        .shell(&format!(r#"TTY={name}; "$@" {redirections}; status=$?; wait; exit $status"#))
        .is_as_stock();
}

fn open_to_everyone() -> Terminal {
    let terminal = Terminal::open();
    fs::set_permissions(terminal.name(), Permissions::from_mode(0o666)).unwrap();
    terminal
}

#[test]
fn each_alone_of_every_kind() {
    everywhere(|it| {
        let terminal = open_to_everyone();
        for one in INPUTS.iter().chain(&OUTPUTS).chain(&ERRORS) {
            look(it, &terminal, one);
        }
    });
}

#[test]
fn every_combination() {
    once(|it| {
        let terminal = open_to_everyone();
        for input in INPUTS {
            for output in OUTPUTS {
                for errors in ERRORS {
                    look(it, &terminal, &format!("{input} {output} {errors}"));
                }
            }
        }
    });
}

#[test]
fn appended_files_are_appended_to() {
    everywhere(|it| {
        let code = "import sys\nprint('one', flush=True)\nopen('log', 'a').write('other\\n')\nprint('two')";
        it.code(code).shell(r#"echo zero >log; "$@" >>log; echo three >>log"#).is_as_stock();
        it.code(code).shell(r#"(echo zero; "$@"; echo three) >log"#).is_as_stock();
        it.code("import sys; sys.stderr.write('x')")
            .shell(r#"echo >>log; exec "$@" 2>>log"#)
            .is_as_stock();
    });
}

#[test]
fn input_is_read_from_where_the_caller_stopped() {
    everywhere(|it| {
        let code = "import sys; print(sys.stdin.readline()); print(sys.stdin.buffer.tell(), sys.stdin.read())";
        let shared_offset = r#"(read -r line; "$@"; cat) <in"#;
        it.code(code).file("in", "one\ntwo\nthree\n").shell(shared_offset).is_as_stock();
        it.code("print(input(), input())").stdin("a\nb\n").is_as_stock();
        it.code("input()").is_as_stock();
        it.code("import sys; print(list(sys.stdin))").stdin("a\r\nb\n\nlast").is_as_stock();
    });
}

#[test]
fn much_in_and_much_out() {
    everywhere(|it| {
        let bytes: Vec<u8> = (0..5_000_000_u32).map(|number| (number * 7 % 251) as u8).collect();
        let code =
            "import sys\nwhile data := sys.stdin.buffer.read1(): sys.stdout.buffer.write(data)";
        let outcome = it.code(code).stdin(bytes.clone()).is_as_stock().succeeds();
        assert!(outcome.out == bytes);
    });
}

#[test]
fn lines_come_in_the_order_of_a_terminal_and_of_a_pipe() {
    everywhere(|it| {
        let code =
            "import sys\nfor n in range(3):\n  print('out', n)\n  print('err', n, file=sys.stderr)";
        for options in [&["-c", code][..], &["-u", "-c", code]] {
            it.python(options).shell(r#"exec "$@" 2>&1"#).is_as_stock();
        }
        it.code(code).env("PYTHONUNBUFFERED", "1").shell(r#"exec "$@" 2>&1"#).is_as_stock();
        let prompt = "print('no newline', end='')\nprint(input('prompt> '))";
        it.code(prompt).stdin("answer\n").is_as_stock();
    });
}

#[test]
fn encodings() {
    everywhere(|it| {
        let mode = "import locale; print(sys.flags.utf8_mode, locale.getpreferredencoding())";
        let code = format!("{LOOK}\n{mode}\nprint(repr(input()))\nprint('é\\u20ac\\udc80')");
        let settings: [&[(&str, &str)]; 16] = [
            &[],
            &[("PYTHONIOENCODING", "latin-1")],
            &[("PYTHONIOENCODING", "latin-1:replace")],
            &[("PYTHONIOENCODING", ":backslashreplace")],
            &[("PYTHONIOENCODING", "nonsense")],
            &[("PYTHONIOENCODING", "utf-16")],
            &[("PYTHONUTF8", "1")],
            &[("PYTHONUTF8", "0"), ("LC_ALL", "C")],
            &[("LC_ALL", "C")],
            &[("LC_ALL", "POSIX")],
            &[("LC_ALL", "C.UTF-8")],
            &[("LC_ALL", "no_SUCH.locale")],
            &[("LANG", "")],
            &[("LANG", "C")],
            &[("LC_CTYPE", "C"), ("PYTHONCOERCECLOCALE", "0")],
            &[("LC_CTYPE", "C"), ("PYTHONCOERCECLOCALE", "warn")],
        ];
        for setting in settings {
            let run =
                it.python(["script.py"]).file("script.py", code.clone()).stdin(b"\xc3\xa9\xff\n");
            let run = run.env("PYTHONPATH", shared().modules());
            let run = setting.iter().fold(run, |run, (name, value)| run.env(name, value));
            // What cannot start says in which thread, by its address.
            run.mask(without_addresses).is_as_stock();
        }
    });
}

#[test]
fn the_number_of_a_closed_stream_is_free() {
    everywhere(|it| {
        for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
            let code = "import os\nfiles = [os.open('/dev/null', os.O_RDONLY) for _ in range(3)]\n\
                        print(files, file=open('seen', 'w'))";
            it.code(code).shell(&format!(r#"exec "$@" {closed}"#)).is_as_stock();
        }
    });
}

#[test]
fn flags_of_the_open_files_stay() {
    for_everyone(|it| {
        let code = "import fcntl\nprint([(fcntl.fcntl(n, fcntl.F_GETFL), fcntl.fcntl(n, fcntl.F_GETFD)) for n in range(3)])";
        it.code(code).is_as_stock();
        let nonblocking = "import os, sys\n[os.set_blocking(n, False) for n in range(3)]\n\
                           os.execv(sys.argv[1], sys.argv[1:])";
        it.code(code).stdin("x").through(["/usr/bin/python3", "-c", nonblocking]).is_as_stock();
    });
}

#[test]
fn streams_that_a_library_kept_are_the_new_ones() {
    everywhere(|it| {
        // The image's modules hold no stream; what logging and warnings find is what the script sees.
        let code = "import logging, sys, warnings\nlogging.basicConfig()\nlogging.error('logged')\n\
                    warnings.warn('warned')\nprint('x', file=sys.__stdout__)\nsys.stdin.close(); sys.stdout.flush()";
        it.code(code).is_as_stock();
        it.code("import sys; sys.stdout.close(); sys.stderr.close()").is_as_stock();
        it.code("import sys; sys.stdout.detach().write(b'detached')").is_as_stock();
        it.code("import sys; sys.stdout.reconfigure(encoding='latin-1'); print('é')").is_as_stock();
        it.code("import os; os.dup2(os.open('other', os.O_CREAT | os.O_WRONLY), 1); print('x')")
            .is_as_stock();
    });
}
