"""The command-line options of ``krr_toy.py``. This module loads neither NumPy nor Matplotlib, so --help is fast."""

import argparse
from dataclasses import fields
from pathlib import Path

from distill.arguments import OneLineParser, Range, number, to_path
from distill.errors import ConfigError
from distill.options import add_option
from distill.program import program_name
from distill.sections import DATASETS, DataConfig

KERNEL_NAMES = ("rbf", "laplacian", "matern12", "matern32", "matern52", "polynomial", "linear")
MEDIAN = "median"
SOLVERS = ("auto", "features", "eigh", "lanczos")
LARGEST = 1e100  # of any number on the command line: its square is far inside float64's range
MOST_CHAINS = 100
DATA_FIELDS = [f for f in fields(DataConfig) if f.name not in ("data", "augment")]  # the first is dataset
DATASET_ONLY = ("data_dir", "data_sha256", "image_size", "labels", "human_labels", "confusion")
TOY_ONLY = ("noise", "n", "csv", "interactive")
REAL_ONLY = (
    "target",
    "classification",
    "standardise",
    "intercept",
    "solver",
    "tolerance",
    "max_basis",
    "memory",
    "precision",
)
OUTPUT_OPTIONS = ("output", "no_figures", "format", "dpi", "csv", "interactive")
_number = number(float, Range(-LARGEST, LARGEST))
_not_negative = number(float, Range(0.0, LARGEST))


def program() -> str:
    """The program's name in messages."""
    return program_name("krr_toy.py", "krr-toy")


def parse(words: list[str]) -> argparse.Namespace:
    """The options from the command line's words; ``data_options`` holds those of ``DataConfig``. Raises ConfigError."""
    args = parser().parse_args(words)
    values = vars(args)
    args.data_options = {f.name: values.pop(f.name) for f in DATA_FIELDS if f.name in values}
    if len(args.alpha or ()) > MOST_CHAINS:
        raise ConfigError(f"--alpha has {len(args.alpha):,} values, and a table {MOST_CHAINS} columns at most")
    if args.data_options.get("dataset") == "features":  # as the network half calls an NPZ file
        if args.data is None:
            raise ConfigError("--dataset features needs the file: --data FILE.npz")
        del args.data_options["dataset"]
    if args.data is not None and "dataset" in args.data_options:
        raise ConfigError("--data and --dataset both say where the data come from: leave one out")
    for name in DATASET_ONLY:
        if args.data is not None and name in args.data_options:
            raise ConfigError(f"--{name.replace('_', '-')} is for --dataset: leave it out with --data")
    if args.data is not None and (args.n is not None or args.noise is not None):
        raise ConfigError("--data reads the points from a file: leave out --n and --noise")
    return args


def require_absent(args: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    """Raise ConfigError for the first option among ``names`` that was given."""
    for name in names:
        if getattr(args, name) not in (None, False):
            raise ConfigError(f"--{name.replace('_', '-')} {why}")


def is_default(args: argparse.Namespace) -> bool:
    """Whether no option was given that changes results."""
    defaults = vars(parser().parse_args([])) | {"data_options": {}}
    return all(args.__dict__[name] == value for name, value in defaults.items() if name not in OUTPUT_OPTIONS)


def set_toy_defaults(args: argparse.Namespace) -> None:
    """Fill in the toy's values of options that have others with real data. Raises ConfigError."""
    require_absent(args, REAL_ONLY, "is for real data, which --dataset or --data names")
    for name in args.data_options:
        raise ConfigError(f"--{name.replace('_', '-')} is for real data, which --dataset or --data names")
    if args.gamma == MEDIAN or len(args.lam or ()) > 1:
        raise ConfigError("--gamma median and several values of --lam are for real data: --dataset or --data")
    if args.output is None:
        name = "toy" if args.data is None else args.data.stem
        args.output = Path("figures") if is_default(args) else Path("runs") / f"krr-{name}"
    args.lam = args.lam[0] if args.lam else 0.2
    args.gamma = 80.0 if args.gamma is None else args.gamma


def parser() -> OneLineParser:
    """The program's options; none is required."""
    p = OneLineParser(
        prog=program(),
        description="Kernel ridge self-distillation in closed form. Without a data set, the papers' toy experiment: "
        "eleven noisy points of a sinusoid. With --dataset or --data, real data: risks over alpha, lambda and step.",
        epilog="alpha is the weight of the ground truth: 1 is no distillation, 0 the teacher's output alone.",
        allow_abbrev=False,
    )
    _add_chain_options(p.add_argument_group("the chain"))
    _add_toy_options(p.add_argument_group("the toy's data"))
    _add_real_options(p.add_argument_group("real data"))
    _add_output_options(p.add_argument_group("the output"))
    return p


def _add_chain_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--alpha",
        type=_alpha,
        nargs="+",
        metavar="A",
        help="weights of the ground truth, one column each: any numbers, or auto for the best alpha of each step "
        "(default: 0 0.35; with real data 0 0.25 0.5 0.75 1)",
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
        nargs="+",
        metavar="L",
        help="ridge parameter lambda (default: 0.2); with real data several, from which one is chosen "
        "(default: 25 from 1e-6 to 1 times the largest eigenvalue, with lanczos 16 from 1e-5)",
    )
    group.add_argument("--kernel", choices=KERNEL_NAMES, default="rbf", help="kernel (default: %(default)s)")
    group.add_argument(
        "--gamma",
        type=_gamma,
        metavar="G",
        help="kernel parameter: exp(-G r²) for rbf, exp(-G r) for laplacian, (G x·z + 1)³ for polynomial; the Matérn "
        "kernels have the length scale 1/√(2G), as rbf has; median is 1 / median r² (default: 80; median with real "
        "data)",
    )


