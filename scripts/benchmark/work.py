"""Real work after the imports: it must not be slower than in an ordinary process."""

from __future__ import annotations

import json
import statistics

from .contestants import PYTHON, RUN
from .stopwatch import time_command
from .subjects import Image, Unavailable, Workshop

REPETITIONS = 7

_FOREST = """
import numpy
from sklearn.ensemble import RandomForestClassifier
dice = numpy.random.default_rng(1)
data, classes = dice.normal(size=(4000, 20)), dice.integers(0, 3, size=4000)
def work():
    forest = RandomForestClassifier(n_estimators=60, n_jobs=2, random_state=1)
    return forest.fit(data, classes).predict_proba(data).sum(axis=0).round(6).tolist()
"""

_KERAS = """
import keras, numpy
keras.utils.set_random_seed(1)
dice = numpy.random.default_rng(1)
data = dice.normal(size=(8000, 32)).astype("float32")
wanted = data[:, :1] * 2 - data[:, 1:2]
def work():
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    history = model.fit(data, wanted, epochs=6, batch_size=64, verbose=0)
    return history.history["loss"][-1] < history.history["loss"][0]
"""

_TORCH = """
import torch
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(1)
data = torch.randn(20_000, 32)
wanted = data[:, :1] * 2 - data[:, 1:2]
def work():
    model = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 1))
    optimizer = torch.optim.Adam(model.parameters())
    losses = []
    for _ in range(3):
        for part, target in DataLoader(TensorDataset(data, wanted), batch_size=64, num_workers=2):
            loss = torch.nn.functional.mse_loss(model(part), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses[-1] < losses[0]
"""

_TIMED = """
import json, os, time
def spent():
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system
if __name__ == "__main__":
    clock, processor = spent()
    result = work()
    clock, processor = (now - then for now, then in zip(spent(), (clock, processor)))
    print(json.dumps([result, clock, processor]))
"""

SUBJECTS = {
    "sklearn": ("a forest of scikit-learn's, two jobs", _FOREST),
    "tensorflow": ("a fit of Keras", _KERAS),
    "torch": ("a training with PyTorch, two loaders", _TORCH),
}


def measure(workshop: Workshop, image: Image) -> dict[str, object]:
    """Medians of the seconds that the work itself took, and their ratio."""
    title, code = SUBJECTS[image.subject.name]
    script = workshop.folder / f"work_{image.subject.name}.py"
    script.write_text(code + _TIMED)
    commands = {
        PYTHON: [image.python, str(script)],
        RUN: [str(workshop.binary), "run", str(image.path), str(script)],
    }
    clocks: dict[str, list[float]] = {name: [] for name in commands}
    processors: dict[str, list[float]] = {name: [] for name in commands}
    results = set()
    for _ in range(REPETITIONS):
        for name, words in commands.items():
            outcome = time_command(words, image.environment())
            if outcome.status:
                raise Unavailable(f"{name} ended with {outcome.status}")
            result, clock, processor = json.loads(outcome.output)
            results.add(json.dumps(result))
            clocks[name].append(clock)
            processors[name].append(processor)
    medians = {name: statistics.median(found) for name, found in clocks.items()}
    return {
        "title": title,
        "python_s": medians[PYTHON],
        "run_s": medians[RUN],
        "ratio": medians[RUN] / medians[PYTHON],
        # What a busy machine disturbs least.
        "ratio_of_processor_time": statistics.median(processors[RUN]) / statistics.median(processors[PYTHON]),
        "same": len(results) == 1,
    }
