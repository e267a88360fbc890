//! The environment and the argument vector, whatever is in them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::support::run::Python;
use crate::support::{Context, everywhere, for_everyone, with_every_python, without_addresses};

/// Prints the environment in every form in which a program can see it.
const SHOW: &str = r"
import ctypes, os, posix, sys
print(sorted(os.environb.items()))
print(sorted(posix.environ.items()) == sorted(os.environb.items()))
print(open('/proc/self/environ', 'rb').read())
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')
index = 0
while environ and environ[index] is not None:
    print(index, environ[index])
    index += 1
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
for name in (b'PATH', b'TWICE', b'EMPTY', b'LD_AUDIT', b'LD_PRELOAD', b'LONG'):
    print(name, getenv(name))
print(sys.argv[:3], len(sys.argv), hash(tuple(map(len, sys.argv))))
print(open('/proc/self/cmdline', 'rb').read()[-2000:])
";

/// Executes its arguments after the first with the environment that the first lists in hexadecimal
/// digits: as no shell could write it.
const EXECUTE: &str = r"
import ctypes, sys
strings = [bytes.fromhex(word) for word in sys.argv[1].split(',')] if sys.argv[1] else []
words = [word.encode('utf-8', 'surrogateescape') for word in sys.argv[2:]]
vector = lambda items: (ctypes.c_char_p * (len(items) + 1))(*items, None)
ctypes.CDLL(None).execve(words[0], vector(words), vector(strings))
raise SystemExit('execve failed')
";

fn with_environment<'a>(run: Python<'a>, strings: &[&[u8]]) -> Python<'a> {
    let digits = |string: &&[u8]| -> Vec<String> {
        string.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let list: Vec<String> = strings.iter().map(|string| digits(string).concat()).collect();
    run.through(["/usr/bin/python3", "-c", EXECUTE, &list.join(",")])
}

fn showing(it: &Context) -> Python<'_> {
    it.python(["script.py"]).file("script.py", SHOW)
}

#[test]
fn strings_of_every_kind() {
    everywhere(|it| {
        let path: &[u8] = b"PATH=/usr/bin:/bin";
        for strings in [
            &[path][..],
            &[],
            &[path, b"TWICE=first", b"TWICE=second", b"EMPTY="],
            &[path, b"no equals sign", b"", b"=no name", b"=", b"A==B=C"],
            &[b"\xff\xfe=\xfd", path, b"NEW\nLINE=a\nb", "É=é".as_bytes()],
            &[path, b"LD_AUDIT=", b"PYTHONHOME=", b"LC_ALL="],
            &[path, b"LD_BIND_NOW=1", b"LD_LIBRARY_PATH=/nowhere"],
            &[path, b"MALLOC_ARENA_MAX=2", b"GLIBC_TUNABLES=glibc.malloc.arena_max=1"],
        ] {
            with_environment(showing(it), strings).is_as_stock().succeeds();
        }
    });
}

#[test]
fn much_of_it() {
    for_everyone(|it| {
        let long = [b"LONG=".to_vec(), vec![b'x'; 100_000]].concat();
        let run = it.code("import os; print(len(os.environ['LONG']), os.environ['LONG'][-1])");
        run.env("LONG", OsString::from_vec(long[5..].to_vec())).is_as_stock().succeeds();
        let many = (0..2000).fold(showing(it), |run, number| {
            run.env(format!("VARIABLE_{number}"), format!("value {number}"))
        });
        many.is_as_stock().succeeds();
    });
}

#[test]
fn arguments_of_every_kind() {
    everywhere(|it| {
        let odd: [&[u8]; 9] =
            [b"", b" ", b"a b", b"\xff\xfe", b"-", b"--", b"-c", "é".as_bytes(), b"new\nline"];
        let odd = odd.map(|bytes| OsString::from_vec(bytes.to_vec()));
        showing(it).args(odd).is_as_stock().succeeds();
        showing(it).args(vec!["x".repeat(100); 10_000]).is_as_stock().succeeds();
        showing(it).args(["x".repeat(100_000)]).is_as_stock().succeeds();
    });
}

#[test]
fn changes_reach_c_and_children() {
    everywhere(|it| {
        let code = "import ctypes, os, subprocess, time\n\
                    getenv = ctypes.CDLL(None).getenv; getenv.restype = ctypes.c_char_p\n\
                    os.environ['NEW'] = 'é'; os.environ['OLD'] = 'changed'; del os.environ['GONE']\n\
                    print(getenv(b'NEW'), getenv(b'OLD'), getenv(b'GONE'))\n\
                    print(sorted(subprocess.check_output(['env']).splitlines()))\n\
                    os.environ['TZ'] = 'Asia/Tokyo'; time.tzset(); print(time.tzname)\n\
                    os.environ.clear(); print(subprocess.check_output(['/usr/bin/env']))";
        it.code(code).env("OLD", "1").env("GONE", "1").is_as_stock().succeeds();
    });
}

