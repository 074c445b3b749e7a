"""A chain, or a map of risks, from the kernel matrix, by the solver that costs least.

Those are an eigendecomposition, Cholesky factorisations and, for a map, a tridiagonal form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from distill.kernel import linalg, spectral
from distill.kernel.arguments import as_new_kernel, as_ridges, as_schedule, as_steps, as_targets
from distill.kernel.arrays import EPS, LARGEST_ENTRY, FloatArray, check_overflow, real_numbers
from distill.kernel.linalg import Dense, ShiftedSystem, SingularKernelError, Spectrum, product
from distill.kernel.riskmap import Grid, Predictions, make_risk, map_risks, spectral_predictions

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
    kernel = Dense(np.ascontiguousarray(real_numbers("K", K), dtype=np.float64)) if trusted else linalg.check_kernel(K)
    n = len(kernel.K)
    steps = as_steps(steps)
    y = as_targets(y, n)
    lam = float(as_ridges("lam", lam, 0))
    alphas = as_schedule(alpha)
    if solver == "auto":
        finite = [step for step in steps if step < math.inf]
        factorisations = len(steps) - len(finite) + bool(finite)  # one for each limit, one for all other steps
        possible = lam > 0 and limit_is_certain(steps, alphas[-1:])
        chosen = choose_solver(n, factorisations, max(finite, default=0), cholesky_possible=possible)
    else:
        chosen = solver
    if chosen == "cholesky":
        try:
            return _chain_by_cholesky(kernel, y, lam, alphas, steps, trusted)
        except SingularKernelError:
            if solver == "cholesky":
                raise
            # lam is below K's rounding errors; the spectrum, whose eigenvalues are at least 0, still works
    spectrum = linalg.decompose(kernel, overwrite=overwrite)
    coefficients = spectral.dual_coefficients(spectrum, y, lam, alphas, steps)
    return Chain(coefficients, (spectrum.d[0] + lam) / (spectrum.d[-1] + lam), "eigh")


def limit_is_certain(steps: list[float], alphas: FloatArray) -> bool:
    """Whether no limit is requested, or all ``alphas`` have a limit for any eigenvalues."""
    return math.inf not in steps or all(0 <= alpha <= 1 for alpha in alphas)


def _chain_by_cholesky(
    kernel: Dense, y: FloatArray, lam: float, alphas: FloatArray, steps: list[float], trusted: bool
) -> Chain:
    if not limit_is_certain(steps, alphas[-1:]):
        last = len(y) - 1
        largest_eigenvalue = scipy.linalg.eigvalsh(kernel.K, subset_by_index=[last, last])
        spectral.check_limit_exists(np.maximum(largest_eigenvalue, 0.0), lam, alphas[-1])
    if not trusted:
        linalg.check_positive_semidefinite(kernel)
    L = linalg.cholesky(kernel.K, lam)
    condition = linalg.cholesky_condition(kernel, L, lam, enough=UNTRUSTED)
    if lam == 0 and condition * len(y) * EPS >= 1:
        raise SingularKernelError("lam = 0 needs a nonsingular K; take lam > 0, or drop repeated points")
    coefficients = {}
    target = y
    for step in range(1, int(max((step for step in steps if step < math.inf), default=0)) + 1):
        # c^(tau) = (K + lam I)^-1 (alpha_tau y + (1 - alpha_tau) y^(tau-1))
        c = linalg.cholesky_solve(L, target)
        spectral.check_divergence(c[None], [step], first=c if step == 1 else None)
        if step in steps:
            coefficients[float(step)] = c
        alpha_tau = alphas[min(step, len(alphas)) - 1]
        with np.errstate(over="ignore", invalid="ignore"):  # the next step's test reports an overflow
            target = alpha_tau * y + (1 - alpha_tau) * fitted_values(kernel, lam, target, c)
    if math.inf in steps:
        limit = linalg.cholesky_solve(L, y) if lam == 0 else limit_by_solving(kernel, y, lam, alphas[-1])
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


def risk_map(
    K: ArrayLike | Spectrum,
    y: ArrayLike,
    K_new: ArrayLike,
    target: ArrayLike,
    alphas: ArrayLike,
    lams: ArrayLike,
    steps: ArrayLike,
    *,
    solver: str = "auto",
    overwrite: bool = False,
    loss: str = "squared",
) -> FloatArray:
    """The risk of every chain at every step: (len(alphas), len(lams), len(steps)) float64.

    K (n, n) kernel matrix, or its ``Spectrum``; y (n,) or (n, m); K_new (q, n) holds k(x, X) at the q points
    where ``target`` (q,) or (q, m) is known; alphas any numbers, lams >= 0, steps >= 1, ``math.inf`` for the
    limit. ``loss`` "squared" is the mean squared error; "zero_one" the share of points whose largest output of m >= 2
    is not that of the target. The risk is inf for a chain without a limit, and for one that exceeds float64's range.
    ``solver``, ``overwrite`` and exceptions as in ``chain``; there is also "tridiagonal", which reduces K to
    tridiagonal form once and needs no eigenvectors. With it and "cholesky" the lams must be > 0, the finite steps few,
    and limits need alpha in [0, 1].
    """
    check_solver(solver, "tridiagonal")
    grid = Grid(alphas, lams, steps)
    kernel = K if isinstance(K, Spectrum) else linalg.check_kernel(K)
    n = len(kernel.V if isinstance(kernel, Spectrum) else kernel.K)
    y = as_targets(y, n)
    K_new = as_new_kernel(K_new, n, LARGEST_ENTRY)
    risk = make_risk(loss, as_targets(target, len(K_new), "target", like=y))
    if isinstance(kernel, Spectrum):
        return map_risks(_by_spectrum(kernel, y, K_new, grid), grid, risk)
    if solver not in ("auto", "eigh") and not _grid_is_solvable(grid):
        raise ValueError(f"solver={solver!r} needs lam > 0, no late finite step, and 0 <= alpha <= 1 for a limit")
    chosen = _cheapest_solver(grid, n) if solver == "auto" else solver
    if chosen != "eigh":
        try:
            solves = _by_cholesky if chosen == "cholesky" else _by_tridiagonal
            return map_risks(solves(kernel, y, K_new, grid), grid, risk)
        except SingularKernelError:
            if solver != "auto":
                raise
            # lam is below K's rounding errors; the spectrum, whose eigenvalues are at least 0, still works
    return map_risks(_by_spectrum(linalg.decompose(kernel, overwrite=overwrite), y, K_new, grid), grid, risk)


def _cheapest_solver(grid: Grid, n: int) -> str:
    """The cheapest solver of a map for n points."""
    if not _grid_is_solvable(grid):
        return "eigh"
    factorisations = len(grid.single) + (grid.depth > 0)  # for each ridge one for each limit, one for all powers
    return choose_map_solver(n, len(grid.lams) * factorisations, len(grid.lams) * grid.depth, grid.columns)


def _grid_is_solvable(grid: Grid) -> bool:
    """Whether a map can be computed by solves: then each single prediction must be a limit that exists."""
    limits_only = grid.depth > 0 or all(step == math.inf for step in grid.steps)
    return bool((grid.lams > 0).all()) and limit_is_certain(grid.steps, grid.alphas) and limits_only


def _by_spectrum(spectrum: Spectrum, y: FloatArray, K_new: FloatArray, grid: Grid) -> Predictions:
    z = spectral.components(spectrum, y)
    # K_new V costs as much as n predictions, so it is computed only for many of them.
    if grid.columns >= len(K_new):
        return spectral_predictions(spectrum.d, z, partial(spectral.times, product(K_new, spectrum.V)))
    return spectral_predictions(spectrum.d, z, lambda c: spectral.times(K_new, spectral.times(spectrum.V, c)))


def _by_cholesky(kernel: Dense, y: FloatArray, K_new: FloatArray, grid: Grid) -> Predictions:
    linalg.check_positive_semidefinite(kernel)
    return _by_solves(kernel, y, partial(spectral.predict, K_new))


def _by_tridiagonal(kernel: Dense, y: FloatArray, K_new: FloatArray, grid: Grid) -> Predictions:
    if len(y) == 1:
        raise ValueError("solver='tridiagonal' needs at least two points")
    T = linalg.tridiagonalise(kernel)
    if grid.columns >= len(K_new):  # rotate the new points or the coefficients, whichever are fewer
        return _by_solves(T, T.rotate(y), partial(spectral.predict, T.rotate(K_new.T).T))
    return _by_solves(
        T, T.rotate(y), lambda c: spectral.predict(K_new, spectral.map_columns(partial(T.rotate, back=True), c))
    )


def _by_solves(system: ShiftedSystem, y: FloatArray, predict: Callable[[FloatArray], FloatArray]) -> Predictions:
    """Predictions by a factorisation for each ridge and each limit.

    y (n[, m]) and the coefficients that ``predict`` takes are in the system's basis.
    """

    def at_ridge(lam: float, grid: Grid) -> tuple[FloatArray, list[bool]]:
        coefficients = []
        if grid.depth:
            solve = system.solver(lam)
            target = y
            for _ in range(grid.depth):
                coefficients.append(solve(target))
                target = fitted_values(system, lam, target, coefficients[-1])  # A^j y
        coefficients += [limit_by_solving(system, y, lam, grid.alphas[i]) for i, _ in grid.single]
        return predict(np.array(coefficients)), [True] * len(grid.single)

    return at_ridge
