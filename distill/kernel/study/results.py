"""The results of a study: risk maps, what is chosen without the test points, and the curves over lambda."""

import math
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel.arrays import FloatArray
from distill.kernel.mixing import AUTO_FITS, auto_schedule, best_alpha
from distill.kernel.riskmap import EigenChain, Estimates, Grid
from distill.kernel.spectral import DivergentChainError
from distill.kernel.study.data import Problem
from distill.kernel.study.routes import Route
from distill.kernel.toy.program import NamedChain, named_chains

VALIDATION = "held-out points"
GCV = "generalised cross-validation"
TEST = "test points"


class Judge(NamedTuple):
    """Points with known targets, in the eigenbasis. In the place of None, generalised cross-validation judges."""

    rows: FloatArray  # (q, k)
    target: FloatArray  # (q[, m])


class Cell(NamedTuple):
    """A chain and a step of it."""

    alpha: float
    lam: float
    step: float


class Row(NamedTuple):
    """A row of the summary: a cell, how it was chosen, and its losses, GCV and accuracy by name."""

    name: str
    cell: Cell
    values: dict[str, float]


@dataclass(frozen=True)
class LambdaCurves:
    """Against lambda: risks of the teacher and two students, and the best student's alpha. (lams,) each."""

    judged_by: str
    teacher: FloatArray
    pure: FloatArray  # the student that sees the teacher's outputs alone
    mixed: FloatArray  # the student with the best alpha
    alpha: FloatArray  # the best alpha, chosen by ``Study.chosen_by``; any number


@dataclass(frozen=True)
class Study:
    """All results. Maps are (alphas, lams, steps), inf if the chain diverges or, by lanczos, is not reached."""

    problem: Problem
    route: Route
    grid: Grid
    chosen_by: str
    maps: dict[str, FloatArray]  # by the name of their column in map.csv
    best: Cell  # the least of the map by which ``chosen_by`` chooses
    summary: list[Row]
    curves: list[LambdaCurves]
    chains: list[NamedChain]  # the columns of the table
    losses: FloatArray  # (chains, steps) at the best lambda, judged by ``judged_by``
    accuracies: FloatArray | None
    judged_by: str

    @property
    def shown(self) -> FloatArray:
        """The map that the figures show: at test points, or else that which chooses."""
        return next(self.maps[name] for name in ("test_loss", "val_loss", "gcv") if name in self.maps)


def run_study(problem: Problem, route: Route, grid: Grid, alphas: list[float | str], schedule: list[float]) -> Study:
    """Compute everything; ``alphas`` and ``schedule`` are the columns of the table."""
    chain = route.chain
    parts = {"val": problem.val, "test": problem.test}
    judges = {name: Judge(route.rows(part.X), part.y) for name, part in parts.items() if part is not None}
    val, test = judges.get("val"), judges.get("test")
    maps = {}
    for name, judge in judges.items():
        maps[f"{name}_loss"] = chain.risk_map(*judge, grid.alphas, grid.lams, grid.steps, "squared")
        if problem.classes:
            maps[f"{name}_error"] = chain.risk_map(*judge, grid.alphas, grid.lams, grid.steps, "zero_one")
    maps |= _cross_validation(chain, grid)
    if route.basis is None:
        del maps["gcv_error"], maps["freedom_error"]
    else:
        maps["bound"] = route.basis.errors(grid.alphas, grid.lams, grid.steps)
    choosing = maps["gcv" if val is None else "val_loss"]
    best = _lowest(choosing, grid)
    curves = [_curves(chain, grid, val, judge) for judge in [val, *([test] if test else [])]]
    chains = named_chains(alphas, schedule, lambda: auto_schedule(_residuals(chain, val, best.lam, AUTO_FITS)))
    tables = [_chain(chain, test or val, best.lam, named.alpha, grid.steps) for named in chains]
    i = int(curves[0].mixed.argmin())
    cells = {
        "chosen": best,
        "teacher": _lowest(choosing, grid, steps=1),
        "first student": Cell(float(curves[0].alpha[i]), float(grid.lams[i]), 2),
    }
    if test is not None:
        cells["oracle"] = _lowest(maps["test_loss"], grid)
    return Study(
        problem,
        route,
        grid,
        chosen_by=VALIDATION if val else GCV,
        maps=maps,
        best=best,
        summary=[Row(name, cell, _measure(route, val, test, cell)) for name, cell in cells.items()],
        curves=curves,
        chains=chains,
        losses=np.array([losses for losses, _ in tables]),
        accuracies=np.array([accuracies for _, accuracies in tables]) if problem.classes and judges else None,
        judged_by=TEST if test else VALIDATION if val else GCV,
    )


