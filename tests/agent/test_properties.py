"""What an import changes of its own process is the script's too, or refused."""

import os
import resource
import unittest

from restored import Image, freeze, run


class Properties(unittest.TestCase):
    def changed(self, code: str, **options: object) -> list[tuple[str, str]]:
        """What is refused of an import that does this, between two others."""
        # The last one is found wherever and whoever the process is.
        imports, modules = ["colorsys", "changer", "errno"], {"changer": code}
        image: Image = freeze("pass", imports=imports, modules=modules, **options)  # type: ignore[arg-type]
        refused = [event for event in image.events if event["event"] == "refused"]
        self.assertEqual(image.kinds[-1], "refused" if refused else "ready", image.events)
        return [(event["what"], event["owner"]) for event in refused]

    def check(self, code: str, *what: str) -> None:
        with self.subTest(code):
            owned = [(f"a change of {one}", "import changer") for one in what]
            found = self.changed(code)
            self.assertEqual([one for one in found if one in owned], owned, found)

    def test_what_anyone_can_change(self) -> None:
        prctl = "import ctypes\nctypes.CDLL(None).prctl"
        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        other = 4096 if hard == resource.RLIM_INFINITY or hard > 4096 else 0
        other = other if other != soft else other + 1
        limit = f"import resource\nresource.setrlimit(resource.RLIMIT_CORE, ({other}, {hard}))"
        for code, what in (
            (f"{prctl}(38, 1, 0, 0, 0)", "no_new_privs"),
            ("import os\nos.chdir('/')", "the working directory"),
            ("import os\nos.setsid()", "the session"),
            ("import os\nos.setpgid(0, 0)", "the process group"),
            ("import os\nos.nice(3)", "the nice value"),
            (
                "import os\nos.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
                "the scheduling policy",
            ),
            ("open('/proc/self/oom_score_adj', 'w').write('77')", "oom_score_adj"),
            ("open('/proc/self/coredump_filter', 'w').write('0')", "coredump_filter"),
            (limit, "the limit 'Max core file size'"),
        ):
            self.check(code, what)

    @unittest.skipIf(len(os.sched_getaffinity(0)) < 2, "needs two processors")
    def test_processors(self) -> None:
        code = "import os\nos.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])"
        self.check(code, "the processors that may be used")

    @unittest.skipIf(os.getuid(), "needs root")
    def test_what_root_can_change(self) -> None:
        libc = "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        for code, *what in (
            (
                "import os\nos.setgroups([5])\nos.setresgid(7, 7, 7)\nos.setresuid(8, 8, 8)",
                "the capabilities",
                "the user or the groups",
            ),
            ("import os\nos.setegid(7)", "the user or the groups"),
            (f"{libc}libc.prctl(24, 5, 0, 0, 0)", "the capabilities"),
            (f"{libc}libc.unshare(0x4000000)", "the uts namespace"),
            ("import os\nos.chroot('.')", "the root directory"),
        ):
            self.check(code, *what)

    def test_a_thread_that_leaves_its_rights(self) -> None:
        code = """
import ctypes, threading
done = threading.Event()
def work():
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    done.set()
    threading.Event().wait()
threading.Thread(target=work, daemon=True).start()
done.wait()
"""
        self.check(code, "no_new_privs")

    def test_what_is_put_back_is_no_change(self) -> None:
        code = "import os\nos.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"
        back = "import os\nos.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))"
        image = freeze(
            imports=["changer"], execute=["back.py"], modules={"changer": code, "back": back}
        )
        self.assertEqual(image.kinds[-1], "ready", image.events)

    def test_lenience_is_not_for_these(self) -> None:
        code = "import ctypes\nctypes.CDLL(None).prctl(38, 1, 0, 0, 0)"
        self.assertEqual(
            self.changed(code, lenient=True), [("a change of no_new_privs", "import changer")]
        )

    def test_what_prctl_tells(self) -> None:
        code = "import prctl_\nprctl_.numbers[66] = 1"
        told = "import sys\nnumbers = {}\nsys.modules['prctl_'] = sys.modules[__name__]"
        modules = {"told": told, "changer": code}
        image = freeze(imports=["told", "changer"], modules=modules)
        refused = [(event.get("what"), event.get("owner")) for event in image.events[-1:]]
        self.assertEqual(refused, [("a change of PR_SET_MDWE", "import changer")])

    def test_umask_and_name_are_the_scripts(self) -> None:
        say = "import os; say([os.umask(0), open('/proc/self/comm').read()])"
        code = "import os\nos.umask(0o%o)\nopen('/proc/self/comm', 'w').write('changed')"
        for umask in (0o77, 0o27):
            said = run(say, imports=["changer"], modules={"changer": code % umask}).said
            self.assertEqual(said, [umask, "changed\n"])
        said = run(say, imports=["changer"], modules={"changer": ""}).said
        self.assertEqual(said, [0o26, "caller\n"])

    def test_another_start_has_the_callers_umask(self) -> None:
        code = "import os, preloaded_criu\nos.umask(0o77)\nos.execve = lambda *_: os._exit(os.umask(0))\n"
        code += "preloaded_criu.after_restore(lambda: preloaded_criu.start_over('it is a test'))"
        result = run("pass", imports=["changer"], modules={"changer": code})
        self.assertEqual(result.status, 0o26, result.err)


if __name__ == "__main__":
    unittest.main()
