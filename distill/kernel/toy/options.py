"""The command-line options of ``krr_toy.py``. This module loads neither NumPy nor Matplotlib, so --help is fast."""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from distill.arguments import OneLineParser, Range, number, to_path
from distill.errors import ConfigError
from distill.options import add_option, flag
from distill.program import program_name
from distill.sections import ARRAYS, DATASETS, DataConfig

KERNEL_NAMES = ("rbf", "laplacian", "matern12", "matern32", "matern52", "polynomial", "linear")
MEDIAN = "median"
IMAGES = [name for name in DATASETS if name not in ARRAYS]
LARGEST = 1e100  # of any number on the command line: its square is far inside float64's range
LARGEST_CUBED = 1e9  # gamma of the polynomial kernel, of degree 3, which may be computed in float32
MOST_CHAINS = 100
DATA_FIELDS = [f for f in fields(DataConfig) if f.name not in ("data", "augment", "cutout")]  # the first is dataset
DATASET_ONLY = ("data_dir", "cache_dir", "data_sha256", "image_size", "classes", "labels", "human_labels", "confusion")
TOY_ONLY = ("noise", "n", "csv", "interactive")
OUTPUT_OPTIONS = ("output", "report", "no_figures", "format", "dpi", "csv", "interactive")
_number = number(float, Range(-LARGEST, LARGEST))
_not_negative = number(float, Range(0.0, LARGEST))


def _alpha(text: str) -> float | str:
    return text if text == "auto" else _number(text)


def _gamma(text: str) -> float | str:
    return text if text == MEDIAN else _not_negative(text)


REAL: dict[str, dict[str, Any]] = {
    "--data --features": {"type": to_path, "metavar": "FILE"},
    "--dataset": {"default": argparse.SUPPRESS, "metavar": "NAME"},
    "--target": {"metavar": "NAME"},
    "--classification": {"action": "store_true"},
    "--standardise": {"action": "store_true"},
    "--intercept": {"action": "store_true"},
    "--solver": {"choices": ("auto", "features", "eigh", "lanczos")},
    "--tolerance": {"type": number(float, Range(1e-12, 0.1)), "metavar": "E"},
    "--max-basis": {"type": number(int, Range(1, 10**6)), "metavar": "K"},
    "--memory": {"type": number(float, Range(0.0, 1e6)), "metavar": "GIB"},
    "--precision": {"choices": ("float32", "float64")},
}
# By group and flags: the settings for argparse.
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "the chain": {
        "--alpha": {"type": _alpha, "nargs": "+", "metavar": "A"},
        "--alpha-schedule": {"type": _number, "nargs": "+", "metavar": "A"},
        "--distillation-steps": {"type": number(int, Range(0, 10**15)), "default": 5, "metavar": "T"},
        "--lam --lambda": {"type": _not_negative, "nargs": "+", "metavar": "L"},
        "--kernel": {"choices": KERNEL_NAMES, "default": "rbf"},
        "--gamma": {"type": _gamma, "metavar": "G"},
    },
    "the toy's data": {
        "--noise": {"type": _not_negative, "metavar": "SIGMA"},
        "--n": {"type": number(int, Range(1, 10**9)), "metavar": "N"},
        "--seed": {"type": number(int, Range(0, 2**63)), "metavar": "S"},
        "--csv": {"type": to_path, "metavar": "FILE"},
        "--interactive": {"action": "store_true"},
    },
    "real data": REAL,
    "the output": {
        "--output": {"type": to_path, "metavar": "DIR"},
        "--report": {"action": "store_true"},
        "--no-figures": {"action": "store_true"},
        "--format": {"choices": ("png", "pdf", "svg"), "default": "png"},
        "--dpi": {"type": number(int, Range(10, 1200)), "default": 150, "metavar": "D"},
    },
}
REAL_ONLY = [flags[2:].replace("-", "_") for flags in list(REAL)[2:]]
HELP = {
    "--alpha": "weight of the given labels in a student's target, a column for each value: any number, or auto for the "
    "best alpha of each step "
    "(default: 0 0.35; with real data 0 0.25 0.5 0.75 1)",
    "--alpha-schedule": "a column with a schedule: the alpha of the first student, of the second, ...; "
    "the last one repeats",
    "--distillation-steps": "number of students; the cost does not grow with it (default: %(default)s)",
    "--lam": "ridge parameter lambda (default: 0.2); with real data several, from which one is chosen "
    "(default: 25 from 1e-6 to 1 times the largest eigenvalue, with lanczos 16 from 1e-5)",
    "--kernel": "kernel (default: %(default)s)",
    "--gamma": "kernel parameter: exp(-G r²) for rbf, exp(-G r) for laplacian, (G x·z + 1)³ for polynomial; the Matérn "
    "kernels have the length scale 1/√(2G), as rbf has; median is 1 / median r² (default: 80; median with real data)",
    "--noise": "draw new points with noise of this standard deviation (default: 0.5)",
    "--n": "draw this many new points (11 if only --noise or --seed is given)",
    "--seed": "seed of new points, and of all that is drawn from real data (default: 0)",
    "--csv": "also write the toy's losses to this file in full precision: alpha,step,loss",
    "--interactive": "write nothing; open a window with sliders for alpha, lambda, gamma and the step",
    "--data": "a CSV file with named columns; or an NPZ file, or a folder of NPY files, with X (n, p), y (n,), and "
    "optionally X_test, y_test, X_val, y_val and given. Text, and integers in an NPZ file, are classes. A CSV file "
    "with one input is fitted as the toy is: without a column truth the loss is leave-one-out, or on held-out points "
    "if there are over 200",
    "--dataset": f"images, whose pixels in [0, 1] are the inputs: {', '.join(IMAGES)}, or package.module:function; or "
    "features, the vectors in the file of --data",
    "--target": "the CSV file's target column (default: y, or else the last)",
    "--classification": "the numbers in the target column are classes",
    "--standardise": "scale inputs to mean 0 and variance 1 over the training points",
    "--intercept": "fit an intercept without penalty (needs --kernel linear)",
    "--solver": "features: --kernel linear through the p x p Gram matrix; eigh: an eigendecomposition; lanczos: "
    "products with the kernel matrix, for many points (default: auto, the first of these that suits)",
    "--tolerance": "lanczos: bound on the relative error of the fitted values (default: 0.001)",
    "--max-basis": "lanczos: number of basis vectors at most (default: 4000)",
    "--memory": "lanczos: GiB for the kernel matrix; a larger one is computed again for each product "
    "(default: half of what is free)",
    "--precision": "lanczos: number format of the kernel matrix (default: float64 if that fits, otherwise float32)",
    "--output": "folder of the figures and tables (default: figures for the toy without other options, "
    "otherwise runs/krr-<name of the data>)",
    "--report": "also write report.html, a page with the tables and the figures, into the folder",
    "--no-figures": "draw no figures",
    "--format": "format of the figures (default: %(default)s)",
    "--dpi": "resolution of png figures (default: %(default)s)",
}


