"""Factorisations of a kernel matrix, and errors for matrices that are not kernel matrices.

There are three ways to apply (K + lam I)^-1 without forming an inverse:

- one eigendecomposition K = V D V^T for every lam, alpha and step;
- one tridiagonal form K = Q T Q^T, the first half of an eigendecomposition; then each solve, for any lam, takes O(n);
- one Cholesky factorisation per lam; at n = 2,000 it costs about a fourteenth of the eigendecomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike
from scipy.linalg import blas, lapack

from distill.environment import available_memory
from distill.errors import UserError
from distill.kernel.arrays import (
    EPS,
    LARGEST_ENTRY,
    MOST_ENTRIES,
    FloatArray,
    KernelMatrixError,
    NotFiniteError,
    real_numbers,
)

LARGEST_OF_32_BITS = 32_766  # rows of an eigendecomposition: 1 + 6n + 2n² numbers of workspace
SYMMETRY_TOLERANCE = 1e-10  # of the largest entry of K
# Of the Frobenius norm of K. Rounding in K changes eigenvalues by about n * EPS times the norm. A kernel that is not
# positive semidefinite, such as a sigmoid, has eigenvalues much further below 0.
NEGATIVE_TOLERANCE = 1e-8
# Of the dtype's precision: both tolerances are at least this for a K that was computed in float32 or float16.
LOW_PRECISION = 64


class NotSymmetricError(KernelMatrixError):
    """K differs from its transpose."""


class NotPositiveSemidefiniteError(KernelMatrixError):
    """K has an eigenvalue clearly below zero."""


class SingularKernelError(UserError):
    """K + lam I is singular: K is, and lam is 0 or below K's rounding errors."""


class MatrixTooLargeError(MemoryError):
    """The n × n arrays that a computation needs do not fit into memory."""


def require_memory(n: int, arrays: int, hint: str = "") -> None:
    """Raise MatrixTooLargeError, with ``hint`` at its end, if ``arrays`` float64 arrays (n, n) do not fit."""
    require_bytes(8 * arrays * n**2, f"n = {n} needs {arrays} arrays of {n} x {n},", hint)


def require_bytes(needed: int, what: str, hint: str = "") -> None:
    """Raise MatrixTooLargeError, whose message begins with ``what``, if ``needed`` bytes are not free."""
    room = available_memory()
    if room is not None and needed > room:
        free = max(room, 0) / 2**30
        raise MatrixTooLargeError(f"{what} {needed / 2**30:.1f} GiB, but only {free:.1f} GiB are free{hint}")


@dataclass(frozen=True)
class Dense:
    """A kernel matrix ``K`` (n, n) from ``check_kernel`` with a Cholesky factor for each shift.

    An eigenvalue down to -``tolerance`` times K's Frobenius norm counts as rounding.
    """

    K: FloatArray
    tolerance: float = NEGATIVE_TOLERANCE

    @property
    def mean_eigenvalue(self) -> float:
        """tr K / n."""
        return self.K.trace() / len(self.K)

    def times(self, b: FloatArray) -> FloatArray:
        """K b, for b (n,) or (n, m)."""
        return product(self.K, b)

    def solver(self, shift: float, scale: float = 1.0) -> Solver:
        """The function b -> (scale K + shift I)^-1 b. Raises SingularKernelError."""
        L = cholesky(self.K, shift, scale)
        return lambda b: cholesky_solve(L, b)


def check_kernel(K: ArrayLike) -> Dense:
    """K as a C-contiguous float64 array (n, n), n >= 1; not copied if it is one.

    If K was computed in lower precision, an asymmetry of that precision is rounding, and K is made symmetric. Raises
    KernelMatrixError (not square), NotFiniteError or NotSymmetricError. The factorisations check the sign of the
    eigenvalues.
    """
    given = real_numbers("K", K)
    precision = LOW_PRECISION * float(np.finfo(given.dtype).eps) if given.dtype.kind == "f" else EPS
    K = np.ascontiguousarray(given, dtype=np.float64)
    if K.ndim != 2 or K.shape[0] != K.shape[1] or len(K) == 0:
        raise KernelMatrixError(f"K must be a square matrix with a row for each point, not of shape {given.shape}")
    largest = difference = 0.0
    strips = [slice(start, start + 256) for start in range(0, len(K), 256)]
    for i, rows in enumerate(strips):
        height = np.abs(K[rows]).max()
        if not height <= LARGEST_ENTRY:  # true for NaN too
            raise NotFiniteError(f"K has entries that are NaN, infinite or above {LARGEST_ENTRY:g}; scale the inputs")
        largest = max(largest, height)
        for columns in strips[i:]:  # tile by tile, because K - K.T would be another n × n array
            difference = max(difference, np.abs(K[rows, columns] - K[columns, rows].T).max())
    if difference > max(SYMMETRY_TOLERANCE, precision) * largest:
        raise NotSymmetricError(f"K is not symmetric: K - K.T has an entry of {difference:.3g}")
    if difference > SYMMETRY_TOLERANCE * largest:  # then K is of lower precision, and a copy
        K += K.T
        K /= 2
    return Dense(K, max(NEGATIVE_TOLERANCE, precision))


