"""What a precision costs in accuracy: the same short chains in each precision that a device has, side by side.

    python -m benchmarks.accuracy --config configs/quickstart.toml
    python -m benchmarks.accuracy --device cuda --resnet 18 --alpha 0.35 --seed 1 2 3 --max-epochs 10

Options are the program's own. Runs go to <output>-<precision>, and are gone on with there. Printed are test accuracies
by step, mean and standard deviation over seeds, and what a precision changes against fp32: the mean over seeds of the
differences, with its 95 % interval by Student's t. Rounding alone drives trajectories apart, so that the last is what
is to be compared with 0.
"""

import sys
from dataclasses import replace

import numpy as np

from distill.cli import parse
from distill.config import Config
from distill.errors import ConfigError, UserError
from distill.reporting.plots import spread
from distill.reporting.run_report import aligned
from distill.running import run as sweep
from distill.training.engine import pick_device
from studies.analyse import interval


def accuracies(config: Config, precision: str) -> dict[tuple[str | None, int], np.ndarray]:
    """Test accuracies (seeds,) by chain and step, of a run in this precision."""
    train = replace(config.train, precision=precision)
    here = replace(config.run, output=f"{config.output}-{precision}")
    found: dict[tuple[str | None, int], list[float]] = {}
    for result in sweep.run(replace(config, train=train, run=here)):
        found.setdefault((result.arm, result.step), []).append(result.test_acc)
    return {model: np.array(values) for model, values in found.items()}


def table(by_precision: dict[str, dict[tuple[str | None, int], np.ndarray]]) -> str:
    """A row per model: its accuracy in each precision, and the differences from fp32; of one seed, without spread."""

    def cell(form: str, mean: float, sd: float) -> str:
        return form.format(mean) + (f" ± {sd:.4f}" if several else "")

    several = any(len(values) > 1 for values in by_precision["fp32"].values())
    others = [precision for precision in by_precision if precision != "fp32"]
    rows = [["alpha", "step", *by_precision, *(f"{other} - fp32" for other in others)]]
    for (arm, step), exact in by_precision["fp32"].items():
        values = [found[arm, step] for found in by_precision.values()]
        cells = [cell("{:.4f}", *spread(v.tolist())) for v in values]
        cells += [cell("{:+.4f}", *interval(by_precision[other][arm, step] - exact)) for other in others]
        rows.append([arm or "teacher", str(step), *cells])
    return aligned(rows)


def main(argv: list[str] | None = None) -> int:
    """Train in every precision, print the table; returns the exit status."""
    try:
        words = sys.argv[1:] if argv is None else argv
        if {"-h", "--help"} & set(words):
            print(__doc__.strip())
            return 0
        for word in {"--precision", "--estimate", "--resume"} & {word.partition("=")[0] for word in words}:
            raise ConfigError(f"{word} has no meaning here: every precision is trained, each in a directory of its own")
        config = parse(words).config
        cuda = pick_device(config.run.device).type == "cuda"
        precisions = ("fp32", "tf32", "bf16") if cuda else ("fp32", "bf16")
        print(table({precision: accuracies(config, precision) for precision in precisions}))
        return 0
    except UserError as error:
        print(f"benchmarks.accuracy: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
