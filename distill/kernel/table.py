"""Tables of numbers and class names in CSV files."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.errors import DataError, suggestion
from distill.files import read_text
from distill.kernel.arrays import FloatArray

LARGEST = 1e100  # of a number in a file or on the command line: its square is far inside float64's range


@dataclass(frozen=True)
class Table:
    """The columns of a CSV file as text: ``cells[i][j]`` is in column ``names[j]`` and line ``lines[i]``."""

    path: Path
    names: list[str]
    cells: list[list[str]]
    lines: list[int]

    def target(self, name: str | None) -> str:
        """The target column: ``name``, or else ``y`` if there is one, or else the last. Raises DataError."""
        columns = [column for column in self.names if column != "truth"]
        if name is None:
            return "y" if "y" in columns else columns[-1]
        if name not in columns:
            known = ", ".join(columns[:20])
            raise DataError(f"{self.path} has no column {name!r}{suggestion(name, columns)}; its columns are {known}")
        return name

    def inputs(self, target: str) -> list[str]:
        """The input columns: all but the target, and but ``truth``, the true value of the target."""
        return [name for name in self.names if name not in (target, "truth")]

    def text(self, name: str) -> list[str]:
        """A column's cells without the blanks around them."""
        j = self.names.index(name)
        return [row[j].strip() for row in self.cells]

    def numbers(self, names: Sequence[str]) -> FloatArray:
        """Columns as float64 (rows, len(names)). Raises DataError for the first cell that holds no number."""
        column_of = {name: j for j, name in enumerate(self.names)}
        columns = [column_of[name] for name in names]
        values = np.empty((len(self.cells), len(names)))
        for i, row in enumerate(self.cells):
            for j, column in enumerate(columns):
                value = _to_number(row[column])
                if not abs(value) <= LARGEST:
                    found = repr(row[column].strip()[:40]) if row[column].strip() else "a missing value"
                    raise DataError(
                        f"{self.path}, line {self.lines[i]}: column {names[j]} has {found}, "
                        f"but needs a finite number, at most {LARGEST:g} in size"
                    )
                values[i, j] = value
        return values


def read_table(path: Path) -> Table:
    """Read a CSV file in UTF-8: a header line, then at least one row. Raises DataError naming the line, and OSError."""
    try:
        reader = csv.reader(io.StringIO(read_text(path, "utf-8-sig"), newline=""))
        names = [name.strip() for name in next(reader, [])]
        cells = []
        lines = []
        for row in reader:
            if not row:
                continue  # an empty line
            if len(row) != len(names):
                raise DataError(f"{path}, line {reader.line_num} has {len(row)} values, but line 1 has {len(names)}")
            cells.append(row)
            lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from None
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror}") from None
    _check_names(path, names)
    if not cells:
        raise DataError(f"{path}: no rows after the header")
    return Table(path, names, cells, lines)


def _check_names(path: Path, names: list[str]) -> None:
    """Raise DataError if the first line is not the names of at least two columns."""
    for separator, called in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and separator in names[0]:
            raise DataError(f"{path} separates its columns by {called}; separate them by commas")
    if len(names) < 2:
        raise DataError(f"{path} needs two columns or more, an input and a target, and a first line with their names")
    if all(is_number(name) for name in names):
        raise DataError(f"{path} begins with numbers; add a first line with the names of the columns")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path} has two columns with the name {twice[0]!r}")


def is_number(text: str) -> bool:
    """Whether a cell holds a number, which may be NaN or infinite."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _to_number(text: str) -> float:
    """The number in a cell, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
