"""One chain from its kernel matrix, by an eigendecomposition or a Cholesky factorisation, whichever costs less."""

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from distill.kernel.arguments import as_ridges, as_schedule, as_steps, as_targets
from distill.kernel.arrays import EPS, FloatArray, check_overflow, real_numbers
from distill.kernel.linalg import (
    Dense,
    ShiftedSystem,
    SingularKernelError,
    check_kernel,
    check_positive_semidefinite,
    cholesky,
    cholesky_condition,
    cholesky_solve,
    decompose,
)
from distill.kernel.spectral import check_divergence, check_limit_exists, dual_coefficients

# Costs in units of one Cholesky factorisation, measured at n = 2,000 on 2 cores (benchmarks/kernel.py, part d).
EIGH_COST = 14
SOLVE_COST = 40  # of one solve with a factor, times n
# Of one tridiagonal form, divided by n. It costs 1.8 factorisations at n = 1,000, 5.1 at 2,000 and 11 at 4,000, because
# half of its work are matrix-vector products, which wait for memory once K exceeds the processor's cache.
TRIDIAGONAL_COST = 1 / 400
# For more columns than this times n² the full eigendecomposition is cheaper than the tridiagonal form: a column takes
# some 15 microseconds more by tridiagonal solves than by eigenvectors.
TRIDIAGONAL_COLUMNS = 1 / 200

UNTRUSTED = 1e9  # condition number of K + lam I above which fewer than about six digits of a fit are reliable


@dataclass(frozen=True)
class Chain:
    """Dual coefficients (steps, n[, m]), the condition number of K + lam I, and the solver that was used.

    With "eigh" the condition number is that of the 2-norm. With "cholesky" it is an upper bound of it or, above
    UNTRUSTED, an estimate for the 1-norm (``distill.kernel.linalg.cholesky_condition``).
    """

    coefficients: FloatArray
    condition: float
    solver: str


def choose_solver(n: int, factorisations: int, solves: float, *, cholesky_possible: bool = True) -> str:
    """The cheaper of "eigh" and "cholesky" for a job with that many Cholesky factorisations and solves."""
    cheaper = _cholesky_cost(n, factorisations, solves) < EIGH_COST
    return "cholesky" if cholesky_possible and cheaper else "eigh"


def choose_map_solver(n: int, factorisations: int, solves: float, columns: int) -> str:
    """The cheapest of "eigh", "cholesky" and "tridiagonal" for a map of ``columns`` predictions, all possible."""
    by_cholesky = _cholesky_cost(n, factorisations, solves)
    by_tridiagonal = TRIDIAGONAL_COST * n if columns <= TRIDIAGONAL_COLUMNS * n**2 else math.inf
    if by_cholesky < min(by_tridiagonal, EIGH_COST):
        return "cholesky"
    # The eigendecomposition starts with the tridiagonal form, so it costs more.
    return "tridiagonal" if by_tridiagonal < math.inf else "eigh"


def _cholesky_cost(n: int, factorisations: int, solves: float) -> float:
    # Plus one factorisation to test the sign of K's eigenvalues, which an eigendecomposition shows anyway.
    return 1 + factorisations + solves * SOLVE_COST / n


def check_solver(solver: str, *others: str) -> None:
    """Raise ValueError unless ``solver`` is one of a chain's solvers or one of ``others``."""
    solvers = ("auto", "eigh", "cholesky", *others)
    if not isinstance(solver, str) or solver not in solvers:
        raise ValueError(f"solver must be one of {', '.join(solvers)}, not {repr(solver)[:50]}")


