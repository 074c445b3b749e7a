"""Checks of the arguments that all functions on a chain share."""

import math

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel.arrays import EPS, FloatArray
from distill.kernel.linalg import NotFiniteError, SingularKernelError


def as_schedule(alpha: ArrayLike) -> FloatArray:
    """``alpha``, a number or a sequence of numbers, as a schedule (k,), k >= 1. Raises ValueError."""
    alphas = np.atleast_1d(np.asarray(alpha, dtype=np.float64))
    if alphas.ndim != 1 or len(alphas) == 0 or not np.isfinite(alphas).all():
        raise ValueError(f"alpha must be a finite number or a sequence of them, not {alpha!r}")
    return alphas


def as_steps(steps: ArrayLike) -> list[float]:
    """``steps``, a number or a sequence of numbers, as a list. Raises ValueError."""
    as_list = [float(step) for step in np.atleast_1d(np.asarray(steps, dtype=np.float64))]
    if not all(step >= 1 and (step == math.inf or step == int(step)) for step in as_list):
        raise ValueError(f"steps must be whole numbers >= 1 or inf, not {as_list}")
    return as_list


def as_targets(y: ArrayLike, n: int) -> FloatArray:
    """``y`` as targets (n,) or (n, m). Raises ValueError for another shape and NotFiniteError."""
    targets = np.asarray(y, dtype=np.float64)
    if targets.ndim not in (1, 2) or len(targets) != n:
        raise ValueError(f"y must have a row for each of the {n} points, not shape {targets.shape}")
    if not np.isfinite(targets).all():
        raise NotFiniteError("y has NaN or infinite entries")
    return targets


def check_ridge(d: FloatArray, lam: float) -> None:
    """Raise ValueError for a ridge out of its range, and SingularKernelError if K + lam I is singular.

    ``d`` (n,) are K's eigenvalues, large to small.
    """
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be a finite number >= 0, not {lam!r}")
    if d[-1] + lam == 0 or (lam == 0 and d[-1] <= len(d) * EPS * d[0]):
        raise SingularKernelError(
            f"lam = 0 needs a nonsingular K, but its eigenvalues range from {d[0]:.3g} down to {d[-1]:.3g}; "
            "take lam > 0, or drop repeated points"
        )
