"""The report of runs: their tables, and their figures and pages as files."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from distill.errors import ConfigError, one_line
from distill.files import followed, write_atomically
from distill.pages.html import PAGE
from distill.pages.style import draw
from distill.pages.tables import filled
from distill.reporting.page import page, write_page
from distill.reporting.plots import FIGURES
from distill.reporting.results import RunResults
from distill.reporting.run_tables import answer, estimates, targets
from distill.store.events import write_figure_events
from distill.store.rundir import RunDir


def reports(runs: Sequence[RunResults], output: Path | None) -> str:
    """Report several runs and write a page on all, beside the first one; return their tables.

    With ``output`` the page is written to this file, and nothing else. Raises ConfigError and OSError.
    """
    texts = [*map(tables, runs)]
    if output is not None:
        write_output(output, page(runs, output.absolute().parent))
        return "\n\n".join([*texts, f"the page is {output}"])
    file = runs[0].path / PAGE
    if len(runs) > 1:
        file = runs[0].path.absolute().parent / PAGE
        refuse_foreign(file)
    check_writable([*(run.path for run in runs), file.parent])
    written = [_write(run) for run in runs]
    if len(runs) > 1:
        written = [write_page(runs, file)]
    return "\n\n".join([*texts, *([f"the page is {file}"] if all(written) else [])])


def write_output(file: Path, text: str) -> None:
    """Write a page to the file that ``--output`` names. Raises ConfigError, and BrokenPipeError."""
    refuse_foreign(file)
    try:
        write_atomically(followed(file), text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"--output {one_line(error)}") from None


def refuse_foreign(file: Path) -> None:
    """Raise ConfigError if a file exists and is no page of this program. Devices and pipes are no files."""
    if file.is_file() and b"<title>Self-distillation: " not in file.read_bytes()[:1000]:
        raise ConfigError(f"{file} exists and is no page of this program: give another --output")


def check_writable(folders: Iterable[Path]) -> None:
    """Raise ConfigError if a report cannot be written into one of these folders."""
    for folder in folders:
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"{folder} cannot be written to; give --output FILE for the page")


def report(run: RunResults) -> str:
    """Write the results.csv, the figures and the page of a run, and return its tables. Raises OSError."""
    _write(run)
    return tables(run)


def _write(run: RunResults) -> bool:
    """Write the files of a report, unless all records are damaged; returns whether the page was written."""
    if run.problems and not run:
        return False
    if run and not run.problems:
        RunDir(run.path).write_results()
    for name, figure in FIGURES.items() if run else ():
        draw(run.path / name, figure, run)
    if run and run.config.run.tensorboard:
        write_figure_events(RunDir(run.path), FIGURES)
    return write_page([run], run.path / PAGE)


def tables(run: RunResults) -> str:
    """The tables of a run and the best arm and step as text; a line if no model is finished."""
    if not run:
        return f"{run.path}: {'no finished model can be read' if run.problems else 'no model is finished yet'}"
    parts = [run.table().text(), "\n".join(map(filled, answer(run)))]
    more = [targets(run), estimates(run.records)]
    return "\n\n".join([*parts, *(table.text() for table in more if table.rows)])