def _add_toy_options(group: argparse._ArgumentGroup) -> None:
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
        help="seed of new points, and of all that is drawn from real data (default: 0)",
    )
    group.add_argument(
        "--csv", type=to_path, metavar="FILE", help="also write the losses in full precision: alpha,step,loss"
    )
    group.add_argument(
        "--interactive",
        action="store_true",
        help="open a window with sliders for alpha, lambda, gamma and the step instead, and write nothing",
    )


def _add_real_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        "--features",
        type=to_path,
        metavar="FILE",
        help="a CSV file with named columns, or an NPZ file with X (n, p), y (n,), and optionally X_test, y_test, "
        "X_val, y_val and given. Text, and integers in an NPZ file, are classes. A CSV file with one input is fitted "
        "as the toy is: without a column truth the loss is leave-one-out, or on held-out points if there are over 200",
    )
    group.add_argument(
        "--dataset",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"images, whose pixels in [0, 1] are the inputs: {', '.join(DATASETS)}, or package.module:function",
    )
    group.add_argument("--target", metavar="NAME", help="the CSV file's target column (default: y, or else the last)")
    group.add_argument("--classification", action="store_true", help="the numbers in the target column are classes")
    group.add_argument(
        "--standardise", action="store_true", help="scale inputs to mean 0 and variance 1 over the training points"
    )
    for f in DATA_FIELDS[1:]:
        add_option(group, DataConfig, f, default=argparse.SUPPRESS)
    group.add_argument("--intercept", action="store_true", help="an intercept without penalty, for --kernel linear")
    group.add_argument(
        "--solver",
        choices=SOLVERS,
        help="features: --kernel linear through the p x p Gram matrix; eigh: an eigendecomposition; lanczos: products "
        "with the kernel matrix, for many points (default: auto, the first of these that suits)",
    )
    group.add_argument(
        "--tolerance",
        type=number(float, Range(1e-12, 0.1)),
        metavar="E",
        help="lanczos: bound on the relative error of the fitted values (default: 0.001)",
    )
    group.add_argument(
        "--max-basis",
        type=number(int, Range(1, 10**6)),
        metavar="K",
        help="lanczos: number of basis vectors at most (default: 4000)",
    )
    group.add_argument(
        "--memory",
        type=number(float, Range(0.0, 1e6)),
        metavar="GIB",
        help="lanczos: memory for the kernel matrix, which is otherwise computed again for each product "
        "(default: half of what is free)",
    )
    group.add_argument(
        "--precision",
        choices=("float32", "float64"),
        help="lanczos: of the kernel matrix (default: float64 if it fits into the memory, otherwise float32)",
    )


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output",
        type=to_path,
        metavar="DIR",
        help="folder of the figures and tables (default: figures for the toy without other options, "
        "otherwise runs/krr-<name of the data>)",
    )
    group.add_argument("--no-figures", action="store_true", help="draw no figures")
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


def _alpha(text: str) -> float | str:
    return text if text == "auto" else _number(text)


def _gamma(text: str) -> float | str:
    return text if text == MEDIAN else _not_negative(text)
