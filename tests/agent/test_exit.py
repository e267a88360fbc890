"""What a program does in the end is done, and no more."""

import os
import tempfile
import unittest

from restored import freeze, run


class Exit(unittest.TestCase):
    HELD = """
import sys
class Loud:
    def __del__(self):
        sys.__stdout__.write("torn down\\n")
loud = Loud()
"""

    def test_frozen_modules_are_left_alone(self) -> None:
        modules = {"held": self.HELD}
        self.assertEqual(run("print('x')", imports=["held"], modules=modules).out, "x\n")
        result = run("print('x')", imports=["held"], modules=modules, options=1)
        self.assertEqual(result.out, "x\ntorn down\n")

    def test_the_program_s_modules_are_torn_down(self) -> None:
        program = "import sys; sys.path.insert(0, frozen.folder); import held; print(len(sys.modules) > 10)"
        result = run(
            "import frozen\n" + program,
            imports=["frozen"],
            modules={"frozen": "import os\nfolder = os.getcwd()", "held": self.HELD},
        )
        self.assertEqual((result.out, result.err), ("True\ntorn down\n", ""))

    def test_order(self) -> None:
        program = """
import atexit, sys, weakref
class Loud:
    def __init__(self, name): self.name = name
    def __del__(self): print(self.name, sys is not None)
def generator():
    try: yield
    finally: print("generator")
one, cycle = Loud("one"), [Loud("cycle")]
cycle.append(cycle)
suspended = generator(); next(suspended)
weakref.finalize(one, print, "finalize")
atexit.register(print, "atexit")
print("end")
"""
        frozen = "import atexit\natexit.register(print, 'atexit of the image')"
        lines = run(program, imports=["frozen"], modules={"frozen": frozen}).out.splitlines()
        self.assertEqual(lines[:4], ["end", "atexit", "finalize", "atexit of the image"])
        self.assertEqual(sorted(lines[4:]), ["cycle True", "generator", "one True"])

    def test_nothing_is_asked_of_what_the_program_has_made(self) -> None:
        # What finalization does not do, leaving must not do either.
        program = """
import sys, weakref
class Loud:
    def __del__(self): print("gone")
class Shared: pass
def asked(*_): print("asked")
class Meta(type):
    def __eq__(self, other): asked()
    __hash__ = None
    def __getattribute__(self, name): asked()
class Odd(metaclass=Meta): pass
class Lazy(type(sys)):
    def __getattribute__(self, name): asked()
class Posing:
    __class__ = property(asked)
loud, odd, lazy, posing = Loud(), Odd(), Lazy("lazy"), Posing()
kept = weakref.proxy(Shared())
print("end")
"""
        result = run(program)
        self.assertEqual((result.out, result.err), ("end\ngone\n", ""))

    def test_no_data_is_lost(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "file")
            run(
                f"import colorsys; colorsys.file = open({path!r}, 'w'); colorsys.file.write('text')",
                imports=["colorsys"],
            )
            with open(path) as file:
                self.assertEqual(file.read(), "text")

    def test_a_held_stream_is_flushed_after_the_last_word(self) -> None:
        program = "class Loud:\n    def __del__(self): print('last')\nloud = Loud()"
        for argv in ["python3"], ["python3", "-u"]:
            result = run(
                program,
                imports=["held"],
                modules={"held": "import sys\nheld = sys.stdout"},
                argv=argv,
            )
            self.assertEqual(result.out, "last\n")

    def test_status(self) -> None:
        with open("/dev/full", "w") as full:
            at = {1: full.fileno()}
            self.assertEqual(run("print('x')", descriptors=at).status, 120)
            self.assertEqual(run("print('x'); raise SystemExit(3)", descriptors=at).status, 120)
        self.assertEqual(run("raise SystemExit(3)").status, 3)
        self.assertEqual(run("1 / 0").status, 1)
        result = run("import sys; sys.stdout.close()")
        self.assertEqual((result.status, result.err), (0, ""))
        result = run("import sys; del sys.stdout")
        self.assertEqual((result.status, result.err), (0, ""))

    def test_modules_that_the_program_has_moved_about(self) -> None:
        program = """
import sys
{}
class Loud:
    def __del__(self): print("last")
loud = Loud()
"""
        for change in (
            "sys.modules.pop('colorsys')",
            "sys.modules['colorsys'] = sys.modules.pop('colorsys')",
            "sys.modules.pop('colorsys'); import colorsys",
            "kept = dict(sys.modules); sys.modules.clear(); sys.modules.update(kept)",
            "sys.modules = {}",
            "sys.modules['x'] = 5; sys.modules['colorsys'] = None",
        ):
            with self.subTest(change):
                result = run(program.format(change), imports=["colorsys"])
                self.assertEqual((result.status, result.out, result.err), (0, "last\n", ""))

    def test_threads(self) -> None:
        program = """
import threading, time
def late(): time.sleep(0.2); print("thread")
threading.Thread(target=late).start()
def forever():
    while True:
        time.sleep(0)
        import colorsys
threading.Thread(target=forever, daemon=True).start()
print("main")
"""
        result = run(program, imports=["colorsys"])
        self.assertEqual((result.status, result.out, result.err), (0, "main\nthread\n", ""))

    def test_a_child_of_the_program(self) -> None:
        program = """
import os, sys
child = os.fork()
if child:
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    print("child")
    sys.exit(5)
"""
        self.assertEqual(run(program, imports=["colorsys"]).out, "child\nstatus 5\n")

    def test_many_processes_of_one_image(self) -> None:
        image = freeze(*["import os; say(os.getpid())"] * 5)
        self.assertEqual(len({result.said for result in image.runs}), 5)
        self.assertEqual({result.status for result in image.runs}, {0})


if __name__ == "__main__":
    unittest.main()
