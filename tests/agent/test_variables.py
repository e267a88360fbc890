"""Which environment variables the imports have read."""

import unittest
from typing import Any

from restored import freeze


def told(code: str, **environ: str) -> dict[str, Any]:
    """The last event of a snapshot that imports a module of this code."""
    image = freeze("pass", imports=["reader"], modules={"reader": code}, frozen_environ=environ)
    ready = image.events[-1]
    assert ready["event"] == "ready", ready
    return ready


class Read(unittest.TestCase):
    def test_by_every_way(self) -> None:
        for code in (
            "import os; os.environ['FOO']",
            "import os; os.environb[b'FOO']",
            "from os import environ; environ.get('FOO')",
            "import os; os.getenv('FOO')",
            "import os; 'FOO' in os.environ",
            "import os; os.environ.setdefault('FOO', 'x')",
            "import os; os.environ.pop('FOO', None)",
            "import os; os.path.expandvars('$FOO')",
            "import os; copy = os.environ.copy(); os.environ['FOO']",
        ):
            with self.subTest(code):
                self.assertIn("1", told(code, FOO="1")["variables"]["FOO"])

    def test_an_absent_one_is_read_too(self) -> None:
        variables = told("import os; os.environ.get('FOO'); os.getenv('BAR')")["variables"]
        self.assertEqual((variables["FOO"], variables["BAR"]), ([None], [None]))

    def test_bytes_are_characters(self) -> None:
        ready = told(r"import os; os.environb[b'\xff']", **{"\udcff": "\udcfe"})
        self.assertEqual(ready["variables"]["\xff"], ["\xfe"])

    def test_what_the_import_leaves_is_as_good(self) -> None:
        code = "import os; os.environ.setdefault('FOO', 'x'); os.environ['BAR'] += 'y'"
        variables = told(code, BAR="x")["variables"]
        self.assertCountEqual(variables["FOO"], [None, "x"])
        self.assertCountEqual(variables["BAR"], ["x", "xy"])


class NotRead(unittest.TestCase):
    def test_by_looking_at_all_or_writing(self) -> None:
        for code in (
            "pass",
            "import os; os.environ.copy(); dict(os.environ); str(os.environ)",
            "import os; [item for item in os.environ.items()]; list(os.environ.values())",
            "import os; os.environ['FOO'] = '2'; os.environ['FOO']",
            "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])",
            "import tempfile, sysconfig; tempfile.gettempdir(); sysconfig.get_config_vars()",
        ):
            with self.subTest(code):
                variables = told(code, FOO="1", TMPDIR="/tmp", HOME="/")["variables"]
                self.assertEqual({"FOO", "TMPDIR", "HOME", "PATH"} & variables.keys(), set())

    def test_but_by_a_search_for_a_family(self) -> None:
        code = "import os; [value for name, value in os.environ.items()]"
        ready = told(code, READER_A="1", READ="2")
        self.assertIn("READER_", ready["families"])
        self.assertEqual(ready["variables"].get("READER_A"), ["1"])
        self.assertNotIn("READ", ready["variables"])


class Environ(unittest.TestCase):
    def test_is_itself_again(self) -> None:
        program = "import os, posix; say([type(os.environ._data) is dict, len(os.environ)])"
        image = freeze(program, imports=["reader"], modules={"reader": "import os; str(os.environ)"})
        self.assertEqual(image.only().said, [True, 2])

    def test_a_miss_is_told_as_ever(self) -> None:
        image = freeze(imports=["reader"], modules={"reader": "import os; os.environ['FOO']"})
        trace = image.events[-1]["traceback"]
        self.assertTrue(trace.endswith("KeyError: 'FOO'\n"), trace)
        self.assertNotIn("agent", trace)


if __name__ == "__main__":
    unittest.main()
