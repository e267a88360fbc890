"""What is reported while an image is made, and what is left of the agent."""

import os
import subprocess
import sys
import unittest

from restored import FACTS, freeze, run


class Report(unittest.TestCase):
    def test_events_come_in_order(self) -> None:
        image = freeze(imports=["colorsys", "this_one"], modules={"this_one": "value = 1"})
        self.assertEqual(image.kinds, ["importing", "imported", "importing", "imported", "ready"])
        self.assertEqual([event.get("module") for event in image.events[:2]], ["colorsys"] * 2)
        self.assertGreater(image.events[1]["seconds"], 0)

    def test_ready_describes_the_interpreter(self) -> None:
        ready = freeze(imports=["colorsys"]).events[-1]
        self.assertEqual(ready["thaw"], FACTS["thaw"])
        self.assertEqual(ready["resident"], FACTS["resident"])
        self.assertEqual(ready["python"]["version"], "%d.%d.%d" % sys.version_info[:3])
        self.assertEqual(ready["python"]["flags"]["optimize"], 0)
        self.assertTrue(ready["modules"]["colorsys"].endswith("colorsys.py"))
        self.assertIsNone(ready["modules"]["sys"])

    def test_a_module_that_an_import_has_written_has_no_file(self) -> None:
        writer = "open('written.py', 'w').close(); import written, old"
        image = freeze(imports=["writer"], modules={"writer": writer, "old": ""})
        modules = image.events[-1]["modules"]
        self.assertEqual((modules["written"], modules["old"] is None), (None, False))

    def test_versions_are_those_that_modules_tell(self) -> None:
        modules = {"told": "__version__ = '1.5'", "lazy": "def __getattr__(name): 1 / 0"}
        ready = freeze(imports=["told", "lazy"], modules=modules).events[-1]
        self.assertEqual(ready["versions"]["told"], "1.5")

    def test_a_failing_import_shows_its_own_traceback(self) -> None:
        modules = {"broken": "import random\ndef f():\n    1 / 0\nf()"}
        image = freeze("pass", imports=["broken"], modules=modules)
        self.assertEqual((image.status, image.kinds, image.runs), (1, ["importing", "failed"], []))
        failure = image.events[-1]
        self.assertEqual(failure["what"], "import broken")
        self.assertIn("ZeroDivisionError", failure["traceback"])
        self.assertIn("in f", failure["traceback"])
        self.assertNotIn("agent", failure["traceback"])

    def test_an_import_that_exits_fails(self) -> None:
        image = freeze(imports=["leaver"], modules={"leaver": "raise SystemExit(3)"})
        self.assertEqual((image.status, image.kinds[-1]), (1, "failed"))

    def test_a_file_runs_as_a_program(self) -> None:
        seen = "import sys, helper\nhelper.seen = [__name__, __file__, sys.argv, sys.path[0]]"
        image = freeze(
            "import helper, sys, __main__; say([helper.seen, __main__.__name__, '' in sys.path])",
            execute=["warm.py"],
            modules={"warm": seen, "helper": ""},
        )
        self.assertEqual(image.kinds, ["exec", "ready"])
        seen, name, current = image.only().said
        self.assertEqual(seen[:3], ["__main__", "warm.py", ["warm.py"]])
        self.assertTrue(os.path.isabs(seen[3]))
        self.assertEqual((name, current), ("__main__", False))

    def test_a_file_may_end_with_exit(self) -> None:
        for code, kind in (
            ("sys.exit()", "ready"),
            ("sys.exit(0)", "ready"),
            ("sys.exit(1)", "failed"),
        ):
            image = freeze(execute=["warm.py"], modules={"warm": f"import sys; {code}"})
            self.assertEqual(image.kinds, ["exec", kind], code)

    def test_a_socket_is_refused_with_its_owner(self) -> None:
        modules = {"opener": "import socket\nkept = socket.socket()", "other": ""}
        image = freeze("pass", imports=["opener", "other"], modules=modules)
        self.assertEqual((image.status, image.kinds[-1], image.runs), (1, "refused", []))
        self.assertIn("an open socket", image.events[-1]["what"])
        self.assertEqual(image.events[-1]["owner"], "import opener")

    def test_a_child_is_refused_with_its_owner(self) -> None:
        start = "import subprocess\nkept = subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3)"
        image = freeze(imports=["colorsys"], execute=["warm.py"], modules={"warm": start})
        self.assertEqual(image.kinds[-1], "refused")
        what = image.events[-1]["what"]
        self.assertRegex(what, r"a child process: sleep \(process \d+\)")
        self.assertEqual(image.events[-1]["owner"], "exec warm.py")
        subprocess.run(["kill", what.split()[-1].rstrip(")")], check=True)

    def test_open_files_are_told_with_their_owner(self) -> None:
        modules = {"opener": "kept = open(__file__)"}
        ready = freeze(imports=["opener"], modules=modules).events[-1]
        owners = {
            entry["target"].rpartition("/")[2]: entry["owner"] for entry in ready["descriptors"]
        }
        self.assertEqual(owners["opener.py"], "import opener")


class Traces(unittest.TestCase):
    STATE = """
import sys
modules = list(sys.modules)
finders = [type(finder).__name__ for finder in sys.meta_path]
import gc
say([modules, finders, sys.path, gc.isenabled(), gc.get_threshold(), gc.callbacks])
"""

    def test_no_module_finder_or_path_is_left(self) -> None:
        stock = subprocess.run(
            [sys.executable, "-c", "import os\ndef say(x): print(x)\n" + self.STATE],
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=True,
        )
        modules, finders, path, *garbage = run(self.STATE).said
        wanted = eval(stock.stdout)
        self.assertEqual(modules, wanted[0])
        self.assertEqual(finders, wanted[1])
        self.assertEqual(path, [entry for entry in wanted[2] if entry])
        self.assertEqual(garbage[:1] + garbage[2:], wanted[3:4] + wanted[5:])

    def test_loaders_are_the_real_ones(self) -> None:
        program = "import random; say([type(x).__name__ for x in (random.__loader__, random.__spec__.loader, random.seed)])"
        self.assertEqual(
            run(program, imports=["random"]).said,
            ["SourceFileLoader", "SourceFileLoader", "method"],
        )

    def test_looking_for_a_module_does_not_use_it_up(self) -> None:
        looker = "import importlib.util\nspec = importlib.util.find_spec('random')\nassert spec.loader.get_source('random')\nimport random\nrandom.seed(1)"
        first, second = (
            freeze(
                *["import random; say(random.random())"] * 2,
                imports=["looker"],
                modules={"looker": looker},
            )
        ).runs
        self.assertEqual(first.said, second.said)

    def test_the_dictionary_of_main_is_collected(self) -> None:
        program = "import gc; say([gc.is_tracked(globals()), any(x is globals() for x in gc.get_objects())])"
        self.assertEqual(run(program).said, [True, True])
