//! What is run and how it ends: command lines, exit statuses, exceptions, the way out.

use nix::sys::signal::Signal;

use crate::support::run::Python;
use crate::support::{
    Context, Recipe, everywhere, for_everyone, once, shared, with_every_python, without_addresses,
};

/// Shows the interpreter from within.
const SHOW: &str = "import probe; probe.show(globals())";

fn showing<'a>(it: &'a Context, arguments: &[&str]) -> Python<'a> {
    it.python(arguments).env("PYTHONPATH", shared().modules())
}

#[test]
fn a_script() {
    everywhere(|it| {
        for arguments in [
            &["script.py"][..],
            &["./script.py", "one", "two"],
            &["folder/inner.py", "--flag", "-c", "x"],
            &["-u", "script.py", "-u"],
            &["folder/../script.py", "", "a b", "é"],
        ] {
            showing(it, arguments)
                .file("script.py", SHOW)
                .file("folder/inner.py", SHOW)
                .is_as_stock()
                .succeeds();
        }
    });
}

#[test]
fn what_lies_beside_the_program_goes_before_what_is_frozen() {
    everywhere(|it| {
        let code =
            "import json, sys; print(json.__file__, getattr(json, 'whose', None), sys.path[0])";
        for (arguments, file) in [
            (&["script.py"][..], "json.py"),
            (&["folder/script.py"], "folder/json.py"),
            (&["folder/script.py"], "folder/json/__init__.py"),
            (&["folder"], "folder/json.py"),
            (&["-c", code], "json.py"),
            (&["-m", "script"], "json.py"),
            // None of these is what is imported.
            (&["folder/script.py"], "json.py"),
            (&["script.py"], "json/inner.py"),
            (&["script.py"], "json.txt"),
        ] {
            it.python(arguments)
                .file("script.py", code)
                .file("folder/script.py", code)
                .file("folder/__main__.py", code)
                .file(file, "whose = 'mine'")
                .is_as_stock()
                .succeeds();
        }
        it.python(&["-c", code])
            .file("elsewhere/json.py", "whose = 'mine'")
            .env("PYTHONPATH", "elsewhere")
            .is_as_stock()
            .succeeds();
    });
}

#[test]
fn code_on_the_command_line() {
    everywhere(|it| {
        for arguments in [
            &["-c", SHOW][..],
            &["-c", SHOW, "-c", "--", "-m", "x"],
            &["-uc", SHOW, "-"],
            &["-c", ""],
        ] {
            showing(it, arguments).is_as_stock().succeeds();
        }
    });
}

