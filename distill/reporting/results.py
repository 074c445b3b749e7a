"""The results of a run as an object: the models, their table, paired differences, and the best arm and step."""

from __future__ import annotations

import itertools
import math
import statistics
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from distill import metrics
from distill.arms import PROBE, TEACHER, Arm, Fixed, arm_name, arm_title, students_of
from distill.config import Config
from distill.errors import ConfigError, one_line, suggestion
from distill.files import note_once
from distill.pages.tables import Spread, Table
from distill.reporting.statistics import Difference, holm, over_images, over_seeds, spread
from distill.store.predictions import PER_IMAGE, TestPredictions, read_predictions
from distill.store.results import Result, columns, name_model, sort_key
from distill.store.rundir import RunDir, is_finished

if typing.TYPE_CHECKING:
    import pandas

ByArm = dict[str | None, dict[int, list[float]]]
Key = tuple[str | None, int]  # arm and step of a model


@dataclass(frozen=True)
class OfModel:
    """An arm and step; the arm is None for the teacher."""

    arm: str | None
    step: int

    @property
    def key(self) -> Key:
        """The arm and step."""
        return self.arm, self.step

    @property
    def name(self) -> str:
        """Such as ``alpha = 0.6, step 2``."""
        return name_key(self.key)


@dataclass(frozen=True)
class Gain(OfModel):
    """The change of a metric from one model to another of the same seed, over all seeds that have both."""

    difference: Difference
    p_holm: float  # corrected for the number of comparisons made together


@dataclass(frozen=True)
class Best(OfModel):
    """The arm and step that the held-out images choose."""

    val_acc: float  # the mean over seeds


