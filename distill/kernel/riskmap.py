"""Risks of chains in an eigenbasis, whichever way it was computed, and maps of risks over alphas, ridges and steps.

For one ridge the fits of all alphas are combinations of the predictions P_j of A y, A² y, ... (``Grid.depth`` of them),
so that these are predicted once, and the squared error of an alpha costs nothing that grows with n
(``SquaredError.in_span``). Limits, and steps too late for powers, are predicted one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel import spectral
from distill.kernel.arguments import as_new_kernel, as_ridges, as_schedule, as_steps, as_targets
from distill.kernel.arrays import EPS, FloatArray, check_overflow
from distill.kernel.linalg import Spectrum
from distill.kernel.mixing import AUTO_FITS, LIMIT_ALPHAS, auto_schedule


class SquaredError:
    """The mean squared error against ``target`` (q[, m])."""

    def __init__(self, target: FloatArray):
        self.target = target

    def __call__(self, prediction: FloatArray) -> float:
        """The risk of one ``prediction`` (q[, m])."""
        with np.errstate(over="ignore"):
            return float(np.mean((prediction - self.target) ** 2))

    def in_span(self, powers: FloatArray, combinations: FloatArray) -> FloatArray:
        """The risks (alphas, steps) of ``combinations`` (alphas, steps, k) of ``powers`` (k, q[, m]).

        A triangle T with ‖t - sum_j c_j P_j‖ = ‖T (1, -c)‖ replaces target and predictions: k² operations a
        combination, whatever q is.
        """
        differences = np.concatenate([np.ones((*combinations.shape[:-1], 1)), -combinations], axis=-1)
        with np.errstate(over="ignore", invalid="ignore"):
            T = _triangle(np.stack([self.target.ravel(), *powers.reshape(len(powers), -1)]))
            return ((differences @ T.T) ** 2).sum(axis=-1) / self.target.size


class ZeroOne:
    """The share of points whose largest output, the first of several equal ones, is not that of ``target`` (q, m)."""

    def __init__(self, target: FloatArray, offset: FloatArray | float):
        self.label = target.argmax(axis=1)
        self.offset = offset

    def __call__(self, prediction: FloatArray) -> float:
        return float(self.in_span(prediction[None], np.ones((1, 1, 1)))[0, 0])

    def in_span(self, powers: FloatArray, combinations: FloatArray) -> FloatArray:
        """The risks (alphas, steps) of combinations, as ``SquaredError.in_span``."""
        largest = np.abs(powers).reshape(len(powers), -1).max(axis=1)
        by_class = np.ascontiguousarray(np.moveaxis(powers, 2, 0))  # (m, k, q)
        offsets = np.broadcast_to(self.offset, len(by_class))
        risks = np.empty(combinations.shape[:-1])
        for row, weights in zip(risks, combinations, strict=True):
            best = np.full((len(weights), powers.shape[1]), -np.inf)
            label = np.zeros(best.shape, dtype=np.int64)
            with np.errstate(over="ignore", invalid="ignore"):
                for c, (of_class, offset) in enumerate(zip(by_class, offsets, strict=True)):
                    outputs = weights @ of_class + offset  # (steps, q)
                    label[outputs > best] = c
                    np.maximum(best, outputs, out=best)
                in_range = np.isfinite(np.abs(weights) @ largest)
            row[:] = np.where(in_range, (label != self.label).mean(axis=1), np.inf)
        return risks


def _triangle(rows: FloatArray) -> FloatArray:
    """The upper triangle T (k, k) with ‖sum_j a_j rows_j‖ = ‖T a‖ for every a (k,), for ``rows`` (k, q).

    Modified Gram-Schmidt, whose T is as accurate as Householder's. Not by LAPACK, because waking its threads
    for a matrix this small takes ten times as long as the arithmetic.
    """
    rows = rows.copy()
    T = np.zeros((len(rows), len(rows)))
    for j, row in enumerate(rows):
        T[j, j] = np.sqrt(np.einsum("q,q", row, row))
        if T[j, j] > 0:
            row /= T[j, j]
            T[j, j + 1 :] = np.einsum("q,kq->k", row, rows[j + 1 :])
            rows[j + 1 :] -= T[j, j + 1 :, None] * row
    return T


Risk: TypeAlias = SquaredError | ZeroOne


def make_risk(loss: str, target: FloatArray, offset: FloatArray | float = 0.0) -> Risk:
    """The risk for ``loss`` "squared" or "zero_one", of predictions to which ``offset``, () or (m,), is added.

    ``target`` is (q,) or (q, m). Raises ValueError.
    """
    if not isinstance(loss, str) or loss not in ("squared", "zero_one"):
        raise ValueError("loss must be 'squared' or 'zero_one'")
    if loss == "squared":
        return SquaredError(target - offset)
    if target.ndim != 2 or target.shape[1] < 2:
        raise ValueError(f"loss='zero_one' needs targets (q, m) with m >= 2 classes, not {target.shape}")
    return ZeroOne(target, offset)


class Grid:
    """The alphas, ridges and steps of a map, and how the map is computed. Raises ValueError.

    ``depth``: the number of powers A y, ..., A^depth y that are predicted for each ridge; steps up to it are
    combinations of these. ``single``: the indices (alpha, step) of the cells that are predicted separately, for each
    ridge.
    """

    def __init__(self, alphas: ArrayLike, lams: ArrayLike, steps: ArrayLike):
        self.alphas = as_schedule(alphas)
        self.lams = np.atleast_1d(as_ridges("lams", lams, 0, 1))
        self.steps = as_steps(steps)
        finite = [step for step in self.steps if step < math.inf]
        last = int(max(finite, default=0))
        self.depth = last if last <= max(len(self.alphas) * len(finite), 32) else 0
        late = [j for j, step in enumerate(self.steps) if step > self.depth]
        self.single = [(i, j) for i in range(len(self.alphas)) for j in late]
        # The number of predictions, of vectors (n[, m]), that the map takes.
        self.columns = len(self.lams) * (self.depth + len(self.single))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the map: (alphas, lams, steps)."""
        return len(self.alphas), len(self.lams), len(self.steps)


