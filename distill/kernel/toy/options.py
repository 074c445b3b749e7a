"""The toy experiment's command-line options. This module loads neither NumPy nor Matplotlib, so that --help is fast."""

import argparse
from pathlib import Path

from distill.arguments import OneLineParser, Range, number, to_path
from distill.program import program_name

KERNEL_NAMES = ("rbf", "laplacian", "matern12", "matern32", "matern52", "polynomial", "linear")
LARGEST = 1e100  # of any number on the command line: its square is far inside float64's range
MOST_CHAINS = 100
_number = number(float, Range(-LARGEST, LARGEST))
_not_negative = number(float, Range(0.0, LARGEST))


def program() -> str:
    """The program's name in messages."""
    return program_name("krr_toy.py", "krr-toy")


def parse(words: list[str]) -> argparse.Namespace:
    """The options from the command line's words. Raises ConfigError."""
    options = parser()
    args = options.parse_args(words)
    if len(args.alpha or ()) > MOST_CHAINS:
        options.error(f"--alpha has {len(args.alpha):,} values, and a table {MOST_CHAINS} columns at most")
    if args.data is not None and (args.n is not None or args.noise is not None):
        options.error("--data reads the points from a file: leave out --n and --noise")
    return args


def parser() -> OneLineParser:
    """The program's options; each has a default, so that none is required."""
    p = OneLineParser(
        prog=program(),
        description="Kernel ridge self-distillation in closed form: a table of losses by step, and figures.",
        epilog="alpha is the weight of the ground truth: 1 is no distillation, 0 the teacher's output alone.",
    )
    _add_chain_options(p.add_argument_group("the chain"))
    _add_data_options(p.add_argument_group("the data (eleven noisy points of a sinusoid by default)"))
    _add_output_options(p.add_argument_group("the output"))
    return p


def _add_chain_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--alpha",
        type=_alpha,
        nargs="+",
        metavar="A",
        help="weights of the ground truth, one column each: any numbers, or auto for the best alpha of each step "
        "(default: 0 0.35)",
    )
    group.add_argument(
        "--alpha-schedule",
        type=_number,
        nargs="+",
        metavar="A",
        help="a column with a schedule: the alpha of the first student, of the second, ...; the last one repeats",
    )
    group.add_argument(
        "--distillation-steps",
        type=number(int, Range(0, 10**15)),
        default=5,
        metavar="T",
        help="number of students; the cost does not grow with it (default: %(default)s)",
    )
    group.add_argument(
        "--lam",
        "--lambda",
        type=_not_negative,
        default=0.2,
        metavar="L",
        help="ridge parameter lambda (default: %(default)s)",
    )
    group.add_argument("--kernel", choices=KERNEL_NAMES, default="rbf", help="kernel (default: %(default)s)")
    group.add_argument(
        "--gamma",
        type=_not_negative,
        default=80.0,
        metavar="G",
        help="kernel parameter: exp(-G r²) for rbf, exp(-G r) for laplacian, (G x·z + 1)³ for polynomial; "
        "the Matérn kernels have the length scale 1/√(2G), as rbf has (default: %(default)s)",
    )


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        type=to_path,
        metavar="FILE.csv",
        help="read points from columns x, y and optionally truth; without truth the loss is leave-one-out, "
        "or on held-out points if there are more than 200",
    )
    group.add_argument(
        "--noise",
        type=_not_negative,
        metavar="SIGMA",
        help="draw new points with noise of this standard deviation (default: 0.5)",
    )
    group.add_argument(
        "--n",
        type=number(int, Range(1, 10**9)),
        metavar="N",
        help="draw this many new points (11 if only --noise or --seed is given)",
    )
    group.add_argument(
        "--seed",
        type=number(int, Range(0, 2**63)),
        metavar="S",
        help="seed of new points, and of the choice of held-out points (default: 0)",
    )


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output",
        type=to_path,
        default=Path("figures"),
        metavar="DIR",
        help="folder of the figures (default: %(default)s)",
    )
    group.add_argument(
        "--csv", type=to_path, metavar="FILE", help="also write the losses in full precision: alpha,step,loss"
    )
    group.add_argument("--no-figures", action="store_true", help="print the table only")
    group.add_argument(
        "--format", choices=("png", "pdf", "svg"), default="png", help="of the figures (default: %(default)s)"
    )
    group.add_argument(
        "--dpi",
        type=number(int, Range(10, 1200)),
        default=150,
        metavar="D",
        help="resolution of png figures (default: %(default)s)",
    )
    group.add_argument(
        "--interactive",
        action="store_true",
        help="open a window with sliders for alpha, lambda, gamma and the step instead, and write nothing",
    )


def _alpha(text: str) -> float | str:
    return text if text == "auto" else _number(text)
