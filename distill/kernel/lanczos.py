"""Chains for a kernel matrix that is too large to factorise, by block Lanczos, which needs only products with it.

From a start block [y | random columns], each pass multiplies the newest block of an orthonormal basis Q (n, k) by K.
With T = Q^T K Q = U Theta U^T (k, k), every formula of ``distill.kernel.spectral`` holds approximately with Theta for D
and Q U for V. The error is bounded: the residual of a fit's coefficients, (K + lam I) c - t, is orthogonal to Q, and
its norm follows from the last block of T (``BlockLanczos.errors``).

For one ridge path: Chen, Huber, Lin & Zaid 2025, arXiv 2501.18717. The random columns serve to estimate traces.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike
from scipy.sparse.linalg import aslinearoperator

from distill.environment import available_memory
from distill.files import open_file, write_atomically
from distill.kernel import spectral
from distill.kernel.arguments import as_schedule, as_steps, as_targets
from distill.kernel.arrays import EPS, FloatArray
from distill.kernel.linalg import MatrixTooLargeError, NotFiniteError, Spectrum
from distill.kernel.riskmap import risk_map

LATEST_STEP = 1000  # the last finite step with an error bound, which is a sum over all earlier steps


class NotReachedError(ArithmeticError):
    """The basis is too small for the tolerance; the message names the ridges, and the basis that they would need."""


class BlockLanczos:
    """An orthonormal basis that grows by one block per product with K, and the results computed from it.

    ``K`` (n, n) is an array or anything that SciPy's ``aslinearoperator`` takes, symmetric and positive semidefinite;
    ``y`` (n,) or (n, m). ``probes`` columns of random signs serve to estimate traces. ``max_basis`` bounds k, the
    number of basis vectors; memory for n × max_basis float64 numbers must be free. With ``checkpoint``, a folder, the
    basis is kept there in a memory-mapped file, and the same call resumes from it. Raises MatrixTooLargeError, and
    ValueError for a checkpoint of another problem.
    """

    def __init__(
        self,
        K: Any,
        y: ArrayLike,
        *,
        probes: int = 20,
        max_basis: int = 2000,
        seed: int = 0,
        checkpoint: Path | None = None,
    ):
        self.operator = aslinearoperator(K)
        n = self.operator.shape[0]
        self.y = as_targets(y, n)
        targets = self.y.reshape(n, -1)
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (n, probes))
        self.max_basis = min(max_basis, n)
        needed = 8 * n * self.max_basis
        room = available_memory()
        if room is not None and needed > room:
            raise MatrixTooLargeError(
                f"a basis of {self.max_basis} vectors of length {n} needs {needed / 2**30:.1f} GiB, "
                f"but only {max(room, 0) / 2**30:.1f} GiB are free"
            )
        block, self._start = _orthonormal_columns(np.hstack([targets, signs]))
        if block.shape[1] > self.max_basis:
            raise ValueError(f"max_basis = {self.max_basis} is less than the {block.shape[1]} columns of the start")
        self._T = np.zeros((0, 0))
        self._next = block  # the block that the next pass appends to Q and multiplies by K
        self._coupling = np.zeros((block.shape[1], 0))  # of ``_next`` with the last block of Q
        self.passes = 0
        self._pairs: tuple[FloatArray, FloatArray] | None = None  # of T
        self._checkpoint = checkpoint
        if checkpoint is None:
            self._Q = np.empty((self.max_basis, n)).T  # pages that no pass has reached take no memory
        else:
            self._resume(checkpoint)

    def _resume(self, folder: Path) -> None:
        """Map the basis in ``folder``, and continue from the state there if there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        shape = (self.max_basis, len(self.y))
        state = folder / "state.npz"
        if not state.exists():
            self._Q = np.lib.format.open_memmap(folder / "basis.npy", "w+", np.float64, shape).T
            return
        self._Q = np.lib.format.open_memmap(folder / "basis.npy", "r+").T
        first = self._next
        with open_file(state) as file, np.load(file) as saved:
            if self._Q.shape != shape[::-1] or not np.array_equal(saved["start"], self._start):
                raise ValueError(f"{folder} holds the basis of another problem; delete it, or take another folder")
            self._T = saved["T"]
            self._coupling = saved["coupling"]
            self._next = saved["next"]
            self.passes = int(saved["passes"])
        width = first.shape[1]
        expected = first.T @ self.operator.matmat(first)
        if not np.allclose(expected, self._T[:width, :width], rtol=1e-3, atol=1e-3 * np.abs(expected).max()):
            raise ValueError(f"{folder} holds the basis of another kernel matrix; delete it, or take another folder")

    @property
    def size(self) -> int:
        """k, the number of basis vectors that have been multiplied by K."""
        return len(self._T)

    @property
    def exact(self) -> bool:
        """Whether K maps the span of the basis to itself; then the only errors are rounding."""
        return self._next.shape[1] == 0

    @property
    def full(self) -> bool:
        """Whether another block does not fit into ``max_basis``."""
        return self.size + self._next.shape[1] > self.max_basis

    def extend(self) -> None:
        """Make one pass: multiply the newest block by K, and append it to the basis."""
        block = self._next
        old = self.size
        new = old + block.shape[1]
        self._Q[:, old:new] = block
        product = np.asarray(self.operator.matmat(block), dtype=np.float64)
        if not np.isfinite(product).all():
            raise NotFiniteError("the product of K with a block has NaN or infinite entries")
        Q = self._Q[:, :new]
        T = np.zeros((new, new))
        T[:old, :old] = self._T
        T[old:, old - self._coupling.shape[1] : old] = self._coupling
        T[old - self._coupling.shape[1] : old, old:] = self._coupling.T
        inner = block.T @ product
        T[old:, old:] = (inner + inner.T) / 2
        size = np.linalg.norm(product, axis=0).max(initial=0.0)
        for _ in range(2):  # twice is enough for orthogonality to rounding
            product -= Q @ (Q.T @ product)
        self._T = T
        self._pairs = None
        self._next, self._coupling = _orthonormal_columns(product, floor=100 * len(Q) ** 0.5 * EPS * size)
        self.passes += 1
        if isinstance(self._Q.base, np.memmap) and self._checkpoint is not None:
            self._Q.base.flush()
            write_atomically(self._checkpoint / "state.npz", self._write_state)

    def _write_state(self, file: BinaryIO) -> None:
        passes = np.array(self.passes)
        np.savez(file, T=self._T, coupling=self._coupling, next=self._next, start=self._start, passes=passes)

    def spectrum(self) -> Spectrum:
        """Theta (k,), large to small, and Q U (n, k): a spectrum for every function that takes one."""
        theta, U = self._eigenpairs()
        return Spectrum(theta, self._Q[:, : self.size] @ U)

    def risk_map(
        self,
        K_new: Any,
        target: ArrayLike,
        alphas: ArrayLike,
        lams: ArrayLike,
        steps: ArrayLike,
        *,
        loss: str = "squared",
    ) -> FloatArray:
        """The risk of every chain at q new points, as ``krr.risk_map``; ``K_new`` (q, n) is an array or operator."""
        theta, U = self._eigenpairs()
        rotated = np.asarray(aslinearoperator(K_new).matmat(self._Q[:, : self.size] @ U))
        z = self._targets(U).reshape(-1, *self.y.shape[1:])
        return risk_map(Spectrum(theta, np.eye(len(theta))), z, rotated, target, alphas, lams, steps, loss=loss)

    def errors(self, alphas: ArrayLike, lams: ArrayLike, steps: ArrayLike) -> FloatArray:
        """Upper bounds of ‖error‖ / ‖fitted values‖ of every chain, (len(alphas), len(lams), len(steps)).

        The fit of a target t has residual r = (K + lam) c - t and error lam (K + lam)^-1 r, at most ‖r‖. An error e in
        the target, which comes from the teacher, adds at most |1 - alpha| e: e_tau <= ‖r_tau‖ + |1 - alpha|
        e_(tau-1). Rounding in float64 is included, but not the effect of a K that is rounded to float32. inf for a
        chain that diverges. Raises ValueError for finite steps after LATEST_STEP.
        """
        alphas = as_schedule(alphas)
        lams = np.atleast_1d(np.asarray(lams, np.float64))
        steps = as_steps(steps)
        last = int(max((step for step in steps if step < math.inf), default=1))
        if last > LATEST_STEP:
            raise ValueError(f"errors are bounded up to step {LATEST_STEP} and at the limit, not at step {last}")
        theta, U = self._eigenpairs()
        width = self._coupling.shape[1]
        coupling = self._coupling @ U[self.size - width :]
        z = self._targets(U)
        out = np.full((len(alphas), len(lams), len(steps)), np.inf)
        for i, alpha in enumerate(alphas):
            for j, lam in enumerate(lams):
                for s, step in enumerate(steps):
                    if step == math.inf:
                        out[i, j, s] = self._limit_error(theta, coupling, z, lam, alpha)
                finite = [s for s, step in enumerate(steps) if step < math.inf]
                if finite:
                    bounds = self._step_errors(theta, coupling, z, lam, alpha, last)
                    out[i, j, finite] = bounds[[int(steps[s]) - 1 for s in finite]]
        return out

    @staticmethod
    def _step_errors(
        theta: FloatArray, coupling: FloatArray, z: FloatArray, lam: float, alpha: float, last: int
    ) -> FloatArray:
        try:
            filters = spectral.blend_filters(theta, lam, alpha, range(1, last + 1)) / (theta + lam)
        except spectral.DivergentChainError:
            return np.full(last, np.inf)
        bound = 0.0
        bounds = np.empty(last)
        for tau, coefficients in enumerate(filters[:, :, None] * z):
            bound = _residual(theta, coupling, coefficients) + abs(1 - alpha) * bound
            bounds[tau] = _relative(bound, theta, coefficients)
        return bounds

    @staticmethod
    def _limit_error(theta: FloatArray, coupling: FloatArray, z: FloatArray, lam: float, alpha: float) -> float:
        # (alpha K + lam) c = alpha y: the error of K c is lam/alpha (alpha K + lam)^-1 times this equation's residual.
        try:
            filters = spectral.blend_filters(theta, lam, alpha, math.inf) / (theta + lam)
        except spectral.DivergentChainError:
            return math.inf
        coefficients = filters[0][:, None] * z
        growth = max(1.0, lam / (alpha * theta[0] + lam))
        return _relative(growth * _residual(theta, coupling, coefficients), theta, coefficients)

    def trace(self, filters: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Traces of f(K) and their standard errors, (len(filters),) each, from f(Theta) in ``filters`` (..., k)."""
        U = self._eigenpairs()[1]
        weights = (U.T[:, : len(self._start)] @ self._start[:, self._columns :]) ** 2  # (k, probes)
        estimates = np.atleast_2d(filters) @ weights
        return estimates.mean(axis=1), estimates.std(axis=1, ddof=1) / math.sqrt(estimates.shape[1])

    def degrees_of_freedom(self, lam: float, alpha: ArrayLike, steps: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Effective degrees of freedom tr B^(tau) and their standard errors, (len(steps),) each."""
        return self.trace(spectral.diagonals(self._eigenpairs()[0], lam, alpha, steps))

    def generalised_cross_validation(
        self, lam: float, alpha: ArrayLike, steps: ArrayLike
    ) -> tuple[FloatArray, FloatArray]:
        """GCV(tau) and its standard errors, from those of the traces, (len(steps),) each; see ``krr``."""
        n = len(self.y)
        theta, U = self._eigenpairs()
        left = 1 - spectral.diagonals(theta, lam, alpha, steps)
        z = self._targets(U)
        error = (left**2 @ z**2).sum(axis=1) / self.y.size
        trace, deviation = self.degrees_of_freedom(lam, alpha, steps)
        share = 1 - trace / n
        return error / share**2, 2 * error / share**3 * deviation / n

    @property
    def _columns(self) -> int:
        return self.y.reshape(len(self.y), -1).shape[1]

    def _eigenpairs(self) -> tuple[FloatArray, FloatArray]:
        """Theta (k,), large to small, and U (k, k), computed once for each size of the basis."""
        if self._pairs is None:
            theta, U = scipy.linalg.eigh(-self._T, driver="evd")
            self._pairs = np.maximum(-theta, 0.0), U
        return self._pairs

    def _targets(self, U: FloatArray) -> FloatArray:
        """(Q U)^T y, (k, m)."""
        return U.T[:, : len(self._start)] @ self._start[:, : self._columns]


def lanczos(
    K: Any,
    y: ArrayLike,
    alphas: ArrayLike,
    lams: ArrayLike,
    steps: ArrayLike,
    *,
    tolerance: float = 1e-3,
    probes: int = 20,
    max_basis: int = 2000,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[int, float], object] = lambda size, error: None,
) -> BlockLanczos:
    """A basis in which every chain of the grid has a relative error of the fitted values of at most ``tolerance``.

    Arguments as in ``BlockLanczos`` and its ``errors``. After each check ``report`` is called with the basis size and
    the largest error. Raises NotReachedError, with the ridges that ``max_basis`` vectors do not reach.
    """
    basis = BlockLanczos(K, y, probes=probes, max_basis=max_basis, seed=seed, checkpoint=checkpoint)
    history: list[tuple[int, FloatArray]] = []  # the basis size, and the largest error of each ridge
    check = 1
    while True:
        while basis.passes < check and not basis.full and not basis.exact:
            basis.extend()
        worst = basis.errors(alphas, lams, steps).max(axis=(0, 2))
        history.append((basis.size, worst))
        report(basis.size, float(worst.max()))
        if worst.max() <= tolerance:
            return basis
        if basis.full or basis.exact:
            raise NotReachedError(_not_reached(np.atleast_1d(np.asarray(lams, np.float64)), history, tolerance))
        check = math.ceil(1.1 * basis.passes) + 1  # not after every pass: the eigenvalues of T take k³ operations


