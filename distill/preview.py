"""Forecast the chains of a run from a trained teacher, in seconds and without training.

``python -m distill.preview RUN`` fits kernel ridge chains in place of the teacher's students. It prints their held-out
error and accuracy against alpha and step, their best alphas and their degrees of freedom, beside what the finished
students did.
"""

import argparse
import sys

import torch

from distill.arguments import OneLineParser, positive, refuse
from distill.errors import UserError
from distill.running.preview import SIZE, page, preview

__all__ = ["build_parser", "main", "page", "preview"]

PROGRAM = "distill.preview"


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m distill.preview``."""
    parser = OneLineParser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run directory with at least one trained teacher")
    parser.add_argument("--seed", type=int, metavar="S", help="the seed of the teacher [default: the run's first]")
    parser.add_argument(
        "--size", type=positive(int), default=SIZE, metavar="N", help=f"training images at most [default: {SIZE}]"
    )
    parser.add_argument(
        "--lam", type=positive(float), metavar="L", help="ridge of all twins [default: chosen for each twin]"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, or 2 for a user's error."""
    try:
        args = build_parser().parse_args(argv)
        print(page(args.run, args.seed, size=args.size, lam=args.lam))
        return 0
    except (MemoryError, torch.OutOfMemoryError) as error:
        return refuse(PROGRAM, f"out of memory, lower --size ({' '.join(str(error).split())})")
    except (UserError, OSError) as error:
        return refuse(PROGRAM, error)


if __name__ == "__main__":
    sys.exit(main())
