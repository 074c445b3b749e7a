"""The figures of a run. Imports no torch.

To add a figure, write a function from a ``RunResults`` to a Matplotlib Figure and give it an entry in ``FIGURES``.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Sequence

from distill.arms import arm_name, arm_title
from distill.pages.style import describe, legend, line_style, new_figure, step_colour, styled, thinned, thinned_words
from distill.reporting.results import RunResults, metric_labels
from distill.reporting.statistics import spread
from distill.store.rundir import read_metrics

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_IMAGES = 10  # of a bin in a reliability diagram
PANELS = 4  # side by side
MOST_EPOCHS = 36  # of a learning curve in the page, which every epoch would make too large
MARKERS = 3  # of a learning curve, of which a page may have a hundred
STEP = "step (0: teacher)"
CURVES = {"train_loss": "training loss", "train_acc": "training accuracy", "val_acc": "held-out accuracy"}


@styled()
def accuracy_figure(run: RunResults) -> Figure:
    """Mean test accuracy against step, a line per arm; beside it the gain over the teacher of the same seed."""
    methods = sorted({gain.difference.method for gain in run.paired()})
    figure = new_figure(7.5 if methods else 4, 3.4)
    left, *right = figure.subplots(1, 2 if methods else 1, squeeze=False)[0]
    seeds = len(run.seeds)
    left.set(xlabel=STEP, ylabel="test accuracy", title=f"mean over {seeds} seeds" if seeds > 1 else run.seeds_label)
    draw_arms(left, run, "test_acc", band=False)
    for axes in right:
        axes.set(xlabel="step", ylabel="gain in test accuracy", title="gain over the teacher, paired by seed")
        draw_gains(axes, run, "test_acc")
    bars = f"bars of the gain: 95 % intervals ({'; '.join(methods)})" if methods else ""
    lines, arms = left.get_legend_handles_labels()
    legend(figure, lines, arms, thinned_words(run.arms), bars)
    return figure


@styled()
def diagnostics_figure(run: RunResults, names: Sequence[str] = (), columns: int = PANELS) -> Figure:
    """Metrics against step, one panel each with a band over seeds: those in ``names``, or all that have a value."""
    names = [name for name in names or metric_labels() if any(getattr(result, name) is not None for result in run)]
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(2.6 * columns, 0.7 + 2.1 * rows)
    panels = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
        axes.set_title(metric_labels().get(name, name))
        draw_arms(axes, run, name)
        if i + columns >= len(names):
            axes.set_xlabel(STEP)
            axes.tick_params(labelbottom=True)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    lines, arms = figure.axes[0].get_legend_handles_labels()
    legend(figure, lines, arms, thinned_words(run.arms), run.seeds_label)
    return figure


@styled()
def reliability_figure(run: RunResults) -> Figure:
    """Reliability diagrams (Guo et al. 2017, arXiv 1706.04599), a panel per arm and a line per step, seeds pooled.

    A bin is drawn at its mean confidence if it has ``MIN_IMAGES`` images. Below, the share of the images in each bin.
    """
    diagrams = {
        model: [record["reliability"] for record in records if "reliability" in record]
        for model, records in run.records_of.items()
    }
    figure, columns = _panels_of_arms(run, 3.0, {"accuracy": 3, "share": 1})
    lines = {}
    for arm, (upper, lower) in zip(thinned(run.arms), columns, strict=True):
        upper.set(xlim=(0, 1), ylim=(0, 1))
        lower.set_xlabel("confidence")
        upper.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
        models = run.models(arm)
        for k, model in enumerate(models):
            if diagrams.get(model):
                name = f"step {model[1]}"
                lines[name] = _draw_calibration(upper, lower, diagrams[model], step_colour(k, len(models)), name)
    legend(figure, list(lines.values()), list(lines), thinned_words(run.arms))
    return figure


@styled()
def curves_figure(run: RunResults) -> Figure | None:
    """Learning curves: a column per arm, a line per step, means over seeds; None if no metrics.csv can be read."""
    rows = [metric for metric in CURVES if metric != "val_acc" or any(result.val_acc is not None for result in run)]
    figure, columns = _panels_of_arms(run, 1.8 * len(rows), {CURVES[metric]: 1 for metric in rows})
    lines = {}
    for arm, panels in zip(thinned(run.arms), columns, strict=True):
        models = run.models(arm)
        panels[-1].set_xlabel("epoch")
        for k, model in enumerate(models):
            tables = list(filter(None, (read_metrics(run.folder(seed, *model)) for seed in run.seeds)))
            for axes, metric in zip(panels, rows, strict=True):
                means = [spread([row[metric] for row in rows])[0] for rows in zip(*tables, strict=False)]
                if means:
                    name = f"step {model[1]}"
                    lines[name] = _draw_curve(axes, means, step_colour(k, len(models)), f"{name}, {CURVES[metric]}")
        for axes in panels:
            whole_steps(axes)
    legend(figure, list(lines.values()), list(lines), thinned_words(run.arms))
    return figure if lines else None


def _draw_curve(axes: Axes, means: Sequence[float], colour: str, name: str) -> typing.Any:
    """Draw a value against epoch, with a few markers, the last epoch's among them."""
    shown = sorted({*range(0, len(means), 1 + len(means) // MOST_EPOCHS), len(means) - 1})
    marked = list(range(len(shown) - 1, -1, -math.ceil(len(shown) / MARKERS)))[::-1]
    style: dict[str, typing.Any] = {"marker": ".", "markersize": 4, "markevery": marked, "linewidth": 1}
    (line,) = axes.plot([i + 1 for i in shown], [means[i] for i in shown], color=colour, **style)
    describe(line, [f"{name} {means[shown[i]]:.4f}, epoch {shown[i] + 1}" for i in marked])
    return line


def _panels_of_arms(run: RunResults, height: float, ratios: dict[str, int]) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a column of panels for each arm, ``PANELS`` side by side, a column ``height`` inches high.

    ``ratios`` holds the label of each panel of a column and its share of the height.
    """
    arms = thinned(run.arms)
    columns = min(PANELS, len(arms))
    rows = math.ceil(len(arms) / columns)
    figure = new_figure(max(4, 2.3 * columns), 0.6 + height * rows)
    shared: dict[str, typing.Any] = {"squeeze": False, "sharex": True, "sharey": "row"}
    panels = figure.subplots(len(ratios) * rows, columns, height_ratios=[*ratios.values()] * rows, **shared)
    blocks = panels.reshape(rows, len(ratios), columns).swapaxes(1, 2).reshape(-1, len(ratios))
    for block in blocks[::columns]:
        for axes, label in zip(block, ratios, strict=True):
            axes.set_ylabel(label)
    for arm, block in zip(arms, blocks, strict=False):
        block[0].set_title(arm_title(arm_name(arm)))
        for axes in block:
            axes.grid(alpha=0.3)
    for axes in blocks[len(arms) :].flat:
        axes.set_axis_off()
    return figure, blocks[: len(arms)].tolist()


FIGURES: dict[str, Callable[[RunResults], Figure]] = {  # by the name of their files
    "accuracy": accuracy_figure,
    "diagnostics": diagnostics_figure,
    "reliability": reliability_figure,
}


def _draw_calibration(
    upper: Axes, lower: Axes, diagrams: list[dict[str, list[float]]], colour: str, name: str
) -> typing.Any:
    """Draw accuracy against mean confidence of each bin with enough images, and the share of the images in each bin."""
    count, confidence, correct = (
        [sum(bins) for bins in zip(*(diagram[what] for diagram in diagrams), strict=True)]
        for what in ("count", "confidence", "correct")
    )
    shown = [i for i, images in enumerate(count) if images >= MIN_IMAGES]
    x, y = ([sums[i] / count[i] for i in shown] for sums in (confidence, correct))
    (line,) = upper.plot(x, y, ".-", color=colour)
    texts = zip(x, y, shown, strict=True)
    describe(line, [f"{name}: confidence {p:.3f}, accuracy {q:.3f}, {count[i]:,.0f} images" for p, q, i in texts])
    edges = [i / len(count) for i in range(len(count) + 1)]
    lower.stairs([images / max(1, sum(count)) for images in count], edges, color=colour)
    return line


def draw_arms(axes: Axes, run: RunResults, metric: str, band: bool = True) -> None:
    """Means over seeds against step, a line per arm from the teacher on; ``band``: with their standard deviations."""
    arms = run.by_arm(metric)
    for i, arm in enumerate(thinned(list(arms))):
        steps = arms[arm]
        if not steps:
            continue
        means, deviations = zip(*(spread(values) for values in steps.values()), strict=True)
        style = line_style(i)
        (line,) = axes.plot(list(steps), means, markersize=4, label=arm_title(arm), **style)
        if band and any(deviations):
            low, high = ([max(0, m + sign * d) for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
            axes.fill_between(list(steps), low, high, color=style["color"], alpha=0.15, linewidth=0)
        texts = zip(steps, means, deviations, strict=True)
        describe(line, [f"{arm_title(arm)}, step {k}: {mean:.4f} ± {sd:.4f}" for k, mean, sd in texts])
    whole_steps(axes)


def draw_gains(axes: Axes, run: RunResults, metric: str, order: Sequence[str | None] = ()) -> None:
    """Paired changes of a metric from the teacher against step, with 95 % intervals, a line per arm.

    Only the arms in ``order``, by default the run's own, are drawn; their places there give their colours.
    """
    order = order or thinned([arm_name(arm) for arm in run.arms])
    arms = {name: arm for arm in run.arms if (name := arm_name(arm)) in order}
    for i, (name, arm) in enumerate(arms.items()):
        changes = {model[1]: run.difference(metric, model, run.teacher) for model in run.models(arm)[1:]}
        found = {step: change for step, change in changes.items() if change is not None}
        if not found:
            continue
        at = [step + 0.06 * (i - (len(arms) - 1) / 2) for step in found]  # shifted, so that bars do not overlap
        means = [change.mean for change in found.values()]
        halves = [[c.mean - c.low for c in found.values()], [c.high - c.mean for c in found.values()]]
        bars = None if any(map(math.isnan, halves[0])) else halves
        drawn = axes.errorbar(
            at,
            means,
            bars,
            markersize=4,
            elinewidth=0.8,
            label=arm_title(name),
            **line_style(order.index(name)),
        )
        describe(drawn.lines[0], [f"{arm_title(name)}, step {k}: {c}" for k, c in found.items()])
    axes.axhline(0, color="#808080", linewidth=0.8)
    whole_steps(axes)


def whole_steps(axes: Axes) -> None:
    """Whole numbers on the axis of steps, which is at least one step wide, and a grid."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    data = axes.dataLim
    if 0 <= data.width < 1:  # a single step, or none but a line across the panel
        axes.update_datalim([(data.x0 - 0.5, 0), (data.x1 + 0.5, 0)], updatey=False)
        axes.autoscale_view(scaley=False)
    axes.grid(alpha=0.3)
