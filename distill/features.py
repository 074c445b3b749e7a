"""Make a file of features for --dataset features and for krr_toy.py --data.

Features are the input of a network's last linear layer, or the pixels. Each of the training, held-out and test images
gives a row; columns that are constant over the training images are left out.
"""

import argparse
import sys
from dataclasses import fields

from distill.arguments import OneLineParser, Range, number, to_path
from distill.options import add_option
from distill.program import run_program, say
from distill.sections import DataConfig

PROGRAM = "distill.features"
DATA_FIELDS = [f for f in fields(DataConfig) if f.name not in ("augment", "cutout")]


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m distill.features``: what to write, from which model, and those of the data."""
    parser = OneLineParser(PROGRAM, description=__doc__, allow_abbrev=False)
    parser.add_argument("output", type=to_path, metavar="FILE.npz", help="new file, or new folder of NPY files")
    parser.add_argument(
        "--of",
        required=True,
        metavar="MODEL",
        help="pixels; torchvision:NAME, with its ImageNet parameters; or the folder of a finished model, such as "
        "runs/x/seed_1/step_0",
    )
    parser.add_argument(
        "--weights",
        type=to_path,
        metavar="FILE",
        help="state_dict of torchvision:NAME with its 1,000 classes [default: torchvision's, from torch's cache or "
        "downloaded]",
    )
    seed = number(int, Range(0, 2**63 - 1))
    parser.add_argument("--seed", type=seed, default=1, metavar="S", help="seed of subsets and noise [default: 1]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [default: auto]")
    group = parser.add_argument_group("the data, as for self_distiller.py")
    for f in DATA_FIELDS:
        add_option(group, DataConfig, f, default=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit status, see ``run_program``."""
    return run_program(PROGRAM, lambda: _make(argv))


def _make(argv: list[str] | None) -> int:
    args = build_parser().parse_args(argv)
    config = DataConfig(**{f.name: getattr(args, f.name) for f in DATA_FIELDS if hasattr(args, f.name)})
    from distill.running.features import make_features

    say(make_features(args.output, args.of, config, args.seed, args.device, args.weights))
    return 0


if __name__ == "__main__":
    from distill import starting

    sys.exit(starting.run(main))
