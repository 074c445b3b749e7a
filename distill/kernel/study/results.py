"""The results of a study: risk maps, what is chosen without the test points, and the curves over lambda."""

import math
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel.arrays import FloatArray
from distill.kernel.mixing import AUTO_FITS, auto_schedule, best_alpha
from distill.kernel.riskmap import Estimates
from distill.kernel.spectral import DivergentChainError
from distill.kernel.study.data import Problem
from distill.kernel.study.routes import Route
from distill.kernel.toy.program import named_chains

VALIDATION = "held-out points"
GCV = "generalised cross-validation"
TEST = "test points"


class Judge(NamedTuple):
    """Points with known targets, in the eigenbasis. A judge that is None stands for generalised cross-validation."""

    rows: FloatArray  # (q, k)
    target: FloatArray  # (q[, m])


class Cell(NamedTuple):
    """A chain and a step of it."""

    alpha: float
    lam: float
    step: float


@dataclass(frozen=True)
class LambdaCurves:
    """Against lambda: risks of the teacher and two students, and the best student's alpha. (lams,) each."""

    judged_by: str
    teacher: FloatArray
    pure: FloatArray  # the student that sees the teacher's outputs alone
    mixed: FloatArray  # the student with the best alpha
    alpha: FloatArray  # the best alpha, chosen by ``Study.chosen_by``; any number


