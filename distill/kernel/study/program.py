"""The program for real data: from options to the text on standard output, tables and figures."""

import argparse
import math
import os
from pathlib import Path

import numpy as np

from distill.environment import load_matplotlib
from distill.errors import ConfigError, one_line
from distill.files import Content
from distill.kernel.study.data import Problem, load_problem
from distill.kernel.study.results import Study, run_study
from distill.kernel.study.routes import make_route
from distill.kernel.table import Table
from distill.kernel.toy.options import TOY_ONLY, require_absent
from distill.kernel.toy.program import INFINITY, aligned, format_table, shown_steps, write_files
from distill.program import complain

ALPHAS = np.arange(-5, 16) / 10  # of the maps, besides those of the table
FORMATS = {"accuracy, held out": ".4f", "accuracy, test": ".4f", "error bound": ".1e"}
TABLE_ALPHAS: list[float | str] = [0.0, 0.25, 0.5, 0.75, 1.0]


def run(args: argparse.Namespace, table: Table | None) -> str:
    """Compute, write the files, and return the text for standard output. ``table`` is the CSV file's, if it is one."""
    require_absent(args, TOY_ONLY, "is for the toy experiment: leave it out with real data")
    problem = load_problem(args, table)
    if args.lam is not None and min(args.lam) == 0:
        raise ConfigError("--lam must be above 0 with real data: cross-validation cannot judge an interpolant")
    folder = args.output or Path("runs") / f"krr-{problem.name}"
    columns: list[float | str] = args.alpha or ([] if args.alpha_schedule else TABLE_ALPHAS)
    constants = [alpha for alpha in columns if not isinstance(alpha, str)]
    alphas = np.array(sorted({*ALPHAS.tolist(), *constants}))
    steps: list[float] = [*shown_steps(args.distillation_steps + 1), math.inf]
    route, grid = make_route(args, problem, alphas, steps, folder)
    study = run_study(problem, route, grid, columns, args.alpha_schedule or [])
    files: dict[Path, Content] = {
        folder / "map.csv": map_csv(study),
        folder / "lambda.csv": lambda_csv(study),
        folder / "eigenvalues.csv": "k,eigenvalue\n"
        + "".join(f"{k},{float(d)!r}\n" for k, d in enumerate(route.chain.d, start=1)),
    }
    figures = {} if args.no_figures else draw(study, args)
    files |= {folder / f"{name}.{args.format}": content for name, content in figures.items()}
    write_files(files)
    kept = ""
    if route.basis is not None:
        kept = "; the basis in its folder lanczos serves runs with other alphas and ridges, and may be deleted"
    return "\n".join(
        [
            *describe(study),
            "",
            f"{len(figures)} figures and {len(files) - len(figures)} tables in {folder}{os.sep}{kept}",
        ]
    )


def draw(study: Study, args: argparse.Namespace) -> dict[str, bytes]:
    """All figures; none, and a note on standard error, if drawing fails."""
    try:
        load_matplotlib()
        from distill.kernel.study.figures import all_figures

        return all_figures(study, args.format, args.dpi)
    except Exception as error:
        complain(f"note: no figures ({type(error).__name__}: {one_line(error)})")
        return {}


def describe(study: Study) -> list[str]:
    """The lines for standard output."""
    problem = study.problem
    lines = [describe_problem(problem), study.route.text, "", summary_table(study), ""]
    lines.append(f"chosen: the least {problem.loss} of the whole map, by {study.chosen_by}")
    lines.append("teacher, first student: the least of fit 1, and of fit 2 with the best alpha, so chosen")
    if "test_loss" in study.maps:
        lines.append("oracle: the least of the map by the test points themselves")
    what = f"{problem.loss} ({study.judged_by}) at lambda = {study.best.lam:.4g}"
    lines += [
        "",
        f"{what}; * marks the least of a column",
        "",
        format_table(study.chains, study.grid.steps, list(study.losses)),
    ]
    if study.accuracies is not None:
        lines += ["", f"accuracy ({study.judged_by})", "", accuracy_table(study)]
    for chain in study.chains:
        if isinstance(chain.alpha, tuple):
            lines += ["", f"{chain.heading}: alpha = {', '.join(f'{a:.5g}' for a in chain.alpha)}, ..."]
    return lines


def describe_problem(problem: Problem) -> str:
    """What is fitted, in one line."""
    n, p = problem.train.X.shape
    parts = [f"{problem.name}: {n:,} training points with {p:,} inputs"]
    if problem.classes:
        parts[0] += f", {len(problem.classes)} classes"
    for name, part in (("held-out", problem.val), ("test", problem.test)):
        if part is not None:
            parts.append(f"{len(part.y):,} {name} points")
    return ", ".join(parts) + (f" ({problem.note})" if problem.note else "")


def summary_table(study: Study) -> str:
    """The chosen cells, a row each."""
    rows = [["", "fit", "alpha", "lambda", *study.summary[0].values]]
    for row in study.summary:
        cell = row.cell
        fit = INFINITY if cell.step == math.inf else str(int(cell.step))
        values = [f"{value:{FORMATS.get(name, '.5g')}}" for name, value in row.values.items()]
        rows.append([row.name, fit, "" if cell.step == 1 else f"{cell.alpha:.4g}", f"{cell.lam:.4g}", *values])
    headings, *cells = rows
    return aligned(headings, list(zip(*cells, strict=True)))


def accuracy_table(study: Study) -> str:
    """Accuracies by step and chain."""
    assert study.accuracies is not None
    cells = [[INFINITY if step == math.inf else str(int(step)) for step in study.grid.steps]]
    cells += [["diverges" if math.isnan(a) else f"{a:.4f}" for a in row] for row in study.accuracies]
    headings = ["fit", *(chain.heading for chain in study.chains)]
    return aligned(headings, cells)


def map_csv(study: Study) -> str:
    """A row for each chain and step of the maps, in full precision."""
    names = list(study.maps)
    rows = [f"alpha,lambda,step,{','.join(names)}\n"]
    for i, j, s, cell in study.cells():
        values = ",".join(repr(float(study.maps[name][i, j, s])) for name in names)
        rows.append(f"{cell.alpha!r},{cell.lam!r},{cell.step:g},{values}\n")
    return "".join(rows)


def lambda_csv(study: Study) -> str:
    """A row for each ridge and judge: the risks of the teacher and of both students, and the best alpha."""
    rows = ["lambda,judged_by,teacher,pure_student,best_student,best_alpha\n"]
    for curves in study.curves:
        values = np.stack([curves.teacher, curves.pure, curves.mixed, curves.alpha], axis=1)
        for lam, row in zip(study.grid.lams, values, strict=True):
            rows.append(f"{float(lam)!r},{curves.judged_by},{','.join(repr(float(v)) for v in row)}\n")
    return "".join(rows)
