"""The kernel experiment as a program: options, the table of losses, and which files are written.

Data and losses are in `toy_data`, the drawings in `toy_figures`. Both, and with them NumPy and Matplotlib,
are imported where they are needed, so that --help and a bad flag answer at once.
"""

import argparse
import math
import os
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

KERNEL_NAMES = ("rbf", "laplacian", "matern12", "matern32", "matern52", "polynomial", "linear")
LARGEST = 1e100  # of any number that a user gives: its square is still far inside float64's range
INFINITY = "∞"


class OneLineParser(argparse.ArgumentParser):
    """Errors are one line, without the usage."""

    def error(self, message):
        self.fail(f"{message} (see --help)")

    def fail(self, message):
        """One line on standard error and exit code 2; a file name or an argument may hold a newline."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value + 0.0  # -0.0 is 0


def _plain(word: str) -> str:
    """-1e-3 as -0.001, because argparse takes the former for an option; any other word as it is."""
    try:
        value = float(word) if word.startswith("-") else math.nan
    except ValueError:
        value = math.nan
    return format(Decimal(repr(value)), "f") if math.isfinite(value) else word


def _weight(text: str) -> float | str:
    return text if text == "auto" else _number(text)


def _not_negative(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _whole(least: int, most: int):
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return value

    return parse


def parser() -> argparse.ArgumentParser:
    """The program's options; each has a default, so that none is needed."""
    p = OneLineParser(
        description="Kernel ridge self-distillation in closed form: a table of losses by step, and figures.",
        epilog="alpha is the weight of the ground truth: 1 is no distillation, 0 the teacher's output alone.",
    )
    chain = p.add_argument_group("the chain")
    chain.add_argument(
        "--alpha",
        type=_weight,
        nargs="+",
        metavar="A",
        help="weights of the ground truth, a column each: any real numbers, or auto for the best weight of "
        "each step (default: 0 0.35)",
    )
    chain.add_argument(
        "--alpha-schedule",
        type=_number,
        nargs="+",
        metavar="A",
        help="a column whose first student has the first weight, and so on; the last one repeats",
    )
    chain.add_argument(
        "--distillation-steps",
        type=_whole(0, 10**15),
        default=5,
        metavar="T",
        help="fits after the first; a million cost no more than five (default: %(default)s)",
    )
    chain.add_argument(
        "--lam",
        "--lambda",
        type=_not_negative,
        default=0.2,
        metavar="L",
        help="ridge (default: %(default)s)",
    )
    chain.add_argument("--kernel", choices=KERNEL_NAMES, default="rbf", help="(default: %(default)s)")
    chain.add_argument(
        "--gamma",
        type=_not_negative,
        default=80.0,
        metavar="G",
        help="of the kernel: exp(-G r²) for rbf, exp(-G r) for laplacian, (G x·z + 1)³ for polynomial; "
        "the Matérn kernels have rbf's length scale 1/√(2G) (default: %(default)s)",
    )
    data = p.add_argument_group("the data: eleven noisy points of a sinusoid, or")
    data.add_argument(
        "--data",
        type=Path,
        metavar="FILE.csv",
        help="columns x, y and optionally truth; without the truth the loss is leave-one-out, past 200 points held-out",
    )
    data.add_argument("--noise", type=_not_negative, metavar="SIGMA", help="a fresh draw with this noise (0.5)")
    data.add_argument("--n", type=_whole(1, 10**9), metavar="N", help="a fresh draw of so many points (11)")
    data.add_argument(
        "--seed",
        type=_whole(0, 2**63),
        metavar="S",
        help="of a fresh draw, and of the points held out (0)",
    )
    out = p.add_argument_group("what is written")
    out.add_argument("--output", type=Path, default=Path("figures"), metavar="DIR", help="(default: %(default)s)")
    out.add_argument("--csv", type=Path, metavar="FILE", help="also the losses in full precision: alpha,step,loss")
    out.add_argument("--no-figures", action="store_true", help="the table alone")
    out.add_argument("--format", choices=("png", "pdf", "svg"), default="png", help="(default: %(default)s)")
    out.add_argument("--dpi", type=_whole(10, 1200), default=150, metavar="D", help="(default: %(default)s)")
    out.add_argument(
        "--interactive",
        action="store_true",
        help="instead of all that a window with sliders for alpha, lambda, gamma and the step",
    )
    return p


@dataclass(frozen=True)
class Column:
    """One chain: its name in the table, in file names and in the CSV file, and its weight or schedule."""

    heading: str
    file: str
    csv: str
    alpha: float | tuple[float, ...]


def columns(args, parts) -> list[Column]:
    """The chains asked for, each once. "auto" becomes the schedule that is best on the folds `parts`."""
    if args.alpha is None and args.alpha_schedule is None:
        return [Column("alpha = 0", "no_GT", "0.0", 0.0), Column("alpha = 0.35", "GT", "0.35", 0.35)]
    out = []
    for alpha in dict.fromkeys(args.alpha or []):
        if alpha == "auto":
            out.append(Column("auto", "alpha_auto", "auto", tuple(best_schedule(parts, args.lam))))
        else:
            out.append(Column(f"alpha = {alpha:g}", f"alpha_{alpha!r}", repr(alpha), alpha))
    if args.alpha_schedule:
        out.append(Column("schedule", "alpha_schedule", "schedule", tuple(args.alpha_schedule)))
    return out


