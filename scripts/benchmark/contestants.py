"""Who competes: each can start the subject's script, and says what came of it."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .stopwatch import Outcome, time_command, time_in_terminal
from .subjects import WORK, Image, Unavailable, Workshop, knows

Start = Callable[[], Outcome]

PYTHON = "python3 script"
RUN = "run"
SELF_CONTAINED = "run, self-contained image"
ALL_WORK = "run --eager --full-exit"
CRIU_ENGINE = "run --engine criu"
CRIU_RESTORE = "criu restore, no script"
SEED = "preloaded's fork server"
FORK = "fork in a warm process"
PASS = "python3 -c pass"
BARE = "python3 -I -S -c pass"
# These do something else than the script: only their status is looked at.
FLOORS = (CRIU_RESTORE, PASS, BARE)


@contextmanager
def field(workshop: Workshop, image: Image) -> Iterator[dict[str, Start | Unavailable]]:
    """All contestants for an image, the standard first; those that cannot compete with the reason."""
    python, environment, arguments = image.python, image.environment(), image.arguments()

    def command(*words: str | Path) -> Start:
        return lambda: time_command([str(word) for word in words], environment)

    def ours(*options: str) -> Start:
        return command(workshop.binary, "run", *options, image.path, *arguments)

    whole: Start | Unavailable = ours("--eager", "--full-exit")
    if not knows(workshop.binary, "--eager"):
        whole = Unavailable("this program has no --eager")
    entered: dict[str, Start | Unavailable] = {
        PYTHON: command(python, *arguments),
        RUN: ours(),
        ALL_WORK: whole,
        CRIU_ENGINE: ours("--engine", "criu"),
        PASS: command(python, "-c", "pass"),
        BARE: command(python, "-I", "-S", "-c", "pass"),
    }
    with ForkingProcess(image) as forking, ForkServer(workshop, image) as server:
        try:
            entered[CRIU_RESTORE] = stock_restore(workshop, image)
        except Unavailable as why:
            entered[CRIU_RESTORE] = why
        entered[FORK] = forking.start
        entered[SEED] = server.unavailable or server.start
        yield entered


def criu() -> str:
    """The program that snapshots are made with."""
    if given := os.environ.get("PRELOADED_CRIU_CRIU"):
        return given
    script = Path(__file__).resolve().parent.parent / "install-criu"
    done = subprocess.run([script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise Unavailable(done.stderr.strip())
    return done.stdout.strip()


def stock_restore(workshop: Workshop, image: Image) -> Start:
    """CRIU's own command on its own files. It gives the process its old number back, in which nobody
    gives it anything to do: it ends."""
    directory = workshop.folder / f"{image.subject.name}.criu"
    if not directory.exists():
        words = [workshop.binary, "export", image.path, directory]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(done.stderr.strip())
    words = [criu(), "restore", "-D", str(directory), "--shell-job", "-v0", "--no-default-config"]
    return lambda: time_command(words, image.environment())


class ForkingProcess:
    """A process that holds the imports and forks for each run: what no start from a file can have.

    The child ends by _exit(2), so nothing of the interpreter's own way out is in it.
    """

    _CODE = """
import base64, json, os, sys, time, types
exec({imports!r})
print(flush=True)
for _ in sys.stdin:
    reader, writer = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if not child:
        os.dup2(writer, 1)
        main = types.ModuleType("__main__")
        main.__builtins__ = __builtins__
        sys.modules["__main__"], sys.argv = main, [{script!r}]
        with open({script!r}) as file:
            exec(compile(file.read(), {script!r}, "exec"), main.__dict__)
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    output = os.read(reader, 1 << 16)
    first = time.perf_counter()
    while more := os.read(reader, 1 << 16):
        output += more
    _, status = os.waitpid(child, 0)
    end = time.perf_counter()
    os.close(reader)
    first = (first - start) * 1000 if output else None
    output = base64.b64encode(output).decode()
    print(json.dumps([first, (end - start) * 1000, output, os.waitstatus_to_exitcode(status)]), flush=True)
"""

    def __init__(self, image: Image) -> None:
        code = self._CODE.format(imports=image.subject.imports(), script=str(image.script))
        self._process = subprocess.Popen(
            [image.python, "-c", code],
            env=image.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> ForkingProcess:
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def start(self) -> Outcome:
        """Forks once."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        first, end, output, status = json.loads(self._answer())
        return Outcome(first, end, base64.b64decode(output), status)


class ForkServer:
    """Python Preloaded's own starter (PyPI: preloaded), in the terminal that it cannot do without."""

    def __init__(self, workshop: Workshop, image: Image) -> None:
        self.unavailable: Unavailable | None = None
        self._image = image
        self._starter = workshop.folder / f"{image.subject.name}.starter"
        self._packages = WORK / "preloaded"
        self._environment = image.environment()
        path = [str(self._packages), self._environment.get("PYTHONPATH")]
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))

    def __enter__(self) -> ForkServer:
        try:
            self._install()
        except Unavailable as why:
            self.unavailable = why
            return self
        modules = re.findall(r"^import (\S+)$", self._image.subject.imports(), re.MULTILINE)
        modules = [name for name in modules if name != "preloaded_criu"]
        words = [self._image.python, "-m", "preloaded.py_preloaded_bundle_fork_server"]
        words += [*(modules or ["sys"]), "-o", str(self._starter)]
        subprocess.run(words, env=self._environment, check=True, capture_output=True)
        # The first start is the one that becomes the server.
        self.start()
        return self

    def _install(self) -> None:
        if self._packages.exists():
            return
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        done = subprocess.run([*words, self._packages, "preloaded"], capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"pip cannot install preloaded: {done.stderr.strip().splitlines()[-1:]}")

    def __exit__(self, *_: object) -> None:
        if self.unavailable:
            return
        self._run("--preloaded-exit-server")
        log = next(self._starter.parent.glob(f"{self._starter.name}.server.*.stderr"), None)
        found = re.search(r"server main, pid (\d+)", log.read_text()) if log else None
        deadline = time.monotonic() + 20
        while found and Path(f"/proc/{found[1]}").exists():
            if time.monotonic() > deadline:
                os.kill(int(found[1]), signal.SIGKILL)
            time.sleep(0.05)

    def _run(self, *arguments: str) -> Outcome:
        # Its own messages come on the same terminal: this is the last of them.
        prelude = b"Entering PTY proxy loop\r\n"
        words = [self._image.python, str(self._starter), *arguments]
        return time_in_terminal(words, self._environment, prelude)

    def start(self) -> Outcome:
        """Starts the script once."""
        return self._run(*self._image.arguments())
