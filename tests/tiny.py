"""Runs of a second for several test files, and what they leave on disk in a form that can be compared."""

import csv
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from distill.arms import PROBE
from distill.cli import main
from distill.config import SECTION_OF, ChainConfig, Config
from distill.configfile import from_dict, read_toml
from distill.data.source import Source, from_arrays
from distill.records import write_json
from distill.reporting.results import RunResults
from distill.store.results import Result, columns
from distill.store.rundir import RunDir
from distill.study import expand
from distill.training import cuda_graph as graph

ROOT = Path(__file__).parents[1]
VALUES = dict.fromkeys(columns(), 0.5) | {"seed": 1, "alpha": None, "arm": None, "step": 0, "epochs": 2}
TIMED = ("seconds", "sha256", "metrics_sha256", "metrics_csv")
DIAGRAM = {"count": [20.0] * 15, "confidence": [10.0] * 15, "correct": [5.0] * 15}


def leave_result(rundir: RunDir, **values) -> Result:
    result = Result.of(VALUES, values)
    rest = {"model_sha256": "", "parent": None, "classes": [], "channels": 1, "model": {}, "reliability": DIAGRAM}
    arm = result.arm and result.arm.removesuffix(PROBE)
    folder = rundir.model(result.seed, arm, result.step) / ("" if arm == result.arm else "probe")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", VALUES | rest | values)
    return result


# Options of a run of a second.
DIGITS = shlex.split("""
--dataset digits --train-size 40 --test-size 40 --resnet 8 --width 2 --max-epochs 2 --batch-size 8 --lr 0.01
--distillation-steps 1 --device cpu --threads 1
""")


class Killed(BaseException):
    """The end of the process, as far as a test inside it can have one: nothing catches it."""


class StandIn:
    """What a Recording does, without a device: a capture runs nothing, a replay runs what was captured."""

    made: "list[StandIn]"

    def __init__(self, device):
        self.replays = 0
        StandIn.made.append(self)

    def warm_up(self, work):
        for _ in range(graph.WARM_UP):
            work()

    def capture(self, work):
        self.work = work

    def replay(self):
        self.work()
        self.replays += 1


def source(seed: int = 0) -> Source:
    """41 training and 20 test images, 8x8 in grey, of three classes: each has its own bright rows, under noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(61) % 3
    images = rng.integers(0, 160, (61, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 1 : 2 * label + 3] += 60
    images = images.astype(np.uint8)
    return from_arrays(images[:41], labels[:41], images[41:], labels[41:], classes=("ant", "bee", "cat"))


def config_of(**options) -> Config:
    """A Config from options by name, whatever their section."""
    sections: dict[str, dict] = {}
    for name, value in options.items():
        sections.setdefault(SECTION_OF[name], {})[name] = value
    return from_dict(sections)


def config(output: Path, **options) -> Config:
    """A teacher and two students, two epochs each, of a ResNet-8 of width 2; options by their names."""
    options = {
        **{"resnet": 8, "width": 2, "max_epochs": 2, "batch_size": 8, "lr": 0.01, "alpha": 0.3},
        **{"distillation_steps": 2, "output": str(output), "device": "cpu", "threads": 1},
        **options,
    }
    return config_of(**options)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, less the ``seconds``."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def result(path: Path) -> dict:
    """A result.json, or the one of a folder, less the ``seconds`` and what depends on them."""
    content = json.loads((path / "result.json" if path.is_dir() else path).read_text())
    return {name: value for name, value in content.items() if name not in TIMED}


def contents(run: Path) -> dict:
    """Everything in a run directory that a second run must give again: all files, less times and where it was done."""
    read = {
        ".csv": rows,
        ".json": lambda path: None if path.name == "environment.json" else result(path),
        ".toml": lambda path: [setting.config.identity for setting in expand(read_toml(path)).settings],
        ".html": lambda path: None,  # the report shows seconds and the run's folder
    }
    files = sorted(path for path in run.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(run)): read.get(path.suffix, Path.read_bytes)(path) for path in files}


@contextmanager
def killed_at(file: str, occurrence: int) -> Iterator[None]:
    """The process that is run in here ends once a file of this name has been written for the given time."""
    replace, seen = os.replace, []

    def dying(temporary, path):
        replace(temporary, path)
        seen.append(Path(path).name)
        if seen[-1] == file and seen.count(file) == occurrence:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.files.os.replace", dying)
        with pytest.raises(Killed):
            yield


def refusal(capsys, run: Path, *words: str) -> str:
    """The one line with which a command is refused, before it has made its run directory."""
    existed = run.exists()
    assert main([*words, "--output", str(run)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"self_distiller\.py: error: [^\n]+\n", said), said
    assert run.exists() == existed
    return said


class Grid:
    """The records of a finished grid of two alphas, three seeds and two students, with random accuracies."""

    seeds = (1, 2, 3)
    steps = (0, 1, 2)
    chain = ChainConfig(alpha=(0.0, 0.6), distillation_steps=2)

    def __init__(self) -> None:
        self.accuracy = np.random.default_rng(0).random((3, 2, 3))  # of seed, alpha and step
        self.accuracy[:, :, 0] = self.accuracy[:, :1, 0]  # the teacher is the same for every alpha

    def records(self, seeds: tuple[int, ...] = seeds) -> list[dict]:
        """The records, in no order."""
        records = [
            VALUES | {"seed": seed, "arm": arm if k else None, "step": k, "test_acc": self.accuracy[i, j, k]}
            for i, seed in enumerate(self.seeds)
            for j, arm in enumerate(("0", "0.6"))
            for k in self.steps
            if seed in seeds and (k or not j)
        ]
        return [records[i] for i in np.random.default_rng(1).permutation(len(records))]

    def run(self, seeds: tuple[int, ...] = seeds) -> RunResults:
        """The run of some seeds."""
        return RunResults(Config(chain=self.chain), self.records(seeds))


def wait_for(condition: Callable[[], object], seconds: float = 300.0) -> None:
    """Return as soon as ``condition()`` holds; fail after so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
