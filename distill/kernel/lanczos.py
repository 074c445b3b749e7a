"""Chains for a kernel matrix that is too large to factorise, by block Lanczos, which needs only products with it.

From a start block [y | random columns], each pass multiplies the newest block of an orthonormal basis Q (n, k) by K.
With T = Q^T K Q = U Theta U^T (k, k), every formula of ``distill.kernel.spectral`` holds approximately with Theta for D
and Q U for V. The error is bounded: the residual of a fit's coefficients, (K + lam I) c - t, is orthogonal to Q, and
its norm follows from the last block of T (``BlockLanczos.errors``).

For one ridge path: Chen, Huber, Lin & Zaid 2025, arXiv 2501.18717. The random columns serve to estimate traces.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike
from scipy.sparse.linalg import aslinearoperator

from distill.errors import UserError
from distill.kernel import linalg, spectral
from distill.kernel.arguments import as_count, as_ridges, as_schedule, as_steps, as_targets
from distill.kernel.arrays import EPS, FloatArray, as_floats, check_overflow
from distill.kernel.basis_files import BasisFiles, locked
from distill.kernel.linalg import Spectrum
from distill.kernel.riskmap import EigenChain
from distill.kernel.spectral import DivergentChainError

LATEST_STEP = 1000  # the last finite step with an error bound, which is a sum over all earlier steps
Schedules = ArrayLike | Sequence[ArrayLike]  # numbers and schedules


class NotReachedError(UserError):
    """The basis is too small for the tolerance; the message names the ridges, and the basis that they would need.

    ``basis`` is the basis, ``lams`` (r,) the ridges that it does not reach, and ``needs`` (r,) the vectors that each
    would need, extrapolated; NaN if that is unknown. The results of all other ridges are within the tolerance.
    """

    basis: BlockLanczos
    lams: FloatArray
    needs: FloatArray


class BlockLanczos:
    """An orthonormal basis that grows by one block per product with K, and the results computed from it.

    ``K`` (n, n) is an array or anything that SciPy's ``aslinearoperator`` takes, real, symmetric and positive
    semidefinite; ``y`` (n,) or (n, m). ``probes`` columns of random signs, two at least, drawn with ``seed``, serve to
    estimate traces. ``max_basis`` bounds k, the number of basis vectors; memory for n × max_basis
    float64 numbers must be free. With ``checkpoint``, a folder, each pass is also written there, and the same call
    resumes from it, with a larger ``max_basis`` if need be. Raises ValueError for an argument out of its range,
    MatrixTooLargeError, OSError, and DataError for a checkpoint of another problem.
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
        try:
            self.operator = aslinearoperator(K)
        except TypeError:
            raise TypeError(f"K must be a matrix or a linear operator, not {type(K).__name__}") from None
        n = self.operator.shape[0]
        if self.operator.shape != (n, n) or self.operator.dtype.kind not in "biuf":
            raise ValueError(f"K must be square and real, not {self.operator.shape} of {self.operator.dtype}")
        self.y = as_targets(y, n)
        targets = self.y.reshape(n, -1)
        probes = as_count("probes", probes, least=2)
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (n, probes))
        self.max_basis = min(as_count("max_basis", max_basis), n)
        # Of K's Frobenius norm. Rounding in K, whose precision is its dtype's, disturbs symmetry and eigenvalues.
        eps = float(np.finfo(np.result_type(self.operator.dtype, np.float32)).eps)
        self._tolerance = max(linalg.NEGATIVE_TOLERANCE, linalg.LOW_PRECISION * eps)
        self._next, self._start, _ = _orthonormal_columns(np.hstack([targets, signs]))
        if self._next.shape[1] > self.max_basis:
            raise UserError(f"max_basis = {max_basis} is less than the {self._next.shape[1]} columns of the start")
        self._T = np.zeros((0, 0))
        self._coupling = np.zeros((self._next.shape[1], 0))  # of the next block with the last block of Q
        self._lost = 0.0  # the norm of what was left out of the blocks as rounding
        self.passes = 0
        self._pairs: tuple[FloatArray, FloatArray] | None = None  # of T
        self._files: BasisFiles | None = None
        saved = None
        if checkpoint is not None:
            problem = hashlib.sha256(repr((1, self.y.shape, probes, seed, str(self.operator.dtype))).encode())
            problem.update(np.ascontiguousarray(self.y).tobytes())
            self._files = BasisFiles(Path(checkpoint), problem.hexdigest())
            saved = self._files.read_state()
        if saved is not None:
            self.max_basis = max(self.max_basis, len(saved["T"]))
        linalg.require_bytes(
            8 * n * self.max_basis, f"a basis of {self.max_basis} vectors of length {n} needs", "; lower max_basis"
        )
        self._Q = np.empty((self.max_basis, n)).T  # pages that no pass has reached take no memory
        if self._files is not None and saved is not None:
            self._resume(self._files, saved)

    def _resume(self, files: BasisFiles, saved: dict[str, FloatArray]) -> None:
        """Continue from a checkpoint."""
        self._T = saved["T"]
        self._start = saved["start"]
        self._coupling = saved["coupling"]
        self._next = saved["next"]
        self._lost = float(saved["lost"])
        self.passes = int(saved["passes"])
        files.read_vectors(self._Q.T[: self.size])
        width = len(self._start)
        first = self._Q[:, :width]
        product = first.T @ self.operator.matmat(first)
        if not np.abs(product - self._T[:width, :width]).max() <= self._tolerance * np.abs(product).max():
            raise files.another("kernel matrix")

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
        """Make one pass: multiply the newest block by K, and append it to the basis.

        Raises KernelMatrixError's subclasses if K is not a kernel matrix, and OSError if the checkpoint cannot be
        written; then the basis is extended in memory, and the next pass writes what is missing.
        """
        block = self._next
        old = self.size
        new = old + block.shape[1]
        if new > self.max_basis:
            raise ValueError(f"max_basis = {self.max_basis} leaves no room for another pass")
        product = np.asarray(self.operator.matmat(block), dtype=np.float64)
        if not np.isfinite(product).all():
            raise linalg.NotFiniteError("the product of K with a block has NaN or infinite entries")
        T = np.zeros((new, new))
        T[:old, :old] = self._T
        T[old:, old - self._coupling.shape[1] : old] = self._coupling
        T[old - self._coupling.shape[1] : old, old:] = self._coupling.T
        inner = block.T @ product
        size = np.linalg.norm(product, axis=0).max(initial=0.0)
        difference = np.abs(inner - inner.T).max(initial=0.0)
        if difference > self._tolerance * max(size, np.abs(self._T).max(initial=0.0)):
            raise linalg.NotSymmetricError(
                f"K is not symmetric: Q^T K Q differs from its transpose by {difference:.3g}"
            )
        T[old:, old:] = (inner + inner.T) / 2
        self._Q[:, old:new] = block
        Q = self._Q[:, :new]
        product -= Q @ (Q.T @ product)
        following, coupling, lost = _orthonormal_columns(product, floor=10 * len(Q) ** 0.5 * EPS * size)
        # Columns that nearly vanished have lost their orthogonality. Once more is enough, by a small matrix near I.
        following -= Q @ (Q.T @ following)
        squares, rotation = np.linalg.eigh(following.T @ following)
        kept = squares > 0.01
        root = np.sqrt(np.maximum(squares, 0.0))
        coupling = root[:, None] * (rotation.T @ coupling)
        self._T = T
        self._next = following @ (rotation[:, kept] / root[kept])
        self._coupling = coupling[kept]
        self._lost = math.hypot(self._lost, lost, float(np.linalg.norm(coupling[~kept])))
        self._pairs = None
        self.passes += 1
        if self._files is not None:
            state = {"T": T, "coupling": self._coupling, "next": self._next, "start": self._start}
            self._files.save(Q.T, state | {"lost": np.array(self._lost), "passes": np.array(self.passes)})

    def coefficients(self, lam: float, alpha: ArrayLike, steps: ArrayLike) -> FloatArray:
        """The dual coefficients of one chain, (len(steps), n[, m]), as ``krr.dual_coefficients``."""
        theta, U = self._eigenpairs()
        z = self._targets(U).reshape(-1, *self.y.shape[1:])
        c = spectral.dual_coefficients(Spectrum(theta, np.eye(len(theta))), z, lam, alpha, steps)
        return spectral.map_columns(lambda columns: self._Q[:, : self.size] @ (U @ columns), c)

    @staticmethod
    def predict(K_new: Any, coefficients: FloatArray) -> FloatArray:
        """k(x, X) c at q new points, (steps, q[, m]), for ``coefficients``; ``K_new`` as in ``risk_map``."""
        outputs = spectral.map_columns(aslinearoperator(K_new).matmat, coefficients)
        return check_overflow("the predictions", outputs)

    def spectrum(self) -> Spectrum:
        """Theta (k,), large to small, and Q U (n, k): a spectrum for every function that takes one."""
        theta, U = self._eigenpairs()
        return Spectrum(theta, self._Q[:, : self.size] @ U)

    def risk_map(
        self, K_new: Any, target: ArrayLike, alphas: ArrayLike, lams: ArrayLike, steps: ArrayLike, loss: str = "squared"
    ) -> FloatArray:
        """The risk of every chain at q new points, as ``krr.risk_map``; ``K_new`` (q, n) is an array or operator."""
        return self.eigen.risk_map(self.rows(K_new), target, alphas, lams, steps, loss)

    def rows(self, K_new: Any) -> FloatArray:
        """K_new Q U, (q, size): new points in the basis of ``eigen``; ``K_new`` (q, n) is an array or operator."""
        U = self._eigenpairs()[1]
        operator = aslinearoperator(K_new)
        if operator.shape[1] != len(self.y):
            raise ValueError(f"K_new must have a column for each of the {len(self.y)} points, not {operator.shape}")
        return np.asarray(operator.matmat(self._Q[:, : self.size])) @ U

    def errors(self, alphas: Schedules, lams: ArrayLike, steps: ArrayLike) -> FloatArray:
        """Upper bounds of ‖error‖ / ‖fitted values‖ of every chain, (len(alphas), len(lams), len(steps)).

        Each of ``alphas`` is a number, or a schedule as in ``krr``. The fit of a target t has residual
        r = (K + lam) c - t and error lam (K + lam)^-1 r, at most ‖r‖. An error e in the target, which comes from the
        teacher, adds at most |1 - alpha| e: e_tau <= ‖r_tau‖ + |1 - alpha| e_(tau-1). Rounding in float64 is included,
        but not the effect of a K that is rounded to float32. NaN for a chain that diverges already with Theta, whose
        largest eigenvalue is at most K's. Raises ValueError for finite steps after LATEST_STEP.
        """
        lams = np.atleast_1d(as_ridges("lams", lams, 0, 1))
        steps = as_steps(steps)
        last = int(max((step for step in steps if step < math.inf), default=1))
        if last > LATEST_STEP:
            raise ValueError(f"errors are bounded up to step {LATEST_STEP} and at the limit, not at step {last}")
        return np.array([[self._chain_errors(lam, alpha, steps) for lam in lams] for alpha in _schedules(alphas)])

    def _chain_errors(self, lam: float, alpha: FloatArray, steps: list[float]) -> list[float]:
        """``errors`` of the schedule ``alpha``. In the limit (alpha K + lam) c = alpha y, and K c errs by
        lam/alpha (alpha K + lam)^-1 residual."""
        theta, U = self._eigenpairs()
        coupling = self._coupling @ U[self.size - self._coupling.shape[1] :]
        rounding = self._lost + 10 * EPS * float(theta[0])  # of what T lacks of K
        z = self._targets(U)

        def coefficients(steps: range | float) -> FloatArray:
            return (spectral.blend_filters(theta, lam, alpha, steps) / (theta + lam))[:, :, None] * z

        def residual(c: FloatArray) -> float:
            """The norm of (K + lam) c - t, with the rounding errors of K c."""
            return float(np.linalg.norm(coupling @ c) + rounding * np.linalg.norm(c))

        def relative(bound: float, c: FloatArray) -> float:
            if bound == 0:
                return 0.0
            values = float(np.linalg.norm(theta[:, None] * c))
            return bound / values if values > 0 else math.inf

        bounds = {}
        last = int(max((step for step in steps if step < math.inf), default=0))
        with suppress(DivergentChainError):
            bound = 0.0
            for tau, c in enumerate(coefficients(range(1, last + 1)) if last else [], start=1):
                blend = alpha[min(max(tau - 1, 1), len(alpha)) - 1]  # of fit tau; fit 1 has no teacher
                bound = residual(c) + abs(1 - blend) * bound
                bounds[float(tau)] = relative(bound, c)
        with suppress(DivergentChainError):
            if math.inf in steps:
                (c,) = coefficients(math.inf)
                bounds[math.inf] = relative(max(1.0, lam / (alpha[-1] * theta[0] + lam)) * residual(c), c)
        return [bounds.get(step, math.nan) for step in steps]

    def trace(self, filters: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Traces of f(K) and their standard errors, (len(filters),) each, from f(Theta) in ``filters`` (..., k)."""
        U = self._eigenpairs()[1]
        weights = (U.T[:, : len(self._start)] @ self._start[:, self._columns :]) ** 2  # (k, probes)
        estimates = np.atleast_2d(filters) @ weights
        return estimates.mean(axis=1), estimates.std(axis=1, ddof=1) / math.sqrt(estimates.shape[1])

    @property
    def eigen(self) -> EigenChain:
        """The problem along the vectors Q U; the rows of new points are K_new Q U."""
        theta, U = self._eigenpairs()
        z = self._targets(U).reshape(-1, *self.y.shape[1:])
        return EigenChain(len(self.y), theta, z, z, np.zeros(z.shape[1:]), self.trace)

    @property
    def _columns(self) -> int:
        return self.y.reshape(len(self.y), -1).shape[1]

    def _eigenpairs(self) -> tuple[FloatArray, FloatArray]:
        """Theta (k,), large to small, and U (k, k), computed once for each size of the basis."""
        if self.size == 0:
            self.extend()
        if self._pairs is None:
            theta, U = linalg.eigh(-self._T.T)  # T is symmetric
            if -theta[-1] < -self._tolerance * np.linalg.norm(theta):
                raise linalg.NotPositiveSemidefiniteError(
                    f"K is not positive semidefinite: it has an eigenvalue of at most {-theta[-1]:.3g}, and one of at "
                    f"least {-theta[0]:.3g}"
                )
            self._pairs = np.maximum(-theta, 0.0), U
        return self._pairs

    def _targets(self, U: FloatArray) -> FloatArray:
        """(Q U)^T y, (k, m)."""
        return U.T[:, : len(self._start)] @ self._start[:, : self._columns]


def lanczos(
    K: Any,
    y: ArrayLike,
    alphas: Schedules,
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

    Arguments as in ``BlockLanczos`` and its ``errors``; chains that diverge are left out. After each check ``report``
    is called with the basis size and the largest error. Raises NotReachedError, which names the ridges that
    ``max_basis`` vectors do not reach and holds the basis, and DataError if another process uses the checkpoint.
    """
    if not 0 < as_floats("tolerance", tolerance, 0, largest=math.inf) < math.inf:
        raise ValueError(f"tolerance must be positive and finite, not {tolerance}")
    with nullcontext() if checkpoint is None else locked(Path(checkpoint)):
        basis = BlockLanczos(K, y, probes=probes, max_basis=max_basis, seed=seed, checkpoint=checkpoint)
        history: list[tuple[int, FloatArray]] = []  # the basis size, and the largest error of each ridge
        check = 1
        while True:
            while basis.passes < check and not basis.full and not basis.exact:
                basis.extend()
            worst = np.fmax.reduce(np.fmax.reduce(basis.errors(alphas, lams, steps), axis=2), axis=0, initial=0.0)
            history.append((basis.size, worst))
            report(basis.size, float(worst.max()))
            if worst.max() <= tolerance:
                return basis
            if basis.full or basis.exact:
                raise _not_reached(basis, np.atleast_1d(np.asarray(lams, np.float64)), history, tolerance)
            check = math.ceil(1.1 * basis.passes) + 1  # not after every pass: the eigenvalues of T take k³ operations


def _not_reached(
    basis: BlockLanczos, lams: FloatArray, history: list[tuple[int, FloatArray]], tolerance: float
) -> NotReachedError:
    """The error with the basis that each missed ridge needs, extrapolated from the second half of the history."""
    sizes = np.array([size for size, _ in history])
    errors = np.array([worst for _, worst in history])
    missed = np.flatnonzero(errors[-1] > tolerance)
    needs = np.full(len(missed), np.nan)
    parts = []
    for i, j in enumerate(missed):
        recent = slice(len(sizes) // 2, None)
        if len(sizes[recent]) > 1 and np.isfinite(errors[recent, j]).all():
            slope, intercept = np.polyfit(sizes[recent], np.log(errors[recent, j]), 1)
            if slope < 0:
                need = math.ceil((math.log(tolerance) - intercept) / slope / 10) * 10
                needs[i] = min(need, len(basis.y))  # a basis of all vectors is exact
        size = "an unknown basis" if np.isnan(needs[i]) else f"some {needs[i]:.0f} vectors"
        parts.append(f"lam = {lams[j]:.3g} (error {errors[-1, j]:.2g}, needs {size})")
    error = NotReachedError(f"{sizes[-1]} basis vectors do not reach an error of {tolerance:g} for {', '.join(parts)}")
    error.basis = basis
    error.lams = lams[missed]
    error.needs = needs
    return error


def _schedules(alphas: Schedules) -> list[FloatArray]:
    """Each of ``alphas``, a number or a schedule, as a schedule (k,)."""
    if isinstance(alphas, list | tuple) and alphas:
        return [as_schedule(alpha) for alpha in alphas]
    return [as_schedule(alpha) for alpha in as_schedule(alphas)]  # type: ignore[arg-type]


def _orthonormal_columns(block: FloatArray, floor: float = 0.0) -> tuple[FloatArray, FloatArray, float]:
    """Q (n, r), R (r, b) and ‖block - Q R‖, with Q^T Q = I; r < b for columns that depend on others up to ``floor``."""
    Q, R, order = scipy.linalg.qr(block, mode="economic", pivoting=True)
    sizes = np.abs(np.diag(R))
    rank = int((sizes > max(floor, len(block) ** 0.5 * EPS * sizes[:1].max(initial=0.0))).sum())
    unordered = np.empty_like(R)
    unordered[:, order] = R
    return Q[:, :rank], unordered[:rank], float(np.linalg.norm(R[rank:]))
