"""The figures of a run directory, as Matplotlib Figures. Imports no torch."""

import math
import statistics

from distill import metrics
from distill.arms import arm_name, arm_title, prefixes
from distill.config import ChainConfig
from distill.store.results import Result

# Okabe & Ito's palette, which colour-blind readers can tell apart, and a marker each for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"

Arms = dict[str, dict[int, list[float]]]


def by_arm(results: list[Result], chain: ChainConfig, figure: str = "test_acc") -> Arms:
    """One figure of the results as ``{arm: {step: [a value per seed]}}``; every arm begins with the teacher it shares.

    Models that are not finished, or have no such figure, are left out. Without students the only arm is ``teacher``.
    """
    values: dict[tuple[str | None, int], list[float]] = {}
    for result in results:
        if (value := getattr(result, figure)) is not None:
            values.setdefault((result.arm, result.step), []).append(value)
    arms = {}
    for arm in chain.arms or ((),):
        models = [None, *map(arm_name, prefixes(arm))]
        steps = {chain.first_step + k: values.get((name, chain.first_step + k)) for k, name in enumerate(models)}
        arms[models[-1] or "teacher"] = {step: found for step, found in steps.items() if found}
    return arms


def title(arm: str) -> str:
    """``alpha = 0.6``; an estimated weight, and the teacher, are called by their names."""
    return arm if arm == "teacher" else arm_title(arm)


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def accuracy_figure(results: list[Result], chain: ChainConfig):
    """Test accuracy against step, a line per arm with its standard deviation over seeds."""
    figure = _figure(6, 4)
    axes = figure.add_subplot(xlabel="distillation step (0: teacher)", ylabel="test accuracy")
    _draw_arms(axes, by_arm(results, chain))
    axes.set_title(_over_seeds(results), fontsize=10)
    axes.legend()
    return figure


def diagnostics_figure(results: list[Result], chain: ChainConfig):
    """Every metric with a label that the results have, against step, a panel each, with one legend."""
    labels = {metric.name: metric.label for metric in metrics.METRICS if metric.label is not None}
    names = [name for name in labels if any(getattr(result, name) is not None for result in results)]
    rows = math.ceil(len(names) / 4)
    figure = _figure(12, 0.6 + 2.6 * rows)
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, 4, i + 1)
        axes.set_title(labels[name], fontsize=10)
        if i + 4 >= len(names):
            axes.set_xlabel("distillation step (0: teacher)")
        _draw_arms(axes, by_arm(results, chain, name))
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=8, title=_over_seeds(results))
    return figure


def reliability_figure(records: list[dict], chain: ChainConfig):
    """Reliability diagrams (Guo et al. 2017, arXiv 1706.04599), a panel per arm and a line per step, seeds pooled.

    ``records`` are the contents of result.json. A bin is drawn at its mean confidence where it has ten images or more.
    """
    from matplotlib import colormaps

    sums: dict[tuple[str | None, int], list] = {}
    for record in records:
        sums.setdefault((record["arm"], record["step"]), []).append(record["reliability"])
    arms = chain.arms or ((),)
    columns = min(4, len(arms))
    rows = math.ceil(len(arms) / columns)
    figure = _figure(max(4, 2.8 * columns), 0.6 + 2.9 * rows)
    lines = {}
    for i, arm in enumerate(arms):
        models = [None, *map(arm_name, prefixes(arm))]
        axes = figure.add_subplot(rows, columns, i + 1, aspect="equal", xlim=(0, 1), ylim=(0, 1))
        axes.set_title(title(models[-1] or "teacher"), fontsize=10)
        axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
        for k, name in enumerate(models):
            step = chain.first_step + k
            if found := sums.get((name, step)):
                colour = colormaps["viridis"](0.9 * k / max(1, len(models) - 1))
                lines[f"step {step}"] = axes.plot(*_calibration(found), ".-", color=colour)[0]
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=8)
    return figure


def _calibration(diagrams: list[dict]) -> tuple[list[float], list[float]]:
    """Mean confidence and accuracy of each bin of ten images or more."""
    count, confidence, correct = (
        [sum(parts) for parts in zip(*(d[name] for d in diagrams), strict=True)]
        for name in ("count", "confidence", "correct")
    )
    bins = [i for i, n in enumerate(count) if n >= 10]
    return [confidence[i] / count[i] for i in bins], [correct[i] / count[i] for i in bins]


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_arms(axes, arms: Arms) -> None:
    from matplotlib.ticker import MaxNLocator

    for i, (arm, steps) in enumerate(arms.items()):
        if not steps:
            continue
        colour, marker = COLOURS[i % 7], MARKERS[i % 7]
        means, sds = zip(*(spread(values) for values in steps.values()), strict=True)
        # Arms stand a little apart, so that their bars can be told from each other.
        at = [step + 0.05 * (i - (len(arms) - 1) / 2) for step in steps]
        axes.errorbar(
            at,
            means,
            yerr=sds if any(sds) else None,
            color=colour,
            marker=marker,
            markersize=4,
            linestyle="--" if i >= 7 else "-",
            capsize=2,
            label=title(arm),
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _over_seeds(results: list[Result]) -> str:
    seeds = len({result.seed for result in results})
    return f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else f"seed {results[0].seed}"