#[test]
fn a_module() {
    everywhere(|it| {
        for arguments in [
            &["-m", "module"][..],
            &["-m", "package", "--flag"],
            &["-m", "package.inner", "-m"],
            &["-m", "json.tool", "--compact", "data.json"],
            &["-m", "no_such_module"],
            &["-m", "package.none"],
        ] {
            showing(it, arguments)
                .file("module.py", SHOW)
                .file("package/__init__.py", "print('package')")
                .file("package/__main__.py", SHOW)
                .file("package/inner.py", SHOW)
                .file("data.json", r#"{"a": [1, 2]}"#)
                .is_as_stock();
        }
    });
}

#[test]
fn standard_input_as_the_script() {
    everywhere(|it| {
        for arguments in [&["-"][..], &["-", "one", "-c"], &[]] {
            showing(it, arguments).stdin(SHOW).is_as_stock().succeeds();
        }
        it.python([""; 0]).stdin("print(input())\nnot input\n").is_as_stock();
        it.python(["/dev/stdin", "x"]).stdin("import sys; print(sys.argv, __file__)").is_as_stock();
        showing(it, &[]).file("in", SHOW).shell(r#"exec "$@" <in"#).is_as_stock().succeeds();
        showing(it, &[]).is_as_stock().succeeds();
        it.python(["-i", "-q"]).stdin("print(1)\n1 / 0\nprint(2)\n").is_as_stock();
    });
}

#[test]
fn directories_archives_and_descriptors() {
    everywhere(|it| {
        let zip = "import zipfile; zipfile.ZipFile('app.zip', 'w').write('folder/__main__.py', '__main__.py')";
        let run = showing(it, &["folder"]).file("folder/__main__.py", SHOW);
        run.is_as_stock().succeeds();
        let zipped = |line: &str| format!("{} -c \"{zip}\"; {line}", it.seat.python.path.display());
        showing(it, &["app.zip", "x"])
            .file("folder/__main__.py", SHOW)
            .shell(&zipped(r#"exec "$@""#))
            .mask(|text| text.replace("0x", ""))
            .thaw()
            .succeeds();
        let arguments = "import sys; print(sys.argv[1:], __name__, len(sys.argv))";
        it.python([""; 0])
            .file("script.py", arguments)
            .shell(r#"exec "$@" <(cat script.py) tail | sed s,/dev/fd/[0-9]*,fd,"#)
            .is_as_stock();
        it.python(["link.py"])
            .file("folder/real.py", SHOW)
            .env("PYTHONPATH", shared().modules())
            .shell(r#"ln -s folder/real.py link.py; exec "$@""#)
            .is_as_stock()
            .succeeds();
        it.python(["empty"]).shell(r#"mkdir empty; exec "$@""#).is_as_stock();
    });
}

#[test]
fn what_is_not_there_is_told_as_python_does() {
    everywhere(|it| {
        for script in ["absent.py", "no/such/folder/script.py", "/", "closed.py"] {
            let run = it.python([script]).shell(r#"touch closed.py; chmod 0 closed.py; exec "$@""#);
            run.is_as_stock();
        }
        let absent = it.python(["absent.py"]).is_as_stock();
        assert_eq!(absent.status.code(), Some(2), "{absent:?}");
    });
}

#[test]
fn options_of_the_interpreter() {
    with_every_python(|it| {
        for options in [
            &["-u"][..],
            &["-q"],
            &["-B"],
            &["-b"],
            &["-bb"],
            &["-d"],
            &["-E"],
            &["-I"],
            &["-O"],
            &["-OO"],
            &["-P"],
            &["-s"],
            &["-S"],
            &["-v"],
            &["-Werror"],
            &["-W", "ignore::DeprecationWarning", "-W", "once"],
            &["-Wnonsense"],
            &["-x"],
            &["-X", "dev"],
            &["-X", "utf8"],
            &["-X", "utf8=0"],
            &["-X", "tracemalloc=3"],
            &["-X", "anything=x"],
            &["-X", "int_max_str_digits=1000"],
            &["--check-hash-based-pycs", "always"],
        ] {
            let mut arguments = options.to_vec();
            arguments.extend(["script.py", "x"]);
            let verbose = options == ["-v"];
            let run = showing(it, &arguments).file(
                "script.py",
                format!(
                    "\n{SHOW}\nimport warnings\nassert not print('asserted')\nprint(__debug__)\n\
                     warnings.warn('old', DeprecationWarning)\nprint(b'' == '')\n"
                ),
            );
            if verbose {
                // The modules that are imported in the image are not imported again.
                run.thaw().succeeds();
            } else {
                run.is_as_stock();
            }
        }
    });
}

#[test]
fn options_that_only_print() {
    everywhere(|it| {
        for option in [
            "-V",
            "-VV",
            "--version",
            "-h",
            "--help",
            "-?",
            "--help-env",
            "--nonsense",
            "-Z",
            "-c",
            "-m",
        ] {
            it.python([option]).is_as_stock();
        }
    });
}

#[test]
fn every_exit_status() {
    for_everyone(|it| {
        for status in 0..=255 {
            let outcome = it.code(&format!("raise SystemExit({status})")).thaw();
            assert_eq!(outcome.status.code(), Some(status), "{outcome:?}");
        }
    });
}

#[test]
fn ways_to_leave() {
    everywhere(|it| {
        for code in [
            "import sys; sys.exit()",
            "import sys; sys.exit(None)",
            "import sys; sys.exit(3)",
            "import sys; sys.exit(-1)",
            "import sys; sys.exit(256)",
            "import sys; sys.exit(1 << 40)",
            "import sys; sys.exit('a text')",
            "import sys; sys.exit(('a', 'tuple'))",
            "import sys; sys.exit(1.5)",
            "exit(4)",
            "quit()",
            "import os; print('lost', end=''); os._exit(5)",
            "import os; os.abort()",
            "raise SystemExit",
            "raise KeyboardInterrupt",
            "raise Exception('text', 1)",
            "raise ExceptionGroup('g', [ValueError(1), TypeError('x')])",
            "try:\n  1/0\nexcept Exception as e:\n  raise ValueError('é') from e",
            "def f(n):\n  return f(n - 1) if n else 1/0\nf(5)",
            "def f(): f()\nf()",
            "this is no python",
            "if 1:\nprint(2)",
            "import threading\nt = threading.Thread(target=lambda: 1/0, name='t')\nt.start(); t.join()",
            "import atexit\natexit.register(lambda: 1/0)\nprint(1)",
            "import atexit\natexit.register(print, 'first'); atexit.register(print, 'second')",
            "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\n1/0",
            "import sys\nsys.stdout.write('no newline')",
            "import sys\nsys.stderr.write('é no newline')",
            "print('\\udc80')",
            "import os\nos.close(1)\nprint('x')",
        ] {
            it.code(code).mask(without_addresses).is_as_stock();
        }
    });
}

#[test]
fn death_by_signals() {
    everywhere(|it| {
        for signal in [
            "TERM", "KILL", "SEGV", "ABRT", "INT", "HUP", "QUIT", "ALRM", "PIPE", "USR1", "BUS",
            "FPE", "ILL", "XFSZ",
        ] {
            let code = format!(
                "import os, signal\nprint('lost')\nos.kill(os.getpid(), signal.SIG{signal})\n\
                 import time\ntime.sleep(0.2)"
            );
            it.code(&code).is_as_stock();
        }
        it.code("import ctypes; ctypes.string_at(0)").is_as_stock();
        it.code("import signal; signal.alarm(1); signal.pause()").is_as_stock();
    });
}

#[test]
fn death_by_signals_from_outside() {
    everywhere(|it| {
        for signal in
            [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL, Signal::SIGHUP, Signal::SIGUSR2]
        {
            it.code("import time; print('up', flush=True); time.sleep(100)").is_as_stock_when(
                |child| {
                    child.wait_for("up\n");
                    child.wait_until_asleep();
                    child.signal(signal);
                },
            );
        }
        for handled in
            ["except KeyboardInterrupt:\n  print('caught')", "finally:\n  print('finally')"]
        {
            it.code(&format!(
                "import time\ntry:\n  print('up', flush=True)\n  time.sleep(100)\n{handled}"
            ))
            .is_as_stock_when(|child| {
                child.wait_for("up\n");
                child.wait_until_asleep();
                child.signal(Signal::SIGINT);
            });
        }
    });
}

/// Objects of every kind that finalization has to do with.
const WAY_OUT: &str = r"
import atexit, gc, os, sys, tempfile, threading, time, weakref

class Noisy:
    def __init__(self, name): self.name = name
    def __del__(self): print('del', self.name, sys is None, flush=True)

class Cycle(Noisy):
    def __init__(self, name):
        super().__init__(name)
        self.self = self

def generator(name):
    try:
        yield 1
    finally:
        print('generator', name)

in_main = Noisy('in main')
cycle = Cycle('cycle')
running = generator('running'); next(running)
weakref.finalize(in_main, print, 'finalized')
reference = weakref.ref(cycle, lambda _: print('weak reference'))
open_file = open('unflushed', 'w'); open_file.write('flushed at the end')
leaving = threading.Event()
def late():
    leaving.wait()
    print('late thread')
def begin_to_leave():
    print('threading atexit')
    leaving.set()
threading.Thread(target=late).start()
threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
atexit.register(lambda: print('atexit', threading.active_count()))
threading._register_atexit(begin_to_leave)
import script_module
script_module.noisy = Noisy('in a module')
sys.noisy = Noisy('in sys')
print('end of script')
";

/// What a script hangs into something frozen goes with the frozen interpreter, as a whole: only a full
/// exit takes that apart.
const HUNG_INTO_THE_FROZEN: &str = r"
import json
json.noisy = Noisy('in a frozen module')
json.JSONEncoder.noisy = Noisy('in a frozen class')
import builtins
builtins.noisy = Noisy('in builtins')
";

#[test]
fn nothing_that_can_be_noticed_is_left_out_at_the_end() {
    everywhere(|it| {
        // Modules are torn down in the reverse order of their import.
        let everything = format!("import json\n{WAY_OUT}{HUNG_INTO_THE_FROZEN}");
        let ways = [(&[][..], WAY_OUT), (&[], &everything), (&["--full-exit"], &everything)];
        for (options, script) in ways {
            let run =
                it.python(["script.py"]).file("script.py", script).file("script_module.py", "");
            run.options(options).is_as_stock().succeeds();
        }
    });
}

/// Objects whose classes answer by code of the script's, which finalization has no question for.
const NOT_TO_BE_ASKED: &str = r"
import sys, threading, weakref
class Noisy:
    def __del__(self): print('del')
def asked(*_): print('asked')
class Meta(type):
    __hash__ = None
    def __eq__(self, other): asked()
    def __getattribute__(self, name): asked()
class Odd(metaclass=Meta): pass
class Lazy(type(sys)):
    def __getattribute__(self, name): asked()
class Posing:
    __class__ = property(asked)
noisy, odd, lazy, posing = Noisy(), Odd(), Lazy('lazy'), Posing()
gone = weakref.proxy(Noisy())
print('end of script')
";

#[test]
fn nothing_is_asked_of_the_scripts_objects_at_the_end() {
    everywhere(|it| {
        let last = "threading.Thread(target=threading.Event().wait, daemon=True).start()";
        for script in [NOT_TO_BE_ASKED, &format!("{NOT_TO_BE_ASKED}{last}\n")] {
            let outcome = it.python(["script.py"]).file("script.py", script).is_as_stock();
            assert_eq!(outcome.succeeds().text(), "del\nend of script\ndel\n");
        }
    });
}

/// A library that gives back the memory of its objects.
const GIVES_BACK: &str = r"
import sys, types, weakref
def _del_library(name): print('given back', name)
sys.modules['torch.library'] = types.ModuleType('torch.library')
sys.modules['torch.library']._del_library = _del_library
class Library:
    def __init__(self, name): weakref.finalize(self, _del_library, name)
libraries = [Library('one'), Library('two')]
";

#[test]
fn memory_is_not_given_back_at_the_end_only() {
    once(|it| {
        it.file("gives_back.py", GIVES_BACK);
        it.snapshot(["--import", "gives_back", "--force", "-o", "gives_back.img"])
            .args(["--python".as_ref(), it.seat.python.path.as_os_str()])
            .run()
            .succeeds();
        let image = it.keep("gives_back.img");
        let run = |script: &str, options: &[&str]| {
            let run = it.python(["script.py"]).file("gives_back.py", GIVES_BACK);
            let run = run.file("script.py", script).image(image.clone()).options(options);
            run.thaw().succeeds().text()
        };
        let script = "import gives_back; print('end')";
        assert_eq!(run(script, &[]), "end\n");
        let all = "end\ngiven back two\ngiven back one\n";
        assert_eq!(run(script, &["--full-exit"]), all);
        let own = "import gives_back; own = gives_back.Library('own'); del gives_back.libraries[0]";
        assert_eq!(run(own, &[]), "given back one\ngiven back own\n");
        std::fs::remove_file(image).unwrap();
    });
}

#[test]
fn what_cannot_be_written_is_told_at_the_end() {
    everywhere(|it| {
        it.code("print('x')").shell(r#"exec "$@" >/dev/full"#).is_as_stock();
        it.code("import sys; sys.stderr.write('x')")
            .shell(r#"exec "$@" 2>/dev/full"#)
            .is_as_stock();
        // Which write fails, and so the status, would be chance: none is tried before the reader is gone.
        let many = "import select\nprint('first', flush=True)\nend = select.poll()\nend.register(1, 0)\n\
                    end.poll()\nfor n in range(100000): print('line', n)";
        let head = r#""$@" | head -1; echo "${PIPESTATUS[0]}""#;
        it.code(many).shell(head).is_as_stock();
    });
}

#[test]
fn a_second_interpreter_and_itself_again() {
    everywhere(|it| {
        let again = "import os, sys\nif len(sys.argv) == 1:\n  print('first', flush=True)\n  \
                     os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], 'again'])\n\
                     print(sys.argv, sorted(os.environ))";
        it.code(again).is_as_stock().succeeds();
        let child = "import subprocess, sys\n\
                     print(subprocess.run([sys.executable, '-c', 'import sys; print(sys.argv, sys.flags)', 'x'],\
                     capture_output=True))";
        it.code(child).is_as_stock().succeeds();
    });
}

#[test]
fn imports_after_the_thaw() {
    everywhere(|it| {
        let code = "import decimal, sqlite3, ssl, xml.dom.minidom, asyncio, importlib, csv, ctypes.util\n\
                    print(decimal.Decimal(1) / 7, sqlite3.connect(':memory:').execute('select 41 + 1').fetchone())\n\
                    async def main(): await asyncio.sleep(0.01); print('slept')\n\
                    asyncio.run(main())\n\
                    print(importlib.import_module('own').value)\n\
                    import json; print(importlib.reload(json).dumps([1]))";
        it.python(["script.py"])
            .file("script.py", code)
            .file("own.py", "value = 7")
            .is_as_stock()
            .succeeds();
    });
}

#[test]
fn an_image_of_nothing() {
    everywhere(|it| {
        showing(it, &["-c", SHOW]).from(Recipe::Nothing).is_as_stock().succeeds();
        it.code("import json, threading; print(json.dumps([1]))")
            .from(Recipe::Nothing)
            .is_as_stock();
    });
}
