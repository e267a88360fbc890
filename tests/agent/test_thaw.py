"""A thawed interpreter is one that this process has just started."""

import os
import pty
import signal
import subprocess
import sys
import tempfile
import unittest

from restored import AGENT, freeze, run

CLEAN = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


class Environment(unittest.TestCase):
    def test_it_is_this_process_s(self) -> None:
        program = "import os, posix; say([dict(os.environ), os.environ._data is posix.environ, os.popen('echo $ONE').read()])"
        environ = {**CLEAN, "ONE": "1"}
        said = run(program, environ=environ, frozen_environ={"TWO": "2"}).said
        self.assertEqual(said, [environ, True, "1\n"])

    def test_any_bytes(self) -> None:
        block = b"A=\xff\xfe\0B==x\0A=second\0nothing\0=odd\0C=\0PATH=" + os.fsencode(CLEAN["PATH"])
        said = run("import os; say([[k, v] for k, v in os.environ.items()])", environ=block).said
        self.assertEqual(said[:4], [["A", "\udcff\udcfe"], ["B", "=x"], ["", "odd"], ["C", ""]])

    def test_ten_thousand_variables(self) -> None:
        environ = {**CLEAN, **{f"V{number}": "x" * 100 for number in range(10_000)}}
        self.assertEqual(run("import os; say(len(os.environ))", environ=environ).said, len(environ))

    def test_what_the_imports_set_is_kept_unless_the_caller_says_otherwise(self) -> None:
        setter = "\n".join(
            [
                "import os",
                "os.environ['DEFAULT'] = os.environ['OTHER'] = 'import'",
                "os.environ['CHANGED'] = 'import'",
                "os.environ['LIST'] = 'first:' + os.environ['LIST']",
                "del os.environ['GONE']",
            ]
        )
        said = run(
            "import os; say({k: v for k, v in os.environ.items() if k not in ('PATH', 'LANG')}); os.system('env >&2')",
            imports=["setter"],
            modules={"setter": setter},
            frozen_environ={"CHANGED": "a", "LIST": "a:b", "GONE": "x"},
            environ={**CLEAN, "OTHER": "caller", "CHANGED": "caller", "LIST": "c:d", "GONE": "y"},
        )
        wanted = {"DEFAULT": "import", "OTHER": "caller", "CHANGED": "import", "LIST": "first:c:d"}
        self.assertEqual(said.said, wanted)
        for name, value in wanted.items():
            self.assertIn(f"{name}={value}\n", said.err)
        self.assertNotIn("GONE=", said.err)

    def test_imports_do_not_see_the_resident(self) -> None:
        seen = "import os\nseen = [os.environ.get('LD_PRELOAD'), os.environ.get('PRELOADED_CRIU_FREEZE')]"
        for preload in (None, "libnothing.so"):
            # A library that does not exist is only complained of.
            said = run(
                "import seen; say(seen.seen)",
                imports=["seen"],
                modules={"seen": seen},
                frozen_environ={"PRELOADED_CRIU_FREEZE": "1,2,3"},
                preload=preload,
            ).said
            self.assertEqual(said, [preload, None])

    def test_the_time_zone(self) -> None:
        program = "import time; say([time.tzname[0], time.localtime(0).tm_hour])"
        said = run(program, frozen_environ={"TZ": "UTC"}, environ={**CLEAN, "TZ": "XYZ-9"}).said
        self.assertEqual(said, ["XYZ", 9])


