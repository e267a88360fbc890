"""What a program can do about being frozen."""

import unittest

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


if __name__ == "__main__":
    unittest.main()