#[test]
fn variables_that_python_heeds() {
    everywhere(|it| {
        let code = "import probe; probe.show(globals())\nimport warnings; warnings.warn('x', DeprecationWarning)\n\
                    try: breakpoint()\nexcept BaseException as error: print(type(error))";
        for (name, value) in [
            ("PYTHONPATH", "/nowhere:relative:/usr"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
            ("PYTHONWARNINGS", "error::DeprecationWarning"),
            ("PYTHONWARNINGS", "default,ignore::UserWarning"),
            ("PYTHONBREAKPOINT", "0"),
            ("PYTHONBREAKPOINT", "os.getcwd"),
            ("PYTHONVERBOSE", ""),
            ("PYTHONUNBUFFERED", "x"),
            ("PYTHONINTMAXSTRDIGITS", "1000"),
            ("PYTHONPYCACHEPREFIX", "/nowhere"),
            ("TZ", "Asia/Tokyo"),
            ("TZ", "nonsense"),
            ("LC_TIME", "C"),
        ] {
            let run = it.python(["script.py"]).file("script.py", code).file("probe.py", PROBE);
            run.env(name, value).is_as_stock();
        }
    });
}

#[test]
fn variables_that_only_a_start_heeds() {
    with_every_python(|it| {
        let code = "import probe; probe.show(globals())\nimport os\nprint(hash('text') if 'PYTHONHASHSEED' in os.environ else 0)\n\
                    assert not print('asserted')\nprint(__debug__, b'' == '')";
        for (name, value) in [
            ("PYTHONHASHSEED", "0"),
            ("PYTHONHASHSEED", "7"),
            ("PYTHONHASHSEED", "nonsense"),
            ("PYTHONOPTIMIZE", "2"),
            ("PYTHONOPTIMIZE", "0"),
            ("PYTHONDEBUG", "1"),
            ("PYTHONDEVMODE", "1"),
            ("PYTHONSAFEPATH", "1"),
            ("PYTHONNOUSERSITE", "1"),
            ("PYTHONMALLOC", "malloc"),
            ("PYTHONMALLOC", "nonsense"),
            ("PYTHONPLATLIBDIR", "elsewhere"),
            ("PYTHONHOME", "/nowhere"),
            ("PYTHONUTF8", "1"),
            ("PYTHONUTF8", "0"),
            ("PYTHONUTF8", "2"),
            ("PYTHON_FROZEN_MODULES", "off"),
            ("PYTHONNODEBUGRANGES", "1"),
            ("PYTHONWARNDEFAULTENCODING", "1"),
            ("LC_ALL", "C"),
            ("LC_ALL", "POSIX"),
            ("LC_CTYPE", "C.UTF-8"),
            ("PYTHONCASEOK", "1"),
            ("MALLOC_ARENA_MAX", "1"),
            ("GLIBC_TUNABLES", "glibc.malloc.perturb=170"),
            ("LD_LIBRARY_PATH", "/nowhere"),
            ("PYTHONTRACEMALLOC", "2"),
        ] {
            let run = it.python(["script.py"]).file("script.py", code).file("probe.py", PROBE);
            run.env(name, value).mask(without_addresses).is_as_stock();
        }
    });
}

#[test]
fn faults_are_told_on_demand() {
    with_every_python(|it| {
        let code = "import faulthandler\nprint(faulthandler.is_enabled(), flush=True)\n\
                    import ctypes\nctypes.string_at(0)";
        it.code(code).env("PYTHONFAULTHANDLER", "1").mask(without_addresses).is_as_stock();
        it.python(["-Xfaulthandler", "-c", code]).mask(without_addresses).is_as_stock();
        it.code(code).mask(without_addresses).is_as_stock();
    });
}

#[test]
fn an_image_is_made_for_options() {
    with_every_python(|it| {
        let look = |line: &[&str], image: &std::path::Path| {
            let code = "import sys; print('decimal' in sys.modules, sys.flags.optimize, sys.flags.utf8_mode)";
            let line: Vec<&str> = line.iter().copied().chain(["-c", code]).collect();
            it.python(line).image(image.to_owned())
        };
        let made = it
            .snapshot(["--import", "decimal", "-OO", "-X", "utf8", "-o", "x.img"])
            .args(["--python".as_ref(), it.seat.python.path.as_os_str()])
            .run();
        assert!(made.status.success(), "{made:?}");
        let image = it.keep("x.img");
        for line in [&["-OO", "-Xutf8"][..], &["-uO", "-O", "-X", "utf8=1"]] {
            assert_eq!(look(line, &image).thaw().succeeds().text(), "True 2 1\n");
        }
        let variables = look(&["-u"], &image).env("PYTHONOPTIMIZE", "2").env("PYTHONUTF8", "1");
        assert_eq!(variables.thaw().succeeds().text(), "True 2 1\n");
        // Another setting is another interpreter's.
        for line in [&[][..], &["-OO"], &["-O", "-Xutf8"], &["-OO", "-Xutf8", "-S"]] {
            look(line, &image).is_as_stock().succeeds();
        }
        std::fs::remove_file(image).unwrap();
    });
}

const PROBE: &str = include_str!("modules/probe.py");

#[test]
fn standard_input_stays_interactive_on_demand() {
    everywhere(|it| {
        it.code("x = 6").env("PYTHONINSPECT", "1").stdin("print(x * 7)\n").is_as_stock();
        it.python(["-i", "-c", "x = 6"]).stdin("print(x * 7)\nraise SystemExit(3)\n").is_as_stock();
        it.python(["-i", "-q"])
            .env("PYTHONSTARTUP", "startup.py")
            .file("startup.py", "print('started')")
            .stdin("2 + 2\n")
            .is_as_stock();
    });
}

#[test]
fn nothing_of_ours_is_in_the_environment() {
    everywhere(|it| {
        let code = "import os, subprocess\nprint([entry for entry in os.environb if b'CRIU' in entry or entry.startswith(b'LD_')])\n\
                    print(b'CRIU' in open('/proc/self/environ', 'rb').read(), b'LD_' in subprocess.check_output('env'))";
        let outcome = it.code(code).is_as_stock().succeeds();
        assert_eq!(outcome.text(), "[]\nFalse False\n");
    });
}