class Streams(unittest.TestCase):
    STATE = """
import sys
def state(stream):
    if stream is None:
        return None
    raw = getattr(stream.buffer, "raw", stream.buffer)
    def position():
        try:
            return stream.tell()
        except OSError as error:
            return str(error)
    return [
        stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.name,
        stream.mode, stream.isatty(), stream.seekable(), stream.fileno(), stream.newlines,
        repr(stream), repr(stream.buffer), repr(raw), raw._blksize, position(), stream.closed,
        stream.buffer.__sizeof__(), stream is getattr(sys, "__%s__" % stream.name[1:-1], None),
    ]
say([state(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)])
"""
    STOCK = "import os, json\ndef say(x): os.write(9, json.dumps(x).encode())\n" + STATE

    def check(
        self,
        at: "dict[int, int | None]",
        environ: "dict[str, str] | None" = None,
        flags: "tuple[str, ...]" = (),
    ) -> None:
        """A thawed interpreter's streams are those of the same interpreter, just started."""
        environ = {**CLEAN, **(environ or {})}
        thawed = run(
            self.STATE, descriptors=at, environ=environ, argv=("python3", *flags, "-c", "pass")
        )
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as file:

            def arrange() -> None:
                os.dup2(said.fileno(), 9)
                for number, descriptor in at.items():
                    if descriptor is None:
                        os.close(number)
                    else:
                        os.dup2(descriptor, number)

            subprocess.run(
                [sys.executable, *flags, "-c", self.STOCK],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environ,
                pass_fds=[9, *[number for number in at.values() if number is not None]],
                preexec_fn=arrange,
                check=True,
            )
            said.seek(0)
            import json

            # Addresses differ.
            self.assertEqual(thawed.said, json.loads(said.read()), thawed.err)

    def test_files(self) -> None:
        self.check({})

    def test_appended_files(self) -> None:
        with tempfile.NamedTemporaryFile("ab") as file:
            file.write(b"before\n")
            file.flush()
            self.check({1: file.fileno(), 2: file.fileno()})

    def test_pipes(self) -> None:
        read, write = os.pipe()
        self.check({0: read, 1: write, 2: write})

    def test_a_terminal(self) -> None:
        ours, theirs = pty.openpty()
        self.check({0: theirs, 1: theirs, 2: theirs})
        self.check({0: theirs})
        self.check({1: theirs})
        self.check({2: theirs})

    def test_closed(self) -> None:
        for closed in ((0,), (1,), (2,), (0, 1), (0, 1, 2)):
            with self.subTest(closed):
                self.check({number: None for number in closed})

    def test_unbuffered(self) -> None:
        read, write = os.pipe()
        at = {1: write}
        for flags in ("-u",), ("-Bu",), ("-Wdefault", "-X", "u", "-u"), ("-X", "-u"), ("-Xu",):
            with self.subTest(flags):
                self.check(at, flags=flags)
        for value in "1", "0", "x", "00", " 1":
            with self.subTest(value):
                self.check(at, {"PYTHONUNBUFFERED": value})

    def test_encodings(self) -> None:
        for value in "latin1", ":replace", "ascii:xmlcharrefreplace", "utf8:", "":
            with self.subTest(value):
                self.check({}, {"PYTHONIOENCODING": value})

    def test_the_objects_that_libraries_hold_are_the_same(self) -> None:
        holder = "import sys\nheld = [sys.stdin, sys.stdout, sys.stderr, sys.stdout.buffer]"
        program = """
import sys, holder
say([holder.held[0] is sys.stdin, holder.held[1] is sys.stdout, holder.held[2] is sys.stderr])
print("text", file=holder.held[1], flush=True)
holder.held[3].write(b"bytes")
"""
        result = run(program, imports=["holder"], modules={"holder": holder})
        self.assertEqual((result.said, result.out), ([True] * 3, "text\nbytes"))
        result = run(
            program, imports=["holder"], modules={"holder": holder}, argv=["python3", "-u"]
        )
        self.assertEqual((result.said, result.out), ([True] * 3, "text\nbytes"))

    def test_a_held_stream_whose_descriptor_is_closed_is_closed(self) -> None:
        holder = "import sys\nheld = sys.stdout"
        program = """
import holder, os, sys
taken = os.open("/dev/null", os.O_RDONLY)
try:
    holder.held.write("x")
except ValueError as error:
    say([taken, str(error), sys.stdout, sys.__stdout__])
"""
        said = run(
            program, imports=["holder"], modules={"holder": holder}, descriptors={1: None}
        ).said
        self.assertEqual(said, [1, "I/O operation on closed file.", None, None])

    def test_what_an_import_has_configured_stays(self) -> None:
        setter = "import sys\nsys.stdout.reconfigure(encoding='latin1', line_buffering=True)"
        program = "import sys; say([sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering]); print('\\xe9')"
        result = run(program, imports=["setter"], modules={"setter": setter})
        self.assertEqual(result.said, ["latin1", "strict", True])
        self.assertEqual(result.out, "\udce9\n")

    def test_what_an_import_has_put_there_stays(self) -> None:
        wrapper = """
import io, sys
class Upper(io.TextIOBase):
    def write(self, text):
        return sys.__stdout__.write(text.upper())
sys.stdout = Upper()
"""
        self.assertEqual(
            run("print('x')", imports=["wrapper"], modules={"wrapper": wrapper}).out, "X\n"
        )

    def test_a_directory_and_an_unknown_encoding_are_left_to_an_ordinary_interpreter(self) -> None:
        # It gets the command line that stands in argv.
        argv = [sys.executable, "-c", "print('not reached')"]
        result = run(
            "print('reached')", environ={**CLEAN, "PYTHONIOENCODING": "nonsense"}, argv=argv
        )
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertIn("unknown encoding: nonsense", result.err)
        folder = os.open("/", os.O_RDONLY)
        result = run("print('reached')", descriptors={0: folder}, argv=argv)
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertIn("<stdin> is a directory", result.err)
        os.close(folder)


