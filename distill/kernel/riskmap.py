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

from distill.kernel.arguments import as_new_kernel, as_ridges, as_schedule, as_steps, as_targets
from distill.kernel.arrays import LARGEST_ENTRY, FloatArray, check_overflow
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
from distill.kernel.risks import Risk, make_risk
from distill.kernel.solvers import check_solver, choose_map_solver, fitted_values, limit_by_solving, limit_is_certain
from distill.kernel.spectral import (
    DivergentChainError,
    always_converges,
    blend_filters,
    components,
    filtered,
    map_columns,
    predict,
    shrinkage,
)


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
    grid = Grid(as_schedule(alphas), np.atleast_1d(as_ridges("lams", lams, 0, 1)), as_steps(steps))
    kernel = K if isinstance(K, Spectrum) else check_kernel(K)
    n = len(kernel.V if isinstance(kernel, Spectrum) else kernel.K)
    y = as_targets(y, n)
    K_new = as_new_kernel(K_new, n, LARGEST_ENTRY)
    target = as_targets(target, len(K_new), "target")
    if target.shape[1:] != y.shape[1:]:
        raise ValueError(f"target {target.shape} does not match y {y.shape}")
    risk = make_risk(loss, target, offset)
    if isinstance(kernel, Spectrum):
        return _risks(_spectral_predictions(kernel, y, K_new, grid.columns), grid, risk)
    if solver not in ("auto", "eigh") and not grid.solvable:
        raise ValueError(f"solver={solver!r} needs lam > 0, no late finite step, and 0 <= alpha <= 1 for a limit")
    chosen = grid.cheapest_solver(n) if solver == "auto" else solver
    try:
        return _risks(_predictions_by(chosen, kernel, y, K_new, grid, overwrite), grid, risk)
    except SingularKernelError:
        if solver != "auto" or chosen == "eigh":
            raise
        # lam is below K's rounding errors; the spectrum, whose eigenvalues are at least 0, still works
        return _risks(_predictions_by("eigh", kernel, y, K_new, grid, overwrite), grid, risk)


def rotated_risk_map(
    d: FloatArray,
    z: FloatArray,
    rows: FloatArray,
    target: ArrayLike,
    alphas: ArrayLike,
    lams: ArrayLike,
    steps: ArrayLike,
    *,
    loss: str = "squared",
    offset: ArrayLike = 0.0,
) -> FloatArray:
    """``risk_map`` in an eigenbasis, of all n vectors or fewer: d (k,) eigenvalues and z (k,) or (k, m) = V^T y.

    ``rows`` (q, k) is K_new V, so that predictions are rows (D + lam)^-1 w(D) z.
    """
    grid = Grid(as_schedule(alphas), np.atleast_1d(as_ridges("lams", lams, 0, 1)), as_steps(steps))
    rows = as_new_kernel(rows, len(d))
    risk = make_risk(loss, as_targets(target, len(rows), "target"), offset)
    return _risks(SpectralPredictions(d, z, partial(map_columns, partial(product, rows))), grid, risk)


def _risks(predictions: "Predictions", grid: "Grid", risk: Risk) -> FloatArray:
    """The map from predictions at the new points.

    Raises NotFiniteError if the risk of a chain that has a limit exceeds float64's range.
    """
    early = [j for j, step in enumerate(grid.steps) if step <= grid.depth]
    early_steps = [int(grid.steps[j]) for j in early]
    combinations = _combinations(grid.alphas, early_steps, grid.depth)
    # At lam = 0 every fit is the first, whatever alpha, but large weights would lose its digits.
    interpolations = _combinations(np.clip(grid.alphas, 0, 1), early_steps, grid.depth)
    out = np.full((len(grid.alphas), len(grid.lams), len(grid.steps)), np.inf)
    for i, lam in enumerate(grid.lams):
        powers, single = predictions.columns(lam, grid.depth, [(grid.alphas[a], grid.steps[j]) for a, j in grid.single])
        if grid.depth:
            check_overflow("the predictions", powers)
            out[:, i, early] = risk.in_span(powers, combinations if lam else interpolations)
        for (a, j), prediction in zip(grid.single, single, strict=True):
            if prediction is not None:
                out[a, i, j] = risk(prediction)
    check_overflow("the risks", out[always_converges(grid.alphas)])
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
    left = np.repeat(1 - alphas[:, None], depth, axis=1)
    left[:, :1] = 1
    with np.errstate(over="ignore", invalid="ignore"):
        sticks = np.cumprod(left, axis=1)
        weights = sticks * alphas[:, None]
    for j, step in enumerate(steps):
        combinations[:, j, : step - 1] = weights[:, : step - 1]
        combinations[:, j, step - 1] = sticks[:, step - 1]
    return combinations