class RunResults(list[Result]):
    """The results of the finished models of a run, by seed, arm (the teacher first) and step.

    ``config`` holds the run's options, ``chain`` its grid, ``path`` is its folder. ``records`` holds the result.json of
    each model; ``problems`` has a line for each model whose record cannot be read.
    """

    def __init__(self, config: Config, records: list[dict[str, Any]], problems: Sequence[str] = ()) -> None:
        super().__init__(map(Result.of, records))
        self.config = config
        self.chain = config.chain
        self.path = config.output
        self.records = records
        self.problems = list(problems)
        self._differences: dict[tuple[str, Key, Key], Difference | None] = {}

    @classmethod
    def load(cls, path: Path) -> Self:
        """The results of the run in a folder; ``problems`` names damaged records. Raises ConfigError."""
        rundir = RunDir(path)
        config = rundir.config()
        records = []
        problems = []
        for model in rundir.models(config):
            if is_finished(model.folder):
                try:
                    records.append(rundir.record(model, config))
                except ConfigError as error:
                    problems.append(str(error))
        records.sort(key=lambda record: sort_key(Result.of(record)))
        return cls(config, records, problems)

    @property
    def results(self) -> list[Result]:
        """The result of every finished model."""
        return list(self)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of the grid; the teacher alone if there are no students."""
        return self.chain.arms or (TEACHER,)

    @property
    def seeds(self) -> list[int]:
        """The seeds with a finished model."""
        return sorted({result.seed for result in self})

    @property
    def no_student(self) -> str:
        """A line if no student is finished, else empty."""
        if any(result.arm is not None and not result.arm.endswith(PROBE) for result in self):
            return ""
        return "No student is finished yet" if self.chain.arms else "There are no students: only teachers are trained"

    @property
    def seeds_label(self) -> str:
        """What is averaged, in words."""
        seeds = self.seeds
        return f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"

    @cached_property
    def by_key(self) -> dict[tuple[int, str | None, int], Result]:
        """The results by seed, arm and step."""
        return {(result.seed, result.arm, result.step): result for result in self}

    @cached_property
    def records_of(self) -> dict[Key, list[dict[str, Any]]]:
        """The records of each arm and step, one per seed."""
        found: dict[Key, list[dict[str, Any]]] = {}
        for record in self.records:
            found.setdefault((record["arm"], record["step"]), []).append(record)
        return found

    def models(self, arm: Arm) -> list[Key]:
        """The arm and step of each model of a chain, from the teacher on."""
        names = [None, *(student.arm for student in students_of(arm))]
        return [(name, self.chain.first_step + k) for k, name in enumerate(names)]

    def by_arm(self, metric: str = "test_acc") -> ByArm:
        """A metric as ``{arm: {step: [a value per seed]}}``. Every arm begins with the teacher, which all arms share.

        Unfinished models and models without a value are omitted. Without students the only arm is None, the teacher.
        """
        values = {
            model: [record[metric] for record in records if record.get(metric) is not None]
            for model, records in self.records_of.items()
        }
        return {
            arm_name(arm): {model[1]: values[model] for model in self.models(arm) if values.get(model)}
            for arm in self.arms
        }

    def frame(self) -> pandas.DataFrame:
        """The results as a pandas data frame, with the columns of results.csv. Raises ConfigError without pandas."""
        try:
            import pandas
        except ImportError:
            raise ConfigError("frame() needs pandas, which is not installed: pip install pandas") from None
        frame = pandas.DataFrame([result.row() for result in self], columns=columns())
        return frame.astype({name: float for name in columns() if name not in ("seed", "arm", "step", "epochs")})

    def table(self, values: str = "test_acc", index: str = "step", columns: str = "arm") -> Table:
        """A metric as a table of means, with sample standard deviations.

        ``index`` names what the rows are and ``columns`` what the columns are, two of step, arm and seed. What is left
        out is averaged over, which must be the seeds unless the run has a single arm or step. Raises ConfigError.
        """
        _check_metric(values)
        axes: dict[str, list[Any]] = {"seed": self.seeds, "arm": [arm_name(arm) for arm in self.arms]}
        axes["step"] = sorted({step for arm in self.arms for _, step in self.models(arm)})
        for axis in (index, columns):
            if axis not in axes or index == columns:
                raise ConfigError(f"a table is of two of {', '.join(axes)}, not of {index} by {columns}")
        (rest,) = axes.keys() - {index, columns}
        if rest != "seed" and len(axes[rest]) > 1:
            raise ConfigError(f"a table of {index} by {columns} would mix {len(axes[rest])} {rest}s")
        cells: dict[tuple[Any, Any], list[float]] = {}
        for arm in self.arms:
            for (name, step), seed in itertools.product(self.models(arm), self.seeds):
                value = getattr(self.by_key.get((seed, name, step)), values, None)
                if value is not None:
                    place = {"step": step, "arm": arm_name(arm), "seed": seed}
                    cells.setdefault((place[index], place[columns]), []).append(value)
        rows = [row for row in axes[index] if any((row, column) in cells for column in axes[columns])]
        return Table(
            self._title(values, rest),
            [index, *(_heading(columns, column) for column in axes[columns])],
            [[_heading(index, row, bare=True), *(_spread(cells.get((row, c))) for c in axes[columns])] for row in rows],
        )

    def _title(self, metric: str, rest: str) -> str:
        label = metric_labels().get(metric, metric)
        seeds = len(self.seeds) if rest == "seed" else 1
        over = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
        return f"{label[0].upper()}{label[1:]}{over} (step {self.chain.first_step} is the teacher)"

    def paired(self, metric: str = "test_acc", against: float | str = "teacher", step: int | None = None) -> list[Gain]:
        """The changes of a metric from the teacher, or from the same step of the arm ``against``, paired by seed.

        One entry for each arm and step, or for each arm at one ``step``, with 95 % intervals: Student's t over seeds,
        or a bootstrap over the test images of a single seed (test_acc and test_brier). P-values are also corrected by
        Holm's method for the number of entries. Raises ConfigError.
        """
        _check_metric(metric)
        against = against if isinstance(against, str) else Fixed(float(against)).name
        names = {arm_name(arm): arm for arm in self.arms}
        if against != "teacher" and against not in names:
            raise ConfigError(f"this run has no arm {against}; it has {' '.join(filter(None, names))}")
        base = {} if against == "teacher" else dict(enumerate(self.models(names[against])))
        pairs: dict[Key, Difference] = {}
        for arm in self.arms:
            for k, model in enumerate(self.models(arm)):
                of = base.get(k, self.teacher)
                if k and model not in pairs and model != of and step in (None, model[1]):
                    difference = self.difference(metric, model, of)
                    if difference is not None:
                        pairs[model] = difference
        corrected = holm([difference.p for difference in pairs.values()])
        return [Gain(*model, difference, p) for (model, difference), p in zip(pairs.items(), corrected, strict=True)]

    @property
    def teacher(self) -> Key:
        """The arm and step of the teacher."""
        return None, self.chain.first_step

    def difference(self, metric: str, model: Key, of: Key) -> Difference | None:
        """The change of a metric from the model ``of`` to ``model``, paired by seed; None if no seed has both."""
        asked = (metric, model, of)
        if asked not in self._differences:
            self._differences[asked] = self._difference(*asked)
        return self._differences[asked]

    def _difference(self, metric: str, model: Key, of: Key) -> Difference | None:
        pairs = {}
        for seed in self.seeds:
            here, there = (getattr(self.by_key.get((seed, *key)), metric, None) for key in (model, of))
            if here is not None and there is not None:
                pairs[seed] = here - there
        if len(pairs) == 1 and metric in PER_IMAGE:
            (seed,) = pairs
            kept, other = (self.predictions(seed, *key) for key in (model, of))
            if kept is not None and other is not None and len(kept.labels) == len(other.labels):
                return over_images(PER_IMAGE[metric](kept) - PER_IMAGE[metric](other))
        return over_seeds(list(pairs.values())) if pairs else None

    def predictions(self, seed: int, arm: str | None, step: int) -> TestPredictions | None:
        """A finished model's predictions for the test images; None if it has none or, with a note, damaged ones."""
        for record in self.records_of.get((arm, step), []):
            if record["seed"] == seed:
                try:
                    return read_predictions(self.folder(seed, arm, step), record.get("predictions_sha256"))
                except (ConfigError, OSError) as error:
                    note_once(f"note: {one_line(error)}")
        return None

    @cached_property
    def _folders(self) -> dict[tuple[int, str | None, int], Path]:
        models = RunDir(self.path).models(self.config)
        return {(model.seed, model.arm, model.step): model.folder for model in models}

    def folder(self, seed: int, arm: float | str | None, step: int) -> Path:
        """The folder of a model, finished or not; ``arm`` is None for the teacher. Raises ConfigError."""
        name = arm if arm is None or isinstance(arm, str) else Fixed(float(arm)).name
        for each in self.arms:
            if arm_name(each) == name and (found := [model for model, k in self.models(each) if k == step]):
                name = found[0]  # arms that begin alike share models
        if (seed, name, step) in self._folders:
            return self._folders[seed, name, step]
        alphas = dict.fromkeys(filter(None, (arm_name(each) for each in self.arms)))
        last = self.chain.first_step + self.chain.distillation_steps
        raise ConfigError(
            f"{self.path} has no model {name_model(seed, name, step)}; it has seed {_list(self.chain.seed)}, alpha "
            f"{_list(alphas)}, and steps {self.chain.first_step} (the teacher) to {last}"
        )

    def best(self) -> Best:
        """The arm and step, or the teacher, with the best mean accuracy on the held-out images.

        Compared are the models that the most seeds have, by their gain over the teacher of the same seed; of equally
        accurate ones the one with the least held-out Brier score is taken. Raises ConfigError if nothing was held out
        or no teacher is finished.
        """
        candidates: dict[Key, tuple[int, float, float]] = {}
        for model in dict.fromkeys(model for arm in self.arms for model in self.models(arm)):
            acc, brier = (self.difference(metric, model, self.teacher) for metric in ("val_acc", "val_brier"))
            if acc is not None:
                seeds = sum((seed, *model) in self.by_key for seed in self.seeds)
                candidates[model] = (seeds, round(acc.mean, 12), -math.inf if brier is None else -brier.mean)
        if not candidates and self.teacher not in self.records_of and self.config.data.val_size:
            raise ConfigError("no teacher's record can be read, so no student can be compared with its teacher")
        if not candidates:
            raise ConfigError("no images were held out (--val-size), and test images must not choose")
        most = max(
            seeds for model, (seeds, _, _) in candidates.items() if model != self.teacher or len(candidates) == 1
        )
        found = max((model for model in candidates if candidates[model][0] >= most), key=lambda m: candidates[m][1:])
        scores = [
            result.val_acc for result in self if (result.arm, result.step) == found and result.val_acc is not None
        ]
        return Best(*found, statistics.fmean(scores))


def metric_labels() -> dict[str, str]:
    """What the figures and tables call the metrics that have a panel."""
    return {metric.name: metric.label for metric in metrics.METRICS if metric.label is not None}


def name_key(model: Key) -> str:
    """``alpha = 0.6, step 2``."""
    return f"{arm_title(model[0])}, step {model[1]}"


def _check_metric(name: str) -> None:
    if name in ("seed", "arm", "step"):
        raise ConfigError(f"{name} is not a metric")
    if name not in columns():
        raise ConfigError(f"results have no {name}{suggestion(name, columns())}")


def _heading(axis: str, value: Any, bare: bool = False) -> str:
    """What a row or column of a table is called."""
    if axis == "arm":
        return arm_title(value).replace(" =", "")
    return str(value) if bare else f"{axis} {value}"


def _list(values: Iterable[object]) -> str:
    return " ".join(map(str, values)) or "none"


def _spread(values: list[float] | None) -> Spread | None:
    return None if not values else Spread(*spread(values), len(values))