class Interpreter(unittest.TestCase):
    def test_ignored_signals(self) -> None:
        ignored = sum(1 << number - 1 for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM))
        handler = "import signal\nsignal.signal(signal.SIGTERM, print)"
        program = """
import signal
say([str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)])
"""
        said = run(program, ignored=ignored, imports=["handler"], modules={"handler": handler}).said
        ignore, default = str(signal.SIG_IGN), str(signal.SIG_DFL)
        self.assertEqual(said, [ignore, ignore, "<built-in function print>", default])

    def test_python_s_own_handlers_without(self) -> None:
        said = run("import signal; say(signal.getsignal(2).__name__)").said
        self.assertEqual(said, "default_int_handler")

    def test_the_search_path(self) -> None:
        program = "import sys; say(sys.path)"
        plain = run(program).said
        folder = os.path.realpath(os.curdir)
        for before, now, wanted in (
            ("/snapshot", "", []),
            ("", "/run", ["/run"]),
            ("/snapshot:/both", "/both:/run:/both", ["/both", "/run"]),
            ("", "part:", None),
            ("/same", "/same", ["/same"]),
        ):
            with self.subTest(before=before, now=now):
                said = run(
                    program,
                    frozen_environ={"PYTHONPATH": before},
                    environ={**CLEAN, "PYTHONPATH": now},
                ).said
                if wanted is None:
                    self.assertEqual(os.path.basename(said[0]), "part")
                    self.assertEqual(os.path.dirname(said[0]), said[1])
                    self.assertEqual(said[2:], plain)
                else:
                    self.assertEqual(said, wanted + plain)
        del folder

    def test_the_path_of_an_import_stays(self) -> None:
        adder = "import sys\nsys.path.append('/added')\nsys.path.insert(0, '/first')"
        program = "import sys; say(sys.path)"
        said = run(
            program,
            imports=["adder"],
            modules={"adder": adder},
            frozen_environ={"PYTHONPATH": "/a"},
            environ={**CLEAN, "PYTHONPATH": "/b"},
        ).said
        self.assertEqual((said[:2], said[-1]), (["/first", "/b"], "/added"))

    def test_the_packages_of_another_user(self) -> None:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            folder = os.path.join("lib", "python%d.%d" % sys.version_info[:2], "site-packages")
            for home in one, two:
                os.makedirs(os.path.join(home, ".local", folder))
            program = "import sys, site; say([sys.path, site.USER_SITE, site.ENABLE_USER_SITE])"
            result = run(program, frozen_environ={"HOME": one}, environ={**CLEAN, "HOME": two})
            path, user, enabled = result.said
            if not enabled:
                self.skipTest("this interpreter has no user packages")
            self.assertEqual(user, os.path.join(two, ".local", folder))
            self.assertIn(user, path)
            self.assertFalse([entry for entry in path if entry.startswith(one)])

    def test_the_packages_of_a_user_who_has_none(self) -> None:
        program = "import site, sysconfig, sys; say([site.USER_BASE, site.USER_SITE, sysconfig.get_config_var('userbase'), sys.path])"
        options: "dict[str, object]" = {"imports": ["sysconfig", "filled"], "flags": ["-s"]}
        options["modules"] = {"filled": "import sysconfig; sysconfig.get_config_vars()"}
        options["frozen_environ"] = {"HOME": "/one"}
        here, there = (
            run(program, environ={**CLEAN, "HOME": home}, **options).said for home in ("/one", "/two")
        )
        self.assertEqual(there[:3], [path.replace("/one/", "/two/") for path in here[:3]])
        self.assertEqual(there[0], "/two/.local")
        self.assertEqual(there[3], here[3])

    def test_sys_argv_is_the_list_that_libraries_hold(self) -> None:
        program = "import sys, holder; say([sys.argv, holder.argv is sys.argv])"
        said = run(program, imports=["holder"], modules={"holder": "from sys import argv"}).said
        self.assertEqual(said, [["-c"], True])

    def test_options_of_the_start(self) -> None:
        program = "import faulthandler, tracemalloc, sys; say([faulthandler.is_enabled(), tracemalloc.get_traceback_limit() if tracemalloc.is_tracing() else 0, sys.get_int_max_str_digits() if hasattr(sys, 'get_int_max_str_digits') else 5000])"
        self.assertEqual(run(program).said[:2], [False, 0])
        said = run(
            program,
            xoptions={"faulthandler": True, "tracemalloc": "7", "int_max_str_digits": "5000"},
        ).said
        self.assertEqual(said, [True, 7, 5000])
        environ = {
            **CLEAN,
            "PYTHONFAULTHANDLER": "x",
            "PYTHONTRACEMALLOC": "3",
            "PYTHONINTMAXSTRDIGITS": "5000",
        }
        self.assertEqual(run(program, environ=environ).said, [True, 3, 5000])
        said = run(program, environ=environ, flags=["-E"]).said
        self.assertEqual(said[:2], [False, 0])

    def test_memories(self) -> None:
        program = """
import logging, platform, tempfile, threading, uuid
print_ = [threading.main_thread().native_id == threading.get_native_id(), logging._startTime > before.then]
print_ += [platform._uname_cache, tempfile.gettempdir()]
say(print_)
"""
        before = "import logging, platform, tempfile, threading, uuid\nthen = logging._startTime\nplatform.uname(); tempfile.gettempdir()"
        with tempfile.TemporaryDirectory() as folder:
            said = run(
                "import before\n" + program,
                imports=["before"],
                modules={"before": before},
                environ={**CLEAN, "TMPDIR": folder},
            ).said
            self.assertEqual(said, [True, True, None, folder])

    def test_a_source_file_that_has_changed_shows_its_new_lines(self) -> None:
        reader = "import linecache\nlinecache.getlines(__file__)\nlinecache.cache['<made>'] = (1, None, ['x'], '<made>')"
        said = run(
            "import linecache; say(sorted(linecache.cache))",
            imports=["reader"],
            modules={"reader": reader},
        ).said
        self.assertEqual([name for name in said if name.endswith(".py")], [])
        self.assertIn("<made>", said)


