"""What a program can do about being frozen."""

import os
import sys
import unittest
from typing import Any

from restored import freeze, run

HOOKED = """
import preloaded_criu
steps = []
assert not preloaded_criu.is_restored() and preloaded_criu.image() is None
for number in (1, 2):
    preloaded_criu.before_snapshot(lambda number=number: steps.append(f"before {number}"))
    preloaded_criu.after_restore(lambda number=number: steps.append(f"after {number}"))

@preloaded_criu.after_restore
def last():
    steps.append(preloaded_criu.is_restored())
"""

REGISTRY = """
before, after = [], []
def register_before_snapshot(function, *arguments, **options):
    before.append((function, arguments, options))
def register_after_restore(function, *arguments, **options):
    after.append((function, arguments, options))
def get_before_snapshot():
    return before
def get_after_restore():
    return after
"""


class Hooks(unittest.TestCase):
    def test_before_in_reverse_order_and_after_in_order(self) -> None:
        result = run("import hooked; say(hooked.steps)", imports=["hooked"], modules={"hooked": HOOKED})
        self.assertEqual(result.said, ["before 2", "before 1", "after 1", "after 2", True])

    def test_the_module_is_there_only_for_who_asks(self) -> None:
        program = """
import sys
before = [name for name in sys.modules if "criu" in name]
import preloaded_criu
say([before, preloaded_criu.is_restored(), preloaded_criu.__spec__.name, preloaded_criu.__name__])
"""
        result = run(program, imports=["colorsys"])
        self.assertEqual(result.said, [[], True, "preloaded_criu", "preloaded_criu"])

    def test_another_registry_is_heeded(self) -> None:
        program = """
import snapshot_restore_py as registry
steps = []
for number in (1, 2):
    registry.register_before_snapshot(steps.append, f"before {number}")
    registry.register_after_restore(steps.append, f"after {number}")
"""
        modules = {"snapshot_restore_py": REGISTRY, "hooked": program}
        result = run("import hooked; say(hooked.steps)", imports=["hooked"], modules=modules)
        self.assertEqual(result.said, ["before 2", "before 1", "after 1", "after 2"])

    def test_a_failure_before_fails_the_snapshot(self) -> None:
        broken = "import preloaded_criu\n@preloaded_criu.before_snapshot\ndef f():\n    1 / 0\n"
        image = freeze("pass", imports=["broken"], modules={"broken": broken})
        self.assertEqual((image.status, image.kinds[-1]), (1, "failed"))
        self.assertEqual(image.events[-1]["what"], "before_snapshot f")
        self.assertIn("ZeroDivisionError", image.events[-1]["traceback"])
        self.assertNotIn("agent", image.events[-1]["traceback"])

    def test_a_failure_after_fails_the_run(self) -> None:
        broken = "import preloaded_criu\n@preloaded_criu.after_restore\ndef f():\n    1 / 0\n"
        result = run("print('not reached')", imports=["broken"], modules={"broken": broken})
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertIn("in f", result.err)
        self.assertIn("ZeroDivisionError", result.err)
        self.assertNotIn("agent", result.err)

    def test_only_functions_are_hooks(self) -> None:
        program = """
import preloaded_criu
try:
    preloaded_criu.after_restore(1)
except TypeError as error:
    say(str(error))
"""
        self.assertEqual(run(program).said, "'int' object is not callable")


# A library that looks for a variable, and what makes it follow.
HOMELY = """
import os
import preloaded_criu
place = os.path.join(os.path.expanduser("~"), ".homely")
calls = []

def follow():
    global place
    calls.append(os.environ.get("HOME"))
    if calls[-1] == "/refused":
        return False
    if calls[-1] == "/broken":
        raise OSError("no such\\nhome")
    place = os.path.join(os.path.expanduser("~"), ".homely")

preloaded_criu.follows("HOME", BY, follow)
preloaded_criu.after_restore(lambda: calls.append("after"))
"""
ORDINARY = [sys.executable, "-c", "print('ordinary')"]


