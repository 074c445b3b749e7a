"""Tables as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 100  # columns of a terminal


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, each column flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def format_count(n: int, thing: str) -> str:
    """``1 epoch``, ``1,200 epochs``."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def filled(text: str, indent: int = 2) -> str:
    """A sentence in lines that a terminal holds, the second and later ones indented; words are never broken."""
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and the sample standard deviation of ``n`` values."""

    mean: float
    deviation: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.deviation:.4f}" if self.n > 1 else f"{self.mean:.4f}"


@dataclass(frozen=True)
class Link:
    """A link to a file or folder beside the page."""

    text: str
    href: str


@dataclass(frozen=True)
class Heat:
    """A cell whose background shows a share in [0, 1]."""

    text: str
    share: float

    def __str__(self) -> str:
        return self.text


class Seconds(float):
    """A cell of seconds, shown with one decimal."""


@dataclass(frozen=True)
class Table:
    """A table. The first column names the rows.

    Cells are text, numbers, ``Seconds``, ``Spread``, ``Heat``, lists of ``Link``, or None.
    """

    title: str
    header: list[str]
    rows: list[list[Any]]

    def text(self) -> str:
        """Lines for a terminal, columns flush right; if they are too wide, in blocks that repeat the first column."""
        several = any(isinstance(cell, Spread) and cell.n > 1 for row in self.rows for cell in row)
        cells = [self.header, *([_cell(cell, several) for cell in row] for row in self.rows)]
        columns = list(zip(*cells, strict=True))
        first = max(map(len, columns[0]))
        blocks: list[list[tuple[str, ...]]] = [[columns[0]]]
        width = first
        for column in columns[1:]:
            here = 2 + max(map(len, column))
            if width + here > WIDTH and len(blocks[-1]) > 1:
                blocks.append([columns[0]])
                width = first
            blocks[-1].append(column)
            width += here
        return "\n\n".join(
            [self.title + "\n" + aligned(list(zip(*blocks[0], strict=True)))]
            + [aligned(list(zip(*block, strict=True))) for block in blocks[1:]]
        )

    def markdown(self) -> str:
        """A table of GitHub's Markdown, the title above it."""
        return "\n".join(
            [
                _markdown(self.title),
                "",
                f"| {' | '.join(map(_markdown, self.header))} |",
                "|" + "---|" + "---:|" * (len(self.header) - 1),
                *(f"| {' | '.join(_markdown(_cell(cell)) for cell in row)} |" for row in self.rows),
            ]
        )

    def latex(self) -> str:
        """A table for LaTeX's package booktabs."""
        return "\n".join(
            [
                r"% \usepackage{booktabs}",
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(self.title)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
                r"\toprule",
                " & ".join(map(_latex, self.header)) + r" \\",
                r"\midrule",
                *(" & ".join(_latex(_cell(cell)) for cell in row) + r" \\" for row in self.rows),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )

    def csv(self) -> str:
        """CSV with all digits; a mean over seeds has two more columns, the standard deviation and the number."""
        wide = [any(isinstance(row[i], Spread) for row in self.rows) for i in range(len(self.header))]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [[name, f"{name} sd", f"{name} n"] if w else [name] for name, w in zip(self.header, wide, strict=True)]
        for groups in (names, *([_numbers(cell, w) for cell, w in zip(row, wide, strict=True)] for row in self.rows)):
            writer.writerow(itertools.chain.from_iterable(groups))
        return text.getvalue().rstrip("\n")

    def __str__(self) -> str:
        return self.text()


def shaded(table: Table) -> Table:
    """A copy of a table with its numbers shaded: the least has no colour, the greatest the strongest."""
    numbers = [float(value) for row in table.rows for value in map(_mean, row[1:]) if value is not None]
    low = min(numbers, default=0.0)
    width = max(numbers, default=0.0) - low
    rows = [
        [
            row[0],
            *(
                cell if (value := _mean(cell)) is None else Heat(_cell(cell), (value - low) / (width or 1))
                for cell in row[1:]
            ),
        ]
        for row in table.rows
    ]
    return Table(table.title, table.header, rows)


def _mean(cell: Any) -> float | None:
    """The number of a cell, if it has one that is finite."""
    value = cell.mean if isinstance(cell, Spread) else cell
    return value if isinstance(value, float) and math.isfinite(value) else None


FORMATS: dict[str, Callable[[Table], str]] = {"latex": Table.latex, "markdown": Table.markdown, "csv": Table.csv}


def _cell(cell: Any, several: bool = False) -> str:
    """A cell as text. Among cells with deviations (``several``), one without keeps their place."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.4f}"
    return str(cell) + (" " * len(" ± 0.0000") if several and isinstance(cell, Spread) and cell.n == 1 else "")


def _numbers(cell: Any, wide: bool) -> list[Any]:
    if not wide:
        return [cell]
    if not isinstance(cell, Spread):
        return [cell, None, None]
    return [cell.mean, cell.deviation if cell.n > 1 else None, cell.n]


def _markdown(text: str) -> str:
    for character in "\\|`*_<[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


LATEX = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "±": r"$\pm$", "−": "$-$", "∞": r"$\infty$"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