def program() -> str:
    """The program's name in messages."""
    return program_name("krr_toy.py", "krr-toy")


def parser() -> OneLineParser:
    """The program's options; none is required."""
    p = OneLineParser(
        prog=program(),
        usage="%(prog)s [options]",
        description="Kernel ridge self-distillation in closed form. Without a data set, the papers' toy experiment: "
        "eleven noisy points of a sinusoid. With --dataset or --data, real data: risks over alpha, lambda and step.",
        epilog="alpha is the weight of the given labels: 1 is no distillation, 0 uses only the teacher's output.",
        allow_abbrev=False,
    )
    for title, options in GROUPS.items():
        group = p.add_argument_group(title)
        for flags, settings in options.items():
            names = flags.split()
            group.add_argument(*names, help=HELP[names[0]], **settings)
        for f in DATA_FIELDS[1:] if options is REAL else ():
            add_option(group, DataConfig, f, default=argparse.SUPPRESS)
    return p


def parse(words: list[str]) -> argparse.Namespace:
    """The options from the command line's words; ``data_options`` holds those of ``DataConfig``. Raises ConfigError."""
    args = parser().parse_args(words)
    values = vars(args)
    args.data_options = {f.name: values.pop(f.name) for f in DATA_FIELDS if f.name in values}
    if len(args.alpha or ()) > MOST_CHAINS:
        raise ConfigError(f"--alpha has {len(args.alpha):,} values, and a table {MOST_CHAINS} columns at most")
    if args.kernel == "linear":
        require_absent(values, ["gamma"], "is for the other kernels: leave it out with --kernel linear")
    if args.kernel == "polynomial" and args.gamma not in (None, MEDIAN) and args.gamma > LARGEST_CUBED:
        raise ConfigError(f"--gamma {args.gamma:g}: --kernel polynomial cubes it, and takes {LARGEST_CUBED:g} at most")
    if args.data_options.get("dataset") == "features":  # as the network half calls an NPZ file
        if args.data is None:
            raise ConfigError("--dataset features needs the file: --data FILE.npz")
        del args.data_options["dataset"]
    if args.data is None:
        require_absent(values, ("target", "classification"), "is for a CSV file, which --data names")
        return args
    if "dataset" in args.data_options:
        raise ConfigError("--data and --dataset both say where the data come from: leave one out")
    require_absent(args.data_options, DATASET_ONLY, "is for --dataset: leave it out with --data")
    require_absent(values, ("n", "noise"), "draws new points: leave it out with --data")
    return args


def require_absent(values: dict[str, Any], names: Iterable[str], why: str) -> None:
    """Raise ConfigError for the first option among ``names`` that has a value."""
    for name in names:
        value = values.get(name)
        if value is not None and value is not False:  # 0 is a value
            raise ConfigError(f"{flag(name)} {why}")


def set_toy_defaults(args: argparse.Namespace) -> None:
    """Fill in the toy's values of options that have others with real data. Raises ConfigError."""
    given = vars(args) | args.data_options
    require_absent(given, [*REAL_ONLY, *args.data_options], "is for real data, which --dataset or --data names")
    if args.gamma == MEDIAN or len(args.lam or ()) > 1:
        raise ConfigError("--gamma median and several values of --lam are for real data: --dataset or --data")
    if args.output is None:
        changed = [name for name, value in vars(parse([])).items() if vars(args)[name] != value]
        name = "toy" if args.data is None else args.data.stem
        args.output = Path("runs") / f"krr-{name}" if set(changed) - set(OUTPUT_OPTIONS) else Path("figures")
    args.lam = args.lam[0] if args.lam else 0.2
    args.gamma = 80.0 if args.gamma is None else args.gamma