def product(A: FloatArray, B: FloatArray) -> FloatArray:
    """A @ B, (q, n) times (n,) or (n, m), float64, by SciPy's BLAS.

    Not by NumPy's BLAS, a separate library: its threads stay busy for a while after a call, and a factorisation by
    SciPy's LAPACK right after it takes twice as long.
    """
    # BLAS copies arrays unless they are in Fortran order. A C-ordered array is its transpose in Fortran order, so
    # compute (A B)^T = B^T A^T.
    a, a_flag = (A.T, 0) if A.flags.c_contiguous else (np.asfortranarray(A), 1)
    columns = B.reshape(len(B), -1)
    b, b_flag = (columns.T, 0) if columns.flags.c_contiguous else (np.asfortranarray(columns), 1)
    return blas.dgemm(1.0, b, a, trans_a=b_flag, trans_b=a_flag).T.reshape(len(A), *B.shape[1:])


@dataclass(frozen=True)
class Spectrum:
    """K = V diag(d) V^T. ``d`` (n,) float64, large to small, none below 0; ``V`` (n, n) float64, orthogonal.

    An approximation has fewer columns: ``d`` (k,) and ``V`` (n, k).
    """

    d: FloatArray
    V: FloatArray


def decompose(K: ArrayLike | Dense, *, overwrite: bool = False) -> Spectrum:
    """The eigendecomposition of a kernel matrix K (n, n), symmetric and positive semidefinite.

    Eigenvalues slightly below 0 (``Dense.tolerance``) are set to 0. With ``overwrite``, K's memory is used and its
    contents are lost: three n × n arrays at once instead of four. Raises KernelMatrixError's subclasses, and
    MatrixTooLargeError before anything is allocated.
    """
    kernel = K if isinstance(K, Dense) else check_kernel(K)
    arrays = 2 if overwrite else 3
    n = len(kernel.K)
    if n > LARGEST_OF_32_BITS:
        if "USE64BITINT" not in str(np.show_config(mode="dicts")):
            raise MatrixTooLargeError(
                f"n = {n}: LAPACK with 32-bit integers, as this SciPy and NumPy have it, decomposes "
                f"{LARGEST_OF_32_BITS} rows at most; krr.lanczos, or solver='lanczos', has no such limit"
            )
        arrays += 2  # NumPy's, see ``eigh``
    require_memory(n, arrays)
    # LAPACK sorts from small to large, the theory from large to small: decompose -K.
    # Its transpose is the same matrix in Fortran order, which LAPACK overwrites in place.
    negated = np.negative(kernel.K, out=kernel.K if overwrite else None).T
    d, V = eigh(negated)
    d = -d
    if d[-1] < -kernel.tolerance * blas.dnrm2(d):
        raise NotPositiveSemidefiniteError(
            f"K is not positive semidefinite: its smallest eigenvalue is {d[-1]:.3g}, its largest {d[0]:.3g}"
        )
    return Spectrum(np.maximum(d, 0.0), V)


