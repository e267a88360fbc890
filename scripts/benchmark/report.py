"""The figures as tables: for a terminal and for the README."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .contestants import FORK, PASS, PYTHON, RUN, SEED, SELF_CONTAINED
from .goals import megabytes, ratio
from .plot import duration
from .subjects import ARRAYS, SUBJECTS

BEGIN, END = "<!-- bench: written by scripts/bench -->", "<!-- bench: end -->"


def in_words(results: dict[str, Any]) -> str:
    """Everything, for a terminal."""
    lines = [machine(results["machine"])]
    for subject, figures in results.get("starts", {}).items():
        lines += ["", *_starts(SUBJECTS[subject].title, figures)]
    if arrays := results.get("arrays"):
        lines += ["", *_starts("arrays", arrays)]
    for name, part in (
        ("image and snapshot", _images),
        ("memory of each of so many at once", _memory),
        ("runs a second", _throughput),
        ("first run, nothing in the page cache", _first),
        ("first run from a slow disk", _first),
        ("work after the imports", _work),
    ):
        key = _KEYS[name]
        if found := results.get(key):
            lines += ["", name, *(f"  {line}" for line in part(found))]
    if ratios := results.get("ratios"):
        lines += ["", "ratios", *(f"  {row['what']:<66}{row['value']:>9.3g} {row['unit']}" for row in ratios)]
    if goals := results.get("goals"):
        lines += ["", "to reach", *(f"  {line}" for line in _goals(goals))]
    return "\n".join(lines) + "\n"


_KEYS = {
    "image and snapshot": "images",
    "memory of each of so many at once": "memory",
    "runs a second": "throughput",
    "first run, nothing in the page cache": "cold",
    "first run from a slow disk": "slow_disk",
    "work after the imports": "work",
}


def machine(told: dict[str, Any]) -> str:
    """What it was measured on, in one sentence."""
    kind = "virtual machine" if told["virtual"] else "machine"
    return (
        f"{told['processor']}, {told['cores']} cores of a {kind} with {told['memory_gib']} GiB, "
        f"{told['system']}, Linux {told['kernel']}, CRIU {told['criu']}, {told['date']}"
    )


def _starts(title: str, figures: dict[str, Any]) -> Iterator[str]:
    if isinstance(why := figures.get("left_out"), str):
        yield f"{title:<28}{why}"
        return
    yield f"{title:<28}{'runs':>6}{'first output':>15}{'exit':>12}{'of -c pass':>12}{'faster':>10}"
    floor, cold = _exit(figures, PASS), _exit(figures, PYTHON)
    for name, row in figures.items():
        if why := row.get("left_out"):
            yield f"{name:<28}     -  {why}"
            continue
        first = duration(row["first_output_ms"]) if "first_output_ms" in row else ""
        of_floor = f"{row['exit_ms'] / floor:.2f} x" if floor else ""
        faster = f"{cold / row['exit_ms']:.1f} x" if cold else ""
        wrong = f"  WRONG in {row['different']} runs" if row["different"] else ""
        yield f"{name:<28}{row['runs']:>6}{first:>15}{duration(row['exit_ms']):>12}{of_floor:>12}{faster:>10}{wrong}"


def _exit(figures: dict[str, Any], name: str) -> float | None:
    return figures.get(name, {}).get("exit_ms")


def _images(found: dict[str, Any]) -> Iterator[str]:
    for subject, row in found.items():
        yield (
            f"{SUBJECTS[subject].title:<28}{row['bytes'] / 1e6:>8.0f} MB, {row['bytes_on_disk'] / 1e6:.0f} on the disk; "
            f"snapshot {row['snapshot_s']:.2f} s, {row['beyond_import_s']:.2f} s of it beyond the imports"
        )


def _memory(found: dict[str, Any]) -> Iterator[str]:
    for subject, contestants in found.items():
        if why := contestants.get("left_out"):
            yield f"{SUBJECTS[subject].title:<28}{why}"
            continue
        for name, rows in contestants.items():
            for size, row in rows.items():
                if why := row.get("left_out"):
                    told = why
                else:
                    told = f"private {megabytes(row['private_kb']):.1f} MB, PSS {megabytes(row['pss_kb']):.1f} MB, all together {megabytes(row['all_pss_kb']):.0f} MB"
                yield f"{SUBJECTS[subject].title:<28}{name:<16}{size:>3}: {told}"


def _throughput(found: dict[str, Any]) -> Iterator[str]:
    for subject, contestants in found.items():
        if why := contestants.get("left_out"):
            yield f"{SUBJECTS[subject].title:<28}{why}"
            continue
        told = ", ".join(f"{name} {row['per_second']:.3g}" for name, row in contestants.items())
        yield f"{SUBJECTS[subject].title:<28}{told}"


def _first(found: dict[str, Any]) -> Iterator[str]:
    for subject, row in found.items():
        if why := row.get("left_out"):
            yield f"{SUBJECTS[subject].title:<28}{why}"
            continue
        names = [name for name in (RUN, SELF_CONTAINED, PYTHON) if name in row]
        told = ", ".join(f"{name} {duration(row[name]['exit_ms'])}" for name in names)
        yield f"{SUBJECTS[subject].title:<28}{told} ({row['means']})"


def _work(found: dict[str, Any]) -> Iterator[str]:
    for subject, row in found.items():
        if why := row.get("left_out"):
            yield f"{SUBJECTS[subject].title:<28}{why}"
            continue
        wrong = "" if row["same"] else "  WRONG: the results differ"
        yield (
            f"{row['title']:<40}{row['run_s']:.2f} s, plain {row['python_s']:.2f} s: {row['ratio']:.3f} x "
            f"(processor time {row['ratio_of_processor_time']:.3f} x){wrong}"
        )


def _goals(found: list[dict[str, Any]]) -> Iterator[str]:
    for row in found:
        if row["value"] is not None:
            wanted = f"{row['relation']} {row['wanted']:g}"
            told = "reached" if row["reached"] else "NOT REACHED"
            yield f"{row['what']:<66}{row['value']:>9.3g} {row['unit']:<3}{wanted:>8}  {told}"
    if missing := [row["what"] for row in found if row["value"] is None]:
        yield f"not measured: {'; '.join(missing)}"


def ratios(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the figures come to, in the few numbers that count."""
    rows: list[dict[str, Any]] = []

    def put(what: str, value: float | None, unit: str = "x") -> None:
        if value is not None:
            rows.append({"what": what, "value": value, "unit": unit})

    for subject, figures in results.get("starts", {}).items():
        title = SUBJECTS[subject].title
        put(f"{title}: run to python3 -c pass", ratio(figures, RUN, PASS))
        put(f"{title}: python3 script to run", ratio(figures, PYTHON, RUN))
        put(f"{title}: the fork server to run", ratio(figures, SEED, RUN))
        put(f"{title}: run to fork in a warm process", ratio(figures, RUN, FORK))
    arrays = results.get("arrays", {})
    put("4 GB of arrays to 0.1 GB, run", ratio(arrays, f"{RUN}, 4 GB", f"{RUN}, 0.1 GB"))
    for subject, contestants in results.get("memory", {}).items():
        for name in (RUN, PYTHON):
            row = contestants.get(name, {}).get("10", {})
            if "private_kb" in row:
                put(f"{SUBJECTS[subject].title}: private memory of each of ten, {name}", megabytes(row["private_kb"]), "MB")
    for subject, contestants in results.get("throughput", {}).items():
        put(f"{SUBJECTS[subject].title}: runs a second", contestants.get(RUN, {}).get("per_second"), "/s")
    for row in results.get("work", {}).values():
        if "ratio" in row:
            put(f"{row['title']}: after run to after python3", row["ratio"])
    return rows