class WarningFilters(unittest.TestCase):
    PROGRAM = (
        "import _warnings; say([[str(part) for part in entry] for entry in _warnings.filters])"
    )

    def stock(
        self, *flags: str, code: str = "", environ: "dict[str, str] | None" = None
    ) -> "list[list[str]]":
        program = f"def say(x): print(x)\n{code}\n{self.PROGRAM}"
        process = subprocess.run(
            [sys.executable, *flags, "-c", program],
            env={**CLEAN, **(environ or {})},
            capture_output=True,
            text=True,
            check=True,
        )
        return eval(process.stdout)

    def test_options(self) -> None:
        for options in (
            ["error"],
            ["default", "ignore::DeprecationWarning"],
            ["ignore:text:UserWarning:mod:5"],
        ):
            flags = [f"-W{option}" for option in options]
            self.assertEqual(run(self.PROGRAM, warnoptions=options).said, self.stock(*flags))

    def test_they_stand_behind_those_of_the_imports(self) -> None:
        code = "import warnings\nwarnings.simplefilter('ignore', ImportWarning)\nwarnings.filterwarnings('once', 'text')\nwarnings.simplefilter('always', append=True)"
        for options in ([], ["error"], ["ignore", "once::ImportWarning"]):
            flags = [f"-W{option}" for option in options]
            said = run(
                self.PROGRAM, warnoptions=options, imports=["setter"], modules={"setter": code}
            ).said
            self.assertEqual(said, self.stock(*flags, code=code), options)

    def test_those_of_the_image_go(self) -> None:
        said = run(self.PROGRAM, flags=["-Werror"], warnoptions=["once"]).said
        self.assertEqual(said, self.stock("-Wonce"))
        said = run(self.PROGRAM, flags=["-Werror"], warnoptions=[]).said
        self.assertEqual(said, self.stock())

    def test_a_bad_option_is_complained_of(self) -> None:
        result = run("pass", warnoptions=["bad::"], imports=["warnings"])
        self.assertIn("Invalid -W option ignored: invalid action: 'bad'", result.err)


