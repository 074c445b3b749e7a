"""What a precision costs in accuracy: the same short chains in each precision of a device, side by side.

    python -m benchmarks.accuracy --config configs/quickstart.toml
    python -m benchmarks.accuracy --device cuda --resnet 18 --alpha 0.35 --seed 1 2 3 --max-epochs 10

Options are those of self_distiller.py. Runs are written to <output>-<precision> and resume there. The table has test
accuracies by step, mean and standard deviation over seeds, and the change against fp32: the mean over seeds of the
differences, with its 95 % interval by Student's t. Rounding alone drives trajectories apart, so compare the change with
its interval.
"""

import sys
from dataclasses import replace

import numpy as np

from distill.cli import parse
from distill.config import Config
from distill.errors import ConfigError, UserError
from distill.pages.tables import aligned
from distill.program import refuse
from distill.reporting.statistics import interval, spread
from distill.running import run as program
from distill.training.device import pick_device

Accuracies = dict[tuple[str | None, int], np.ndarray]  # (seeds,) by arm and step; the teacher's are None and 0


def accuracies(config: Config, precision: str) -> Accuracies:
    """Test accuracies of a run in this precision."""
    train = replace(config.train, precision=precision)
    run = replace(config.run, output=f"{config.output}-{precision}")
    found: dict[tuple[str | None, int], list[float]] = {}
    for result in program.run(replace(config, train=train, run=run)):
        found.setdefault((result.arm, result.step), []).append(result.test_acc)
    return {model: np.array(values) for model, values in found.items()}


def table(by_precision: dict[str, Accuracies]) -> str:
    """A row per model: its accuracy in each precision, and the differences from fp32; no spread for a single seed."""
    several = any(len(values) > 1 for values in by_precision["fp32"].values())

    def cell(form: str, mean: float, spread: float) -> str:
        text = form.format(mean)
        return f"{text} ± {spread:.4f}" if several else text

    others = [precision for precision in by_precision if precision != "fp32"]
    rows = [["alpha", "step", *by_precision, *(f"{other} - fp32" for other in others)]]
    for (arm, step), exact in by_precision["fp32"].items():
        values = [found[arm, step] for found in by_precision.values()]
        cells = [cell("{:.4f}", *spread(v.tolist())) for v in values]
        cells += [cell("{:+.4f}", *interval(by_precision[other][arm, step] - exact)) for other in others]
        rows.append([arm or "teacher", str(step), *cells])
    return aligned(rows)


def main(argv: list[str] | None = None) -> int:
    """Train in every precision and print the table; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if {"-h", "--help"} & set(words):
            print(__doc__.strip())
            return 0
        for word in {"--precision", "--estimate", "--resume"} & {word.partition("=")[0] for word in words}:
            raise ConfigError(f"{word} has no meaning here: every precision is trained in its own directory")
        config = parse(words).config
        cuda = pick_device(config.run.device).type == "cuda"
        precisions = ("fp32", "tf32", "bf16") if cuda else ("fp32", "bf16")
        print(table({precision: accuracies(config, precision) for precision in precisions}))
        return 0
    except UserError as error:
        return refuse("benchmarks.accuracy", error)


if __name__ == "__main__":
    sys.exit(main())
