"""The report of runs: their tables, and their figures and pages as files."""

from collections.abc import Sequence
from pathlib import Path

from distill.errors import ConfigError
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
    if output is not None:
        write_atomically(followed(output), page(runs, output.absolute().parent))
        return "\n\n".join([*map(tables, runs), f"the page is {output}"])
    texts = []
    for run in runs:
        try:
            texts.append(report(run))
        except PermissionError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}; give --output FILE for the page") from None
    file = runs[0].path / PAGE
    if len(runs) > 1:
        file = runs[0].path.absolute().parent / PAGE
        write_page(runs, file)
    return "\n\n".join([*texts, f"the page is {file}"])


def report(run: RunResults) -> str:
    """Write the results.csv, the figures and the page of a run, and return its tables. Raises OSError."""
    if run and not run.problems:
        RunDir(run.path).write_results()
    for name, figure in FIGURES.items() if run else ():
        draw(run.path / name, figure, run)
    if run and run.config.run.tensorboard:
        write_figure_events(RunDir(run.path), FIGURES)
    write_page([run], run.path / PAGE)
    return tables(run)


def tables(run: RunResults) -> str:
    """The tables of a run and the best arm and step as text; a line if no model is finished."""
    if not run:
        return f"{run.path}: no model is finished yet"
    parts = [run.table().text(), "\n".join(map(filled, answer(run)))]
    more = [targets(run), estimates(run.records)]
    return "\n\n".join([*parts, *(table.text() for table in more if table.rows)])
