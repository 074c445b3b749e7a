"""Pickles of arrays, lists, strings and numbers, read without running any code in them."""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

_Load = Callable[[Any], None]
_KEYS = {  # of a dictionary, on the stack
    pickle.SETITEM[0]: slice(-2, -1),
    pickle.SETITEMS[0]: slice(0, None, 2),
    pickle.DICT[0]: slice(0, None, 2),
}


def load_pickle(data: bytes) -> Any:
    """The object in a pickle; of a dictionary, arrays are values. Garbage raises nearly any error."""
    content = _DataUnpickler(io.BytesIO(data), encoding="latin1").load()
    if not isinstance(content, dict):
        return content
    return {key: value.values if isinstance(value, _PickledArray) else value for key, value in content.items()}


def _with_plain_keys(load: _Load, keys: slice) -> _Load:
    """A step of an unpickler that makes entries of a dictionary, if their keys are text or numbers."""

    def checked(unpickler: Any) -> None:
        if not all(isinstance(key, str | bytes | int) for key in unpickler.stack[keys]):
            raise pickle.UnpicklingError("a key is neither text nor a number")
        load(unpickler)

    return checked


class _DataUnpickler(pickle._Unpickler):
    """An unpickler of arrays, lists, strings and numbers, which calls nothing but its own methods.

    The class in Python rather than in C: that one allocates what a file claims before it reads it. Arrays are made
    here, from bytes that are in the file: NumPy's functions would take any shape, and trust a dtype's flags. Keys are
    text or numbers: Python would hash a tuple of a tuple of itself, and so on, for years.
    """

    dispatch: ClassVar[dict[int, _Load]] = {
        code: _with_plain_keys(load, _KEYS[code]) if code in _KEYS else load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in (pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0])
    }

    def find_class(self, module: str, name: str) -> Any:
        found: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): _PickledDtype,
            ("_codecs", "encode"): self._encode,  # how Python 3 writes bytes into the older protocols
        }
        for core in ("numpy.core", "numpy._core"):
            found[f"{core}.multiarray", "_reconstruct"] = _PickledArray
            found[f"{core}.multiarray", "scalar"] = self._scalar
            found[f"{core}.numeric", "_frombuffer"] = self._frombuffer
        if (module, name) not in found:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return found[module, name]

    def _encode(self, text: str, encoding: str) -> bytes:
        return text.encode("latin1")

    def _scalar(self, dtype: "_PickledDtype", data: bytes | str) -> Any:
        return _array(dtype, data, ())[()]

    def _frombuffer(self, data: bytes, dtype: "_PickledDtype", shape: tuple[int, ...], order: str) -> np.ndarray:
        return _array(dtype, data, shape, order)


class _PickledDtype:
    """A dtype in a pickle, made of its code, such as ``u1``, and its byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.numbers = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numbers = self.numbers.newbyteorder(state[1])


class _PickledArray:
    """An array in a pickle, which is empty until its state is set."""

    def __init__(self, kind: None, shape: tuple[int, ...], code: str | bytes) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.values = _array(dtype, data, shape, "F" if fortran else "C")


def _array(dtype: _PickledDtype, data: bytes | str, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    """The array of numbers in ``data``, which Python 2 wrote as text. Raises an error of any type if it is none."""
    content = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(content, dtype.numbers).reshape(shape, order="F" if order == "F" else "C")
