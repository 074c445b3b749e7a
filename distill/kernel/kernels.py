"""The kernels that the programs offer, by name, as functions of distances or inner products."""

import math
from collections.abc import Callable

import numpy as np

from distill.kernel.arrays import FloatArray
from distill.kernel.tiles import Kernel, rbf, squared_distances


def _scaled(r: FloatArray, gamma: float) -> FloatArray:
    """r / length, with the RBF kernel's length scale 1/sqrt(2 gamma)."""
    return r * math.sqrt(2 * gamma)


def _matern32(r: FloatArray, gamma: float) -> FloatArray:
    s = _scaled(r, gamma)
    return (1 + math.sqrt(3) * s) * np.exp(-math.sqrt(3) * s)


def _matern52(r: FloatArray, gamma: float) -> FloatArray:
    s = _scaled(r, gamma)
    return (1 + math.sqrt(5) * s + 5 / 3 * s**2) * np.exp(-math.sqrt(5) * s)


# Of the distance r, of any shape, and gamma.
RADIAL: dict[str, Callable[[FloatArray, float], FloatArray]] = {
    "rbf": lambda r, gamma: np.exp(-gamma * r**2),
    "laplacian": lambda r, gamma: np.exp(-gamma * r),
    "matern12": lambda r, gamma: np.exp(-_scaled(r, gamma)),
    "matern32": _matern32,
    "matern52": _matern52,
}


def kernel_function(name: str, gamma: float) -> Kernel:
    """The kernel ``name`` as a function of rows (a, p) and (b, p) that returns (a, b).

    The kernels of the programs: those in ``RADIAL``, "polynomial", (gamma x·z + 1)³, and "linear", x·z. float32 rows
    are multiplied in float32, except by the radial kernels other than rbf, which have a kink or a higher-order term at
    r = 0, where rounding in the squared distance would show.
    """
    if name == "rbf":
        return rbf(gamma)
    if name == "linear":
        return lambda A, B: A @ B.T
    if name == "polynomial":
        return lambda A, B: (np.float64(gamma).astype(A.dtype) * (A @ B.T) + 1) ** 3
    return lambda A, B: RADIAL[name](np.sqrt(squared_distances(A.astype(np.float64), B.astype(np.float64))), gamma)
