"""The program for real data: from options to the text on standard output, tables and figures."""

import argparse
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from distill.files import Content
from distill.kernel.study.data import Problem, load_problem
from distill.kernel.study.results import Study
from distill.kernel.study.routes import make_route
from distill.kernel.table import Table
from distill.kernel.toy.options import TOY_ONLY, require_absent
from distill.kernel.toy.page import chain_table, kernel_page
from distill.kernel.toy.program import aligned, csv_text, draw, format_table, shown_steps, step_text, write_files
from distill.pages.html import PAGE
from distill.pages.tables import Table as ReportTable

ALPHAS = np.arange(-5, 16) / 10  # of the maps, besides those of the table
FORMATS = {"accuracy, held out": ".4f", "accuracy, test": ".4f", "error bound": ".1e"}
TABLE_ALPHAS: list[float | str] = [0.0, 0.25, 0.5, 0.75, 1.0]


def run(args: argparse.Namespace, table: Table | None) -> str:
    """Compute, write the files, and return the text for standard output. ``table`` is the CSV file's, if it is one."""
    require_absent(vars(args), TOY_ONLY, "is for the toy experiment: leave it out with real data")
    problem = load_problem(args, table)
    folder = args.output or Path("runs") / f"krr-{problem.name}"
    columns: list[float | str] = args.alpha or ([] if args.alpha_schedule else TABLE_ALPHAS)
    alphas = np.array(sorted({*ALPHAS.tolist(), *(alpha for alpha in columns if not isinstance(alpha, str))}))
    route = make_route(args, problem, alphas, shown_steps(args.distillation_steps + 1), folder)
    study = Study(problem, route, columns, args.alpha_schedule or [])
    figures, drawn = draw("distill.kernel.study", folder, args, study)
    tables: dict[Path, Content] = {folder / f"{name}.csv": text for name, text in csv_files(study).items()}
    page: dict[Path, Content] = {folder / PAGE: study_page(study, figures)} if args.report else {}
    write_files(tables | drawn | page)
    kept = ""
    if route.basis is not None:
        kept = "; the basis in its folder lanczos serves runs with other alphas and ridges, and may be deleted"
    written = f"{len(figures)} figures and {len(tables)} tables in {folder}{os.sep}{kept}"
    return "\n".join([*describe(study), "", written])


def describe(study: Study) -> list[str]:
    """The lines for standard output."""
    problem = study.problem
    lines = [describe_problem(problem), study.route.text, "", aligned(summary_rows(study)), ""]
    lines.append(f"chosen: the least {problem.loss} of the whole map, by {study.chosen_by}")
    lines.append("teacher, first student: the least of fit 1, and of fit 2 with the best alpha, so chosen")
    if "test_loss" in study.maps:
        lines.append("oracle: the least of the map by the test points themselves")
    what = f"{problem.loss} ({study.judged_by}) at lambda = {study.best.lam:.4g}"
    losses = format_table(study.chains, study.grid.steps, study.losses.tolist())
    lines += ["", f"{what}; * marks the least of a column", "", losses]
    if study.accuracies is not None:
        columns = [["fit", *map(step_text, study.grid.steps)]]
        for chain, row in zip(study.chains, study.accuracies, strict=True):
            columns.append([chain.heading, *("diverges" if math.isnan(a) else f"{a:.4f}" for a in row)])
        lines += ["", f"accuracy ({study.judged_by})", "", aligned(zip(*columns, strict=True))]
    return lines + [chain.schedule for chain in study.chains if chain.schedule]


def study_page(study: Study, figures: dict[str, Any]) -> str:
    """The page of a study: what is chosen and what it gains, the tables, the figures."""
    header, *rows = summary_rows(study)
    cell, chosen = study.summary["chosen"]
    teacher = study.summary["teacher"][1]
    answer = [
        f"Chosen by {study.chosen_by}: fit {step_text(cell.step)}, alpha {cell.alpha:.4g}, lambda {cell.lam:.4g}",
        "; ".join(f"{name} {value:.5g} (teacher {teacher[name]:.5g})" for name, value in chosen.items()),
    ]
    what = f"{study.problem.loss} ({study.judged_by}) at lambda = {study.best.lam:.4g}"
    shown = [ReportTable(f"The chosen cells: {study.problem.loss}", header, rows)]
    shown.append(chain_table(what, study.chains, study.grid.steps, study.losses, min))
    if study.accuracies is not None:
        what = f"accuracy ({study.judged_by})"
        shown.append(chain_table(what, study.chains, study.grid.steps, study.accuracies, max))
    what = f"{describe_problem(study.problem)}. {study.route.text}."
    return kernel_page(what, answer, shown, figures, study.problem.train.X, study.problem.train.y)


def describe_problem(problem: Problem) -> str:
    """What is fitted, in one line."""
    n, p = problem.train.X.shape
    parts = [f"{problem.name}: {n:,} training points with {p:,} inputs"]
    if problem.classes:
        parts.append(f"{len(problem.classes)} classes")
    for name, part in (("held-out", problem.val), ("test", problem.test)):
        if part is not None:
            parts.append(f"{len(part.y):,} {name} points")
    return ", ".join(parts) + (f" ({problem.note})" if problem.note else "")


def summary_rows(study: Study) -> list[list[str]]:
    """The headings, and the chosen cells, a row each."""
    rows = [["", "fit", "alpha", "lambda", *study.summary["chosen"][1]]]
    for name, (cell, measured) in study.summary.items():
        alpha = "" if cell.step == 1 else f"{cell.alpha:.4g}"
        values = [f"{value:{FORMATS.get(what, '.5g')}}" for what, value in measured.items()]
        rows.append([name, step_text(cell.step), alpha, f"{cell.lam:.4g}", *values])
    return rows


def csv_files(study: Study) -> dict[str, str]:
    """In full precision: a row for each chain and step of the maps, for each ridge and judge, for each eigenvalue."""
    grid = study.grid
    cells: list[tuple] = [
        (grid.alphas[i], grid.lams[j], f"{grid.steps[s]:g}", *(values[i, j, s] for values in study.maps.values()))
        for i, j, s in np.ndindex(grid.shape)
    ]
    curves: list[tuple] = [
        (lam, curve.judged_by, *risks)
        for curve in study.curves
        for lam, *risks in zip(grid.lams, curve.teacher, curve.pure, curve.mixed, curve.alpha, strict=True)
    ]
    names = ["lambda", "judged_by", "teacher", "pure_student", "best_student", "best_alpha"]
    eigenvalues = [(str(k), d) for k, d in enumerate(study.route.chain.d, start=1)]
    return {
        "map": csv_text(["alpha", "lambda", "step", *study.maps], cells),
        "lambda": csv_text(names, curves),
        "eigenvalues": csv_text(["k", "eigenvalue"], eigenvalues),
    }
