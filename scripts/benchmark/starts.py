"""From the start to the first output, and to the end, of everyone in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .contestants import FLOORS, PYTHON, Start, field
from .stopwatch import Figures, Outcome, is_due, time_command, turns
from .subjects import Image, Unavailable, Workshop


def command(words: Sequence[str], environment: Mapping[str, str]) -> Start:
    """One that is started by a command line."""
    return lambda: time_command(words, environment)


def measure(workshop: Workshop, image: Image, runs: int, seconds: float) -> dict[str, object]:
    """The figures of every contestant for one subject."""
    with field(workshop, image) as entered:
        return {name: figures.as_dict() for name, figures in compare(entered, runs, seconds).items()}


def compare(
    entered: dict[str, Start | Unavailable],
    runs: int,
    seconds: float,
    standards: dict[str, str] | None = None,
) -> dict[str, Figures]:
    """Lets all take turns. Each is compared with its standard: python itself, which comes first."""
    figures = {name: Figures() for name in entered}
    counts: dict[str, int] = {}
    starts: dict[str, Start] = {}
    first_outcomes: dict[str, Outcome] = {}
    standards = standards or dict.fromkeys(entered, PYTHON)
    for name, start in entered.items():
        if isinstance(start, Unavailable):
            figures[name].left_out = str(start)
            continue
        # Once before it counts: it fills caches, and shows whether it can be done.
        outcome = first_outcomes[name] = start()
        standard = first_outcomes[standards.get(name, name)]
        if outcome.status and outcome.status != standard.status:
            figures[name].left_out = f"it ended with {outcome.status}"
            continue
        starts[name] = start
        counts[name] = turns(outcome.end / 1000, seconds, runs)
    for turn in range(runs):
        for name, start in starts.items():
            if is_due(counts[name], runs, turn):
                outcome = start()
                figures[name].add(outcome)
                standard = first_outcomes[standards.get(name, name)]
                is_same = outcome.status == 0 if name in FLOORS else outcome.does_as(standard)
                figures[name].different += not is_same
    return figures
