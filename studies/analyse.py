"""What finished runs show about alpha, as Markdown tables and a figure.

    python -m studies.analyse RUN [RUN ...] [--figure FILE.png]

Each RUN is the directory of a grid over alpha, with auto among it, and several seeds. Differences are paired: a
student less the teacher of its own seed. Intervals are Student's t over seeds, 95 %.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.arms import arm_name, arm_title, students_of
from distill.config import Config
from distill.configfile import read_config
from distill.errors import ConfigError, UserError
from distill.files import write_atomically
from distill.reporting.statistics import interval, spread
from distill.reporting.style import line_style, new_figure, styled
from distill.store.results import Result
from distill.store.rundir import RunDir

METRICS = {"test_acc": "test accuracy", "test_brier": "test Brier score"}


@dataclass(frozen=True)
class Study:
    """A run, and its results by seed, name of the arm up to the model, and step; the teacher's arm is None."""

    path: Path
    config: Config
    results: dict[tuple[int, str | None, int], Result]

    @property
    def arms(self) -> dict[str, list[str]]:
        """The names of the arms, each with the names of its students, step by step."""
        return {arm_name(arm): [student.arm for student in students_of(arm)] for arm in self.config.chain.arms}

    def teachers(self, metric: str) -> np.ndarray:
        """A metric of the teachers (seeds,)."""
        return np.array([getattr(self.results[seed, None, 0], metric) for seed in self.config.chain.seed])

    def change(self, arm: str, step: int, metric: str) -> np.ndarray:
        """A metric of an arm's student less that of its seed's teacher (seeds,)."""
        model = self.arms[arm][step - 1]
        students = [getattr(self.results[seed, model, step], metric) for seed in self.config.chain.seed]
        return np.array(students) - self.teachers(metric)

    def cost(self, arms: Iterable[str]) -> tuple[int, float]:
        """The number of trainings of these arms and their seconds, with probes and without the teacher."""
        names = {name for arm in arms for name in (arm, f"{arm} probe")}
        trained = [result for result in self.results.values() if result.epochs and result.arm in names]
        return len(trained), sum(result.seconds for result in trained)


def read(path: Path) -> Study:
    """The study in a run directory. Raises ConfigError if a model is missing."""
    results = {(result.seed, result.arm, result.step): result for result in RunDir(path).results()}
    study = Study(path, read_config(path / "config.toml"), results)
    models = [(None, 0), *((model, k) for arm in study.arms.values() for k, model in enumerate(arm, start=1))]
    for seed in study.config.chain.seed:
        missing = [model for model in models if (seed, *model) not in study.results]
        if missing:
            raise ConfigError(f"{path} is not finished: seed {seed} lacks {len(missing)} models")
    return study


def format_change(values: np.ndarray) -> str:
    """Mean and 95 % interval, ``+0.012 ± 0.034``; bold if the interval excludes 0."""
    mean, half = interval(values)
    text = f"{mean:+.3f} ± {half:.3f}"
    return f"**{text}**" if abs(mean) > half else text


def tables(study: Study) -> str:
    """Paired changes by arm and step, and auto's result and cost."""
    steps = range(1, study.config.chain.distillation_steps + 1)
    lines = [f"### {study.path.name}", ""]
    for metric, what in METRICS.items():
        mean, sd = spread(study.teachers(metric).tolist())
        seeds = len(study.config.chain.seed)
        lines += [
            f"Change of the {what} against the teacher ({mean:.3f} ± {sd:.3f} over {seeds} seeds), mean and 95 % "
            "interval:",
            "",
            "| arm | " + " | ".join(f"step {step}" for step in steps) + " |",
            "|---" * (len(steps) + 1) + "|",
        ]
        for arm in study.arms:
            cells = [format_change(study.change(arm, step, metric)) for step in steps]
            lines.append(f"| {arm_title(arm)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *auto_lines(study)])


def auto_lines(study: Study) -> list[str]:
    """How auto compares with the grid: error, rank, cost; empty if there is no auto.

    The grid's alpha is chosen on the held-out images, as a user would choose it: on test images it would be an oracle.
    """
    if "auto" not in study.arms:
        return []
    seeds = study.config.chain.seed
    last = study.config.chain.distillation_steps
    grid = [arm for arm in study.arms if arm != "auto"]
    error = {arm: study.change(arm, last, "val_brier").mean() for arm in study.arms}
    accuracy = {arm: study.change(arm, last, "val_acc").mean() for arm in study.arms}
    least_error = min(grid, key=error.__getitem__)
    most_accurate = max(grid, key=accuracy.__getitem__)
    brier = study.change("auto", last, "test_brier") - study.change(least_error, last, "test_brier")
    acc = study.change("auto", last, "test_acc") - study.change(most_accurate, last, "test_acc")
    rank = 1 + sum(error[arm] < error["auto"] for arm in grid)
    auto_trainings, auto_seconds = study.cost(["auto"])
    grid_trainings, grid_seconds = study.cost(grid)
    alphas = []
    for step in range(1, last + 1):
        taken = [study.results[seed, "auto", step].alpha for seed in seeds]
        alphas.append(f"step {step}: " + ", ".join(f"{alpha:.2f}" for alpha in taken))
    return [
        f"- Alphas that auto took, by seed: {'; '.join(alphas)}.",
        f"- At step {last}, by the held-out Brier score: rank {rank} of {len(grid) + 1}. On the test images: "
        f"Brier score {format_change(brier)} against the grid's choice by that score (alpha = {least_error}); "
        f"accuracy {format_change(acc)} against its choice by held-out accuracy (alpha = {most_accurate}).",
        f"- Cost: {auto_trainings} trainings and {auto_seconds:.0f} s against the grid's {grid_trainings} and "
        f"{grid_seconds:.0f} s ({auto_seconds / grid_seconds:.0%}), not counting teachers.",
        "",
    ]


@styled()
def figure(studies: list[Study]):
    """Paired changes of accuracy and Brier score against step, a column per study, 95 % intervals."""
    drawing = new_figure(3.2 * len(studies), 6)
    axes = drawing.subplots(2, len(studies), squeeze=False, sharex="col")
    for column, study in enumerate(studies):
        steps = range(1, study.config.chain.distillation_steps + 1)
        for row, (name, what) in enumerate(METRICS.items()):
            ax = axes[row, column]
            for i, arm in enumerate(study.arms):
                means, halves = zip(*(interval(study.change(arm, k, name)) for k in steps), strict=True)
                at = [k + 0.07 * (i - len(study.arms) / 2) for k in steps]
                style = line_style(i) | {"markersize": 4, "linewidth": 1, "elinewidth": 0.7}
                ax.errorbar(at, means, halves, label=arm_title(arm), **style)
            ax.axhline(0, color="0.5", linewidth=0.8)
            ax.grid(alpha=0.3)
            ax.set_ylabel(f"change of the {what}" if column == 0 else "")
        axes[0, column].set_title(study.path.name.replace("_", ", "))
        axes[1, column].set(xlabel="distillation step", xticks=list(steps))
    lines, labels = axes[0, 0].get_legend_handles_labels()
    drawing.legend(lines, labels, loc="outside upper center", ncols=7)
    return drawing


def main() -> None:
    """Print the tables, and draw the figure if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the changes of all runs")
    args = parser.parse_args()
    try:
        studies = [read(path) for path in args.runs]
    except UserError as error:
        parser.error(str(error))
    print("\n".join(tables(study) for study in studies))
    if args.figure is not None:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.figure, lambda file: figure(studies).savefig(file, format="png", dpi=120))


if __name__ == "__main__":
    main()
