"""The toy experiment as a program: its table of losses and its files.

NumPy and Matplotlib are imported only when they are needed, so that --help and a bad option answer at once.
"""

import argparse
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.environment import load_matplotlib
from distill.errors import one_line
from distill.files import Content, followed, write_together
from distill.kernel.toy.options import REAL_ONLY, parse, program, set_toy_defaults
from distill.program import complain, refuse, run_program, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from distill.kernel.table import Table

INFINITY = "∞"


@dataclass(frozen=True)
class NamedChain:
    """A column of the table: a chain's alpha or schedule, and its name in the table, file names and CSV file."""

    heading: str
    file_name: str
    csv_name: str
    alpha: float | tuple[float, ...]

    @property
    def schedule(self) -> str:
        """An empty line and one with the alphas of a schedule; an empty text for a constant alpha."""
        numbers = self.alpha if isinstance(self.alpha, tuple) else ()
        return f"\n{self.heading}: alpha = {', '.join(f'{a:.5g}' for a in numbers)}, ..." if numbers else ""


DEFAULT_CHAINS = [NamedChain("alpha = 0", "no_GT", "0.0", 0.0), NamedChain("alpha = 0.35", "GT", "0.35", 0.35)]


def named_chains(
    alphas: Iterable[float | str], schedule: Iterable[float], best_schedule: Callable[[], Iterable[float]]
) -> list[NamedChain]:
    """The requested chains, without repetitions. The alpha "auto" becomes the best schedule."""
    chains = []
    for alpha in dict.fromkeys(alphas):
        if isinstance(alpha, str):
            chains.append(NamedChain("auto", "alpha_auto", "auto", tuple(best_schedule())))
        else:
            chains.append(NamedChain(f"alpha = {alpha:g}", f"alpha_{alpha!r}", repr(alpha), alpha))
    if schedule:
        chains.append(NamedChain("schedule", "alpha_schedule", "schedule", tuple(schedule)))
    return chains


def shown_steps(n_fits: int) -> list[float]:
    """The fits in the table: all up to 20, otherwise the first six, 10, 100, 1000, ... and the last; then the limit."""
    if n_fits <= 20:
        return [*range(1, n_fits + 1), math.inf]
    powers = [10**i for i in range(1, 16) if 10**i < n_fits]
    return [1, 2, 3, 4, 5, 6, *powers, n_fits, math.inf]


def step_text(step: float) -> str:
    """A step in a table."""
    return INFINITY if step == math.inf else str(int(step))


def format_table(chains: list[NamedChain], steps: Sequence[float], table: Iterable[Sequence[float]]) -> str:
    """A row for each step, a column for each chain, five decimals, a star at the best of each column.

    ``table`` (len(chains), len(steps)) of losses.
    """
    columns = [["fit", *map(step_text, steps)]]
    for chain, losses in zip(chains, table, strict=True):
        best = min(range(len(losses)), key=losses.__getitem__)
        cells = [text + ("*" if i == best else " ") for i, text in enumerate(value_cells(losses))]
        columns.append([chain.heading + " ", *cells])
    return aligned(zip(*columns, strict=True))


def value_cells(values: Sequence[float]) -> list[str]:
    """The values of a chain by step, the limit last, as text."""
    beyond = "overflows" if math.isfinite(values[-1]) else "diverges"
    return [beyond if not math.isfinite(v) else f"{v:.5f}" if v < 1e6 else f"{v:.5e}" for v in values]


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells, flush right in columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(map(str.rjust, row, widths)).rstrip() for row in rows)


def csv_text(names: Iterable[str], rows: Iterable[Iterable[float | str]]) -> str:
    """A CSV file; numbers have the shortest digits from which each float64 can be read back."""
    lines = [",".join(value if isinstance(value, str) else repr(float(value)) for value in row) for row in rows]
    return "\n".join([",".join(names), *lines, ""])


def write_files(files: dict[Path, Content]) -> None:
    """Write all files or none. Raises OSError."""
    for path in files:
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder")
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_together(files)


