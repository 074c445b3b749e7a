"""The tree of a study, from its folders: what is finished, begun and missing, and how long the rest takes."""

import csv
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from distill.arms import PROBE, arm_title
from distill.config import Config
from distill.files import read_text
from distill.store.rundir import STATE, Model, RunDir, is_finished, read_metrics
from distill.study import Study

STATES = ("finished", "begun", "to train")
Kind = bool  # whether a model is a student


@dataclass
class Branch:
    """The number of models of a setting or an arm in each state, and the epochs that are left to train."""

    count: Counter[str] = field(default_factory=Counter)
    left: Counter[Kind] = field(default_factory=Counter)  # epochs

    def add(self, other: "Branch") -> None:
        """Add the models of another branch."""
        self.count += other.count
        self.left += other.left

    def __str__(self) -> str:
        return ", ".join(f"{self.count[state]:,} {state}" for state in STATES if self.count[state]) or "nothing"


def tree(study: Study) -> str:
    """The settings and arms of a study with their models: finished, begun, to train. Reads few files."""
    lines = []
    whole = Branch()
    hours = 0.0
    unknown = False
    times = {setting.config.output: _seconds_per_epoch(setting.config.output) for setting in study.settings}
    elsewhere: dict[Kind, float] = {}  # of the first run that has any
    for each in times.values():
        elsewhere = each | elsewhere
    for setting in study.settings:
        arms = _arms(setting.config)
        total = Branch()
        for branch in arms.values():
            total.add(branch)
        lines.append(f"{setting.title or 'run'}: {total}")
        lines += [f"  {name}: {branch}" for name, branch in arms.items()]
        whole.add(total)
        own = times[setting.config.output]
        for kind, epochs in total.left.items():
            known = own.get(kind) or elsewhere.get(kind)
            unknown = unknown or known is None
            hours += epochs * (known or 0.0) / 3600
    head = f"{study.path}: {sum(whole.count.values()):,} models in {len(study.settings):,} settings: {whole}"
    return "\n".join([*lines, head, _time(hours, unknown, whole)])


def _arms(config: Config) -> dict[str, Branch]:
    """The models of a run by arm. A probe counts as a model, as for ``--estimate``."""
    found: dict[str, Branch] = {}
    for model in RunDir(config.output).models(config):
        arm = None if model.arm is None else model.arm.removesuffix(PROBE)
        state, epochs = _state(model, config)
        branch = found.setdefault(arm_title(arm), Branch())
        branch.count[state] += 1
        branch.left[arm is not None] += epochs
    return found


def _state(model: Model, config: Config) -> tuple[str, int]:
    """The state of a model, and the epochs that are left to train."""
    folder = model.folder
    if is_finished(folder):
        return "finished", 0
    if folder.name == "probe" and is_finished(folder.parent):
        return "finished", 0
    epochs = 0 if model.arm is None and config.chain.teacher_ckpt is not None else config.train.epochs
    if (folder / STATE).exists():
        return "begun", max(0, epochs - len(read_metrics(folder)))
    return "to train", epochs


def _seconds_per_epoch(path: Path) -> dict[Kind, float]:
    """The mean seconds per epoch of a run's finished teachers and students, as far as results.csv has any."""
    seconds: dict[Kind, float] = {False: 0.0, True: 0.0}
    epochs: Counter[Kind] = Counter()
    with suppress(OSError, ValueError, KeyError, TypeError, csv.Error):
        for row in csv.DictReader(read_text(path / "results.csv").splitlines()):
            seconds[row["arm"] != ""] += float(row["seconds"])
            epochs[row["arm"] != ""] += int(row["epochs"])
    return {kind: seconds[kind] / epochs[kind] for kind in epochs if epochs[kind]}


def _time(hours: float, unknown: bool, whole: Branch) -> str:
    if not whole.left.total():
        return "nothing is left to train"
    if unknown:
        return "the time is not known until a teacher and a student are finished; --estimate measures it"
    left = f"{hours:.2g} h" if hours >= 0.1 else f"{60 * hours:.2g} min"
    return f"about {left} of training are left, one model after the other, as long as the finished ones took"