class Study:
    """All results of a problem. ``alphas`` and ``schedule`` are the columns of the table.

    ``maps`` (alphas, lams, steps) are named by their columns in map.csv, inf if the chain diverges or, by lanczos, is
    not reached. ``best`` is the least cell of the map by which ``chosen_by`` chooses. ``summary`` names cells by how
    they were chosen, with their losses, GCV and accuracies by heading. ``curves`` has an entry for each judge,
    ``chains`` one for each column of the table, with ``losses`` and ``accuracies`` (chains, steps) at the best lambda
    by ``judged_by``.
    """

    def __init__(self, problem: Problem, route: Route, alphas: list[float | str], schedule: list[float]):
        self.problem = problem
        self.route = route
        self.grid = grid = route.grid
        parts = {"val": problem.val, "test": problem.test}
        judges = {name: Judge(route.rows(part.X), part.y) for name, part in parts.items() if part is not None}
        self.val = val = judges.get("val")
        self.test = test = judges.get("test")
        self.maps: dict[str, FloatArray] = {}
        for name, judge in judges.items():
            self.maps[f"{name}_loss"] = route.chain.risk_map(*judge, grid.alphas, grid.lams, grid.steps, "squared")
            if problem.classes:
                self.maps[f"{name}_error"] = route.chain.risk_map(
                    *judge, grid.alphas, grid.lams, grid.steps, "zero_one"
                )
        self._cross_validate()
        self.chosen_by = VALIDATION if val else GCV
        choosing = self.maps["val_loss" if val else "gcv"]
        self.best = self._lowest(choosing)
        self.curves = [self._curves(judge) for judge in [val, *([test] if test else [])]]
        i = int(self.curves[0].mixed.argmin())
        cells = {
            "chosen": self.best,
            "teacher": self._lowest(choosing, steps=1),
            "first student": Cell(float(self.curves[0].alpha[i]), float(grid.lams[i]), 2),
        }
        if test is not None:
            cells["oracle"] = self._lowest(self.maps["test_loss"])
        self.summary = {name: (cell, self._measure(cell)) for name, cell in cells.items()}
        lam = self.best.lam
        self.chains = named_chains(alphas, schedule, lambda: auto_schedule(self._residuals(val, lam, AUTO_FITS)))
        self.judged_by = TEST if test else self.chosen_by
        tables = np.array([self._chain(test or val, lam, named.alpha, grid.steps) for named in self.chains])
        self.losses = tables[:, 0]
        self.accuracies = tables[:, 1] if problem.classes and judges else None

    @property
    def shown(self) -> FloatArray:
        """The map that the figures show: at test points, or else that which chooses."""
        return next(self.maps[name] for name in ("test_loss", "val_loss", "gcv") if name in self.maps)

    def _cross_validate(self) -> None:
        """Make the maps of GCV, of degrees of freedom and, by lanczos, of standard errors and error bounds."""
        grid = self.grid
        exact = self.route.basis is None
        names = [f.name for f in fields(Estimates) if not (exact and f.name.endswith("error"))]
        self.maps |= {name: np.full(grid.shape, np.inf) for name in names}
        for i, j, s in np.ndindex(grid.shape):
            with suppress(DivergentChainError):
                estimates = self.route.chain.estimates(float(grid.lams[j]), grid.alphas[i], grid.steps[s])
                for name in names:
                    self.maps[name][i, j, s] = getattr(estimates, name)[0]
        if self.route.basis is not None:
            self.maps["bound"] = self.route.basis.errors(grid.alphas, grid.lams, grid.steps)

    def _lowest(self, risks: FloatArray, steps: int | None = None) -> Cell:
        """The cell of least risk among the first ``steps`` steps, of equal ones that of the least step."""
        by_step = np.moveaxis(risks, 2, 0)[:steps]
        s, i, j = np.unravel_index(int(by_step.argmin()), by_step.shape)
        return Cell(float(self.grid.alphas[i]), float(self.grid.lams[j]), self.grid.steps[s])

    def _measure(self, cell: Cell) -> dict[str, float]:
        """What is known about a cell, by the heading in the summary."""
        values = {}
        for name, judge in (("held out", self.val), ("test", self.test), ("GCV", None)):
            if judge is None and name != "GCV":
                continue
            losses, accuracies = self._chain(judge, cell.lam, cell.alpha, [cell.step])
            values[name] = float(losses[0])
            if not math.isnan(accuracies[0]):
                values[f"accuracy, {name}"] = float(accuracies[0])
        if self.route.basis is not None:
            values["error bound"] = self.route.basis.errors([cell.alpha], [cell.lam], [cell.step]).item()
        return values

    def _residuals(self, judge: Judge | None, lam: float, k: int) -> FloatArray:
        """target - the prediction of A^j y, j = 1..k, at held-out points, or their estimate by GCV."""
        if judge is None:
            return self.route.chain.gcv_residuals(lam, k)
        return judge.target - self.route.chain.predict(judge.rows, lam, 0.0, range(1, k + 1))

    def _curves(self, judge: Judge | None) -> LambdaCurves:
        """The curves with alpha chosen by held-out points or GCV, and risks at the points of ``judge``."""
        chain = self.route.chain
        rows = []
        for lam in self.grid.lams:
            first, second = self._residuals(self.val, lam, 2)
            alpha = best_alpha(-first, -second, np.zeros_like(first))
            alpha = 1.0 if math.isnan(alpha) else alpha
            if judge is not self.val:
                first, second = self._residuals(judge, lam, 2)
            scale = first.size if judge is not None else chain.n * chain.components[0].size
            mixed = alpha * first + (1 - alpha) * second
            rows.append([*((residual**2).sum() / scale for residual in (first, second, mixed)), alpha])
        name = GCV if judge is None else VALIDATION if judge is self.val else TEST
        return LambdaCurves(name, *np.array(rows).T)

    def _chain(self, judge: Judge | None, lam: float, alpha: ArrayLike, steps: list[float]) -> FloatArray:
        """Losses and accuracies (2, steps) of a chain.

        Losses are inf where it diverges; accuracies are NaN there, for targets (q,) and by cross-validation.
        """
        chain = self.route.chain
        out = np.tile([[np.inf], [np.nan]], len(steps))
        for s, step in enumerate(steps):
            with suppress(DivergentChainError), np.errstate(over="ignore"):
                if judge is None:
                    out[0, s] = chain.estimates(lam, alpha, step).gcv[0]
                    continue
                prediction = chain.predict(judge.rows, lam, alpha, step)[0]
                out[0, s] = ((prediction - judge.target) ** 2).mean()
                if prediction.ndim == 2:
                    out[1, s] = (prediction.argmax(axis=1) == judge.target.argmax(axis=1)).mean()
        return out
