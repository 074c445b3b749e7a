"""The best alpha against the strength of regularisation, of networks and of kernel ridge regression.

    python -m studies.regularisation RUN [RUN ...] [--figure FILE]

The RUNs are studies of one data set, each with one of ``AXES``; the setting without coefficient and weight decay, and
with the most epochs, is a point of all three. Means and 95 % intervals are by Student's t over seeds.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill import krr
from distill.arms import arm_name
from distill.data.load import load_source
from distill.data.splits import Split, make_dataset
from distill.errors import UserError
from distill.kernel.riskmap import eigen_chain
from distill.kernel.twin import kernel_matrices
from distill.pages.style import COLOURS, MARKERS, legend, new_figure, styled
from distill.reporting.results import RunResults
from distill.reporting.statistics import Difference, interval
from distill.study import read_study
from studies.analyse import figure_file, format_change, read, save

AXES = {"reg_coef": "coefficient of the squared parameters", "weight_decay": "weight decay", "max_epochs": "epochs"}
RIDGES = np.geomspace(1e-6, 1, 25)  # of the kernel's largest eigenvalue
SHOWN = (-0.5, 4.5)  # alphas in the figure
Array = np.ndarray[Any, np.dtype[np.float64]]
Points = dict[float, RunResults]


def load(paths: Iterable[Path]) -> dict[str, Points]:
    """The runs of each axis by value, from weak to strong regularisation. Raises UserError if a model is missing."""
    runs = [read(setting.config.output) for path in paths for setting in read_study(path).settings]
    strengths = {axis: {id(run): getattr(run.config.train, axis) for run in runs} for axis in AXES}
    weakest = {axis: max(of.values()) if axis == "max_epochs" else min(of.values()) for axis, of in strengths.items()}
    points = {}
    for axis in AXES:
        others = [other for other in AXES if other != axis]
        chosen = [run for run in runs if all(strengths[other][id(run)] == weakest[other] for other in others)]
        by_value = {strengths[axis][id(run)]: run for run in chosen}
        points[axis] = dict(sorted(by_value.items(), reverse=axis == "max_epochs"))
    return points


def estimated(run: RunResults, step: int) -> tuple[float, float, float]:
    """Alpha* before clipping: its mean over seeds, the half width of its interval, and its mean standard error."""
    found = [record["auto"] for record in run.records_of["auto", step]]
    known = [each for each in found if each["alpha_star"] is not None]
    mean, half = interval([each["alpha_star"] for each in known])
    return mean, half, float(np.mean([each["standard_error"] for each in known]))


def best_of_grid(run: RunResults, step: int, metric: str) -> str:
    """The name of the fixed alpha with the best mean of a held-out metric."""
    names = [str(arm_name(arm)) for arm in run.arms if arm_name(arm) != "auto"]
    means = {name: np.mean([getattr(run.by_key[seed, name, step], metric) for seed in run.seeds]) for name in names}
    return (max if metric == "val_acc" else min)(names, key=means.__getitem__)


def against_one(run: RunResults, metric: str, arm: str, step: int) -> str:
    """The paired change from alpha = 1 to another arm."""
    change: Difference | None = run.difference(metric, (arm, step), ("1", step))
    assert change is not None  # ``read`` has verified that all models are there
    return "0" if arm == "1" else format_change(change)


def tables(points: dict[str, Points]) -> str:
    """Markdown: a table for each step, with a row for each setting."""
    first = next(iter(points["reg_coef"].values()))
    lines = []
    for step in range(1, first.chain.distillation_steps + 1):
        lines += [
            f"Step {step}; Brier scores and accuracies on test images, less those of alpha = 1:",
            "",
            "| setting | teacher's Brier score | alpha* | best of grid | its Brier score | auto's Brier score | "
            "most accurate of grid | its accuracy | auto's accuracy |",
            "|---" * 9 + "|",
        ]
        for axis, runs in points.items():
            for value, run in runs.items():
                cells = [f"{axis.replace('_', ' ')} {value:g}", *_cells(run, step)]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cells(run: RunResults, step: int) -> list[str]:
    brier, _ = teacher_brier(run)
    mean, half, error = estimated(run, step)
    least, most = (best_of_grid(run, step, metric) for metric in ("val_brier", "val_acc"))
    brier_changes = [against_one(run, "test_brier", arm, step) for arm in (least, "auto")]
    accuracy_changes = [against_one(run, "test_acc", arm, step) for arm in (most, "auto")]
    alpha = f"{mean:.2f} ± {half:.2f} (each ± {error:.2f})"
    return [f"{brier:.3f}", alpha, least, *brier_changes, most, *accuracy_changes]


def teacher_brier(run: RunResults) -> tuple[float, float]:
    """The mean test Brier score of the teachers, and the half width of its interval."""
    return interval([record["test_brier"] for record in run.records_of[None, 0]])


def kernel_twin(run: RunResults) -> tuple[Array, Array]:
    """Alpha* on the held-out images, and the teacher's test Brier score, of kernel ridge regression on a run's images.

    Both (seeds, len(RIDGES)). The kernel is exp(-‖x - z‖² / (2 m)), m the median squared distance of training images.
    """
    source = load_source(run.config.data)
    alphas, scores = np.empty((2, len(run.seeds), len(RIDGES)))
    for i, seed in enumerate(run.seeds):
        data = make_dataset(source, run.config.data, seed)
        assert data.val is not None  # for auto
        X, X_val, X_test = map(_pixels, (data.train, data.val, data.test))
        targets = np.eye(len(data.classes))
        K, K_new = kernel_matrices("rbf", X, np.concatenate([X_val, X_test]))
        spectrum = krr.decompose(K)
        chain = eigen_chain(spectrum, targets[data.train.labels])
        rows, test_rows = np.split(K_new @ spectrum.V, [len(X_val)])
        for j, lam in enumerate(RIDGES * spectrum.d[0]):
            first, probe = chain.predict(rows, lam, 0.0, [1, 2])
            alphas[i, j] = krr.best_alpha(first, probe, targets[data.val.labels])
            errors = chain.predict(test_rows, lam, 1.0, 1)[0] - targets[data.test.labels]
            scores[i, j] = np.square(errors).sum(axis=1).mean()
    return alphas, scores


def _pixels(split: Split) -> Array:
    return np.asarray(split.images, dtype=np.float64).reshape(len(split), -1) / 255


@styled()
def figure(points: dict[str, Points]) -> Figure:
    """Alpha* above and the teacher's Brier score below, for each way to regularise and for kernel ridge regression."""
    figure = new_figure(9.6, 4.4)
    upper, lower = figure.subplots(2, len(points) + 1, sharex="col")
    for axes in upper[1:]:
        axes.sharey(upper[0])
    for axes in lower[1:-1]:
        axes.sharey(lower[0])  # the scores of kernel ridge regression vary much more
    for (axis, runs), above, below in zip(points.items(), upper, lower, strict=False):
        at = range(len(runs))
        for i, step in enumerate((1, 2)):
            means, halves, _ = np.transpose([estimated(run, step) for run in runs.values()])
            above.errorbar(at, means, halves, capsize=2, color=COLOURS[i], marker=MARKERS[i], label=f"step {step}")
        best = [float(best_of_grid(run, 1, "val_brier")) for run in runs.values()]
        above.plot(at, best, "x", color=COLOURS[0], label="best of the grid, step 1")
        below.errorbar(
            at, *np.transpose([teacher_brier(run) for run in runs.values()]), capsize=2, color="0.3", marker="o"
        )
        below.set_xticks(at, [f"{value:g}" for value in runs])
        below.set_xlabel(AXES[axis])
    _draw_twin(upper[-1], lower[-1], *kernel_twin(next(iter(points["reg_coef"].values()))))
    for axes in upper:
        axes.axhline(1, color="0.6", linewidth=0.8)
    upper[0].set(ylabel=r"best $\alpha$", ylim=SHOWN)
    lower[0].set_ylabel("teacher's test Brier score")
    legend(figure, *upper[0].get_legend_handles_labels())
    upper[-1].set_title("kernel ridge regression")
    return figure


def _draw_twin(above: Axes, below: Axes, alphas: Array, scores: Array) -> None:
    for axes, values, colour in ((above, alphas, COLOURS[0]), (below, scores, "0.3")):
        mean, half = np.transpose([interval(column) for column in values.T])
        axes.plot(RIDGES, mean, color=colour)
        axes.fill_between(RIDGES, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    below.set(xscale="log", xlabel=r"$\lambda$ / largest eigenvalue")


def main() -> None:
    """Print the tables, and draw the figure if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--figure", type=figure_file, metavar="FILE", help="draw them: .png, .svg or .pdf")
    args = parser.parse_args()
    try:
        points = load(args.runs)
        print(tables(points))
        if args.figure is not None:
            save(figure(points), args.figure)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
