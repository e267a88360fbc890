"""What is to be reached, and whether it is."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from .contestants import FORK, PASS, PYTHON, RUN, SEED

_RELATIONS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}


def ratio(figures: dict[str, Any], one: str, other: str) -> float | None:
    """How many times as long one takes as the other, from start to end."""
    first, second = (figures.get(name, {}).get("exit_ms") for name in (one, other))
    return first / second if first and second else None


def megabytes(kibibytes: float) -> float:
    """What proc(5) calls kB."""
    return kibibytes * 1024 / 1e6


def goals(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For each goal: what, the relation to what is wanted, the value (None where it was not measured) and
    whether it is reached."""
    return [
        {
            "what": what,
            "relation": relation,
            "wanted": wanted,
            "unit": unit,
            "value": value,
            "reached": value is not None and _RELATIONS[relation](value, wanted),
        }
        for what, relation, wanted, unit, value in _rows(results)
    ]


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, str, float, str, float | None]]:
    starts = results.get("starts", {})
    tensorflow, sklearn, nothing = (starts.get(name, {}) for name in ("tensorflow", "sklearn", "nothing"))
    yield "TensorFlow: run to python3 -c pass", "<=", 0.5, "x", ratio(tensorflow, RUN, PASS)
    yield "TensorFlow: python3 script to run", ">=", 500, "x", ratio(tensorflow, PYTHON, RUN)
    yield "TensorFlow: the fork server to run", ">=", 100, "x", ratio(tensorflow, SEED, RUN)
    yield "TensorFlow: run to fork in a warm process", "<", 1, "x", ratio(tensorflow, RUN, FORK)
    yield "scikit-learn, pandas, SciPy: run to python3 -c pass", "<=", 0.5, "x", ratio(sklearn, RUN, PASS)
    yield "nothing: run to python3 -c pass", "<=", 0.3, "x", ratio(nothing, RUN, PASS)
    arrays = results.get("arrays", {})
    yield "4 GB of arrays to 0.1 GB, run", "<=", 1.1, "x", ratio(arrays, f"{RUN}, 4 GB", f"{RUN}, 0.1 GB")
    yield "TensorFlow: private memory of each further run at once", "<=", 4, "MB", _private(results)
    throughput = results.get("throughput", {}).get("tensorflow", {})
    yield "TensorFlow: runs a second", ">=", 300, "/s", throughput.get(RUN, {}).get("per_second")
    work = results.get("work", {})
    for subject, title in (
        ("tensorflow", "a fit of Keras"),
        ("torch", "a training with PyTorch, two loaders"),
        ("sklearn", "a forest of scikit-learn's, two jobs"),
    ):
        yield f"{title}: after run to after python3", "<=", 1.03, "x", work.get(subject, {}).get("ratio")


def _private(results: dict[str, Any]) -> float | None:
    """Of the largest crowd that was measured, in MB: what is shared then is shared."""
    crowds = results.get("memory", {}).get("tensorflow", {}).get(RUN, {})
    found = [row["private_kb"] for size, row in crowds.items() if "private_kb" in row and int(size) > 1]
    return megabytes(found[-1]) if found else None
