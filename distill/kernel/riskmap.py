"""Risk maps: the mean squared error of every chain of a grid of alphas, ridges and steps.

For one ridge the fits of all alphas are combinations of the predictions P_j of A y, A² y, ... (``Grid.depth`` of them),
so that these are predicted once, and the squared error of an alpha costs nothing that grows with n
(``risks.Risk.in_span``). Limits, and steps too late for powers, are predicted one by one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel.arguments import as_schedule, as_steps, as_targets
from distill.kernel.arrays import FloatArray
from distill.kernel.linalg import (
    Dense,
    ShiftedSystem,
    SingularKernelError,
    Spectrum,
    check_kernel,
    check_positive_semidefinite,
    decompose,
    product,
    tridiagonalise,
)
from distill.kernel.mixing import alphas_to_weights
from distill.kernel.risks import make_risk
from distill.kernel.solvers import check_solver, choose_map_solver, fitted_values, limit_by_solving, limit_is_certain
from distill.kernel.spectral import DivergentChainError, apply_filters, blend_filters, map_columns, predict, shrinkage


def risk_map(
    K: ArrayLike | Spectrum,
    y: ArrayLike,
    K_new: ArrayLike,
    target: ArrayLike,
    alphas: ArrayLike,
    lams: ArrayLike,
    steps: ArrayLike,
    *,
    solver: str = "auto",
    overwrite: bool = False,
    loss: str = "squared",
    offset: ArrayLike = 0.0,
) -> FloatArray:
    """The risk of every chain at every step: (len(alphas), len(lams), len(steps)) float64.

    K (n, n) kernel matrix, or its ``Spectrum``; y (n,) or (n, m); K_new (q, n) holds k(x, X) at the q points
    where ``target`` (q,) or (q, m) is known; alphas any numbers, lams >= 0, steps >= 1, ``math.inf`` for the
    limit. ``loss`` "squared" is the mean squared error; "zero_one" the share of points whose largest output of m >= 2
    is not that of the target. ``offset``, a number or (m,), is added to all predictions. The risk is inf for a chain
    without a limit, and for one that exceeds float64's range. ``solver``, ``overwrite`` and exceptions as in
    ``chain``; there is also "tridiagonal", which reduces K to tridiagonal form once and needs no eigenvectors. With it
    and "cholesky" the lams must be > 0, the finite steps few, and limits need alpha in [0, 1].
    """
    check_solver(solver, "tridiagonal")
    grid = Grid(as_schedule(alphas), np.atleast_1d(np.asarray(lams, dtype=np.float64)), as_steps(steps))
    K_new = np.asarray(K_new, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    y = as_targets(y, K_new.shape[1])
    if len(target) != len(K_new) or target.shape[1:] != y.shape[1:]:
        raise ValueError(f"target {target.shape} does not match y {y.shape} and K_new {K_new.shape}")
    risk = make_risk(loss, target, offset)
    predictions: Predictions
    if isinstance(K, Spectrum):
        predictions = SpectralPredictions(K, y, K_new, grid.columns)
    else:
        predictions = _choose_predictions(check_kernel(K), y, K_new, grid, solver, overwrite)

    early = [j for j, step in enumerate(grid.steps) if step <= grid.depth]
    combinations = _combinations(grid.alphas, [int(grid.steps[j]) for j in early], grid.depth)
    out = np.full((len(grid.alphas), len(grid.lams), len(grid.steps)), np.inf)
    for i, lam in enumerate(grid.lams):
        powers, single = predictions.columns(lam, grid.depth, [(grid.alphas[a], grid.steps[j]) for a, j in grid.single])
        if grid.depth:
            out[:, i, early] = risk.in_span(powers, combinations)
        for (a, j), prediction in zip(grid.single, single, strict=True):
            if prediction is not None:
                out[a, i, j] = risk(prediction)
    return np.where(np.isnan(out), np.inf, out)


class Grid:
    """The alphas, ridges and steps of a map, and how the map is computed.

    ``depth``: the number of powers A y, ..., A^depth y that are predicted for each ridge; steps up to it are
    combinations of these. ``single``: the indices (alpha, step) of the cells that are predicted separately, for each
    ridge.
    """

    def __init__(self, alphas: FloatArray, lams: FloatArray, steps: list[float]):
        self.alphas = alphas
        self.lams = lams
        self.steps = steps
        finite = [step for step in steps if step < math.inf]
        last = int(max(finite, default=0))
        self.depth = last if last <= max(len(alphas) * len(finite), 32) else 0
        self.single = [(i, j) for i in range(len(alphas)) for j, step in enumerate(steps) if step > self.depth]

    @property
    def columns(self) -> int:
        """The number of predictions, of vectors (n[, m]), that the map takes."""
        return len(self.lams) * (self.depth + len(self.single))

    @property
    def solvable(self) -> bool:
        """Whether the map can be computed by solves: then each single prediction must be a limit that exists."""
        finite_steps = any(step < math.inf for step in self.steps)
        limits_only = self.depth > 0 or not finite_steps
        return bool((self.lams > 0).all()) and limit_is_certain(self.steps, self.alphas) and limits_only

    def cheapest_solver(self, n: int) -> str:
        """The cheapest solver for n points."""
        if not self.solvable:
            return "eigh"
        factorisations = len(self.single)  # for each ridge one for each limit ...
        if self.depth:
            factorisations += 1  # ... and one for all powers
        return choose_map_solver(n, len(self.lams) * factorisations, len(self.lams) * self.depth, self.columns)


def _combinations(alphas: FloatArray, steps: list[int], depth: int) -> FloatArray:
    """The coefficients (alphas, steps, depth) of f^(step) in P_1, ..., P_depth.

    They are alpha, alpha (1 - alpha), ..., (1 - alpha)^(k-1): stick breaking with one alpha.
    """
    combinations = np.zeros((len(alphas), len(steps), depth))
    for i, alpha in enumerate(alphas):
        for row, step in zip(combinations[i], steps, strict=True):
            row[:step] = alphas_to_weights(np.full(step - 1, alpha))
    return combinations


class Predictions(Protocol):
    """Predictions at the new points."""

    def columns(
        self, lam: float, depth: int, single: list[tuple[float, float]]
    ) -> tuple[FloatArray, list[FloatArray | None]]:
        """Predictions of A y, ..., A^depth y, (depth, q[, m]), and for each (alpha, step) of ``single`` (q[, m]).

        None for a chain that diverges.
        """


class SpectralPredictions:
    """Predictions from the eigendecomposition of K, for a map that takes ``total`` of them."""

    def __init__(self, spectrum: Spectrum, y: FloatArray, K_new: FloatArray, total: int):
        self.spectrum = spectrum
        self.z = product(spectrum.V.T, y)
        self.K_new = K_new
        # K_new V costs as much as n predictions, so that it pays for many of them.
        self.rotated = product(K_new, spectrum.V) if total >= len(K_new) else None

    def columns(
        self, lam: float, depth: int, single: list[tuple[float, float]]
    ) -> tuple[FloatArray, list[FloatArray | None]]:
        d = self.spectrum.d
        filters = list(np.vander(shrinkage(d, lam), depth, increasing=True).T)  # 1, A, A², ...
        exists = []
        for alpha, step in single:
            try:
                filters.append(blend_filters(d, lam, alpha, step)[0])
                exists.append(True)
            except DivergentChainError:
                exists.append(False)
        scaled = np.array(filters).reshape(-1, len(d)) / (d + lam)
        if self.rotated is None:
            predictions = iter(predict(self.K_new, apply_filters(self.spectrum.V, scaled, self.z)))
        else:
            predictions = iter(apply_filters(self.rotated, scaled, self.z))
        powers = np.array([next(predictions) for _ in range(depth)])
        return powers, [next(predictions) if it_exists else None for it_exists in exists]


@dataclass(frozen=True)
class SolvedPredictions:
    """Predictions by solves with ``system`` for each ridge and each limit; ``single`` may hold nothing but limits.

    ``y`` and the coefficients that ``predict`` takes, (k, n[, m]), are in the system's basis.
    """

    system: ShiftedSystem
    y: FloatArray
    predict: Callable[[FloatArray], FloatArray]

    def columns(
        self, lam: float, depth: int, single: list[tuple[float, float]]
    ) -> tuple[FloatArray, list[FloatArray | None]]:
        coefficients = []
        if depth:
            solve = self.system.solver(lam)
            target = self.y
            for _ in range(depth):
                c = solve(target)
                coefficients.append(c)
                target = fitted_values(self.system, lam, target, c)  # A^j y
        coefficients += [limit_by_solving(self.system, self.y, lam, alpha) for alpha, _ in single]
        predictions = self.predict(np.array(coefficients))
        return predictions[:depth], list(predictions[depth:])


def _choose_predictions(
    K: FloatArray, y: FloatArray, K_new: FloatArray, grid: Grid, solver: str, overwrite: bool
) -> Predictions:
    """Predictions from K by ``solver``, or by the cheapest solver if that is "auto"."""
    if solver not in ("auto", "eigh") and not grid.solvable:
        raise ValueError(f"solver={solver!r} needs lam > 0, no late finite step, and 0 <= alpha <= 1 for a limit")
    if solver != "auto":
        return _predictions_by(solver, K, y, K_new, grid, overwrite)
    try:
        return _predictions_by(grid.cheapest_solver(len(K)), K, y, K_new, grid, overwrite)
    except SingularKernelError:  # lam is below K's rounding; the spectrum, cut off at 0, still serves
        return _predictions_by("eigh", K, y, K_new, grid, overwrite)


def _predictions_by(
    solver: str, K: FloatArray, y: FloatArray, K_new: FloatArray, grid: Grid, overwrite: bool
) -> Predictions:
    if solver == "eigh":
        return SpectralPredictions(decompose(K, overwrite=overwrite), y, K_new, grid.columns)
    if solver == "cholesky":
        check_positive_semidefinite(K)
        return SolvedPredictions(Dense(K), y, partial(predict, K_new))
    if len(K) == 1:
        raise ValueError("solver='tridiagonal' needs at least two points")
    T = tridiagonalise(K)
    T.solver(grid.lams.min())  # raises SingularKernelError now, where another solver can still be used
    if grid.columns >= len(K_new):  # rotate whichever is fewer, the new points or the coefficients
        return SolvedPredictions(T, T.rotate(y), partial(predict, T.rotate(K_new.T).T))
    return SolvedPredictions(T, T.rotate(y), lambda c: predict(K_new, map_columns(T.rotate_back, c)))
