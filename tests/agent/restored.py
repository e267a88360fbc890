"""Runs programs in interpreters that the agent has frozen and thawed, without freezing anything:
a forked copy of the prepared interpreter stands for the restored process."""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

AGENT = Path(__file__).parents[2] / "src" / "agent" / "agent.py"
FACTS = {"thaw": 4096, "resident": [8192, 12288]}

# What the resident does around the agent. Only modules that every interpreter has at its start, and
# in a namespace of its own: nothing but the program is in __main__.
DRIVER = """
import marshal, os, posix, sys

sys.path.remove("")
with open(int(sys.argv[1]), "rb") as file:
    control = marshal.loads(file.read())
agent = type(sys)("_preloaded_criu")
exec(compile(control["agent"], "<agent>", "exec", dont_inherit=True), agent.__dict__)
names = control.pop("names from c")
resident = {"variables": lambda: names, "wipe": len, "wipe_given": len}
resident["sqlite"] = (lambda path: b"", lambda: None)
# What an import would have set by prctl(2), for it to say.
told = lambda: getattr(sys.modules.get("prctl_"), "numbers", {})
prctl = lambda options: b"".join(told().get(one, 0).to_bytes(8, "little") for one in options)
agent.prepare(control["job"], control["report"], {**control["facts"], **resident, "prctl": prctl})
random = sys.modules.get("random")
state = random and random.getstate()
for run in control["runs"]:
    child = os.fork()
    if not child:
        break
    os.write(control["statuses"], b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    os._exit(0)
# A fork has a hook that seeds it.
random and random.setstate(state)
for number, descriptor in enumerate(run["descriptors"]):
    if descriptor is None:
        os.close(number)
    else:
        os.dup2(descriptor, number)
for name in list(os.environ):
    posix.unsetenv(os.fsencode(name))
for entry in run["environ"].split(b"\\0"):
    name, equals, value = entry.partition(b"=")
    if equals and name:
        posix.putenv(name, value)
# The caller's own.
os.umask(0o26)
with open("/proc/self/comm", "w") as file:
    file.write("caller")
sys.argv, sys.warnoptions, sys._xoptions = run["sys.argv"], run["warnoptions"], run["xoptions"]
agent.thaw(run["environ"], run["argv"], run["ignored"], run["options"])
code = compile(run["program"], "<program>", "exec", dont_inherit=True)
"""
MAIN = f"names = {{}}; exec({DRIVER!r}, names); exec(names.pop('code')); "


class Restored(NamedTuple):
    """What came of one restored process."""

    status: int
    out: str
    err: str
    said: Any
    """What the program has written to descriptor 9, as JSON."""


class Image(NamedTuple):
    """What came of preparing, and of the processes that were restored from it."""

    status: int
    events: list[dict[str, Any]]
    runs: list[Restored]

    @property
    def kinds(self) -> list[str]:
        return [event["event"] for event in self.events]

    def only(self) -> Restored:
        if len(self.runs) != 1:
            raise AssertionError(f"{self.status} {self.events}")
        return self.runs[0]


SAY = """
import os as _os
def say(thing):
    import json
    _os.write(9, json.dumps(thing).encode())
"""


def freeze(
    *programs: str,
    imports: Sequence[str] = (),
    execute: Sequence[str] = (),
    modules: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    frozen_environ: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | bytes | None = None,
    argv: Sequence[str] = ("python3",),
    warnoptions: Sequence[str] = (),
    xoptions: Mapping[str, Any] | None = None,
    descriptors: Mapping[int, int | None] | None = None,
    ignored: int = 0,
    options: int = 0,
    preload: str | None = None,
    names_from_c: bytes = b"",
    lenient: bool = False,
) -> Image:
    """Prepares once, and runs each program in a process of its own. ``modules`` are written to
    the current directory of the image, importable from there. ``descriptors`` are what the runs
    find at 0, 1 and 2, if not an empty file and two that are read afterwards."""
    clean = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    environ = clean if environ is None else environ
    block = environ if isinstance(environ, bytes) else _block(environ)
    with ExitStack() as files:
        folder = files.enter_context(tempfile.TemporaryDirectory())
        for name, source in (modules or {}).items():
            Path(folder, f"{name}.py").write_text(source)
        runs: list[dict[str, Any]] = []
        outputs = []

        def temporary() -> Any:
            return files.enter_context(tempfile.TemporaryFile())

        nothing = files.enter_context(open(os.devnull))
        for program in programs:
            out, err, said = temporary(), temporary(), temporary()
            outputs.append((out, err, said))
            at = {0: nothing.fileno(), 1: out.fileno(), 2: err.fileno()}
            at.update(descriptors or {})
            runs.append(
                {
                    "program": f"__import__('os').dup2({said.fileno()}, 9)\n{SAY}\n{program}",
                    "descriptors": [at[number] for number in range(3)],
                    "environ": block,
                    "argv": [os.fsencode(argument) for argument in argv],
                    "sys.argv": ["-c"],
                    "warnoptions": list(warnoptions),
                    "xoptions": dict(xoptions or {}),
                    "ignored": ignored,
                    "options": options,
                }
            )
        report, statuses, control = temporary(), temporary(), temporary()
        # The agent closes its own.
        report_fd = os.dup(report.fileno())
        job = {
            "agent": "",
            "imports": list(imports),
            "exec": list(execute),
            "argv0": "python3",
            "preload": preload,
            "lenient": lenient,
        }
        control.write(
            marshal.dumps(
                {
                    "agent": AGENT.read_bytes(),
                    "job": json.dumps(job).encode(),
                    "facts": FACTS,
                    "names from c": names_from_c,
                    "report": report_fd,
                    "statuses": statuses.fileno(),
                    "runs": runs,
                }
            )
        )
        control.seek(0)
        inherited = [number for run in runs for number in run["descriptors"] if number is not None]
        inherited += [said.fileno() for _, _, said in outputs]
        inherited += [report_fd, statuses.fileno(), control.fileno()]
        process = subprocess.run(
            [sys.executable, *flags, "-c", MAIN, str(control.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**clean, **(frozen_environ or {})},
            cwd=folder,
            pass_fds=inherited,
            check=False,
        )
        os.close(report_fd)
        events = [json.loads(line) for line in _content(report).splitlines()]
        if not events:
            raise AssertionError(process.stdout.decode())
        results = [
            Restored(
                int(status), _content(out), _content(err), json.loads(_content(said) or "null")
            )
            for status, (out, err, said) in zip(_content(statuses).split(), outputs)
        ]
        return Image(process.returncode, events, results)


def run(program: str, **options: Any) -> Restored:
    """One program in one restored process."""
    return freeze(program, **options).only()


def _block(environ: Mapping[str, str]) -> bytes:
    return b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environ.items())


def _content(file: Any) -> str:
    file.seek(0)
    text: str = file.read().decode(errors="surrogateescape")
    return text
