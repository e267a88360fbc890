"""A picture of the figures: bars on a logarithmic scale, legible on dark and on light pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .contestants import CRIU_ENGINE, FORK, PASS, PYTHON, RUN, SEED

# What is shown, from top to bottom: with its colour's class.
_SHOWN = {
    PYTHON: "cold",
    SEED: "other",
    CRIU_ENGINE: "other",
    FORK: "other",
    PASS: "floor",
    RUN: "ours",
}
_TITLES = {PYTHON: "python3", RUN: "preloaded-criu run"}

_WIDTH, _LEFT, _RIGHT = 860, 214, 128
_BAR, _STEP, _GROUP = 13, 20, 40
_TOP, _BOTTOM = 92, 58

_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2933; }
  .title { font-size: 19px; font-weight: 650; }
  .group { font-weight: 650; font-size: 14px; }
  .small { font-size: 11.5px; fill: #616e7c; }
  .value { font-size: 12px; font-variant-numeric: tabular-nums; }
  .strong { font-weight: 650; }
  .page { fill: #ffffff; stroke: #d9dee4; }
  .line { stroke: #e4e8ed; }
  .cold { fill: #98a2ae; } .other { fill: #c3cad3; } .floor { fill: #e2b55b; } .ours { fill: #0b8f77; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6eaef; }
    .small { fill: #9aa5b1; }
    .page { fill: #12171d; stroke: #2c343d; }
    .line { stroke: #28303a; }
    .cold { fill: #7b8794; } .other { fill: #4c5763; } .floor { fill: #c9983c; } .ours { fill: #2bc4a4; }
  }
"""


@dataclass(frozen=True)
class Bar:
    """One contestant of a group, with its milliseconds."""

    name: str
    value: float
    kind: str


@dataclass(frozen=True)
class Group:
    """A subject."""

    title: str
    remark: str
    bars: tuple[Bar, ...]


def groups(starts: dict[str, dict], titles: dict[str, str]) -> list[Group]:
    """The measured subjects."""
    found = []
    for subject, figures in starts.items():
        bars = tuple(
            Bar(_TITLES.get(name, name), figures[name]["exit_ms"], kind)
            for name, kind in _SHOWN.items()
            if "exit_ms" in figures.get(name, {})
        )
        remark = ""
        if "exit_ms" in figures.get(PYTHON, {}) and "exit_ms" in figures.get(RUN, {}):
            ratio = figures[PYTHON]["exit_ms"] / figures[RUN]["exit_ms"]
            remark = f"{ratio:.0f} times as fast as python3" if ratio >= 10 else f"{ratio:.1f} times as fast as python3"
        found.append(Group(titles[subject], remark, bars))
    return found


def draw(title: str, subtitle: str, shown: Sequence[Group]) -> str:
    """The picture as SVG."""
    values = [bar.value for group in shown for bar in group.bars] or [1.0]
    low = 10 ** math.floor(math.log10(min(values) * 0.99))
    high = max(values) * 1.05
    span = _WIDTH - _LEFT - _RIGHT

    def place(value: float) -> float:
        return _LEFT + span * math.log(max(value, low) / low) / math.log(high / low)

    rows = sum(len(group.bars) * _STEP + _GROUP for group in shown)
    height = _TOP + rows + _BOTTOM
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" role="img" aria-label="{escape(title, quote=True)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="10"/>',
        f'<text class="title" x="28" y="40">{escape(title)}</text>',
        f'<text class="small" x="28" y="61">{escape(subtitle)}</text>',
    ]
    bottom = _TOP + rows
    tick = low
    while tick <= high:
        x = place(tick)
        out.append(f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{bottom + 4}"/>')
        out.append(f'<text class="small" x="{x:.1f}" y="{bottom + 22}" text-anchor="middle">{duration(tick)}</text>')
        tick *= 10
    y = _TOP
    for group in shown:
        y += _GROUP - 22
        out.append(f'<text class="group" x="28" y="{y + 4}">{escape(group.title)}</text>')
        if group.remark:
            out.append(f'<text class="small" x="{_WIDTH - 28}" y="{y + 4}" text-anchor="end">{escape(group.remark)}</text>')
        y += 22 - 8
        for bar in group.bars:
            out += _bar(bar, y, place(bar.value))
            y += _STEP
        y += 8
    out.append(
        f'<text class="small" x="28" y="{height - 14}">From the start of the process to its end, median; '
        f"every step of the scale is ten times the one before.</text>"
    )
    out.append("</svg>\n")
    return "\n".join(out)


def _bar(bar: Bar, y: float, end: float) -> list[str]:
    strong = " strong" if bar.kind == "ours" else ""
    middle = y + _BAR / 2 + 4.3
    width = max(end - _LEFT, 2)
    return [
        f'<text class="value{strong}" x="{_LEFT - 10}" y="{middle:.1f}" text-anchor="end">{escape(bar.name)}</text>',
        f'<rect class="{bar.kind}" x="{_LEFT}" y="{y:.1f}" width="{width:.1f}" height="{_BAR}" rx="2.5"/>',
        f'<text class="value{strong}" x="{_LEFT + width + 7:.1f}" y="{middle:.1f}">{duration(bar.value)}</text>',
    ]


def duration(milliseconds: float) -> str:
    """Milliseconds with three digits."""
    if milliseconds >= 999.5:
        seconds = milliseconds / 1000
        return f"{seconds:.0f} s" if seconds >= 99.5 or seconds == int(seconds) else f"{seconds:.2f} s"
    if milliseconds == int(milliseconds) or milliseconds >= 99.5:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds:.1f} ms"
