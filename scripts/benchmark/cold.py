"""The first run: nothing that it needs is in memory."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from .contestants import PYTHON, RUN
from .stopwatch import time_command
from .subjects import Image, Workshop

REPETITIONS = 3


def measure(workshop: Workshop, image: Image) -> dict[str, object]:
    """Medians of first runs, with the means by which files were forgotten."""
    commands = {
        PYTHON: [image.python, *image.arguments()],
        RUN: [str(workshop.binary), "run", str(image.path), *image.arguments()],
    }
    means, times = "", {name: [] for name in commands}
    for _ in range(REPETITIONS):
        for name, words in commands.items():
            means = forget(_files(workshop, image))
            times[name].append(time_command(words, image.environment()).end)
    medians = {name: {"exit_ms": statistics.median(found)} for name, found in times.items()}
    return {"means": means, **medians}


def forget(files: Iterable[Path]) -> str:
    """Takes files out of the page cache; says how."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "drop_caches"
    except OSError:
        pass
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        # It forgets what nobody has mapped (posix_fadvise(2)).
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return "posix_fadvise"


def _files(workshop: Workshop, image: Image) -> Iterator[Path]:
    yield from (workshop.binary, image.path, Path(image.python).resolve())
    for folder in (Path(image.python).parent.parent / "lib", Path(os.__file__).parent):
        for directory, _, names in os.walk(folder):
            yield from (Path(directory, name) for name in names)
