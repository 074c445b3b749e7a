"""Checks of the arguments that all functions on a chain share. All raise ValueError that names the argument."""

import math
import operator
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel.arrays import EPS, LARGEST_FLOAT, FloatArray, as_floats
from distill.kernel.linalg import SingularKernelError


def as_schedule(alpha: ArrayLike) -> FloatArray:
    """``alpha``, a number or a sequence of numbers, as a schedule (k,), k >= 1."""
    return np.atleast_1d(as_floats("alpha", alpha, 0, 1))


def as_steps(steps: ArrayLike) -> list[float]:
    """``steps``, a number or a sequence of numbers, as a list."""
    as_list = np.atleast_1d(as_floats("steps", steps, 0, 1, largest=math.inf)).tolist()
    for step in as_list:
        if step < 1 or (step < math.inf and step % 1):
            raise ValueError(f"steps must be whole numbers >= 1 or inf, not {step:g}")
    return as_list


def as_count(name: str, value: SupportsIndex, least: int = 1) -> int:
    """``value``, a whole number from ``least`` to 10^9."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if not least <= count <= 10**9:
        raise ValueError(f"{name} must be a whole number from {least} to 10^9")
    return count


def as_ridges(name: str, value: ArrayLike, *axes: int) -> FloatArray:
    """Ridges, finite and >= 0, whose number of dimensions is one of ``axes``."""
    ridges = as_floats(name, value, *axes, largest=LARGEST_FLOAT)
    if ridges.min() < 0:
        raise ValueError(f"{name} must be at least 0, not {ridges.min():g}")
    return ridges


def as_targets(y: ArrayLike, n: int, name: str = "y", like: FloatArray | None = None) -> FloatArray:
    """``y`` as targets (n,) or (n, m), with the columns of ``like`` if given. Also raises NotFiniteError."""
    targets = as_floats(name, y, 1, 2)
    if len(targets) != n:
        raise ValueError(f"{name} must have a row for each of the {n} points, not shape {targets.shape}")
    if like is not None and targets.shape[1:] != like.shape[1:]:
        raise ValueError(f"{name} {targets.shape} does not match y {like.shape}")
    return targets


def as_sample_weight(sample_weight: ArrayLike | None, n: int) -> FloatArray | None:
    """Sample weights (n,) float64, >= 0 and not all 0, or None. Raises ValueError."""
    if sample_weight is None:
        return None
    weights = as_floats("sample_weight", sample_weight, 0, 1)
    if weights.shape not in ((), (n,)):
        raise ValueError(f"sample_weight must be a number or of shape ({n},), not {weights.shape}")
    if (weights < 0).any() or not weights.any():
        raise ValueError("sample_weight must not be negative, and not all zero")
    return np.broadcast_to(weights, (n,))


def as_new_kernel(K_new: ArrayLike, n: int, largest: float = LARGEST_FLOAT) -> FloatArray:
    """``K_new``, k(x, X) at q new points, as (q, n). Also raises NotFiniteError."""
    matrix = as_floats("K_new", K_new, 2, largest=largest)
    if matrix.shape[1] != n:
        raise ValueError(f"K_new must have a column for each of the {n} training points, not shape {matrix.shape}")
    return matrix


def check_ridge(d: ArrayLike, lam: float) -> tuple[FloatArray, float]:
    """Check that ``d`` (n,), K's eigenvalues, are >= 0 and descending, and K + lam I nonsingular; returns both.

    Also raises SingularKernelError.
    """
    d = as_floats("d", d, 1, largest=LARGEST_FLOAT)
    lam = float(as_ridges("lam", lam, 0))
    if d[-1] < 0 or (d[1:] > d[:-1]).any():
        raise ValueError("d must hold eigenvalues from large to small, none below 0")
    if lam == 0:
        check_nonsingular(d, lam)
    return d, lam


def check_nonsingular(d: FloatArray, lam: float) -> None:
    """Raise SingularKernelError if K + lam I is singular to rounding. ``d`` (n,) are K's eigenvalues."""
    if d[-1] + lam <= len(d) * EPS * d[0]:
        raise SingularKernelError(
            f"lam = {lam:g} needs a nonsingular K, but its eigenvalues range from {d[0]:.3g} down to {d[-1]:.3g}; "
            "raise lam, or drop repeated points"
        )
