"""The estimators' solver "lanczos": kernel matrices as operators, and a basis that reaches the tolerance."""

from dataclasses import dataclass
from typing import Any

import scipy.sparse
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from distill.environment import available_memory
from distill.kernel.arrays import FloatArray
from distill.kernel.lanczos import BlockLanczos, NotReachedError, Schedules, lanczos
from distill.kernel.linalg import check_kernel
from distill.kernel.tiles import Kernel, KernelTiles

ALL = slice(None)
Rows = Any  # positions of points (k,), or ``ALL``


@dataclass(frozen=True)
class Points:
    """Points X (n, p) with a kernel, or without one their kernel matrix X (n, n), and roots of sample weights.

    A basis of them has a relative error of the fitted values of at most ``tol``, and at most ``max_basis`` vectors.
    """

    X: Any
    kernel: Kernel | None
    root: FloatArray | None  # (n,)
    tol: float
    max_basis: int

    def matrix(self, rows: Rows = ALL, columns: Rows | None = None) -> LinearOperator:
        """s K s between two sets of points, or within one. Raises KernelMatrixError's subclasses."""
        others = rows if columns is None else columns
        K: Any
        if self.kernel is None:
            block = self.X[rows][:, others]
            K = aslinearoperator(check_kernel(block).K if columns is None else block)
        else:
            K = self.tiles(self.X[others], None if columns is None else self.X[rows])
        if self.root is None:
            return K
        left, right = (aslinearoperator(scipy.sparse.diags_array(self.root[part])) for part in (rows, others))
        return left @ K @ right

    def tiles(self, X: Any, X_new: Any = None) -> KernelTiles:
        """The kernel matrix in tiles, of which those of one set of points are kept in half of the memory that is free
        beside the basis."""
        assert self.kernel is not None
        room = (available_memory() or 0) - 8 * X.shape[0] * min(self.max_basis, X.shape[0])
        return KernelTiles(self.kernel, X, X_new, memory=max(0, room) / 2 if X_new is None else 0)

    def basis(self, K: Any, y: ArrayLike, alphas: Schedules, lams: ArrayLike, steps: ArrayLike) -> BlockLanczos:
        """A basis for all these chains. Raises NotReachedError."""
        try:
            return lanczos(K, y, alphas, lams, steps, tolerance=self.tol, max_basis=self.max_basis)
        except NotReachedError as error:  # without the basis: the error may be sent to another process
            raise NotReachedError(f"{error}; raise lam, tol or max_basis") from None
