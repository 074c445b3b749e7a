"""Chains of ridge regressions on features: the primal form, for fewer features than points.

With Phi (n, p), Phi^T Phi = W S W^T and u = W^T Phi^T y, the coefficients of fit tau are

    beta^(tau) = W (S + lam)^-1 w^(tau)(S) u,    f^(tau)(x) = phi(x)^T beta^(tau),

with the blend filters w of ``distill.kernel.spectral``. These are the formulas of the dual form with Phi^T Phi (p, p)
for K, Phi^T y for y and phi(x) for k(x, X), so the same functions compute them. They need the n points only in sums
over rows, which are computed block by block.
"""

from __future__ import annotations

import copy
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import blas

from distill.kernel import spectral
from distill.kernel.arrays import EPS, LARGEST_ENTRY, FloatArray, NotFiniteError, as_floats, real_numbers
from distill.kernel.linalg import Spectrum, decompose, product
from distill.kernel.riskmap import EigenChain, exact_traces

CHUNK_BYTES = 2**25  # of a block's rows in float64; larger blocks are no faster and need more memory


class FeatureSums:
    """Sums over rows of features and targets, from which every chain of ridge regressions is computed.

    ``rows`` is the number n of points. With X (n, p) and y (n,) or (n, m), ``gram`` (p, p) is X^T X, ``cross`` (p,) or
    (p, m) is X^T y and ``square`` () or (m,) the sum of y², all float64. With ``intercept`` columns are centred first,
    and ``mean_x`` (p,) and ``mean_y`` () or (m,) are their means; without it, these are 0.
    """

    def __init__(self, *, intercept: bool = False):
        self.intercept = intercept
        self.rows = 0
        self.weight = 0.0  # the sum of the sample weights, ``rows`` without any
        self.gram: FloatArray = np.zeros((0, 0))
        self.cross: FloatArray = np.zeros(0)
        self.square: FloatArray = np.zeros(())
        self.mean_x: FloatArray = np.zeros(0)
        self.mean_y: FloatArray = np.zeros(())

    def add(self, X: ArrayLike, y: ArrayLike, sample_weight: FloatArray | None = None) -> Self:
        """Add a block of rows, X (n, p) and y (n,) or (n, m), of any real dtype; memory-mapped arrays are not copied.

        A row counts as often as its ``sample_weight`` (n,) > 0 says, in all sums but ``rows``. Blocks of the same
        points in another order or division give the same sums up to rounding. Raises ValueError for shapes that do not
        fit the blocks before, and NotFiniteError.
        """
        X = real_numbers("X", X)
        y = real_numbers("y", y)
        if X.ndim != 2 or y.ndim not in (1, 2) or len(X) != len(y) or X.shape[1] == 0:
            raise ValueError(f"a block needs X (n, p) and y (n,) or (n, m), not {X.shape} and {y.shape}")
        if self.rows and (X.shape[1] != len(self.gram) or y.shape[1:] != self.cross.shape[1:]):
            raise ValueError(
                f"this block has rows of {X.shape[1:]} and {y.shape[1:]}, and those before have "
                f"{self.gram.shape[1:]} and {self.cross.shape[1:]}"
            )
        height = max(1, CHUNK_BYTES // (8 * X.shape[1]))
        block = FeatureSums(intercept=self.intercept)  # added as a whole, or not at all if a row is not finite
        for start in range(0, len(X), height):
            rows = slice(start, start + height)
            weight = None if sample_weight is None else sample_weight[rows]
            block._merge(self._sums(np.array(X[rows], np.float64, order="C"), np.array(y[rows], np.float64), weight))
        self._merge(block)
        return self

    def __add__(self, other: FeatureSums) -> FeatureSums:
        """The sums over the points of both, from two processes for example."""
        if self.intercept != other.intercept:
            raise ValueError("one of the sums has an intercept, the other has none")
        both = copy.deepcopy(self)
        both._merge(other)
        return both

    def _sums(self, X: FloatArray, y: FloatArray, weight: FloatArray | None) -> FeatureSums:
        """The sums over one chunk, whose arrays are overwritten."""
        if not (np.abs(X).max() <= LARGEST_ENTRY and np.abs(y).max(initial=0) <= LARGEST_ENTRY):  # true for NaN too
            raise NotFiniteError(f"X or y has entries that are NaN, infinite or above {LARGEST_ENTRY:g}")
        part = FeatureSums(intercept=self.intercept)
        part.rows = len(X)
        part.weight = float(len(X) if weight is None else weight.sum())
        part.mean_x = np.zeros(X.shape[1])
        part.mean_y = np.zeros(y.shape[1:])
        if self.intercept:
            part.mean_x = np.average(X, axis=0, weights=weight)
            part.mean_y = np.average(y, axis=0, weights=weight)
            X -= part.mean_x
            y -= part.mean_y
        if weight is not None:
            root = np.sqrt(weight)
            X *= root[:, None]
            y = (y.T * root).T
        upper = blas.dsyrk(1.0, X.T)  # half the work of a full product
        part.gram = np.triu(upper) + np.triu(upper, 1).T
        part.cross = product(X.T, y)
        part.square = (y**2).sum(axis=0)
        return part

    def _merge(self, part: FeatureSums) -> None:
        """Add the sums over other points (Chan, Golub & LeVeque 1983), whose means may differ from ours."""
        if self.rows == 0 or part.rows == 0:
            if part.rows:
                self.__dict__.update(copy.deepcopy(vars(part)))
            return
        total = self.weight + part.weight
        weight = self.weight * part.weight / total
        shift_x = part.mean_x - self.mean_x
        shift_y = part.mean_y - self.mean_y
        self.gram = self.gram + part.gram + weight * np.outer(shift_x, shift_x)
        self.cross = self.cross + part.cross + weight * np.multiply.outer(shift_x, shift_y)
        self.square = self.square + part.square + weight * shift_y**2
        self.mean_x = self.mean_x + shift_x * (part.weight / total)
        self.mean_y = self.mean_y + shift_y * (part.weight / total)
        self.rows += part.rows
        self.weight = total


class FeatureChain:
    """Every chain of ridge regressions on features, from one eigendecomposition of the Gram matrix.

    ``spectrum`` holds S (p,) and W (p, p). ``lam``, ``alpha`` and ``steps`` as in ``distill.krr``, whose errors its
    methods raise. The intercept is not penalised.
    """

    def __init__(self, sums: FeatureSums):
        if sums.rows == 0:
            raise ValueError("there are no points")
        self.sums = sums
        self.spectrum: Spectrum = decompose(sums.gram)

    def coefficients(self, lam: float, alpha: ArrayLike, steps: ArrayLike) -> FloatArray:
        """beta^(tau), (len(steps), p[, m])."""
        return spectral.dual_coefficients(self.spectrum, self.sums.cross, lam, alpha, steps)

    def predict(self, X: ArrayLike, coefficients: ArrayLike) -> FloatArray:
        """f^(tau)(x) = phi(x)^T beta^(tau) + intercept at the rows of X (q, p): (len(coefficients), q[, m])."""
        return spectral.predict(as_floats("X", X, 2) - self.sums.mean_x, coefficients) + self.sums.mean_y

    def rows(self, X: ArrayLike) -> FloatArray:
        """(X - mean_x) W, (q, p): points X (q, p) in the basis of ``eigen``."""
        return product(as_floats("X", X, 2) - self.sums.mean_x, self.spectrum.V)

    def risk_map(
        self, X: Any, target: ArrayLike, alphas: ArrayLike, lams: ArrayLike, steps: ArrayLike, loss: str = "squared"
    ) -> FloatArray:
        """The risk of every chain at points X (q, p) with targets (q,) or (q, m), as ``krr.risk_map``."""
        return self.eigen.risk_map(self.rows(X), target, alphas, lams, steps, loss)

    @cached_property
    def eigen(self) -> EigenChain:
        """The problem along Phi's singular vectors: best alphas, degrees of freedom and GCV without held-out points."""
        d = self.spectrum.d
        z = product(self.spectrum.V.T, self.sums.cross)
        root = np.sqrt(d).reshape(-1, *[1] * (z.ndim - 1))
        spans = root > np.sqrt(len(d) * EPS * d[0])
        inside = np.divide(z, root, out=np.zeros_like(z), where=spans)
        outside = np.sqrt(np.maximum(self.sums.square - (inside**2).sum(axis=0), 0))
        traces = partial(exact_traces, unpenalised=self.sums.intercept)
        return EigenChain(self.sums.rows, d, z, inside, outside, traces, self.sums.mean_y)