def eigh(A: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues (n,), small to large, and eigenvectors (n, n) of a symmetric A in Fortran order; it is overwritten.

    By SciPy's LAPACK, whose integers have 32 bits, or for more rows by NumPy's: they have 64 bits in its wheels. It
    copies A and the result.
    """
    if len(A) > LARGEST_OF_32_BITS:
        return np.linalg.eigh(A)
    return scipy.linalg.eigh(A, driver="evd", overwrite_a=True, check_finite=False)


Solver = Callable[[FloatArray], FloatArray]  # from b (n,) or (n, m) to the solution of the same shape


@dataclass(frozen=True)
class Tridiagonal:
    """K = Q T Q^T with T symmetric and tridiagonal, from ``tridiagonalise``. The methods are those of ``Dense`` for T.

    T has ``diagonal`` (n,) and ``off_diagonal`` (n-1,). Q keeps the first coordinate and is a product of Householder
    reflections on the others, in the format of LAPACK's dsytrd: ``reflectors`` (n, n-1), ``scales`` (n-1,).
    """

    diagonal: FloatArray
    off_diagonal: FloatArray
    reflectors: FloatArray
    scales: FloatArray

    @property
    def mean_eigenvalue(self) -> float:
        return float(self.diagonal.mean())

    def rotate(self, B: FloatArray, back: bool = False) -> FloatArray:
        """Q^T B, or Q B to rotate ``back``, for B (n,) or (n, m)."""
        trans = "N" if back else "T"
        out = B.reshape(len(B), -1).astype(np.float64)
        workspace = lapack.dormqr("L", trans, self.reflectors, self.scales, out[1:], -1)[1]
        out[1:] = lapack.dormqr("L", trans, self.reflectors, self.scales, out[1:], int(workspace[0]))[0]
        return out.reshape(B.shape)

    def times(self, b: FloatArray) -> FloatArray:
        column = (-1,) + (1,) * (b.ndim - 1)
        diagonal = self.diagonal.reshape(column)
        off_diagonal = self.off_diagonal.reshape(column)
        out = diagonal * b
        out[1:] += off_diagonal * b[:-1]
        out[:-1] += off_diagonal * b[1:]
        return out

    def solver(self, shift: float, scale: float = 1.0) -> Solver:
        D, L, info = lapack.dpttrf(scale * self.diagonal + shift, scale * self.off_diagonal)
        _check_pivots(info)
        return lambda b: lapack.dpttrs(D, L, b)[0].reshape(b.shape)


ShiftedSystem: TypeAlias = Dense | Tridiagonal  # a kernel matrix, in some basis, for solves with any ridge


def tridiagonalise(kernel: Dense) -> Tridiagonal:
    """The tridiagonal form of a kernel matrix (n, n), n >= 2.

    The matrix is left unchanged; the form takes one more n × n array. Raises NotPositiveSemidefiniteError by the bound
    that ``decompose`` uses, and MatrixTooLargeError.
    """
    n = len(kernel.K)
    require_memory(n, arrays=1)
    workspace = int(lapack.dsytrd_lwork(n, lower=1)[0])
    reduced, diagonal, off_diagonal, scales, _ = lapack.dsytrd(
        kernel.K.copy().T, lower=1, lwork=workspace, overwrite_a=1
    )
    # The reflections' vectors are below the diagonal. In a view that starts one element later they begin in row 0, and
    # the columns have the same length, so LAPACK takes the view without a copy.
    reflectors = reduced.ravel(order="F")[1 : 1 + n * (n - 1)].reshape((n, n - 1), order="F")
    T = Tridiagonal(diagonal, off_diagonal, reflectors, scales)
    check_positive_semidefinite(kernel, T)
    return T


def cholesky(K: FloatArray, shift: float, scale: float = 1.0) -> FloatArray:
    """Lower factor L (n, n), Fortran order, of scale * K + shift * I = L L^T; entries above the diagonal are undefined.

    K as from ``check_kernel``. Raises SingularKernelError if a pivot is not positive, and MatrixTooLargeError.
    """
    require_memory(len(K), arrays=1)
    M = K * scale if scale != 1.0 else K.copy()
    M.flat[:: len(M) + 1] += shift
    L, info = lapack.dpotrf(M.T, lower=1, overwrite_a=1, clean=0)
    _check_pivots(info)
    return L


def _check_pivots(info: int) -> None:
    if info:
        raise SingularKernelError(
            f"K + lam I is not positive definite in float64 at row {info}; raise lam or use solver='eigh'"
        )


def cholesky_solve(L: FloatArray, b: FloatArray) -> FloatArray:
    """x (n,) or (n, m) with L L^T x = b."""
    if b.ndim == 1 or b.shape[1] == 1:  # for one vector two triangular solves take half of dpotrs's time
        x = blas.dtrsv(L, b.ravel(), lower=1)
        return blas.dtrsv(L, x, lower=1, trans=1, overwrite_x=1).reshape(b.shape)
    return lapack.dpotrs(L, b, lower=1)[0]


def frobenius_norm(K: FloatArray) -> float:
    """‖K‖_F of K (n, n) from ``check_kernel``."""
    square = blas.ddot(K.ravel(), K.ravel()) if K.size <= MOST_ENTRIES else np.inf  # it counts in 32 bits
    # A sum of squares on two threads takes a tenth of the time of LAPACK, which scales entries against overflow.
    return float(np.sqrt(square)) if 1e-200 < square < 1e300 else lapack.dlange("F", K.T)


def cholesky_condition(kernel: Dense, L: FloatArray, lam: float, enough: float) -> float:
    """The condition number of K + lam I = L L^T, for a K that passes ``check_positive_semidefinite``.

    The bound (‖K‖_F + lam) / (lam - tolerance ‖K‖_F) if it is at most ``enough``, else LAPACK's estimate in
    the 1-norm, which takes half as long as the factorisation.
    """
    norm = frobenius_norm(kernel.K)
    least = lam - kernel.tolerance * norm
    if norm + lam <= enough * least:
        return (norm + lam) / least
    rcond, _ = lapack.dpocon(L, lapack.dlange("1", kernel.K.T) + lam, uplo="L")
    return 1 / rcond if rcond > 0 else np.inf


def check_positive_semidefinite(kernel: Dense, form: Tridiagonal | None = None) -> None:
    """Raise NotPositiveSemidefiniteError if the kernel matrix K has an eigenvalue clearly below 0.

    For solves by Cholesky factors, where lam may hide one: K + tolerance ‖K‖_F I has a factor only if no
    eigenvalue is below minus that shift, the bound that ``decompose`` uses. It costs one factorisation and is
    certain: Lanczos with (K + lam I)^-1 needs about sqrt(lam / delta) log n solves to separate an eigenvalue
    -delta from the many near 0, which is more work for all but the largest delta.
    A tridiagonal ``form`` of K is cheaper to factorise.
    """
    try:
        (form or kernel).solver(kernel.tolerance * frobenius_norm(kernel.K) or 1.0)  # K = 0 passes
    except SingularKernelError:
        raise NotPositiveSemidefiniteError("K is not positive semidefinite: it has a negative eigenvalue") from None