def _not_reached(lams: FloatArray, history: list[tuple[int, FloatArray]], tolerance: float) -> str:
    """A message with the basis that each missed ridge needs, extrapolated from the second half of the history."""
    sizes = np.array([size for size, _ in history])
    errors = np.array([worst for _, worst in history])
    parts = []
    for lam, column in zip(lams, errors.T, strict=True):
        if column[-1] <= tolerance:
            continue
        need = "an unknown basis"
        recent = slice(len(sizes) // 2, None)
        if len(sizes[recent]) > 1 and np.isfinite(column[recent]).all():
            slope, intercept = np.polyfit(sizes[recent], np.log(column[recent]), 1)
            if slope < 0:
                need = f"some {math.ceil((math.log(tolerance) - intercept) / slope / 10) * 10} vectors"
        parts.append(f"lam = {lam:.3g} (error {column[-1]:.2g}, needs {need})")
    return f"{sizes[-1]} basis vectors do not reach an error of {tolerance:g} for {', '.join(parts)}"


def _residual(theta: FloatArray, coupling: FloatArray, coefficients: FloatArray) -> float:
    """The norm of (K + lam) c - t, and of the rounding errors of K c in float64."""
    return float(np.linalg.norm(coupling @ coefficients) + 10 * EPS * theta[0] * np.linalg.norm(coefficients))


def _relative(bound: float, theta: FloatArray, coefficients: FloatArray) -> float:
    """``bound`` over the norm of the fitted values."""
    if bound == 0:
        return 0.0
    values = float(np.linalg.norm(theta[:, None] * coefficients))
    return bound / values if values > 0 else math.inf


def _orthonormal_columns(block: FloatArray, floor: float = 0.0) -> tuple[FloatArray, FloatArray]:
    """Q (n, r) and R (r, b) with block = Q R up to ``floor``, and Q^T Q = I; r < b for dependent columns."""
    Q, R, order = scipy.linalg.qr(block, mode="economic", pivoting=True)
    sizes = np.abs(np.diag(R))
    rank = int((sizes > max(floor, len(block) ** 0.5 * EPS * sizes[:1].max(initial=0.0))).sum())
    unordered = np.empty_like(R)
    unordered[:, order] = R
    return Q[:, :rank], unordered[:rank]
