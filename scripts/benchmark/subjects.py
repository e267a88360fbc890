"""What is started: libraries, their environments, their images."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = ROOT / "target/bench"


class Unavailable(Exception):
    """Something cannot be measured here; the text says why."""


# A recipe may ask to be called in a run, which there is none of.
_NO_HOOKS = """import sys, types
hooks = sys.modules["preloaded_criu"] = types.ModuleType("preloaded_criu")
hooks.follows = hooks.after_restore = lambda *_: None
del hooks
"""


@dataclass(frozen=True)
class Subject:
    """A program that imports something and says hello."""

    name: str
    title: str
    code: str
    environment: str | None = None
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    recipe: str | None = None
    # What the names of a module of its own are filled with.
    source: str | None = None

    def imports(self) -> str:
        """The code that an image of it has executed, for an interpreter that is no image."""
        modules, warm_up = list(self.modules), ""
        if self.recipe:
            recipe = tomllib.loads((ROOT / f"images/{self.recipe}.toml").read_text())
            modules += recipe["imports"]
            warm_up = recipe.get("warm_up", "")
        return "".join(f"import {module}\n" for module in modules) + _NO_HOOKS + warm_up


def _arrays(gigabytes: float) -> Subject:
    # As many arrays for each size: what is to be seen is what their size costs.
    length = int(gigabytes * 1e9 / 8 / 10)
    name = f"arrays_{gigabytes:g}".replace(".", "_")
    return Subject(
        name=name,
        title=f"{gigabytes:g} GB of arrays",
        code=f"import {name} as data; print(sum(float(array[-1]) for array in data.arrays))",
        environment="sklearn",
        packages=("scikit-learn", "pandas"),
        modules=(name,),
        source=f"import numpy\n\narrays = [numpy.arange(n, {length} + n, dtype=float) for n in range(10)]\n",
    )


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("nothing", "nothing", "pass"),
        Subject(
            "numpy",
            "NumPy",
            "import numpy; print(numpy.__version__)",
            environment="sklearn",
            packages=("scikit-learn", "pandas"),
            recipe="numpy",
        ),
        Subject(
            "sklearn",
            "scikit-learn, pandas, SciPy",
            "import numpy, pandas, scipy, sklearn; print(sklearn.__version__)",
            environment="sklearn",
            packages=("scikit-learn", "pandas"),
            modules=("numpy", "pandas", "scipy"),
            recipe="sklearn",
        ),
        Subject(
            "tensorflow",
            "TensorFlow",
            "import tensorflow as tf; print(tf.__version__)",
            environment="tensorflow",
            packages=("tensorflow-cpu",),
            recipe="tensorflow",
        ),
        Subject(
            "torch",
            "PyTorch",
            "import torch; print(torch.__version__)",
            environment="torch",
            recipe="torch",
        ),
        *(_arrays(size) for size in (0.1, 1, 2, 4)),
    )
}
ARRAYS = [name for name in SUBJECTS if name.startswith("arrays")]


def variables() -> dict[str, str]:
    """The environment of everything that is timed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # As the recipe has it: what an import has read is part of an image.
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2"}


@dataclass
class Workshop:
    """Where interpreters and images come from."""

    binary: Path
    makes_environments: bool
    folder: Path
    given: dict[str, str]
    images: dict[str, Image] = field(default_factory=dict)

    def python(self, subject: Subject) -> str:
        """The interpreter of a subject."""
        if given := self.given.get(subject.environment or subject.name):
            return given
        if subject.environment is None:
            return _system_python()
        path = WORK / f"venv-{subject.environment}"
        if not subject.packages:
            raise Unavailable(f"name a python that has it: --python {subject.environment}=PYTHON")
        if self.makes_environments:
            words = [ROOT / "scripts/make-venv", path, _system_python(), *subject.packages]
            subprocess.run(words, check=True)
        elif not path.exists():
            raise Unavailable("there is no environment with it yet: --make-venvs makes it")
        return str(path / "bin/python3")

    def image(self, subject: Subject) -> Image:
        """The image of a subject, made at the first call."""
        if subject.name not in self.images:
            self.images[subject.name] = _make(self, subject)
        return self.images[subject.name]


@dataclass(frozen=True)
class Image:
    """A frozen subject, its script, and what making it took."""

    subject: Subject
    python: str
    path: Path
    script: Path
    snapshot_seconds: float
    import_seconds: float

    def arguments(self) -> list[str]:
        """What python3 is given."""
        if self.subject.name == "nothing":
            return ["-c", self.subject.code]
        return [str(self.script)]

    def environment(self) -> dict[str, str]:
        """Its variables."""
        if self.subject.source is None:
            return variables()
        return variables() | {"PYTHONPATH": str(self.script.parent)}

    def snapshot(self, binary: Path, output: Path, *more: str) -> None:
        """Freezes it, with more options."""
        subject = self.subject
        options = ["--recipe", subject.recipe] if subject.recipe else []
        options += [word for module in subject.modules for word in ("--import", module)]
        words = [binary, "snapshot", "--python", self.python, *options, *more, "-o", output]
        _quiet(words, self.environment(), "preloaded-criu snapshot has failed")

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        status = self.path.stat()
        return {
            "bytes": status.st_size,
            "bytes_on_disk": status.st_blocks * 512,
            "import_s": self.import_seconds,
            "snapshot_s": self.snapshot_seconds,
            "beyond_import_s": self.snapshot_seconds - self.import_seconds,
        }


def _make(workshop: Workshop, subject: Subject) -> Image:
    python = workshop.python(subject)
    script = workshop.folder / f"hello_{subject.name}.py"
    script.write_text(subject.code + "\n")
    if subject.source is not None:
        (workshop.folder / f"{subject.name}.py").write_text(subject.source)
    path = workshop.folder / f"{subject.name}.img"
    image = Image(subject, python, path, script, 0, 0)
    code = f"{subject.imports()}\nimport os\nos._exit(0)"
    # Twice: the first reads the files from the disk, which the snapshot then does not have to.
    for _ in range(2):
        start = time.perf_counter()
        _quiet([python, "-c", code], image.environment(), f"{python} cannot import it")
        importing = time.perf_counter() - start
    start = time.perf_counter()
    image.snapshot(workshop.binary, path)
    return replace(image, snapshot_seconds=time.perf_counter() - start, import_seconds=importing)


def _quiet(words: list[str | Path], environment: dict[str, str], complaint: str) -> None:
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise Unavailable(f"{complaint}: {' / '.join(lines[-3:])}")


def _system_python() -> str:
    """The machine's own interpreter, not a shim or an environment."""
    for path in ("/usr/bin/python3", "/usr/local/bin/python3", shutil.which("python3")):
        if path and os.access(path, os.X_OK):
            return path
    raise Unavailable("there is no python3")


def knows(binary: Path, option: str) -> bool:
    """Whether `run` has an option."""
    told = subprocess.run([binary, "run", "--help"], capture_output=True, text=True, check=True)
    return option in told.stdout
