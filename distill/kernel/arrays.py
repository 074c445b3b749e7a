"""Float64 arrays: their type, their precision, and the conversion of any argument to one."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.errors import UserError

FloatArray: TypeAlias = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
LARGEST_FLOAT = float(np.finfo(np.float64).max)
LARGEST_ENTRY = 1e150  # of data: its square is still finite
MOST_ENTRIES = 2**31 - 1  # of an array whose entries a routine with 32-bit integers can count
SHAPES = ("a number", "a sequence", "a matrix", "an array with three axes")  # by the number of axes


class KernelMatrixError(UserError):
    """K is not a kernel matrix; the subclasses say why."""


class NotFiniteError(KernelMatrixError):
    """An argument holds NaN, infinity or too large a number, or a result exceeds float64's range."""


def real_numbers(name: str, value: ArrayLike) -> NDArray[Any]:
    """``value`` as an array of real numbers of any dtype. Raises ValueError that names the argument."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biufO":
            raise TypeError(f"not {array.dtype}")
        return array.astype(np.float64) if array.dtype.kind == "O" else array
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{name} must hold real numbers: {error}") from None


def as_floats(
    name: str, value: ArrayLike, *axes: int, largest: float = LARGEST_ENTRY, may_be_empty: bool = False
) -> FloatArray:
    """``value`` as float64, with one of the numbers of ``axes`` (any, if none is given); not copied if it is one.

    Raises ValueError for another shape or type, and NotFiniteError for NaN and for an entry above ``largest``.
    """
    array = real_numbers(name, value).astype(np.float64, copy=False)
    if axes and array.ndim not in axes:
        raise ValueError(f"{name} must be {' or '.join(SHAPES[count] for count in axes)}, not of shape {array.shape}")
    if array.size == 0:
        if may_be_empty:
            return array
        raise ValueError(f"{name} must not be empty, but has the shape {array.shape}")
    if not (array.min() >= -largest and array.max() <= largest):
        worst = array[~(np.abs(array) <= largest)].flat[0]
        raise NotFiniteError(f"{name} must be finite and at most {largest:.3g} in size, not {worst:g}")
    return array


def check_overflow(what: str, result: FloatArray) -> FloatArray:
    """Return ``result``; raise NotFiniteError if it is not finite."""
    if not np.isfinite(result).all():
        raise NotFiniteError(f"{what} exceed float64's range: raise lam, or scale K and y down")
    return result


def check_entries(K: FloatArray) -> FloatArray:
    """Return the kernel matrix of some points; raise NotFiniteError if it is not finite."""
    if not (K.min() > -np.inf and K.max() < np.inf):  # true for NaN too
        raise NotFiniteError("the kernel of X exceeds float64's range: scale X, or lower the kernel's parameters")
    return K
