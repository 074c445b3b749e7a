"""Runs of the toy experiment's program for several test files."""

import itertools

from distill.kernel.toy import program


def run(capsys, *options):
    """Exit code, standard output and standard error of the program."""
    code = program.main([str(option) for option in options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(table):
    """The table's cells by row."""
    lines = table.splitlines()
    start = 1 + next(i for i, line in enumerate(lines) if line.strip().startswith("fit "))
    return [line.split() for line in itertools.takewhile(str.strip, lines[start:])]
