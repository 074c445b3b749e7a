"""A run directory as a table and a figure. Imports no torch."""

import statistics
from pathlib import Path

from .rundir import Result, RunDir, write

# Okabe & Ito's palette, which colour-blind readers can tell apart, and a marker each for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def by_arm(results: list[Result]) -> dict[float | None, dict[int, list[float]]]:
    """Test accuracies as ``{alpha: {step: [a value per seed]}}``; every arm begins with the teacher it shares."""
    shared: dict[int, list[float]] = {}
    arms: dict[float | None, dict[int, list[float]]] = {}
    for result in results:
        steps = shared if result.alpha is None else arms.setdefault(result.alpha, {})
        steps.setdefault(result.step, []).append(result.test_acc)
    if not arms:
        return {None: shared}
    return {alpha: dict(sorted((shared | steps).items())) for alpha, steps in sorted(arms.items())}


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(results: list[Result]) -> str:
    """Steps down, alphas across: the mean over seeds, ± the sample standard deviation where there are several."""
    arms = by_arm(results)
    seeds = len({result.seed for result in results})
    steps = sorted({step for arm in arms.values() for step in arm})
    cells = [["step", *("teacher" if alpha is None else f"alpha {alpha:g}" for alpha in arms)]]
    for step in steps:
        cells.append([str(step), *(_cell(arm.get(step), seeds) for arm in arms.values())])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    over = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    return "\n".join([f"Test accuracy{over} (step 0 is the teacher)", *lines])


def _cell(values: list[float] | None, seeds: int) -> str:
    if not values:
        return "-"
    mean, sd = spread(values)
    return f"{mean:.4f} ± {sd:.4f}" if len(values) > 1 else f"{mean:.4f}" + " " * (9 if seeds > 1 else 0)


def accuracy_figure(results: list[Result]):
    """Test accuracy against step, a line per alpha with its standard deviation over seeds: a Matplotlib Figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="distillation step (0: teacher)", ylabel="test accuracy")
    arms = by_arm(results)
    for i, (alpha, steps) in enumerate(arms.items()):
        colour, marker = COLOURS[i % 7], MARKERS[i % 7]
        means, sds = zip(*(spread(values) for values in steps.values()), strict=True)
        # Arms stand a little apart, so that their bars can be told from each other.
        at = [step + 0.05 * (i - (len(arms) - 1) / 2) for step in steps]
        label = "teacher" if alpha is None else f"alpha = {alpha:g}"
        axes.errorbar(at, means, yerr=sds if any(sds) else None, color=colour, marker=marker, capsize=3, label=label)
    seeds = len({result.seed for result in results})
    axes.set_title(
        f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else f"seed {results[0].seed}", fontsize=10
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def draw_accuracy(results: list[Result], folder: Path) -> None:
    """Leave ``accuracy_figure`` as accuracy.png and accuracy.svg."""
    figure = accuracy_figure(results)
    for kind in ("png", "svg"):
        write(folder / f"accuracy.{kind}", lambda file, kind=kind: figure.savefig(file, format=kind, dpi=150))


def report(path: Path) -> str:
    """Draw a run's figure and return its table; an empty string where no model is finished."""
    results = RunDir(path).write_results()
    if not results:
        return ""
    draw_accuracy(results, path)
    return table(results)
