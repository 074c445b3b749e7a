"""Bounds on the errors of a chain that is computed in the basis of a block Lanczos run."""

import math
from contextlib import suppress

import numpy as np

from distill.kernel.arrays import FloatArray
from distill.kernel.spectral import DivergentChainError, blend_filters


def chain_errors(
    theta: FloatArray,
    coupling: FloatArray,
    rounding: float,
    z: FloatArray,
    lam: float,
    alpha: FloatArray,
    steps: list[float],
) -> list[float]:
    """The bounds at ``steps`` of the schedule ``alpha``, relative to the norm of the fitted values; NaN if it diverges.

    ``theta`` (k,) are the eigenvalues of T; ``coupling`` (b, k), the last off-diagonal block of T, and ``z`` (k, m),
    the targets, are in the basis of its eigenvectors; ``rounding`` bounds the norm of what T lacks of K.
    ``BlockLanczos.errors`` derives the bounds of finite steps. In the limit (alpha K + lam) c = alpha y, and K c errs
    by lam/alpha (alpha K + lam)^-1 residual.
    """

    def coefficients(steps: range | float) -> FloatArray:
        return (blend_filters(theta, lam, alpha, steps) / (theta + lam))[:, :, None] * z

    def residual(c: FloatArray) -> float:
        """The norm of (K + lam) c - t, with the rounding errors of K c."""
        return float(np.linalg.norm(coupling @ c) + rounding * np.linalg.norm(c))

    def relative(bound: float, c: FloatArray) -> float:
        values = float(np.linalg.norm(theta[:, None] * c))
        if bound == 0:
            return 0.0
        return bound / values if values > 0 else math.inf

    bounds = {}
    last = int(max((step for step in steps if step < math.inf), default=0))
    with suppress(DivergentChainError):
        bound = 0.0
        for tau, c in enumerate(coefficients(range(1, last + 1)) if last else [], start=1):
            blend = alpha[min(max(tau - 1, 1), len(alpha)) - 1]  # of fit tau; fit 1 has no teacher
            bound = residual(c) + abs(1 - blend) * bound
            bounds[float(tau)] = relative(bound, c)
    if math.inf in steps:
        with suppress(DivergentChainError):
            (c,) = coefficients(math.inf)
            growth = max(1.0, lam / (alpha[-1] * theta[0] + lam))
            bounds[math.inf] = relative(growth * residual(c), c)
    return [bounds.get(step, math.nan) for step in steps]
