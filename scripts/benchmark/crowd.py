"""Many runs at once: whose memory they use, and how many there are in a second."""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from .contestants import PYTHON, RUN
from .machine import cores
from .subjects import Image, Unavailable, Workshop

SIZES = (1, 10, 50)
# Of the memory that is free, this part may be taken by plain interpreters.
ROOM = 0.8
# Longer than so many seconds nobody waits for a crowd to start.
PATIENCE = 150


def memory(workshop: Workshop, image: Image) -> dict[str, object]:
    """Private memory and PSS (proc(5), smaps_rollup) of so many that live at the same time."""
    script = workshop.folder / f"waiting_{image.subject.name}.py"
    script.write_text(f"{image.subject.code}\nimport sys\nsys.stdout.flush()\nsys.stdin.read()\n")
    commands = {
        RUN: [str(workshop.binary), "run", str(image.path), str(script)],
        PYTHON: [image.python, str(script)],
    }
    told: dict[str, object] = {}
    for name, words in commands.items():
        rows: dict[str, object] = {}
        each = start = 0
        for size in SIZES:
            if each * size > ROOM * _available():
                rows[str(size)] = {"left_out": "there is not enough memory for so many"}
                continue
            if start * size / cores() > PATIENCE:
                rows[str(size)] = {"left_out": "so many take too long to start"}
                continue
            begin = time.monotonic()
            row = _crowd(words, image, size)
            start = (time.monotonic() - begin) / max(1, size / cores())
            rows[str(size)] = row
            each = row["private_kb"]
        told[name] = rows
    return told


def _crowd(words: list[str], image: Image, size: int) -> dict[str, int]:
    with tempfile.TemporaryFile("w+") as errors:
        members = [
            subprocess.Popen(
                words,
                env=image.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            for _ in range(size)
        ]
        try:
            for member in members:
                if not member.stdout.readline():
                    errors.seek(0)
                    said = " / ".join(errors.read().splitlines()[-3:])
                    raise Unavailable(f"{words[0]} ended with {member.wait()}: {said}")
            shares = [_share(member.pid) for member in members]
        finally:
            for member in members:
                member.communicate()
    private = [share["Private_Clean"] + share["Private_Dirty"] for share in shares]
    return {
        "private_kb": int(statistics.median(private)),
        "dirty_kb": int(statistics.median(share["Private_Dirty"] for share in shares)),
        "pss_kb": int(statistics.median(share["Pss"] for share in shares)),
        "all_pss_kb": sum(share["Pss"] for share in shares),
    }


def _share(process: int) -> dict[str, int]:
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _available() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def throughput(workshop: Workshop, image: Image, seconds: float) -> dict[str, object]:
    """Runs a second, with as many at once as there are cores. xargs(1) starts them: nothing else on
    the machine has much to do."""
    commands = {
        RUN: [str(workshop.binary), "run", str(image.path), *image.arguments()],
        PYTHON: [image.python, *image.arguments()],
    }
    return {name: {"per_second": _rate(words, image, seconds)} for name, words in commands.items()}


def _rate(words: list[str], image: Image, seconds: float) -> float:
    count = cores()
    while True:
        start = time.perf_counter()
        done = subprocess.run(
            ["xargs", "-P", str(cores()), "-I", "{}", *words],
            input="x\n" * count,
            env=image.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if done.returncode:
            raise Unavailable(f"{' '.join(words)} has failed")
        taken = time.perf_counter() - start
        if taken > seconds / 2:
            return count / taken
        count = max(2 * count, int(count * seconds / taken))
