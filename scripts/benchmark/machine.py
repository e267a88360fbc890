"""What everything was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path

from .subjects import ROOT


def describe(criu: str) -> dict[str, object]:
    """The machine and the versions, for JSON."""
    processor = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"), re.MULTILINE)
    return {
        "processor": processor[1] if processor else platform.machine(),
        "cores": cores(),
        "memory_gib": round(int(memory[1]) / (1 << 20)) if memory else None,
        "virtual": "hypervisor" in _read("/proc/cpuinfo"),
        "system": system[1] if system else platform.system(),
        "kernel": platform.release(),
        "criu": _output([criu, "--version"]).removeprefix("Version: ").splitlines()[0],
        "commit": _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
        "date": date.today().isoformat(),
        "load_before": os.getloadavg()[0],
    }


def cores() -> int:
    """How many of the machine's cores are ours."""
    return len(os.sched_getaffinity(0))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _output(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