def draw(
    package: str, folder: Path, args: argparse.Namespace, *arguments: Any
) -> "tuple[dict[str, Figure], dict[Path, Content]]":
    """``all_figures`` of a package by name, and as files; none with --no-figures and, with a note, if drawing fails."""
    if args.no_figures:
        return {}, {}
    try:
        load_matplotlib()
        from distill.pages.style import rendered, styled

        with styled():
            figures = importlib.import_module(f"{package}.figures").all_figures(*arguments)
        files = {name: rendered(figure, args.format, args.dpi) for name, figure in figures.items()}
    except Exception as error:
        complain(f"note: no figures ({type(error).__name__}: {one_line(error)})")
        return {}, {}
    return figures, {folder / f"{name}.{args.format}": content for name, content in files.items()}


def run(args: argparse.Namespace, table: "Table | None" = None) -> str:
    """Compute, write the files, and return the text for standard output."""
    set_toy_defaults(args)
    from distill.kernel.toy.data import best_schedule, chain_losses, load, make_folds

    data = load(args, table)
    if args.interactive:
        load_matplotlib()
        from distill.kernel.toy.window import show

        show(data, args)
        return ""
    folds, loss_name = make_folds(data, args.kernel, args.gamma, args.seed or 0)
    chains = named_chains(args.alpha or [], args.alpha_schedule or [], lambda: best_schedule(folds, args.lam))
    chains = chains or DEFAULT_CHAINS
    steps = shown_steps(args.distillation_steps + 1)
    losses = [chain_losses(folds, args.lam, chain.alpha, steps).tolist() for chain in chains]
    files: dict[Path, Content] = {}
    if args.csv is not None:
        rows = [
            [chain.csv_name, str(step), loss]
            for chain, of_chain in zip(chains, losses, strict=True)
            for step, loss in zip(steps, of_chain, strict=True)
        ]
        files[followed(args.csv)] = csv_text(["alpha", "step", "loss"], rows)
    figures, drawn = draw("distill.kernel.toy", args.output, args, data, folds, loss_name, chains, steps, args)
    files |= drawn
    what = f"{args.kernel} kernel, gamma = {args.gamma:g}, lambda = {args.lam:g}, {len(data.x)} points"
    if args.report:
        from distill.kernel.toy.page import chain_table, kernel_page
        from distill.pages.html import PAGE

        loss, chain, step = min(
            (loss, chain.heading, step_text(step))
            for chain, of_chain in zip(chains, losses, strict=True)
            for step, loss in zip(steps, of_chain, strict=True)
        )
        answer = [f"Least loss: {loss:.5f}, {chain}, fit {step}", f"Without distillation, fit 1: {losses[0][0]:.5f}"]
        losses_by_step = chain_table(f"Loss: {loss_name}", chains, steps, losses, min)
        files[args.output / PAGE] = kernel_page(f"{what}.", answer, [losses_by_step], figures, data.x, data.y)
    write_files(files)
    lines = [
        what,
        f"loss: {loss_name}; * marks the best of a column",
        "",
        format_table(chains, steps, losses),
        *filter(None, [chain.schedule for chain in chains]),
    ]
    if figures:
        lines.append(f"\n{len(figures)} figures in {args.output}{os.sep}")
    return "\n".join(lines)


def run_either(args: argparse.Namespace) -> str:
    """Run the toy experiment, or the study of real data; returns the text for standard output."""
    table = None
    real = args.data is not None or "dataset" in args.data_options
    if args.data is not None and args.data.suffix != ".npz" and not args.data.is_dir():
        from distill.kernel.table import read_table

        table = read_table(args.data)
        one_input = len(table.inputs(table.target(args.target))) == 1
        real = not one_input or bool(args.data_options) or any(getattr(args, name) for name in REAL_ONLY)
    if real:
        from distill.kernel.study.program import run as run_study

        return run_study(args, table)
    return run(args, table)


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit status, see ``run_program``."""
    return run_program(program(), lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(words: list[str]) -> int:
    try:
        text = run_either(parse(words))
    except MemoryError as error:
        return refuse(program(), str(error) or "out of memory")
    if text:
        say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
