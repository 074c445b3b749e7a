"""A problem in an eigenbasis, from which every chain follows: whichever way the basis was computed.

Predictions at new points are rows (D + lam)^-1 w(D) z + offset, with the points' ``rows`` in the basis and the blend
filters w of ``distill.kernel.spectral``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel import spectral
from distill.kernel.arrays import EPS, FloatArray
from distill.kernel.linalg import Spectrum
from distill.kernel.riskmap import rotated_risk_map

# Of filters (f, k): the traces (f,) of the matrices with these eigenvalues, and their standard errors (f,).
Traces = Callable[[FloatArray], tuple[FloatArray, FloatArray]]


def exact_traces(filters: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Traces of filters of all eigenvalues, whose standard errors are 0."""
    return filters.sum(axis=1), np.zeros(len(filters))


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
    traces: Traces
    offset: FloatArray  # () or (m,), the intercept

    def risk_map(
        self, rows: FloatArray, target: ArrayLike, alphas: ArrayLike, lams: ArrayLike, steps: ArrayLike, loss: str
    ) -> FloatArray:
        """The risk of every chain at points with ``rows`` (q, k), as ``krr.risk_map``."""
        return rotated_risk_map(self.d, self.z, rows, target, alphas, lams, steps, loss=loss, offset=self.offset)

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


def eigen_chain(spectrum: Spectrum, y: ArrayLike) -> EigenChain:
    """The problem in the eigenbasis of K, with targets (n,) or (n, m); the rows of new points are K_new V."""
    z = spectral.components(spectrum, y)
    return EigenChain(len(z), spectrum.d, z, z, np.zeros(z.shape[1:]), exact_traces, np.zeros(()))