def chain(
    K: ArrayLike,
    y: ArrayLike,
    lam: float,
    alpha: ArrayLike,
    steps: ArrayLike,
    *,
    solver: str = "auto",
    overwrite: bool = False,
    trusted: bool = False,
) -> Chain:
    """One chain from the kernel matrix: its dual coefficients at ``steps``.

    K (n, n), y (n,) or (n, m). "cholesky" factorises K + lam I once and solves once a step; "eigh" decomposes K and
    computes any step directly; "auto" takes the cheaper. ``overwrite`` lets K's memory be used: at most three n × n
    arrays at once. A ``trusted`` K is known to be symmetric and positive semidefinite, as an RBF kernel's is for any
    points: both tests, which double the cost of a factorisation, are skipped. Raises KernelMatrixError's subclasses,
    SingularKernelError, DivergentChainError, MatrixTooLargeError, and ValueError for an argument out of its range.
    """
    check_solver(solver)
    kernel = Dense(np.ascontiguousarray(real_numbers("K", K), dtype=np.float64)) if trusted else check_kernel(K)
    n = len(kernel.K)
    steps = as_steps(steps)
    y = as_targets(y, n)
    lam = float(as_ridges("lam", lam, 0))
    alphas = as_schedule(alpha)
    if solver == "cholesky" or (solver == "auto" and _prefers_cholesky(n, lam, alphas, steps)):
        try:
            return _chain_by_cholesky(kernel, y, lam, alphas, steps, trusted)
        except SingularKernelError:
            if solver == "cholesky":
                raise
            # lam is below K's rounding errors; the spectrum, whose eigenvalues are at least 0, still works
    spectrum = decompose(kernel, overwrite=overwrite)
    coefficients = dual_coefficients(spectrum, y, lam, alphas, steps)
    return Chain(coefficients, (spectrum.d[0] + lam) / (spectrum.d[-1] + lam), "eigh")


def _prefers_cholesky(n: int, lam: float, alphas: FloatArray, steps: list[float]) -> bool:
    """Whether Cholesky factorisations can certainly compute the chain, and cost less."""
    finite = [step for step in steps if step < math.inf]
    factorisations = len(steps) - len(finite)  # one for each limit ...
    if finite:
        factorisations += 1  # ... and one for all other steps
    possible = lam > 0 and limit_is_certain(steps, alphas[-1:])
    return choose_solver(n, factorisations, max(finite, default=0), cholesky_possible=possible) == "cholesky"


def limit_is_certain(steps: list[float], alphas: FloatArray) -> bool:
    """Whether no limit is requested, or all ``alphas`` have a limit for any eigenvalues."""
    return math.inf not in steps or all(0 <= alpha <= 1 for alpha in alphas)


def _chain_by_cholesky(
    kernel: Dense, y: FloatArray, lam: float, alphas: FloatArray, steps: list[float], trusted: bool
) -> Chain:
    if not limit_is_certain(steps, alphas[-1:]):
        last = len(y) - 1
        largest_eigenvalue = scipy.linalg.eigvalsh(kernel.K, subset_by_index=[last, last])
        check_limit_exists(np.maximum(largest_eigenvalue, 0.0), lam, alphas[-1])
    if not trusted:
        check_positive_semidefinite(kernel)
    L = cholesky(kernel.K, lam)
    condition = cholesky_condition(kernel, L, lam, enough=UNTRUSTED)
    if lam == 0 and condition * len(y) * EPS >= 1:
        raise SingularKernelError("lam = 0 needs a nonsingular K; take lam > 0, or drop repeated points")
    coefficients = {}
    target = y
    for step in range(1, int(max((step for step in steps if step < math.inf), default=0)) + 1):
        # c^(tau) = (K + lam I)^-1 (alpha_tau y + (1 - alpha_tau) y^(tau-1))
        c = cholesky_solve(L, target)
        check_divergence(c[None], [step], first=c if step == 1 else None)
        if step in steps:
            coefficients[float(step)] = c
        alpha_tau = alphas[min(step, len(alphas)) - 1]
        with np.errstate(over="ignore", invalid="ignore"):  # the next step's test reports an overflow
            target = alpha_tau * y + (1 - alpha_tau) * fitted_values(kernel, lam, target, c)
    if math.inf in steps:
        limit = cholesky_solve(L, y) if lam == 0 else limit_by_solving(kernel, y, lam, alphas[-1])
        coefficients[math.inf] = check_overflow("the coefficients of the limit", limit)
    return Chain(np.array([coefficients[step] for step in steps]), condition, "cholesky")


def fitted_values(system: ShiftedSystem, lam: float, target: FloatArray, c: FloatArray) -> FloatArray:
    """K c for c = (K + lam I)^-1 target, computed as K c or as the equal target - lam c.

    For small lam the product has larger rounding errors; for large lam the difference loses digits.
    """
    return target - lam * c if lam <= system.mean_eigenvalue else system.times(c)


def limit_by_solving(system: ShiftedSystem, y: FloatArray, lam: float, alpha: float) -> FloatArray:
    """c^(inf) = (alpha K + lam I)^-1 alpha y, for lam > 0: defined at alpha = 0 too, where it is 0."""
    return system.solver(lam, alpha)(alpha * y) if alpha else np.zeros_like(y)
