"""What finished runs show about alpha, as Markdown tables and a figure.

    python -m studies.analyse RUN [RUN ...] [--figure FILE]

Each RUN is the directory of a grid over alpha, with auto among it, and several seeds. Differences are paired: a
student less the teacher of its own seed. Intervals are Student's t over seeds, 95 %.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from distill.arms import arm_name, arm_title
from distill.errors import ConfigError, UserError
from distill.files import write_atomically
from distill.pages.style import UNDATED, rendered
from distill.reporting.comparison import gains_figure
from distill.reporting.results import RunResults
from distill.reporting.statistics import Difference, spread

METRICS = {"test_acc": "test accuracy", "test_brier": "test Brier score"}


def read(path: Path) -> RunResults:
    """The run in a directory. Raises ConfigError if a model is missing."""
    run = RunResults.load(path)
    for seed in run.chain.seed:
        models = {model for arm in run.arms for model in run.models(arm)}
        missing = [model for model in models if (seed, *model) not in run.by_key]
        if missing:
            raise ConfigError(f"{path} is not finished: seed {seed} lacks {len(missing)} models")
    return run


def cost(run: RunResults, arms: Iterable[str]) -> tuple[int, float]:
    """The number of trainings of these arms and their seconds, with probes and without the teacher."""
    names = {name for arm in arms for name in (arm, f"{arm} probe")}
    trained = [result for result in run if result.epochs and result.arm in names]
    return len(trained), sum(result.seconds for result in trained)


def format_change(change: Difference) -> str:
    """Mean and 95 % interval, ``+0.012 ± 0.034``; bold if the interval excludes 0."""
    half = change.high - change.mean
    text = f"{change.mean:+.3f} ± {half:.3f}"
    return f"**{text}**" if abs(change.mean) > half else text


def tables(run: RunResults) -> str:
    """Paired changes by arm and step, and auto's result and cost."""
    steps = range(1, run.chain.distillation_steps + 1)
    lines = [f"### {run.path.name}", ""]
    for metric, what in METRICS.items():
        mean, sd = spread([getattr(result, metric) for result in run if result.arm is None])
        lines += [
            f"Change of the {what} against the teacher ({mean:.3f} ± {sd:.3f} over {len(run.seeds)} seeds), mean and "
            "95 % interval:",
            "",
            "| arm | " + " | ".join(f"step {step}" for step in steps) + " |",
            "|---" * (len(steps) + 1) + "|",
        ]
        for arm in run.arms:
            cells = [format_change(run.difference(metric, model, run.teacher)) for model in run.models(arm)[1:]]
            lines.append(f"| {arm_title(arm_name(arm))} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *auto_lines(run)])


def auto_lines(run: RunResults) -> list[str]:
    """How auto compares with the grid: error, rank, cost; empty if there is no auto.

    The grid's alpha is chosen on the held-out images, as a user would choose it: on test images it would be an oracle.
    """
    last = {str(arm_name(arm)): run.models(arm)[-1] for arm in run.arms}
    if "auto" not in last:
        return []
    grid = [arm for arm in last if arm != "auto"]
    error = {arm: run.difference("val_brier", model, run.teacher).mean for arm, model in last.items()}
    accuracy = {arm: run.difference("val_acc", model, run.teacher).mean for arm, model in last.items()}
    least_error = min(grid, key=error.__getitem__)
    most_accurate = max(grid, key=accuracy.__getitem__)
    brier = run.difference("test_brier", last["auto"], last[least_error])
    acc = run.difference("test_acc", last["auto"], last[most_accurate])
    rank = 1 + sum(error[arm] < error["auto"] for arm in grid)
    auto_trainings, auto_seconds = cost(run, ["auto"])
    grid_trainings, grid_seconds = cost(run, grid)
    steps = range(1, run.chain.distillation_steps + 1)
    alphas = [
        f"step {step}: " + ", ".join(f"{run.by_key[seed, 'auto', step].alpha:.2f}" for seed in run.seeds)
        for step in steps
    ]
    return [
        f"- Alphas that auto took, by seed: {'; '.join(alphas)}.",
        f"- At step {steps[-1]}, by the held-out Brier score: rank {rank} of {len(grid) + 1}. On the test images: "
        f"Brier score {format_change(brier)} against the grid's choice by that score (alpha = {least_error}); "
        f"accuracy {format_change(acc)} against its choice by held-out accuracy (alpha = {most_accurate}).",
        f"- Cost: {auto_trainings} trainings and {auto_seconds:.0f} s against the grid's {grid_trainings} and "
        f"{grid_seconds:.0f} s ({auto_seconds / grid_seconds:.0%}), not counting teachers.",
        "",
    ]


def figure_file(text: str) -> Path:
    """A file name that says which kind of figure it is. Raises ArgumentTypeError."""
    path = Path(text)
    if path.suffix.removeprefix(".") not in UNDATED:
        raise argparse.ArgumentTypeError(f"{text}: the name must end in .png, .svg or .pdf")
    return path


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file of the kind that its name says, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, rendered(figure, path.suffix.removeprefix(".")))


def main() -> None:
    """Print the tables, and draw the figure if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--figure", type=figure_file, metavar="FILE", help="draw the changes: .png, .svg or .pdf")
    args = parser.parse_args()
    try:
        runs = [read(path) for path in args.runs]
    except UserError as error:
        parser.error(str(error))
    print("\n".join(tables(run) for run in runs))
    if args.figure is not None:
        save(gains_figure(runs), args.figure)


if __name__ == "__main__":
    main()
