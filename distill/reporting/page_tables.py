"""The tables of a run's page: its models, classes, confusions, costs and processes."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from distill.arms import PROBE, arm_title
from distill.pages.tables import Heat, Link, Seconds, Spread, Table
from distill.reporting.results import Key, RunResults
from distill.reporting.statistics import spread
from distill.reporting.status import MARKS, States
from distill.store.processes import processes
from distill.store.rundir import Model, RunDir, is_finished

if typing.TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_CLASSES = 15  # of a confusion matrix that is shown whole
WORST = 10  # confusions listed of a larger one


def link(path: Path, base: Path, text: str) -> Link:
    """A link from a page in the folder ``base``."""
    relative = os.path.relpath(path, base).replace(os.sep, "/")
    return Link(text, quote(relative) + ("" if path.is_file() else "/"))


def models_table(run: RunResults, states: States, base: Path) -> Table:
    """A row for each arm and step: accuracy over seeds, what is finished, seconds, links into the run's folders."""
    rows: dict[Key, list[Model]] = {}
    for model in RunDir(run.path).models(run.config):
        rows.setdefault((model.arm, model.step), []).append(model)
    table = []
    for (arm, step), models in rows.items():
        found = run.records_of.get((arm, step), [])
        accuracy = Spread(*spread([record["test_acc"] for record in found]), len(found)) if found else None
        seconds = Seconds(spread([record["seconds"] for record in found])[0]) if found else None
        links = [link(model.folder, base, f"seed {model.seed}") for model in models if model.folder.exists()]
        title = arm_title(arm)
        if arm is not None and arm.endswith(PROBE):
            title = f"{arm_title(arm.removesuffix(PROBE))}, probe"
        table.append([title, step, accuracy, len(found), _state(run, models, states, len(found)), seconds, links])
    return Table(
        "Means over seeds, and the folders of the run",
        ["arm", "step", "test accuracy", "seeds", "state", "seconds each", "folders"],
        table,
    )


def _state(run: RunResults, models: Sequence[Model], states: States, finished: int) -> str:
    """``finished``, or what is not."""
    parts = []
    for model in models:
        if model.folder in states:
            state, detail = states[model.folder]
            parts.append(f"seed {model.seed} {MARKS.get(state, '')}{state}{detail}")
        elif is_finished(model.folder) and (model.seed, model.arm, model.step) not in run.by_key:
            parts.append(f"seed {model.seed} ✗ damaged")
    return "; ".join(parts) if parts else ("finished" if finished else "not trained")


def confusion(run: RunResults, model: Key) -> NDArray[np.int64] | None:
    """The confusion matrix of an arm and step, summed over the seeds that keep predictions; None if none does."""
    kept = [run.predictions(seed, *model) for seed in run.seeds]
    found = [each.confusion() for each in kept if each is not None]
    return sum(found[1:], start=found[0]) if found and len({matrix.shape for matrix in found}) == 1 else None


def confusion_table(matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> Table:
    """A confusion matrix: true classes down, predicted ones across; of many classes the most frequent confusions."""
    if len(classes) <= MOST_CLASSES:
        totals = matrix.sum(1).clip(1)
        rows = [
            [name, *(Heat(f"{count:,}", float(count / total)) for count in row)]
            for name, row, total in zip(classes, matrix, totals, strict=True)
        ]
        return Table(f"{title}: true class down, predicted across", ["true", *classes], rows)
    counts = [(n, i, j) for i, row in enumerate(matrix.tolist()) for j, n in enumerate(row) if i != j and n]
    rows = [[classes[i], classes[j], count] for count, i, j in sorted(counts, reverse=True)[:WORST]]
    return Table(f"{title}: the {len(rows)} most frequent confusions", ["true", "predicted", "images"], rows)


def class_table(matrices: Mapping[str, NDArray[np.int64]], classes: Sequence[str]) -> Table:
    """The accuracy of each class, of models by their names."""
    images = next(iter(matrices.values())).sum(1).tolist()
    shares = [matrix.diagonal() / matrix.sum(1).clip(1) for matrix in matrices.values()]
    rows = [[name, n, *(float(s[i]) for s in shares)] for i, (name, n) in enumerate(zip(classes, images, strict=True))]
    return Table("Accuracy by class", ["class", "test images", *matrices], rows)


def cost_table(run: RunResults) -> Table:
    """Trainings and seconds by step."""
    rows = []
    for step in sorted({result.step for result in run}):
        seconds = [result.seconds for result in run if result.step == step and result.epochs]
        if seconds:
            rows.append([step, len(seconds), Seconds(spread(seconds)[0]), Seconds(sum(seconds))])
    total = [row[3] for row in rows]
    title = f"{sum(row[1] for row in rows)} trainings, {sum(total):,.0f} s altogether"
    return Table(title, ["step", "trainings", "seconds each", "seconds"], rows)


def options_table(runs: Sequence[RunResults]) -> Table:
    """The options that affect results; if they differ between runs, all their values."""
    options = [run.config.identity for run in runs]
    rows = []
    for name in dict.fromkeys(name for each in options for name in each):
        values = [each.get(name, "default") for each in options]
        texts = [" ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values]
        rows.append([name, ", ".join(dict.fromkeys(texts))])
    return Table("Options", ["option", "value"], rows)


def processes_table(run: RunResults) -> Table:
    """The processes that worked on the run: when, with which versions, where."""
    names = ("started", "finished", "commit", "python", "torch", "torchvision", "numpy", "device", "machine", "threads")
    entries = processes(run.path)
    rows = [[name, *(str(entry.get(name) or "-") for entry in entries[-3:])] for name in names]
    header = ["", *(f"process {i + 1}" for i in range(max(0, len(entries) - 3), len(entries)))]
    return Table("Processes", header, rows if entries else [])
