"""The toy experiment as a program: its table of losses and its files.

NumPy and Matplotlib are imported only when they are needed, so that --help and a bad option answer at once.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.environment import load_matplotlib
from distill.errors import DataError, one_line
from distill.files import Content, followed, write_together
from distill.kernel.toy.options import REAL_ONLY, parse, program, set_toy_defaults
from distill.program import complain, refuse, run_program, say

if TYPE_CHECKING:
    from distill.kernel.arrays import FloatArray
    from distill.kernel.table import Table
    from distill.kernel.toy.data import Data, Fold

INFINITY = "∞"


@dataclass(frozen=True)
class NamedChain:
    """A column of the table: a chain's alpha or schedule, and its name in the table, file names and CSV file."""

    heading: str
    file_name: str
    csv_name: str
    alpha: float | tuple[float, ...]


def named_chains(args: argparse.Namespace, folds: "list[Fold]") -> list[NamedChain]:
    """The requested chains, without repetitions. "auto" becomes the schedule that is best on ``folds``."""
    if args.alpha is None and args.alpha_schedule is None:
        return [NamedChain("alpha = 0", "no_GT", "0.0", 0.0), NamedChain("alpha = 0.35", "GT", "0.35", 0.35)]
    chains = []
    for alpha in dict.fromkeys(args.alpha or []):
        if alpha == "auto":
            chains.append(NamedChain("auto", "alpha_auto", "auto", best_schedule(folds, args.lam)))
        else:
            chains.append(NamedChain(f"alpha = {alpha:g}", f"alpha_{alpha!r}", repr(alpha), alpha))
    if args.alpha_schedule:
        chains.append(NamedChain("schedule", "alpha_schedule", "schedule", tuple(args.alpha_schedule)))
    return chains


def best_schedule(folds: "list[Fold]", lam: float) -> tuple[float, ...]:
    """The greedy best alphas of fits 2, 3, ... against the targets in ``folds``, as in krr.auto_schedule."""
    from distill.kernel.mixing import AUTO_FITS, auto_schedule
    from distill.kernel.toy.data import held_out_residuals

    return tuple(auto_schedule(held_out_residuals(folds, lam, AUTO_FITS)))


def shown_steps(n_fits: int) -> list[int]:
    """The fits in the table: all up to 20, otherwise the first six, 10, 100, 1000, ... and the last."""
    if n_fits <= 20:
        return list(range(1, n_fits + 1))
    powers = [10**i for i in range(1, 16) if 10**i < n_fits]
    return [1, 2, 3, 4, 5, 6, *powers, n_fits]


def format_table(chains: list[NamedChain], steps: Sequence[float], table: "list[FloatArray]") -> str:
    """A row for each step, a column for each chain, five decimals, a star at the best of each column.

    ``table`` (len(chains), len(steps)) of losses.
    """
    cells = [[INFINITY if step == math.inf else str(step) for step in steps]]
    for losses in table:
        best = min(range(len(losses)), key=losses.__getitem__)
        beyond = "diverges" if losses[-1] == math.inf else "overflows"  # the last is the limit
        cells.append([_cell(loss, beyond) + ("*" if i == best else " ") for i, loss in enumerate(losses)])
    headings = ["fit", *(chain.heading + " " for chain in chains)]
    return aligned(headings, cells)