def for_readme(results: dict[str, Any], picture: str) -> str:
    """The section between the marks of the README."""
    lines = [f"![Times of whole runs, on a logarithmic scale]({picture})" if picture else "", ""]
    lines += ["| start to end | `python3` | `preloaded-criu run` | | `python3 -c pass` |", "|---|--:|--:|--:|--:|"]
    for subject, figures in results.get("starts", {}).items():
        cold, ours, floor = (_exit(figures, name) for name in (PYTHON, RUN, PASS))
        if cold and ours and floor:
            lines.append(
                f"| {SUBJECTS[subject].title} | {duration(cold)} | **{duration(ours)}** | "
                f"{cold / ours:.3g} × | {duration(floor)} |"
            )
    arrays = results.get("arrays", {})
    for name in ARRAYS:
        size = SUBJECTS[name].title.removesuffix(" of arrays")
        cold, ours = _exit(arrays, f"{PYTHON}, {size}"), _exit(arrays, f"{RUN}, {size}")
        if cold and ours:
            lines.append(f"| {SUBJECTS[name].title} | {duration(cold)} | **{duration(ours)}** | {cold / ours:.3g} × | |")
    more = list(_sentences(results))
    lines += ["", *(f"- {line}" for line in more)] if more else []
    lines += ["", f"Medians of one run of `scripts/bench` on {machine(results['machine'])}."]
    return "\n".join(lines).strip()


def _sentences(results: dict[str, Any]) -> Iterator[str]:
    for subject, contestants in results.get("memory", {}).items():
        ours, plain = (contestants.get(name, {}).get("10", {}) for name in (RUN, PYTHON))
        if "private_kb" in ours and "private_kb" in plain:
            yield (
                f"{SUBJECTS[subject].title}, ten at once: {megabytes(ours['private_kb']):.1f} MB of private memory each, "
                f"instead of {megabytes(plain['private_kb']):.0f} MB"
            )
    for subject, contestants in results.get("throughput", {}).items():
        if RUN in contestants:
            ours, plain = (contestants[name]["per_second"] for name in (RUN, PYTHON))
            yield f"{SUBJECTS[subject].title}: {ours:.3g} runs a second, instead of {plain:.2g}"
    for key, what in (("cold", "nothing in the page cache"), ("slow_disk", "a slow disk")):
        for subject, row in results.get(key, {}).items():
            if RUN in row:
                means = f" ({row['means']})" if key == "slow_disk" else ""
                whole = ""
                if SELF_CONTAINED in row:
                    whole = f", {duration(row[SELF_CONTAINED]['exit_ms'])} with a self-contained image"
                yield (
                    f"{SUBJECTS[subject].title}, first run, {what}{means}: {duration(row[RUN]['exit_ms'])}{whole}, "
                    f"instead of {duration(row[PYTHON]['exit_ms'])}"
                )
    for row in results.get("work", {}).values():
        if "ratio" in row:
            yield f"{row['title']}: takes {row['ratio']:.2f} times as long as in an ordinary process"
    for subject, row in results.get("images", {}).items():
        if subject in ("sklearn", "tensorflow", "torch"):
            yield (
                f"{SUBJECTS[subject].title}: an image of {row['bytes_on_disk'] / 1e6:.0f} MB, made in "
                f"{row['beyond_import_s']:.1f} s beyond the imports themselves"
            )


def put_into(path: Path, section: str) -> None:
    """Replaces what is between the marks."""
    text = path.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"bench: {path} has no line {BEGIN}")
    path.write_text(pattern.sub(lambda _: f"{BEGIN}\n{section}\n{END}", text))
