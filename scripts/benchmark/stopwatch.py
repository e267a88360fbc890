"""One run of a program, timed from outside; and who runs when."""

from __future__ import annotations

import os
import select
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# What Python ignores for itself, programs must not inherit.
_DEFAULTS = (signal.SIGPIPE, signal.SIGXFSZ)
# How long nothing may happen in a terminal, in seconds.
_PATIENCE = 120
LEAST_RUNS = 3


@dataclass(frozen=True)
class Outcome:
    """What came of a run: milliseconds from before its start, and what it did."""

    first: float | None
    end: float
    output: bytes
    status: int

    def does_as(self, standard: Outcome) -> bool:
        """Whether output and status are the same."""
        return (self.output, self.status) == (standard.output, standard.status)


def time_command(words: Sequence[str], environment: Mapping[str, str]) -> Outcome:
    """Runs a program with a pipe as standard output and nothing else to read or write."""
    reader, writer = os.pipe()
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, writer, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    start = time.perf_counter()
    child = os.posix_spawn(words[0], words, environment, file_actions=actions, setsigdef=_DEFAULTS)
    os.close(writer)
    output = bytearray(os.read(reader, 1 << 16))
    first = time.perf_counter()
    while more := os.read(reader, 1 << 16):
        output += more
    _, status = os.waitpid(child, 0)
    end = time.perf_counter()
    os.close(reader)
    code = os.waitstatus_to_exitcode(status)
    return Outcome((first - start) * 1000 if output else None, (end - start) * 1000, bytes(output), code)


def time_in_terminal(words: Sequence[str], environment: Mapping[str, str], prelude: bytes) -> Outcome:
    """Runs a program as the leader of a session with a terminal of its own.

    Its output is what comes after the prelude, with the ends of lines as they were written.
    """
    master, slave = os.openpty()
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
    ]
    start = time.perf_counter()
    child = os.posix_spawn(
        words[0], words, environment, file_actions=actions, setsid=True, setsigdef=_DEFAULTS
    )
    os.close(slave)
    output, first = bytearray(), None
    ended = os.pidfd_open(child)
    while True:
        # Whoever it has left behind may keep the terminal open: what counts is its own end.
        ready, _, _ = select.select([master, ended], [], [], _PATIENCE)
        if not ready:
            os.kill(child, signal.SIGKILL)
        if master not in ready:
            break
        try:
            output += os.read(master, 1 << 16)
        except OSError:  # Its last program has closed it.
            break
        if first is None and output.partition(prelude)[2]:
            first = (time.perf_counter() - start) * 1000
    _, status = os.waitpid(child, 0)
    end = time.perf_counter()
    os.close(ended)
    os.close(master)
    written = bytes(output).partition(prelude)[2].replace(b"\r\n", b"\n")
    return Outcome(first, (end - start) * 1000, written, os.waitstatus_to_exitcode(status))


@dataclass
class Figures:
    """What is known of one contestant."""

    exits: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    different: int = 0
    left_out: str | None = None

    def add(self, outcome: Outcome) -> None:
        """Takes a run into account."""
        self.exits.append(outcome.end)
        if outcome.first is not None:
            self.firsts.append(outcome.first)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        if self.left_out is not None:
            return {"left_out": self.left_out}
        told: dict[str, object] = {
            "runs": len(self.exits),
            "exit_ms": statistics.median(self.exits),
            "least_ms": min(self.exits),
            "most_ms": max(self.exits),
            "different": self.different,
        }
        if len(self.firsts) == len(self.exits):
            told["first_output_ms"] = statistics.median(self.firsts)
        return told


def turns(each: float, budget: float, most: int) -> int:
    """How many of `most` turns one takes part in whose run takes `each`."""
    return min(most, max(LEAST_RUNS, int(budget / max(each, 1e-9))))


def is_due(count: int, most: int, turn: int) -> bool:
    """Whether one that takes part in `count` of `most` turns takes part in this one."""
    return turn * count // most < (turn + 1) * count // most