# From a ridge and the grid to predictions (columns, q[, m]) of A y, ..., A^depth y and of the single cells that have a
# chain, and a flag for each single cell: whether it has one.
Predictions = Callable[[float, Grid], tuple[FloatArray, list[bool]]]


def map_risks(at_ridge: Predictions, grid: Grid, risk: Risk) -> FloatArray:
    """The map from predictions at the new points.

    Raises NotFiniteError if the risk of a chain that has a limit exceeds float64's range.
    """
    early = [j for j, step in enumerate(grid.steps) if step <= grid.depth]
    early_steps = [int(grid.steps[j]) for j in early]
    combinations = _combinations(grid.alphas, early_steps, grid.depth)
    # At lam = 0 every fit is the first, whatever alpha, but large weights would lose its digits.
    interpolations = _combinations(np.clip(grid.alphas, 0, 1), early_steps, grid.depth)
    out = np.full(grid.shape, np.inf)
    for i, lam in enumerate(grid.lams):
        predictions, exists = at_ridge(lam, grid)
        if grid.depth:
            powers = check_overflow("the predictions", predictions[: grid.depth])
            out[:, i, early] = risk.in_span(powers, combinations if lam else interpolations)
        for (a, j), prediction in zip(compress(grid.single, exists), predictions[grid.depth :], strict=True):
            out[a, i, j] = risk(prediction)
    check_overflow("the risks", out[spectral.always_converges(grid.alphas)])
    return np.where(np.isnan(out), np.inf, out)


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


def spectral_predictions(d: FloatArray, z: FloatArray, predict: Callable[[FloatArray], FloatArray]) -> Predictions:
    """Of fits with eigenvalues d (k,), for targets with components z (k[, m]).

    ``predict`` maps coefficients in the eigenbasis (columns, k[, m]) to predictions.
    """

    def at_ridge(lam: float, grid: Grid) -> tuple[FloatArray, list[bool]]:
        filters = list(np.vander(spectral.shrinkage(d, lam), grid.depth, increasing=True).T)  # 1, A, A², ...
        exists = []
        for i, j in grid.single:
            try:
                filters.append(spectral.blend_filters(d, lam, grid.alphas[i], grid.steps[j])[0])
                exists.append(True)
            except spectral.DivergentChainError:
                exists.append(False)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # ``map_risks`` finds an overflow
            coefficients = spectral.filtered(np.array(filters).reshape(-1, len(d)) / (d + lam), z)
        return predict(coefficients), exists

    return at_ridge


# Of filters (f, k): the traces (f,) of the matrices with these eigenvalues, and their standard errors (f,).
Traces = Callable[[FloatArray], tuple[FloatArray, FloatArray]]


def exact_traces(filters: FloatArray, unpenalised: int = 0) -> tuple[FloatArray, FloatArray]:
    """Traces of filters of all eigenvalues, and of ``unpenalised`` dimensions besides; their standard errors are 0."""
    return filters.sum(axis=1) + unpenalised, np.zeros(len(filters))