def aligned(headings: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    """Columns under their headings, flush right."""
    widths = [max(map(len, [head, *column])) for head, column in zip(headings, columns, strict=True)]
    rows = [headings, *zip(*columns, strict=True)]
    return "\n".join("   ".join(map(str.rjust, row, widths)).rstrip() for row in rows)


def _cell(loss: float, beyond: str) -> str:
    if loss == math.inf:
        return beyond
    return f"{loss:.5f}" if loss < 1e6 else f"{loss:.5e}"


def format_csv(chains: list[NamedChain], steps: Sequence[float], table: "list[FloatArray]") -> str:
    """Rows alpha,step,loss with the shortest digits from which each float64 can be read back; inf for the limit."""
    rows = [
        f"{chain.csv_name},{step},{float(loss)!r}\n"
        for chain, losses in zip(chains, table, strict=True)
        for step, loss in zip(steps, losses, strict=True)
    ]
    return "alpha,step,loss\n" + "".join(rows)


def write_files(files: dict[Path, Content]) -> None:
    """Write all files or none. Raises OSError."""
    for path in files:
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder")
    try:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_together(files)
    except OSError as error:
        raise OSError(f"cannot write {error.filename}: {error.strerror}") from None


def load(args: argparse.Namespace, table: "Table | None") -> "Data":
    """The points that the options name; ``table`` is the CSV file's, if there is one. Raises DataError."""
    from distill.kernel.toy import data

    if table is not None:
        return data.from_table(table, args.target)
    if args.n is None and args.noise is None and args.seed is None:
        return data.toy()
    return data.draw(args.n or 11, 0.5 if args.noise is None else args.noise, args.seed or 0)


def draw(*arguments: Any) -> dict[str, bytes]:
    """``figures.all_figures(*arguments)``; none, and a note on standard error, if drawing fails."""
    try:
        load_matplotlib()
        from distill.kernel.toy.figures import all_figures

        return all_figures(*arguments)
    except Exception as error:
        complain(f"note: no figures ({type(error).__name__}: {one_line(error)})")
        return {}


def run(args: argparse.Namespace, table: "Table | None" = None) -> str:
    """Compute, write the files, and return the text for standard output."""
    set_toy_defaults(args)
    from distill.kernel.toy.data import chain_losses, make_folds

    data = load(args, table)
    if args.interactive:
        load_matplotlib()
        from distill.kernel.toy.window import show

        show(data, args)
        return ""
    folds, loss_name = make_folds(data, args.kernel, args.gamma, args.seed or 0)
    chains = named_chains(args, folds)
    steps: list[float] = [*shown_steps(args.distillation_steps + 1), math.inf]
    losses = [chain_losses(folds, args.lam, chain.alpha, steps) for chain in chains]

    files: dict[Path, Content] = {}
    if args.csv is not None:
        files[followed(args.csv)] = format_csv(chains, steps, losses)
    figures = {} if args.no_figures else draw(data, folds, loss_name, chains, steps, args)
    files |= {args.output / f"{name}.{args.format}": content for name, content in figures.items()}
    write_files(files)

    lines = [
        f"{args.kernel} kernel, gamma = {args.gamma:g}, lambda = {args.lam:g}, {len(data.x)} points",
        f"loss: {loss_name}; * marks the best of a column",
        "",
        format_table(chains, steps, losses),
    ]
    for chain in chains:
        if isinstance(chain.alpha, tuple):
            lines.append(f"\n{chain.heading}: alpha = {', '.join(f'{a:.5g}' for a in chain.alpha)}, ...")
    if figures:
        lines.append(f"\n{len(figures)} figures in {args.output}{os.sep}")
    return "\n".join(lines)


def run_either(args: argparse.Namespace) -> str:
    """Run the toy experiment, or the study of real data; returns the text for standard output."""
    table = None
    real = "dataset" in args.data_options
    if args.data is not None and args.data.suffix != ".npz":
        from distill.kernel.table import read_table

        table = read_table(args.data)
        one_input = len(table.inputs(table.target(args.target))) == 1
        real = not one_input or bool(args.data_options) or any(getattr(args, name) for name in REAL_ONLY)
    elif args.data is not None:
        real = True
    if real:
        from distill.kernel.study.program import run as run_study

        return run_study(args, table)
    return run(args, table)


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit status, see ``run_program``."""
    return run_program(program(), lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(words: list[str]) -> int:
    args = parse(words)
    from distill.kernel.lanczos import NotReachedError
    from distill.kernel.linalg import KernelMatrixError, SingularKernelError

    try:
        text = run_either(args)
    except MemoryError as error:
        return refuse(program(), str(error) or "out of memory")
    except (DataError, KernelMatrixError, SingularKernelError, NotReachedError) as error:
        return refuse(program(), error)
    if text:
        say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
