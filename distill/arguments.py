"""Command-line errors on one line, for every program of the project."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from distill.errors import ConfigError, one_line

Number = TypeVar("Number", int, float)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def positive(kind: type[Number]) -> Callable[[str], Number]:
    """An argparse type: a finite number greater than 0."""

    def number(text: str) -> Number:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError
        return value

    number.__name__ = f"positive {kind.__name__}"  # argparse names the type by this in its message
    return number


def program_name(script: str, command: str) -> str:
    """The name that the user typed: the ``script`` of the checkout or the installed ``command``."""
    typed = Path(sys.argv[0]).name
    return typed if typed == command else script


def refuse(program: str, error: BaseException | str) -> int:
    """Print an error of the user's as one line on standard error; returns the exit status 2."""
    message = one_line(error) if isinstance(error, BaseException) else error
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2
