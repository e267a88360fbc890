"""The parts of scripts/bench that need no image."""

from __future__ import annotations

import os
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from benchmark import goals, plot, report, starts  # noqa: E402
from benchmark.contestants import PASS, PYTHON, RUN, SEED  # noqa: E402
from benchmark.stopwatch import is_due, time_command, time_in_terminal, turns  # noqa: E402
from benchmark.subjects import SUBJECTS, Unavailable  # noqa: E402

SHELL = ["/bin/sh", "-c"]
MACHINE = {
    "processor": "P", "cores": 2, "virtual": True, "memory_gib": 24, "system": "S", "kernel": "6",
    "criu": "4.1.1", "date": "2026-01-01",
}  # fmt: skip


def figures(**milliseconds: float) -> dict[str, dict[str, float]]:
    names = {"python": PYTHON, "run": RUN, "floor": PASS, "seed": SEED}
    return {
        names[name]: {"exit_ms": value, "first_output_ms": value, "runs": 5, "different": 0}
        for name, value in milliseconds.items()
    }


class Stopwatch(unittest.TestCase):
    def test_a_run_is_seen_as_a_whole(self) -> None:
        outcome = time_command([*SHELL, "echo a; echo b >&2; sleep 0.05; echo c; exit 3"], os.environ)
        self.assertEqual((outcome.output, outcome.status), (b"a\nc\n", 3))
        self.assertGreaterEqual(outcome.end - outcome.first, 45)
        self.assertIsNone(time_command([*SHELL, "exit 0"], os.environ).first)

    def test_a_terminal_is_one(self) -> None:
        line = "test -t 0 && test -t 1 && : >/dev/tty && echo prelude; echo a; exit 3"
        outcome = time_in_terminal([*SHELL, line], os.environ, b"prelude\r\n")
        self.assertEqual((outcome.output, outcome.status), (b"a\n", 3))

    def test_who_stays_in_the_terminal_is_not_waited_for(self) -> None:
        line = "trap '' HUP; (sleep 20) & echo prelude; echo a"
        outcome = time_in_terminal([*SHELL, line], os.environ, b"prelude\r\n")
        self.assertLess(outcome.end, 15_000)

    def test_turns_are_spread(self) -> None:
        self.assertEqual([turns(each, 10, 30) for each in (0.01, 1, 60, 0)], [30, 10, 3, 30])
        for most in (1, 7, 30):
            for count in range(most + 1):
                self.assertEqual(sum(is_due(count, most, turn) for turn in range(most)), count)


class Comparison(unittest.TestCase):
    def test_what_differs_is_counted_and_what_fails_is_left_out(self) -> None:
        def says(line: str):
            return lambda: time_command([*SHELL, line], os.environ)

        entered = {
            PYTHON: says("echo a"),
            RUN: says("echo b"),
            "dead": says("exit 125"),
            "absent": Unavailable("no such thing"),
            PASS: says("true"),
        }
        found = starts.compare(entered, 3, 1)
        self.assertEqual({name: one.different for name, one in found.items()}[RUN], 3)
        self.assertEqual((found[PYTHON].different, found[PASS].different), (0, 0))
        self.assertEqual(found["dead"].left_out, "it ended with 125")
        self.assertEqual(found["absent"].as_dict(), {"left_out": "no such thing"})


class Picture(unittest.TestCase):
    def test_everything_is_within_the_page(self) -> None:
        shown = {name: figures(python=9e4, seed=880, floor=15, run=0.4) for name in SUBJECTS}
        titles = {name: subject.title for name, subject in SUBJECTS.items()}
        root = ElementTree.fromstring(plot.draw("<&>", "x", plot.groups(shown, titles)))
        width, height = float(root.get("width")), float(root.get("height"))
        texts = []
        for element in root.iter():
            if element.tag.endswith("}text"):
                texts.append(element.text)
            right = float(element.get("x", 0)) + (float(element.get("width", 0)) if element is not root else 0)
            self.assertLessEqual(right, width)
            self.assertLessEqual(float(element.get("y", 0)), height)
        for expected in ("<&>", "TensorFlow", "preloaded-criu run", "0.4 ms", "90 s", "1 s"):
            self.assertIn(expected, texts)

    def test_durations_have_three_digits(self) -> None:
        told = [plot.duration(value) for value in (0.44, 7.21, 12.34, 123.4, 999.6, 4100, 100_000, 10)]
        self.assertEqual(told, ["0.4 ms", "7.2 ms", "12.3 ms", "123 ms", "1.00 s", "4.10 s", "100 s", "10 ms"])


class Report(unittest.TestCase):
    RESULTS = {
        "machine": MACHINE,
        "starts": {"tensorflow": figures(python=4000, run=8, floor=16, seed=800)},
        "throughput": {"tensorflow": {RUN: {"per_second": 312}, PYTHON: {"per_second": 0.5}}},
        "work": {"torch": {"left_out": "no torch"}},
    }

    def test_ratios_are_those_of_the_figures(self) -> None:
        found = {row["what"]: row["value"] for row in report.ratios(self.RESULTS)}
        self.assertEqual(found["TensorFlow: run to python3 -c pass"], 0.5)
        self.assertEqual(found["TensorFlow: python3 script to run"], 500)
        self.assertEqual(found["TensorFlow: runs a second"], 312)

    def test_goals_are_reached_or_not_or_not_measured(self) -> None:
        memory = {"1": {"private_kb": 30_000}, "10": {"private_kb": 2_000}, "50": {"left_out": "no memory"}}
        results = {**self.RESULTS, "memory": {"tensorflow": {RUN: memory}}}
        results["starts"] = {"tensorflow": figures(python=3992, run=8, floor=16, seed=800)}
        found = {row["what"]: (row["value"], row["reached"]) for row in goals.goals(results)}
        self.assertEqual(found["TensorFlow: run to python3 -c pass"], (0.5, True))
        self.assertEqual(found["TensorFlow: python3 script to run"], (499, False))
        self.assertEqual(found["TensorFlow: runs a second"], (312, True))
        self.assertEqual(found["TensorFlow: private memory of each further run at once"], (2.048, True))
        self.assertEqual(found["nothing: run to python3 -c pass"], (None, False))
        text = report.in_words({**self.RESULTS, "goals": goals.goals(results)})
        for expected in ("NOT REACHED", "not measured", "reached"):
            self.assertIn(expected, text)

    def test_words_have_every_part(self) -> None:
        text = report.in_words(self.RESULTS)
        for expected in ("TensorFlow", "500.0 x", "0.50 x", "run 312", "no torch"):
            self.assertIn(expected, text)

    def test_the_readme_keeps_what_is_around(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "README.md")
            path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
            report.put_into(path, report.for_readme(self.RESULTS, "docs/bench.svg"))
            text = path.read_text()
            self.assertTrue(text.startswith("before\n") and text.endswith("\nafter\n"))
            self.assertIn("| TensorFlow | 4 s | **8 ms** | 500 × | 16 ms |", text)
            self.assertNotIn("old", text)
            path.write_text("no marks")
            with self.assertRaises(SystemExit):
                report.put_into(path, "x")


if __name__ == "__main__":
    unittest.main()