class Predictions(Protocol):
    """Predictions at the new points."""

    def columns(
        self, lam: float, depth: int, single: list[tuple[float, float]]
    ) -> tuple[FloatArray, list[FloatArray | None]]:
        """Predictions of A y, ..., A^depth y, (depth, q[, m]), and for each (alpha, step) of ``single`` (q[, m]).

        None for a chain that diverges.
        """


@dataclass(frozen=True)
class SpectralPredictions:
    """Predictions in the eigenbasis: of fits with eigenvalues d (k,), for targets with components z (k[, m]).

    ``predict`` maps coefficients in that basis (steps, k[, m]) to predictions (steps, q[, m]).
    """

    d: FloatArray
    z: FloatArray
    predict: Callable[[FloatArray], FloatArray]

    def columns(
        self, lam: float, depth: int, single: list[tuple[float, float]]
    ) -> tuple[FloatArray, list[FloatArray | None]]:
        d = self.d
        filters = list(np.vander(shrinkage(d, lam), depth, increasing=True).T)  # 1, A, A², ...
        exists = []
        for alpha, step in single:
            try:
                filters.append(blend_filters(d, lam, alpha, step)[0])
                exists.append(True)
            except DivergentChainError:
                exists.append(False)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # ``_risks`` finds an overflow
            scaled = np.array(filters).reshape(-1, len(d)) / (d + lam)
        predictions = iter(self.predict(filtered(scaled, self.z)))
        powers = np.array([next(predictions) for _ in range(depth)])
        return powers, [next(predictions) if it_exists else None for it_exists in exists]


def _spectral_predictions(spectrum: Spectrum, y: FloatArray, K_new: FloatArray, total: int) -> SpectralPredictions:
    """Predictions from the eigendecomposition of K, for a map that takes ``total`` of them."""
    times_V = partial(map_columns, partial(product, spectrum.V))
    times_K = partial(map_columns, partial(product, K_new))
    # K_new V costs as much as n predictions, so it is computed only for many of them.
    if total >= len(K_new):
        times_rotated = partial(map_columns, partial(product, product(K_new, spectrum.V)))
        return SpectralPredictions(spectrum.d, components(spectrum, y), times_rotated)
    return SpectralPredictions(spectrum.d, components(spectrum, y), lambda c: times_K(times_V(c)))


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


def _predictions_by(
    solver: str, kernel: Dense, y: FloatArray, K_new: FloatArray, grid: Grid, overwrite: bool
) -> Predictions:
    if solver == "eigh":
        return _spectral_predictions(decompose(kernel, overwrite=overwrite), y, K_new, grid.columns)
    if solver == "cholesky":
        check_positive_semidefinite(kernel)
        return SolvedPredictions(kernel, y, partial(predict, K_new))
    if len(y) == 1:
        raise ValueError("solver='tridiagonal' needs at least two points")
    T = tridiagonalise(kernel)
    if grid.columns >= len(K_new):  # rotate the new points or the coefficients, whichever are fewer
        return SolvedPredictions(T, T.rotate(y), partial(predict, T.rotate(K_new.T).T))
    return SolvedPredictions(T, T.rotate(y), lambda c: predict(K_new, map_columns(T.rotate_back, c)))
