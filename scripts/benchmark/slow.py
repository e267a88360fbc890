"""A slow disk: environment and image on a file system that answers late, as a busy network's does."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .contestants import PYTHON, RUN, SELF_CONTAINED
from .stopwatch import time_command
from .subjects import Image, Unavailable, Workshop

DELAY = 0.001
_SERVER = Path(__file__).with_name("slowfs.py")


def measure(workshop: Workshop, image: Image) -> dict[str, object]:
    """The first run of each after the file system was mounted: nothing of it is cached."""
    environment = Path(image.python).parent.parent
    if not (environment / "pyvenv.cfg").exists():
        raise Unavailable("its libraries are not in a virtual environment")
    with tempfile.TemporaryDirectory(prefix="slow-", dir=workshop.folder) as folder:
        store, place = Path(folder, "store"), Path(folder, "place")
        store.mkdir()
        place.mkdir()
        # The environment itself, not a copy: a mapped file's time and size are those of the image.
        (store / "environment").symlink_to(environment)
        there = replace(image, python=str(place / "environment/bin" / Path(image.python).name))
        with mounted(store, place):
            there.snapshot(workshop.binary, store / "slow.img")
            there.snapshot(workshop.binary, store / "whole.img", "--self-contained")

        def ours(name: str) -> list[str]:
            return [str(workshop.binary), "run", str(place / name), *there.arguments()]

        commands = {
            PYTHON: [there.python, *there.arguments()],
            RUN: ours("slow.img"),
            SELF_CONTAINED: ours("whole.img"),
        }
        told: dict[str, object] = {"means": f"FUSE, {DELAY * 1000:g} ms for each open and each read"}
        for name, words in commands.items():
            with mounted(store, place):
                outcome = time_command(words, there.environment())
            if outcome.status:
                raise Unavailable(f"{name} ended with {outcome.status}")
            told[name] = {"exit_ms": outcome.end}
        return told


@contextmanager
def mounted(store: Path, place: Path) -> Iterator[None]:
    """The store, seen slowly at the place."""
    python = _python_with_fuse()
    words = [python, str(_SERVER), str(store), str(place), str(DELAY)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not place.is_mount():
            if server.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"cannot mount: {server.stderr.read().strip()[-200:]}")
            time.sleep(0.02)
        yield
    finally:
        for _ in range(100):
            if subprocess.run(["umount", place], capture_output=True).returncode == 0:
                break
            if not place.is_mount():
                break
            time.sleep(0.1)
        server.terminate()
        server.communicate()


def _python_with_fuse() -> str:
    if not Path("/dev/fuse").exists() or not shutil.which("umount"):
        raise Unavailable("there is no /dev/fuse")
    for python in ("/usr/bin/python3", sys.executable):
        for module in ("fusepy", "fuse"):
            code = f"from {module} import FUSE, Operations, fuse_get_context"
            if subprocess.run([python, "-c", code], capture_output=True).returncode == 0:
                return python
    raise Unavailable("there is no fusepy (Debian: python3-fusepy)")
