"""The figures of a run. Imports no torch.

To add a figure, write a function from a ``Run`` to a Matplotlib Figure and give it an entry in ``FIGURES``.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distill import metrics
from distill.arms import TEACHER, Arm, arm_name, arm_title, students_of
from distill.config import ChainConfig
from distill.reporting.statistics import spread
from distill.reporting.style import line_style, new_figure, styled
from distill.store.results import Result

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_IMAGES = 10  # of a bin in a reliability diagram
PANELS = 4  # side by side

ByArm = dict[str | None, dict[int, list[float]]]


@dataclass(frozen=True, eq=False)
class Run:
    """What the figures of a run show: its chains, and the result.json of each finished model."""

    chain: ChainConfig
    records: list[dict[str, Any]]

    @cached_property
    def results(self) -> list[Result]:
        """The result of every finished model."""
        return [Result.of(record) for record in self.records]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of the grid; the teacher alone if there are no students."""
        return self.chain.arms or (TEACHER,)

    def models(self, arm: Arm) -> list[tuple[str | None, int]]:
        """The arm and step of each model of a chain, from the teacher on."""
        names = [None, *(student.arm for student in students_of(arm))]
        return [(name, self.chain.first_step + k) for k, name in enumerate(names)]

    @property
    def seeds_label(self) -> str:
        """What is averaged, in words."""
        seeds = sorted({result.seed for result in self.results})
        return f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"


def by_arm(run: Run, metric: str = "test_acc") -> ByArm:
    """A metric as ``{arm: {step: [a value per seed]}}``. Every arm begins with the teacher, which all arms share.

    Unfinished models and models without a value are omitted. Without students the only arm is None, the teacher.
    """
    values: dict[tuple[str | None, int], list[float]] = {}
    for result in run.results:
        value = getattr(result, metric)
        if value is not None:
            values.setdefault((result.arm, result.step), []).append(value)
    return {
        arm_name(arm): {model[1]: values[model] for model in run.models(arm) if model in values} for arm in run.arms
    }


@styled()
def accuracy_figure(run: Run) -> Figure:
    """Test accuracy against step, a line per arm with its standard deviation over seeds."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot(xlabel="distillation step (0: teacher)", ylabel="test accuracy", title=run.seeds_label)
    _draw_arms(axes, by_arm(run))
    axes.legend()
    return figure


@styled()
def diagnostics_figure(run: Run) -> Figure:
    """Every metric that has a label and a value, against step, in a panel each with one legend."""
    labels = {metric.name: metric.label for metric in metrics.METRICS if metric.label is not None}
    names = [name for name in labels if any(getattr(result, name) is not None for result in run.results)]
    rows = math.ceil(len(names) / PANELS)
    figure = new_figure(12, 0.6 + 2.6 * rows)
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, PANELS, i + 1, title=labels[name])
        if i + PANELS >= len(names):
            axes.set_xlabel("distillation step (0: teacher)")
        _draw_arms(axes, by_arm(run, name))
    lines, arms = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, arms, loc="outside upper center", ncols=8, title=run.seeds_label)
    return figure


@styled()
def reliability_figure(run: Run) -> Figure:
    """Reliability diagrams (Guo et al. 2017, arXiv 1706.04599), a panel per arm and a line per step, seeds pooled.

    A bin is drawn at its mean confidence if it has ``MIN_IMAGES`` images.
    """
    from matplotlib import colormaps

    diagrams: dict[tuple[str | None, int], list[dict[str, list[float]]]] = {}
    for record in run.records:
        if "reliability" in record:
            diagrams.setdefault((record["arm"], record["step"]), []).append(record["reliability"])
    columns = min(PANELS, len(run.arms))
    rows = math.ceil(len(run.arms) / columns)
    figure = new_figure(max(4, 2.8 * columns), 0.4 + 2.7 * rows)
    lines = {}
    for i, arm in enumerate(run.arms):
        axes = figure.add_subplot(rows, columns, i + 1, aspect="equal", xlim=(0, 1), ylim=(0, 1))
        axes.set(title=arm_title(arm_name(arm)), xlabel="confidence", ylabel="accuracy")
        axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
        axes.grid(alpha=0.3)
        models = run.models(arm)
        for k, model in enumerate(models):
            if model in diagrams:
                colour = colormaps["viridis"](0.9 * k / max(1, len(models) - 1))
                (line,) = axes.plot(*_calibration(diagrams[model]), ".-", color=colour)
                lines[f"step {model[1]}"] = line
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=8)
    return figure


FIGURES: dict[str, Callable[[Run], Figure]] = {  # by the name of their files
    "accuracy": accuracy_figure,
    "diagnostics": diagnostics_figure,
    "reliability": reliability_figure,
}


def _calibration(diagrams: list[dict[str, list[float]]]) -> tuple[list[float], list[float]]:
    """Mean confidence and accuracy of each bin with enough images, over all diagrams together."""
    sums = {
        name: [sum(bins) for bins in zip(*(diagram[name] for diagram in diagrams), strict=True)]
        for name in ("count", "confidence", "correct")
    }
    shown = [i for i, count in enumerate(sums["count"]) if count >= MIN_IMAGES]
    confidence = [sums["confidence"][i] / sums["count"][i] for i in shown]
    return confidence, [sums["correct"][i] / sums["count"][i] for i in shown]


def _draw_arms(axes: Axes, arms: ByArm) -> None:
    from matplotlib.ticker import MaxNLocator

    for i, (arm, steps) in enumerate(arms.items()):
        if not steps:
            continue
        means, deviations = zip(*(spread(values) for values in steps.values()), strict=True)
        # Shift the arms a little, so that their bars do not overlap.
        at = [step + 0.05 * (i - (len(arms) - 1) / 2) for step in steps]
        bars = deviations if any(deviations) else None
        axes.errorbar(at, means, yerr=bars, markersize=4, capsize=2, label=arm_title(arm), **line_style(i))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
