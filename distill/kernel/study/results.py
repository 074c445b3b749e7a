"""The results of a study: risk maps, what is chosen without the test points, and the curves over lambda."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel.arrays import FloatArray
from distill.kernel.eigenchain import EigenChain, Estimates
from distill.kernel.mixing import AUTO_FITS, auto_schedule, best_alpha
from distill.kernel.spectral import DivergentChainError
from distill.kernel.study.data import Part, Problem
from distill.kernel.study.routes import Grid, Route
from distill.kernel.toy.program import NamedChain

VALIDATION = "held-out points"
GCV = "generalised cross-validation"
TEST = "test points"


@dataclass(frozen=True)
class Judge:
    """Points with known targets, in the eigenbasis."""

    rows: FloatArray  # (q, k)
    target: FloatArray  # (q[, m])

    def losses(self, predictions: FloatArray) -> FloatArray:
        """Mean squared errors of predictions (steps, q[, m]): (steps,)."""
        with np.errstate(over="ignore"):
            return ((predictions - self.target) ** 2).reshape(len(predictions), -1).mean(axis=1)

    def accuracies(self, predictions: FloatArray) -> FloatArray:
        """The share of points whose largest output is that of the target, (steps,)."""
        return (predictions.argmax(axis=2) == self.target.argmax(axis=1)).mean(axis=1)


@dataclass(frozen=True)
class Cell:
    """A chain and a step of it."""

    alpha: float
    lam: float
    step: float


@dataclass(frozen=True)
class Row:
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

    def cells(self) -> Iterator[tuple[int, int, int, Cell]]:
        """Every cell of the maps, with its indices."""
        for i, j, s in np.ndindex(self.grid.shape):
            yield i, j, s, Cell(float(self.grid.alphas[i]), float(self.grid.lams[j]), self.grid.steps[s])


def run_study(problem: Problem, route: Route, grid: Grid, alphas: list[float | str], schedule: list[float]) -> Study:
    """Compute everything; ``alphas`` and ``schedule`` are the columns of the table."""
    chain = route.chain
    val = _judge(route, problem.val)
    test = _judge(route, problem.test)
    maps = {}
    for name, judge in (("val", val), ("test", test)):
        if judge is not None:
            points = (judge.rows, judge.target, grid.alphas, grid.lams, grid.steps)
            maps[f"{name}_loss"] = chain.risk_map(*points, "squared")
            if problem.classes:
                maps[f"{name}_error"] = chain.risk_map(*points, "zero_one")
    maps |= _cross_validation(chain, grid)
    if route.basis is None:
        del maps["gcv_error"], maps["freedom_error"]
    else:
        maps["bound"] = route.basis.errors(grid.alphas, grid.lams, grid.steps)
    choosing = maps["gcv" if val is None else "val_loss"]
    best = _lowest(choosing, grid)
    curves = [
        _curves(chain, grid, val, judge) for judge in ([None] if val is None else [val]) + ([test] if test else [])
    ]
    chains = _named_chains(chain, val, best.lam, alphas, schedule)
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
        GCV if val is None else VALIDATION,
        maps,
        best,
        [Row(name, cell, _measure(route, val, test, cell)) for name, cell in cells.items()],
        curves,
        chains,
        np.array([losses for losses, _ in tables]),
        np.array([accuracies for _, accuracies in tables]) if problem.classes and (test or val) else None,
        TEST if test else VALIDATION if val else GCV,
    )


def _measure(route: Route, val: Judge | None, test: Judge | None, cell: Cell) -> dict[str, float]:
    """What is known about a cell, by the heading in the summary."""
    values = {}
    for name, judge in (("held out", val), ("test", test)):
        if judge is not None:
            losses, accuracies = _chain(route.chain, judge, cell.lam, cell.alpha, [cell.step])
            values[name] = float(losses[0])
            if not math.isnan(accuracies[0]):
                values[f"accuracy, {name}"] = float(accuracies[0])
    values["GCV"] = float(_chain(route.chain, None, cell.lam, cell.alpha, [cell.step])[0][0])
    if route.basis is not None:
        values["error bound"] = route.basis.errors([cell.alpha], [cell.lam], [cell.step]).item()
    return values


def _judge(route: Route, part: Part | None) -> Judge | None:
    return None if part is None else Judge(route.rows(part.X), part.y)


def _lowest(risks: FloatArray, grid: Grid, steps: int | None = None) -> Cell:
    """The cell of least risk among the first ``steps`` steps, of equal ones that of the least step."""
    by_step = np.moveaxis(risks, 2, 0)[:steps]
    s, i, j = np.unravel_index(int(by_step.argmin()), by_step.shape)
    return Cell(float(grid.alphas[i]), float(grid.lams[j]), grid.steps[s])


def _cross_validation(chain: EigenChain, grid: Grid) -> dict[str, FloatArray]:
    """Maps of GCV and of degrees of freedom, and of their standard errors."""
    maps = {field.name: np.full(grid.shape, np.inf) for field in fields(Estimates)}
    for i, j, s in np.ndindex(grid.shape):
        try:
            estimates = chain.estimates(float(grid.lams[j]), grid.alphas[i], grid.steps[s])
        except DivergentChainError:
            continue
        for name, values in maps.items():
            values[i, j, s] = getattr(estimates, name)[0]
    return maps


def _residuals(chain: EigenChain, judge: Judge | None, lam: float, k: int) -> FloatArray:
    """target - the prediction of A^j y, j = 1..k, at held-out points, or their estimate by GCV."""
    if judge is None:
        return chain.gcv_residuals(lam, k)
    return judge.target - chain.predict(judge.rows, lam, 0.0, range(1, k + 1))


def _curves(chain: EigenChain, grid: Grid, val: Judge | None, judge: Judge | None) -> LambdaCurves:
    """The curves with alpha chosen by ``val`` and risks at the points of ``judge``; by GCV in the place of None."""
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


def _named_chains(
    chain: EigenChain, val: Judge | None, lam: float, alphas: list[float | str], schedule: list[float]
) -> list[NamedChain]:
    chains = []
    for alpha in dict.fromkeys(alphas):
        if isinstance(alpha, str):
            best = tuple(auto_schedule(_residuals(chain, val, lam, AUTO_FITS)))
            chains.append(NamedChain(alpha, alpha, alpha, best))
        else:
            chains.append(NamedChain(f"alpha = {alpha:g}", f"{alpha!r}", f"{alpha!r}", alpha))
    if schedule:
        chains.append(NamedChain("schedule", "schedule", "schedule", tuple(schedule)))
    return chains


def _chain(
    chain: EigenChain, judge: Judge | None, lam: float, alpha: ArrayLike, steps: list[float]
) -> tuple[FloatArray, FloatArray]:
    """Losses and accuracies (steps,) of a chain; inf and NaN at steps where it diverges."""
    losses = np.full(len(steps), np.inf)
    accuracies = np.full(len(steps), np.nan)
    for s, step in enumerate(steps):
        try:
            if judge is None:
                losses[s] = chain.estimates(lam, alpha, [step]).gcv[0]
                continue
            predictions = chain.predict(judge.rows, lam, alpha, [step])
        except DivergentChainError:
            continue
        losses[s] = judge.losses(predictions)[0]
        if predictions.ndim == 3:
            accuracies[s] = judge.accuracies(predictions)[0]
    return losses, accuracies
