"""Bounds on the errors of a chain that is computed in the basis of a block Lanczos run.

``theta`` (k,) are the eigenvalues of T; ``coupling`` (b, k), the last off-diagonal block of T, and ``z`` (k, m), the
targets, are in the basis of its eigenvectors; ``rounding`` bounds the norm of what T lacks of K. Bounds are relative to
the norm of the fitted values; NaN if the chain diverges.
"""

import math

import numpy as np

from distill.kernel.arrays import FloatArray
from distill.kernel.spectral import DivergentChainError, blend_filters


def step_errors(
    theta: FloatArray, coupling: FloatArray, rounding: float, z: FloatArray, lam: float, alpha: FloatArray, last: int
) -> FloatArray:
    """The bounds of fits 1 to ``last`` of the schedule ``alpha``, (last,); ``BlockLanczos.errors`` derives them."""
    try:
        filters = blend_filters(theta, lam, alpha, range(1, last + 1)) / (theta + lam)
    except DivergentChainError:
        return np.full(last, np.nan)
    bound = 0.0
    bounds = np.empty(last)
    for tau, coefficients in enumerate(filters[:, :, None] * z):
        blend = alpha[min(max(tau, 1), len(alpha)) - 1]  # of fit tau + 1; fit 1 has no teacher
        bound = _residual(coupling, rounding, coefficients) + abs(1 - blend) * bound
        bounds[tau] = _relative(bound, theta, coefficients)
    return bounds


def limit_error(
    theta: FloatArray, coupling: FloatArray, rounding: float, z: FloatArray, lam: float, alpha: float
) -> float:
    """The bound of the limit, where (alpha K + lam) c = alpha y: K c errs by lam/alpha (alpha K + lam)^-1 residual."""
    try:
        filters = blend_filters(theta, lam, alpha, math.inf) / (theta + lam)
    except DivergentChainError:
        return math.nan
    coefficients = filters[0][:, None] * z
    growth = max(1.0, lam / (alpha * theta[0] + lam))
    return _relative(growth * _residual(coupling, rounding, coefficients), theta, coefficients)


def _residual(coupling: FloatArray, rounding: float, coefficients: FloatArray) -> float:
    """The norm of (K + lam) c - t, with the rounding errors of K c."""
    return float(np.linalg.norm(coupling @ coefficients) + rounding * np.linalg.norm(coefficients))


def _relative(bound: float, theta: FloatArray, coefficients: FloatArray) -> float:
    """``bound`` over the norm of the fitted values."""
    if bound == 0:
        return 0.0
    values = float(np.linalg.norm(theta[:, None] * coefficients))
    return bound / values if values > 0 else math.inf
