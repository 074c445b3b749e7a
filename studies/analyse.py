"""What finished runs say about the weight of the ground truth, as Markdown tables and a figure.

    python -m studies.analyse RUN [RUN ...] [--figure FILE.png]

Each RUN is the directory of a grid over alpha, with auto among it, and several seeds. Differences are paired: a
student less the teacher of its own seed. Intervals are Student's t over seeds, 95 %.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.arms import arm_name, arm_title, prefixes
from distill.config import Config
from distill.configfile import read_config
from distill.errors import ConfigError, UserError
from distill.files import write_atomically
from distill.reporting.statistics import interval, spread
from distill.reporting.style import line_style, new_figure, styled
from distill.store.results import Result
from distill.store.rundir import RunDir


@dataclass(frozen=True)
class Study:
    """A run, its results by (seed, arm up to the model, step); the teacher's arm is None."""

    path: Path
    config: Config
    results: dict[tuple[int, str | None, int], Result]

    @property
    def arms(self) -> dict[str, list[str]]:
        """The chains by their names, each with the names of its students' models, step by step."""
        return {arm_name(arm): [*map(arm_name, prefixes(arm))] for arm in self.config.chain.arms}

    def change(self, arm: str, step: int, figure: str) -> np.ndarray:
        """(seeds,): a figure of the student at a step less that of its seed's teacher."""
        model = self.arms[arm][step - 1]
        return np.array(
            [
                getattr(self.results[seed, model, step], figure) - getattr(self.results[seed, None, 0], figure)
                for seed in self.config.chain.seed
            ]
        )

    def cost(self, arms: Iterable[str]) -> tuple[int, float]:
        """Trainings and their seconds of some arms, probes among them, the teacher aside."""
        mine = [
            r for r in self.results.values() if r.epochs and r.arm in {a for arm in arms for a in (arm, f"{arm} probe")}
        ]
        return len(mine), sum(r.seconds for r in mine)


def read(path: Path) -> Study:
    """The study in a run directory."""
    study = Study(path, read_config(path / "config.toml"), {(r.seed, r.arm, r.step): r for r in RunDir(path).results()})
    models = [(None, 0), *((model, k) for arm in study.arms.values() for k, model in enumerate(arm, start=1))]
    for seed in study.config.chain.seed:
        if missing := [model for model in models if (seed, *model) not in study.results]:
            raise ConfigError(f"{path} is not finished: seed {seed} lacks {len(missing)} models")
    return study


def said(values: np.ndarray) -> str:
    """``+0.012 ± 0.034``, bold where the interval leaves 0 out."""
    mean, half = interval(values)
    text = f"{mean:+.3f} ± {half:.3f}"
    return f"**{text}**" if abs(mean) > half else text


def tables(study: Study) -> str:
    """Paired changes by arm and step, and what auto found at what cost."""
    last = study.config.chain.distillation_steps
    lines = [f"### {study.path.name}", ""]
    for figure, what in (("test_acc", "test accuracy"), ("test_brier", "test Brier score")):
        teacher = [study.results[seed, None, 0] for seed in study.config.chain.seed]
        values = [getattr(r, figure) for r in teacher]
        lines += [
            f"Change of the {what} against the teacher ({spread(values)[0]:.3f} ± "
            f"{spread(values)[1]:.3f} over {len(values)} seeds), mean and 95 % interval:",
            "",
            "| arm | " + " | ".join(f"step {k}" for k in range(1, last + 1)) + " |",
            "|---" * (last + 1) + "|",
        ]
        for arm in study.arms:
            cells = [said(study.change(arm, k, figure)) for k in range(1, last + 1)]
            lines.append(f"| {arm_title(arm)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *auto_lines(study)])


def auto_lines(study: Study) -> list[str]:
    """Where auto lands against the grid: error, rank, cost.

    The grid's own choice is by the held-out images, as a user would make it: by the test images it would be an oracle.
    """
    if "auto" not in study.arms:
        return []
    last, grid = study.config.chain.distillation_steps, [arm for arm in study.arms if arm != "auto"]
    error = {arm: study.change(arm, last, "val_brier").mean() for arm in study.arms}
    accuracy = {arm: study.change(arm, last, "val_acc").mean() for arm in study.arms}
    best, most = min(grid, key=error.get), max(grid, key=accuracy.get)
    worse = study.change("auto", last, "test_brier") - study.change(best, last, "test_brier")
    less = study.change("auto", last, "test_acc") - study.change(most, last, "test_acc")
    rank = 1 + sum(error[arm] < error["auto"] for arm in grid)
    (mine, seconds), (theirs, whole) = study.cost(["auto"]), study.cost(grid)
    alphas = [[study.results[seed, "auto", k].alpha for seed in study.config.chain.seed] for k in range(1, last + 1)]
    shown = "; ".join(f"step {k}: " + ", ".join(f"{a:.2f}" for a in row) for k, row in enumerate(alphas, start=1))
    return [
        f"- Alphas that auto took, by seed: {shown}.",
        f"- At step {last}, by the held-out Brier score: rank {rank} of {len(grid) + 1}. On the test images: "
        f"Brier score {said(worse)} against the grid's choice by that score (alpha = {best}); "
        f"accuracy {said(less)} against its choice by held-out accuracy (alpha = {most}).",
        f"- Cost: {mine} trainings and {seconds:.0f} s against the grid's {theirs} and {whole:.0f} s "
        f"({seconds / whole:.0%}), not counting teachers.",
        "",
    ]


@styled()
def figure(studies: list[Study]):
    """Paired changes of accuracy and Brier score against step, a column per study, 95 % intervals."""
    drawing = new_figure(3.2 * len(studies), 6)
    axes = drawing.subplots(2, len(studies), squeeze=False, sharex="col")
    for column, study in enumerate(studies):
        steps = range(1, study.config.chain.distillation_steps + 1)
        for row, (name, what) in enumerate((("test_acc", "test accuracy"), ("test_brier", "test Brier score"))):
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
        axes[1, column].set_xlabel("distillation step")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    drawing.legend(lines, labels, loc="outside upper center", ncols=7)
    return drawing


def main() -> None:
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
        write_atomically(args.figure, lambda file: figure(studies).savefig(file, format="png", dpi=120))


if __name__ == "__main__":
    main()
