"""report.html of the kernel program: its text, tables and figures, and the command that repeats it."""

from __future__ import annotations

import math
import os
import platform
import shlex
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from numpy.typing import NDArray

from distill.kernel.toy.options import program
from distill.kernel.toy.program import NamedChain, step_text, value_cells
from distill.pages.html import Part, View, render_page, svg
from distill.pages.tables import Heat, Table
from distill.records import digest_of_arrays

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {  # by the beginning of a figure's name
    "self_distill": "The chain: every student is fitted to the given labels, blended with the fit before it",
    "distill": "The fits by step",
    "B": "The diagonal of B: how much of each eigen-component remains, by step",
    "Rk": "The ratios of consecutive entries of that diagonal",
    "risk_map": "Loss over alpha and fit; the marked cell is the least, or the one that was chosen",
    "best_alpha": "The best alphas of each fit, and what they gain",
    "lambda_map": "Loss over lambda and alpha at the fit that was chosen",
    "lambda": "Loss of the teacher and of its first student against lambda, and the best 1 - alpha",
    "spectrum": "The eigenvalues, and the degrees of freedom against lambda",
}


def chain_table(
    title: str, chains: Sequence[NamedChain], steps: Sequence[float], values: Iterable[Sequence[float]], best: Callable
) -> Table:
    """A row for each step, a column for each chain, the ``best`` of each column shaded.

    ``values`` (len(chains), len(steps)), shown as in ``format_table``.
    """
    columns: list[list[Any]] = []
    for row in values:
        goal = best(filter(math.isfinite, row))
        cells = zip(row, value_cells(row), strict=True)
        columns.append([Heat(text, float(v == goal)) if math.isfinite(v) else text for v, text in cells])
    rows = [[step_text(step), *cells] for step, *cells in zip(steps, *columns, strict=True)]
    return Table(f"{title}; the best of a column is shaded", ["fit", *(chain.heading for chain in chains)], rows)


def kernel_page(
    sentence: str,
    answer: list[str],
    tables: list[Table],
    figures: Mapping[str, Figure],
    X: NDArray[Any],
    y: NDArray[Any],
) -> str:
    """The page of one call of the program, which fitted points X (n,) or (n, p) with targets y."""
    drawn = [svg(figure, _caption(name), f"f{i}", light=True) for i, (name, figure) in enumerate(figures.items())]
    versions = [["Python", platform.python_version()]]
    versions += [[name, version(name)] for name in ("numpy", "scipy", "scikit-learn")]
    versions.append(["machine", f"{platform.platform()}, {os.cpu_count()} cores"])
    command = ["python", sys.argv[0]] if program().endswith(".py") else [program()]
    parts = [
        Part("Losses", tables=tables, sorts=True),
        Part("Figures", "" if drawn else "No figures were drawn.", figures=drawn),
        Part("Origin", "This command repeats it:", code=shlex.join([*command, *sys.argv[1:]])),
    ]
    parts[-1].lines.append(f"SHA-256 of the training points: {digest_of_arrays([X, y])}")
    parts[-1].tables.append(Table("Versions and machine", ["package", "version"], versions))
    return render_page("Kernel ridge self-distillation", [View("this run", sentence, answer, parts)])


def _caption(name: str) -> str:
    begins = next(each for each in CAPTIONS if name == each or name.startswith(f"{each}_"))
    rest = {"_no_GT": ", alpha = 0 (no ground truth)", "_GT": ", alpha = 0.35 (with ground truth)"}
    of = name.removeprefix(begins)
    return CAPTIONS[begins] + rest.get(of, of.replace("_", ", ", 1).replace("_", " "))