class Following(unittest.TestCase):
    def image(self, home: str, by: object = "homely", more: str = "", **options: Any) -> Any:
        environ = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": home}
        return freeze(
            "import homely; say([homely.place, homely.calls])",
            imports=["homely", *(["other"] if more else [])],
            modules={"homely": HOMELY.replace("BY", repr(by)), "other": more},
            frozen_environ={"HOME": "/image"},
            environ={**environ, **options.pop("environ", {})},
            argv=ORDINARY,
            **options,
        )

    def variables(self, image: Any) -> "set[str]":
        ready = image.events[-1]
        self.assertEqual(ready["event"], "ready")
        return set(ready["variables"])

    def test_it_is_called_where_the_variable_differs(self) -> None:
        for home, calls in (("/image", ["after"]), ("/run", ["/run", "after"])):
            image = self.image(home)
            self.assertEqual(image.only().said, [f"{home}/.homely", calls])
            self.assertEqual(image.only().err, "")
            self.assertNotIn("HOME", self.variables(image))

    def test_who_cannot_follow_leaves_it_to_an_ordinary_interpreter(self) -> None:
        what = (
            "preloaded-criu: python starts without its image: its imports have read the environment "
            "variable HOME, which is another here, and follow cannot follow it"
        )
        silent = 8
        for home, why in (("/refused", ""), ("/broken", ": OSError: no such home")):
            result = self.image(home).only()
            self.assertEqual((result.status, result.out), (0, "ordinary\n"))
            self.assertEqual(result.err, f"{what}{why}\n")
            for options in (
                {"environ": {"PRELOADED_CRIU_QUIET": "1"}},
                {"options": silent},
            ):
                result = self.image(home, **options).only()
                self.assertEqual((result.out, result.err), ("ordinary\n", ""))

    def test_every_reader_must_follow(self) -> None:
        reader = "import os; os.environ['HOME']"
        for by, more, followed in (
            ("homely", "", True),
            ("homely", reader, False),
            (("homely", "other"), reader, True),
            ("other", reader, False),
            ("home", "", False),
            # All that there are with the name of a package.
            ("homely", "import os; __name__ = 'homely.part'; os.environ['HOME']", True),
        ):
            with self.subTest(by=by, more=more):
                image = self.image("/run", by, more)
                self.assertEqual("HOME" not in self.variables(image), followed)
                # Whether it is run there is for the launcher to say.
                self.assertEqual(image.only().said[1][0] == "/run", followed)

    def test_a_variable_that_c_code_reads(self) -> None:
        for by, followed in (("homely", False), (("homely", "getenv"), True)):
            image = self.image("/run", by, names_from_c=b"HOME\0OTHER\0")
            self.assertEqual("HOME" not in self.variables(image), followed)
            self.assertIn("OTHER", self.variables(image))

    def test_hooks_may_start_over(self) -> None:
        program = """
import preloaded_criu
try:
    preloaded_criu.start_over("too early")
except RuntimeError as error:
    early = str(error)

@preloaded_criu.after_restore
def hook():
    import os
    if "OVER" in os.environ:
        preloaded_criu.start_over("the hook says so")
"""
        late = """
import hooked, preloaded_criu
try:
    preloaded_criu.start_over("too late")
except RuntimeError as error:
    say([hooked.early, str(error)])
"""
        options: "dict[str, Any]" = {"imports": ["hooked"], "modules": {"hooked": program}}
        wanted = "it is too late, or too early, to start over"
        self.assertEqual(run(late, **options).said, [wanted, wanted])
        environ = {"PATH": os.environ["PATH"], "OVER": "1"}
        result = run(late, environ=environ, argv=ORDINARY, **options)
        self.assertEqual((result.status, result.out), (0, "ordinary\n"))
        why = "preloaded-criu: python starts without its image: the hook says so\n"
        self.assertEqual(result.err, why)

    def test_an_ordinary_interpreter_goes_by_its_name_and_ignores_what_it_would(self) -> None:
        show = "print(open('/proc/self/comm').read(), end=''); import signal; print([signal.getsignal(number) for number in (1, 10, 12, 13)])"
        program = "import signal; signal.signal(10, signal.SIG_IGN)"
        program += "; import preloaded_criu; preloaded_criu.after_restore(lambda: preloaded_criu.start_over(''))"
        result = run(
            "print('not reached')",
            imports=["hooked"],
            modules={"hooked": program},
            argv=[sys.executable, "-c", show],
            ignored=1 << 11,
        )
        name = os.path.basename(sys.executable)
        handlers = "[<Handlers.SIG_DFL: 0>, <Handlers.SIG_DFL: 0>, <Handlers.SIG_IGN: 1>, <Handlers.SIG_IGN: 1>]"
        self.assertEqual(result.out, f"{name}\n{handlers}\n")


if __name__ == "__main__":
    unittest.main()