class Locales(unittest.TestCase):
    PROGRAM = "import sys, os, locale; say([sys.stdout.encoding, sys.stdout.errors, locale.setlocale(locale.LC_CTYPE), os.environ.get('LC_CTYPE')])"

    def test_the_c_locale_is_coerced(self) -> None:
        for frozen in {}, {"LANG": "C"}, {"LANG": ""}:
            said = run(self.PROGRAM, frozen_environ=frozen, environ={"PATH": CLEAN["PATH"]}).said
            self.assertEqual(said, ["utf-8", "surrogateescape", "C.UTF-8", "C.UTF-8"])

    def test_a_coerced_image_is_not_for_all(self) -> None:
        said = run(
            self.PROGRAM, frozen_environ={"LANG": "C"}, environ={**CLEAN, "LC_ALL": "C.UTF-8"}
        ).said
        self.assertEqual(said, ["utf-8", "surrogateescape", "C.UTF-8", None])

    def test_coercion_warns_if_asked(self) -> None:
        environ = {"PATH": CLEAN["PATH"], "PYTHONCOERCECLOCALE": "warn"}
        for frozen in {}, {"LANG": "C", "PYTHONCOERCECLOCALE": "warn"}:
            result = run("pass", frozen_environ=frozen, environ=environ)
            self.assertIn("LC_CTYPE coerced to C.UTF-8", result.err)


class Pools(unittest.TestCase):
    # As PyTorch has it on a machine whose four processors are two cores.
    TORCH = """
import os
threads = 2
def get_num_threads(): return threads
def set_num_threads(number):
    global threads
    threads = number
initial_seed = int
default_generator = type("Generator", (), {"seed": lambda self: None})()
frozen = os.getpid()
os.sched_getaffinity = lambda process: range(4 if os.getpid() == frozen else processors)
"""

    def threads(self, processors: int, code: str = "import torch", **environ: str) -> object:
        image = freeze(
            "import torch; say(torch.threads)",
            imports=["user"],
            modules={"torch": f"{self.TORCH}processors = {processors}\n", "user": code},
            frozen_environ=environ,
        )
        return image.only().said

    def test_pytorch_has_what_this_process_may_use(self) -> None:
        for processors, wanted in ((4, 2), (2, 1), (1, 1), (8, 4)):
            self.assertEqual(self.threads(processors), wanted, processors)

    def test_but_what_was_chosen_stays(self) -> None:
        self.assertEqual(self.threads(1, "import torch\ntorch.set_num_threads(3)"), 3)
        self.assertEqual(self.threads(1, OMP_NUM_THREADS="2"), 2)


class Threads(unittest.TestCase):
    PROGRAM = """
import sys, threading, time
agent = type(sys)("agent")
with open(sys.argv[1]) as file:
    exec(compile(file.read(), "<agent>", "exec", dont_inherit=True), agent.__dict__)
thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
thread.start()
wanted = thread.native_id, threading.get_native_id()
memories = agent.Memories()
memories.settle()
thread._native_id = threading.main_thread()._native_id = 0
memories.thaw(None)
assert wanted == (thread.native_id, threading.main_thread().native_id)
"""

    def test_the_ids_of_threads_are_read_from_c(self) -> None:
        # A fork would have no other thread.
        subprocess.run([sys.executable, "-c", self.PROGRAM, AGENT], check=True)


if __name__ == "__main__":
    unittest.main()