@dataclass(frozen=True)
class Estimates:
    """GCV and degrees of freedom with their standard errors, (steps,) each."""

    gcv: FloatArray
    gcv_error: FloatArray
    freedom: FloatArray
    freedom_error: FloatArray


@dataclass(frozen=True)
class EigenChain:
    """A problem of n points with targets (n,) or (n, m), in a basis of k eigenvectors.

    ``lam``, ``alpha`` and ``steps`` as in ``distill.krr``, whose errors the methods raise.
    """

    n: int
    d: FloatArray  # (k,) eigenvalues, large to small
    z: FloatArray  # (k[, m]) what the filters are applied to
    components: FloatArray  # (k[, m]) of the targets along the eigenvectors
    outside: FloatArray  # () or (m,) norms of the rest of the targets
    traces: Traces = exact_traces
    offset: FloatArray | float = 0.0  # () or (m,), the intercept

    def risk_map(
        self, rows: FloatArray, target: ArrayLike, alphas: ArrayLike, lams: ArrayLike, steps: ArrayLike, loss: str
    ) -> FloatArray:
        """The risk of every chain at points with ``rows`` (q, k), as ``krr.risk_map``."""
        grid = Grid(alphas, lams, steps)
        rows = as_new_kernel(rows, len(self.d))
        risk = make_risk(loss, as_targets(target, len(rows), "target", like=self.z), self.offset)
        return map_risks(spectral_predictions(self.d, self.z, partial(spectral.times, rows)), grid, risk)

    def predict(self, rows: FloatArray, lam: float, alpha: ArrayLike, steps: ArrayLike) -> FloatArray:
        """Predictions of a chain, (len(steps), q[, m])."""
        filters = spectral.blend_filters(self.d, lam, alpha, steps) / (self.d + lam)
        return spectral.apply_filters(rows, filters, self.z) + self.offset

    def estimates(self, lam: float, alpha: ArrayLike, steps: ArrayLike) -> Estimates:
        """GCV (see ``krr.generalised_cross_validation``) and the degrees of freedom tr B of a chain."""
        B = spectral.diagonals(self.d, lam, alpha, steps)
        squares = (self.components**2).reshape(len(self.d), -1)
        with np.errstate(over="ignore", invalid="ignore"):
            error = ((1 - B) ** 2 @ squares.sum(axis=1) + (self.outside**2).sum()) / (self.n * squares.shape[1])
            trace, deviation = self.traces(B)
            share = 1 - trace / self.n
            gcv = np.divide(error, share**2, out=np.full(len(B), np.inf), where=share > EPS)
            slope = np.divide(2 * gcv, share * self.n, out=np.zeros(len(B)), where=share > EPS)
            return Estimates(np.where(np.isnan(gcv), np.inf, gcv), slope * deviation, trace, deviation)

    def gcv_residuals(self, lam: float, k: int) -> FloatArray:
        """The residuals r_1, ..., r_k of ``krr.gcv_residuals`` in this basis, (k, k' [, m]), for best alphas."""
        left = spectral.residual_filters(self.d, lam, k)
        share = 1 - self.traces(1 - left)[0] / self.n
        inside = spectral.filtered(left, self.components)
        outside = np.broadcast_to(self.outside, (k, 1, *self.outside.shape))
        return np.concatenate([inside, outside], axis=1) / share.reshape(-1, *[1] * self.components.ndim)

    def auto_alphas(
        self, lam: float, n_steps: float, rows: FloatArray | None = None, target: FloatArray | None = None
    ) -> FloatArray:
        """The schedule of alpha="auto" up to fit ``n_steps``, (1,) for the limit.

        Chosen by generalised cross-validation, or by the squared error at points with ``rows`` (q, k) and ``target``.
        """
        if n_steps == math.inf:
            if rows is None or target is None:
                scores = np.array([self.estimates(lam, alpha, math.inf).gcv[0] for alpha in LIMIT_ALPHAS])
            else:
                scores = self.risk_map(rows, target, LIMIT_ALPHAS, lam, math.inf, "squared")
            return LIMIT_ALPHAS[[np.argmin(scores)]]
        if rows is None or target is None:
            residuals = self.gcv_residuals(lam, AUTO_FITS)
        else:
            residuals = target - self.predict(rows, lam, 0.0, range(1, AUTO_FITS + 1))  # of A y, A² y, ...
        return auto_schedule(residuals)[: int(n_steps) - 1]


def eigen_chain(spectrum: Spectrum, y: ArrayLike) -> EigenChain:
    """The problem in the eigenbasis of K, with targets (n,) or (n, m); the rows of new points are K_new V."""
    z = spectral.components(spectrum, y)
    return EigenChain(len(z), spectrum.d, z, z, np.zeros(z.shape[1:]))
