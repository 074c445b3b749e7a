"""Forecast the chains of a run from a trained teacher, in seconds and without training.

``python -m distill.preview RUN`` fits kernel ridge chains in place of the teacher's students. It prints their held-out
error and accuracy against alpha and step, their best alphas and their degrees of freedom, beside what the finished
students did.
"""

import argparse
import sys
from typing import Any

from distill.arguments import OneLineParser, Range, number, to_path
from distill.program import refuse, run_program, say

PROGRAM = "distill.preview"


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m distill.preview``."""
    parser = OneLineParser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=to_path, metavar="RUN", help="a run directory with at least one trained teacher")
    parser.add_argument(
        "--seed",
        type=number(int, Range(0, 2**63 - 1)),
        metavar="S",
        help="the seed of the teacher [default: the run's first]",
    )
    size = number(int, Range(2, 10**6))
    parser.add_argument("--size", type=size, default=2000, metavar="N", help="training images at most [default: 2000]")
    lam = number(float, Range(0.0, 1e100, without="low"))
    parser.add_argument("--lam", type=lam, metavar="L", help="ridge of all twins [default: chosen for each twin]")
    return parser


def __getattr__(name: str) -> Any:
    """``page`` and ``preview``, which load torch."""
    if name in ("page", "preview"):
        import distill.running.preview

        return getattr(distill.running.preview, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit status, see ``run_program``."""
    return run_program(PROGRAM, lambda: _preview(argv))


def _preview(argv: list[str] | None) -> int:
    args = build_parser().parse_args(argv)
    import torch

    from distill.running import preview

    try:
        say(preview.page(args.run, args.seed, size=args.size, lam=args.lam))
        return 0
    except (MemoryError, torch.OutOfMemoryError) as error:
        return refuse(PROGRAM, f"out of memory, lower --size ({error})")


if __name__ == "__main__":
    from distill import starting

    sys.exit(starting.run(main))