def _measure(route: Route, val: Judge | None, test: Judge | None, cell: Cell) -> dict[str, float]:
    """What is known about a cell, by the heading in the summary."""
    values = {}
    for name, judge in (("held out", val), ("test", test), ("GCV", None)):
        if judge is None and name != "GCV":
            continue
        losses, accuracies = _chain(route.chain, judge, cell.lam, cell.alpha, [cell.step])
        values[name] = float(losses[0])
        if not math.isnan(accuracies[0]):
            values[f"accuracy, {name}"] = float(accuracies[0])
    if route.basis is not None:
        values["error bound"] = route.basis.errors([cell.alpha], [cell.lam], [cell.step]).item()
    return values


def _lowest(risks: FloatArray, grid: Grid, steps: int | None = None) -> Cell:
    """The cell of least risk among the first ``steps`` steps, of equal ones that of the least step."""
    by_step = np.moveaxis(risks, 2, 0)[:steps]
    s, i, j = np.unravel_index(int(by_step.argmin()), by_step.shape)
    return Cell(float(grid.alphas[i]), float(grid.lams[j]), grid.steps[s])


def _cross_validation(chain: EigenChain, grid: Grid) -> dict[str, FloatArray]:
    """Maps of GCV and of degrees of freedom, and of their standard errors."""
    maps = {field.name: np.full(grid.shape, np.inf) for field in fields(Estimates)}
    for i, j, s in np.ndindex(grid.shape):
        with suppress(DivergentChainError):
            estimates = chain.estimates(float(grid.lams[j]), grid.alphas[i], grid.steps[s])
            for name, values in asdict(estimates).items():
                maps[name][i, j, s] = values[0]
    return maps


def _residuals(chain: EigenChain, judge: Judge | None, lam: float, k: int) -> FloatArray:
    """target - the prediction of A^j y, j = 1..k, at held-out points, or their estimate by GCV."""
    if judge is None:
        return chain.gcv_residuals(lam, k)
    return judge.target - chain.predict(judge.rows, lam, 0.0, range(1, k + 1))


def _curves(chain: EigenChain, grid: Grid, val: Judge | None, judge: Judge | None) -> LambdaCurves:
    """The curves with alpha chosen by ``val`` and risks at the points of ``judge``."""
    rows = []
    for lam in grid.lams:
        first, second = _residuals(chain, val, lam, 2)
        alpha = best_alpha(-first, -second, np.zeros_like(first))
        alpha = 1.0 if math.isnan(alpha) else alpha
        if judge is not val:
            first, second = _residuals(chain, judge, lam, 2)
        scale = first.size if judge is not None else chain.n * chain.components[0].size
        mixed = alpha * first + (1 - alpha) * second
        rows.append([*((residual**2).sum() / scale for residual in (first, second, mixed)), alpha])
    name = GCV if judge is None else VALIDATION if judge is val else TEST
    return LambdaCurves(name, *np.array(rows).T)


def _chain(
    chain: EigenChain, judge: Judge | None, lam: float, alpha: ArrayLike, steps: list[float]
) -> tuple[FloatArray, FloatArray]:
    """Losses and accuracies (steps,) of a chain; inf and NaN at steps where it diverges."""
    losses = np.full(len(steps), np.inf)
    accuracies = np.full(len(steps), np.nan)
    for s, step in enumerate(steps):
        with suppress(DivergentChainError), np.errstate(over="ignore"):
            if judge is None:
                losses[s] = chain.estimates(lam, alpha, step).gcv[0]
                continue
            prediction = chain.predict(judge.rows, lam, alpha, step)[0]
            losses[s] = ((prediction - judge.target) ** 2).mean()
            if prediction.ndim == 2:
                accuracies[s] = (prediction.argmax(axis=1) == judge.target.argmax(axis=1)).mean()
    return losses, accuracies
