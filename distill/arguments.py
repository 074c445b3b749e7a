"""Command-line arguments of every program of the project: numbers in a range, paths, errors on one line."""

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from distill.errors import ConfigError, shown
from distill.program import write_out

Number = TypeVar("Number", int, float)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError instead of printing its usage, and takes -1e-3 or -inf as a value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)  # argparse's own knows only -1.5

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def print_help(self, file: Any = None) -> None:  # argparse's own hides a failure
        write_out(self.format_help())


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, without one of these two if ``without`` is its name.

    Whole numbers if ``high`` is an int.
    """

    low: float
    high: float
    without: str = ""

    def check(self, name: str, value: float) -> None:
        """Raise ConfigError, with ``name``, if a value is not in the range."""
        inside = self.low <= value <= self.high  # False for NaN
        if not inside or (self.without and value == getattr(self, self.without)):
            raise ConfigError(f"{name} must be {self}, not {shown(value)}")

    def __str__(self) -> str:
        if isinstance(self.high, int):
            return f"a whole number from {self.low} to {self.high}"
        brackets = "(" if self.without == "low" else "[", ")" if self.without == "high" else "]"
        return f"a number in {brackets[0]}{self.low:g}, {self.high:g}{brackets[1]}"


def number(kind: type[Number], within: Range) -> Callable[[str], Number]:
    """An argparse type: a number in a range."""

    def read(text: str) -> Number:
        try:
            value = kind(text)
            within.check("", value)
        except ValueError:  # ConfigError is one
            raise argparse.ArgumentTypeError(f"must be {within}, not {text!r}") from None
        return value + kind(0)  # -0.0 becomes 0.0

    return read


def to_path(text: str) -> Path:
    """An argparse type: a path, in which ``~`` is the home folder (a shell does not expand ``--output=~/x``)."""
    if not text:  # which would be the working directory
        raise argparse.ArgumentTypeError("must not be empty")
    if "\0" in text:
        raise argparse.ArgumentTypeError("has a null character in it")
    return Path(os.path.expanduser(text))
