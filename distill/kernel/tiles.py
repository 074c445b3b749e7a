"""Products with a kernel matrix that is computed tile by tile, and stored only if it fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import DTypeLike, NDArray
from scipy.sparse.linalg import LinearOperator

from distill.environment import available_memory
from distill.kernel.arguments import as_count
from distill.kernel.arrays import MOST_ENTRIES, FloatArray, NotFiniteError, real_numbers

Kernel = Callable[[Any, Any], Any]  # from rows (a, p) and (b, p) to their kernel matrix (a, b)


class KernelTiles(LinearOperator):
    """The kernel matrix k(X_new, X), (q, n), or k(X, X), as an operator whose products sum over tiles.

    ``X`` (n, p) and ``X_new`` (q, p) are arrays, or sparse matrices in CSR format if the kernel takes them. ``kernel``
    maps rows (a, p) and (b, p) to their kernel matrix (a, b), as scikit-learn's ``rbf_kernel`` does. Tiles have at most
    ``tile`` rows and columns and ``dtype`` float32 or float64; float32 halves the memory, and rounds each entry to
    seven digits. Tiles that fit into ``memory`` bytes (default: half of what is free) are kept from the first product
    on; the others are computed again for each product. A symmetric matrix keeps only its upper triangle. Raises
    ValueError for an argument out of its range, and NotFiniteError.
    """

    def __init__(
        self,
        kernel: Kernel,
        X: Any,
        X_new: Any = None,
        *,
        dtype: DTypeLike = np.float64,
        tile: int = 2048,
        memory: float | None = None,
    ):
        self.kernel = kernel
        self.columns = _as_rows("X", X)
        self.rows = self.columns if X_new is None else _as_rows("X_new", X_new)
        if self.rows.shape[1] != self.columns.shape[1]:
            raise ValueError(f"X_new has {self.rows.shape[1]} columns, but X has {self.columns.shape[1]}")
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, not {np.dtype(dtype)}")
        self.symmetric = X_new is None
        self.tile = as_count("tile", tile)
        self.memory = (available_memory() or 0) / 2 if memory is None else memory
        if not self.memory >= 0:
            raise ValueError(f"memory must be at least 0, not {self.memory}")
        self._kept: dict[tuple[int, int], Any] = {}
        super().__init__(np.dtype(dtype), (self.rows.shape[0], self.columns.shape[0]))

    def _matmat(self, block: NDArray[np.floating]) -> FloatArray:
        out = np.zeros((self.shape[0], block.shape[1]))
        block = np.asarray(block, self.dtype)
        for rows, columns, tile in self._tiles():
            out[rows] += tile @ block[columns]
            if self.symmetric and rows != columns:
                out[columns] += tile.T @ block[rows]
        return out

    def _tiles(self) -> Iterator[tuple[slice, slice, Any]]:
        for i in range(0, self.shape[0], self.tile):
            for j in range(i if self.symmetric else 0, self.shape[1], self.tile):
                rows = slice(i, min(i + self.tile, self.shape[0]))
                columns = slice(j, min(j + self.tile, self.shape[1]))
                tile = self._kept.get((i, j))
                if tile is None:
                    tile = self._compute(rows, columns)
                    if tile.shape != (rows.stop - i, columns.stop - j):
                        raise ValueError(f"the kernel of {rows.stop - i} and {columns.stop - j} rows is {tile.shape}")
                    if tile.nbytes <= self.memory:
                        self.memory -= tile.nbytes
                        self._kept[i, j] = tile
                yield rows, columns, tile

    def _compute(self, rows: slice, columns: slice) -> Any:
        return np.asarray(self.kernel(self.rows[rows], self.columns[columns]), self.dtype)


def _as_rows(name: str, X: Any) -> Any:
    """X (n, p), dense or CSR, with finite real entries. Raises ValueError and NotFiniteError."""
    sparse = scipy.sparse.issparse(X)
    X = X.tocsr() if sparse else real_numbers(name, X)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"{name} must have a row for each point and a column at least, not the shape {X.shape}")
    if not np.isfinite(X.data if sparse else X).all():
        raise NotFiniteError(f"{name} has NaN or infinite entries")
    return X


def matrix(kernel: Kernel, A: Any, B: Any) -> FloatArray:
    """The kernel matrix of A (a, p) and B (b, p), dense or CSR, (a, b): in blocks of rows if it is large.

    NumPy computes A @ A.T by BLAS's symmetric product, which crashed for 50,000 rows of float32.
    """
    shape = (A.shape[0], B.shape[0])
    if shape[0] * shape[1] <= MOST_ENTRIES:
        return kernel(A, B)
    height = max(1, MOST_ENTRIES // (2 * shape[1]))  # never all rows: A[rows] @ A.T is a plain product
    out: FloatArray | None = None
    for start in range(0, shape[0], height):
        block = np.asarray(kernel(A[start : start + height], B))
        out = np.empty(shape, block.dtype) if out is None else out
        out[start : start + height] = block
    assert out is not None
    return out


def rbf(gamma: float) -> Kernel:
    """The function (A, B) -> exp(-gamma ‖a_i - b_j‖²), in the precision of A and B.

    scikit-learn's ``rbf_kernel`` converts float32 inputs to float64 and is slower: four times, measured for two blocks
    of 2,048 × 3,072. In float32 squared distances have errors of some 1e-7 of the largest squared norm.
    """

    def kernel(A: NDArray[np.floating], B: NDArray[np.floating]) -> NDArray[np.floating]:
        K = squared_distances(A, B)
        K *= -gamma
        return np.exp(K, out=K)

    return lambda A, B: matrix(kernel, A, B)


def squared_distances(A: NDArray[np.floating], B: NDArray[np.floating]) -> NDArray[np.floating]:
    """‖a_i - b_j‖², (a, b), of the rows of A (a, p) and B (b, p), in their precision."""
    D = A @ B.T
    D *= -2
    D += np.einsum("ap,ap->a", A, A)[:, None]
    D += np.einsum("bp,bp->b", B, B)
    return np.maximum(D, 0, out=D)