def best_schedule(parts, lam: float):
    """The greedy best weights of fits 2, 3, ... against the targets in `parts`, as krr.auto_schedule."""
    from distill.kernel.mixing import AUTO_FITS, auto_schedule
    from distill.kernel.toy.data import held_out_residuals

    return auto_schedule(held_out_residuals(parts, lam, AUTO_FITS))


def shown_steps(n_fits: int) -> list[int]:
    """The fits in the table: all if they are few, otherwise six, then 10, 100, 1000, ... and the last."""
    if n_fits <= 20:
        return list(range(1, n_fits + 1))
    powers = [10**i for i in range(1, 16) if 10**i < n_fits]
    return [1, 2, 3, 4, 5, 6, *powers, n_fits]


def format_table(chains: list[Column], steps: list[float], table) -> str:
    """A row for each step, a column for each chain, five decimals, a star at the best of each column.

    `table` (len(chains), len(steps)) of losses.
    """
    cells = [[INFINITY if step == math.inf else str(step) for step in steps]]
    for losses in table:
        best = min(range(len(losses)), key=losses.__getitem__)
        cells.append([_cell(loss) + ("*" if i == best else " ") for i, loss in enumerate(losses)])
    headings = ["fit", *(chain.heading + " " for chain in chains)]
    widths = [max(map(len, [head, *column])) for head, column in zip(headings, cells, strict=True)]
    rows = [headings, *zip(*cells, strict=True)]
    return "\n".join("   ".join(map(str.rjust, row, widths)).rstrip() for row in rows)


def _cell(loss: float) -> str:
    if loss == math.inf:
        return "diverges"
    return f"{loss:.5f}" if loss < 1e6 else f"{loss:.5e}"


def format_csv(chains: list[Column], steps: list[float], table) -> str:
    """Rows alpha,step,loss with the shortest digits that give back each float64; `inf` for the limit."""
    rows = [
        f"{chain.csv},{step},{float(loss)!r}\n"
        for chain, losses in zip(chains, table, strict=True)
        for step, loss in zip(steps, losses, strict=True)
    ]
    return "alpha,step,loss\n" + "".join(rows)


def write_files(files: dict[Path, bytes]) -> None:
    """Write all files or none: each under a temporary name first, renamed when all are on the disk."""
    written = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():  # a rename would put a file in a device's place
                raise FileExistsError(0, "it is there and is no regular file", str(path))
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            written.append((temporary, path))
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in written:
            os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from None
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)


def run(args) -> str:
    """Compute, write the files, and return the text for standard output."""
    from distill.kernel.toy import data as toy_data

    if args.data is not None:
        data = toy_data.read_csv(args.data)
    elif (args.n, args.noise, args.seed) == (None, None, None):
        data = toy_data.toy()
    else:
        data = toy_data.draw(args.n or 11, 0.5 if args.noise is None else args.noise, args.seed or 0)
    if args.interactive:
        from distill.kernel.toy.window import show

        show(data, args)
        return ""
    parts, loss_name = toy_data.folds(data, args.kernel, args.gamma, args.seed or 0)
    chains = columns(args, parts)
    n_fits = args.distillation_steps + 1
    steps = [*shown_steps(n_fits), math.inf]
    table = [toy_data.losses(parts, args.lam, chain.alpha, steps) for chain in chains]

    files = {}
    if args.csv is not None:
        files[args.csv] = format_csv(chains, steps, table).encode()
    if not args.no_figures:
        from distill.kernel.toy.figures import all_figures

        for name, content in all_figures(data, parts, loss_name, chains, steps, args).items():
            files[args.output / f"{name}.{args.format}"] = content
    write_files(files)

    lines = [
        f"{args.kernel} kernel, gamma = {args.gamma:g}, lambda = {args.lam:g}, {len(data.x)} points",
        f"loss: {loss_name}; * marks the best of a column",
        "",
        format_table(chains, steps, table),
    ]
    for chain in chains:
        if isinstance(chain.alpha, tuple):
            lines.append(f"\n{chain.heading}: alpha = {', '.join(f'{a:.5g}' for a in chain.alpha)}, ...")
    if not args.no_figures:
        lines.append(f"\n{len(files) - (args.csv is not None)} figures in {args.output}{os.sep}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The program: returns 0. An error that a user can cause is one line on standard error, exit code 2."""
    options = parser()
    args = options.parse_args([_plain(word) for word in (sys.argv[1:] if argv is None else argv)])
    if args.data is not None and (args.n is not None or args.noise is not None):
        options.error("--data reads its points from a file: leave out --n and --noise")
    from distill.errors import DataError
    from distill.kernel.linalg import KernelMatrixError, SingularKernelError

    try:
        text = run(args)
    except (DataError, KernelMatrixError, SingularKernelError, MemoryError, OSError) as error:
        options.fail(str(error) or "out of memory")
    if sys.stdout.encoding and not _can_encode(INFINITY, sys.stdout.encoding):
        text = text.replace(INFINITY, "inf")
    if text:
        print(text)
    return 0


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
