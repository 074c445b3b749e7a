"""Kernel ridge self-distillation in closed form.

The chain (Borup & Andersen, NeurIPS 2021, arXiv 2102.13088): y^(0) = y, and for fits tau = 1, 2, ...

    f^(tau)(x) = k(x, X) (K + lam I)^-1 (alpha_tau y + (1 - alpha_tau) y^(tau-1)),    y^(tau) = f^(tau)(X).

With K = V D V^T, A = D (D + lam)^-1 and z = V^T y every fit is diagonal:

    y^(tau) = V B^(tau) z,    B^(tau) = A w^(tau),    c^(tau) = V (D + lam)^-1 w^(tau) z,    f^(tau)(x) = k(x,
    X) c^(tau),

where w^(tau) = alpha_tau + (1 - alpha_tau) B^(tau-1), w^(1) = 1, is what blending did to the targets: the
*blend filter*. It is what this file computes, because B and c follow from it with no division by D.

Conventions: `d` (n,) are K's eigenvalues, large to small, >= 0. `lam` >= 0 is the ridge. `alpha` is any
finite number, or a schedule: a sequence whose first entry is the weight of fit 2 (fit 1 has no teacher) and
whose last one repeats. `steps` are fit numbers >= 1, `math.inf` for the limit. Targets are (n,) or (n, m).
All is float64.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.linalg

from distill.kernel.linalg import (
    EPS,
    Dense,
    NotFiniteError,
    SingularKernelError,
    Spectrum,
    check_kernel,
    cholesky,
    cholesky_condition,
    cholesky_solve,
    decompose,
    product,
    refuse_negative_eigenvalues,
    tridiagonalise,
)
from distill.kernel.mixing import AUTO_FITS as AUTO_FITS
from distill.kernel.mixing import alphas_to_weights
from distill.kernel.mixing import auto_schedule as auto_schedule
from distill.kernel.mixing import best_alpha as best_alpha
from distill.kernel.mixing import greedy_alphas as greedy_alphas
from distill.kernel.mixing import joint_weights as joint_weights
from distill.kernel.mixing import weights_to_alphas as weights_to_alphas

# In units of one Cholesky factorisation, measured at n = 2,000 on 2 cores (benchmarks/kernel.py, part d).
EIGH_COST = 14
SOLVE_COST = 40  # of one solve with a factor, times n
# Of one tridiagonal form, over n: 1.8 factorisations at n = 1,000, 5.1 at 2,000, 11 at 4,000, where K outgrows the
# processor's cache. (Half of its work are products with a vector, which wait for memory.)
TRIDIAGONAL_COST = 1 / 400
# A column of a map takes some 15 microseconds more by tridiagonal solves than by eigenvectors. Times n², the number
# of columns past which the second half of the eigendecomposition is the cheaper.
TRIDIAGONAL_COLUMNS = 1 / 200

UNTRUSTED = 1e9  # condition number of K + lam I past which fewer than some six digits of a fit can be trusted


class DivergentChainError(ValueError):
    """The chain has no limit, or left the range of float64 before the step asked for."""


# ---- arguments


def _schedule(alpha) -> np.ndarray:
    alphas = np.atleast_1d(np.asarray(alpha, dtype=np.float64))
    if alphas.ndim != 1 or len(alphas) == 0 or not np.isfinite(alphas).all():
        raise ValueError(f"alpha must be a finite number or a sequence of them, not {alpha!r}")
    return alphas


def _steps(steps) -> list[float]:
    steps = [float(step) for step in np.atleast_1d(np.asarray(steps, dtype=np.float64))]
    if not all(step >= 1 and (step == math.inf or step == int(step)) for step in steps):
        raise ValueError(f"steps must be whole numbers from 1 or inf, not {steps}")
    return steps


def _check_lam(d: np.ndarray, lam: float) -> None:
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be a finite number from 0, not {lam!r}")
    if d[-1] + lam == 0 or (lam == 0 and d[-1] <= len(d) * EPS * d[0]):
        raise SingularKernelError(
            f"lam = 0 needs a nonsingular K, and its eigenvalues go from {d[0]:.3g} down to {d[-1]:.3g}; "
            "take lam > 0, or drop repeated points"
        )


def _targets(y, n: int) -> np.ndarray:
    y = np.asarray(y, dtype=np.float64)
    if y.ndim not in (1, 2) or len(y) != n:
        raise ValueError(f"y must have a row for each of the {n} points, not shape {y.shape}")
    if not np.isfinite(y).all():
        raise NotFiniteError("y has NaN or infinite entries")
    return y


# ---- the chain, spectrally


def shrinkage(d, lam: float) -> np.ndarray:
    """A = D (D + lam)^-1, (n,) in [0, 1]: what one ridge fit leaves of each eigen-component."""
    d = np.asarray(d, dtype=np.float64)
    _check_lam(d, lam)
    return d / (d + lam)


def convergence_rate(d, lam: float, alpha: float) -> float:
    """|1 - alpha| d_1 / (d_1 + lam), by which each fit comes closer to the limit; there is one only below 1.

    At lam = 0 it is 0: every fit interpolates y, whatever alpha.
    """
    _check_lam(d, lam)
    return 0.0 if lam == 0 else abs(1 - alpha) * d[0] / (d[0] + lam)


def _refuse_divergence(d, lam, alpha) -> None:
    rate = convergence_rate(d, lam, alpha)
    if rate >= 1:
        raise DivergentChainError(
            f"the chain diverges: alpha = {alpha:g}, lam = {lam:g} give |1 - alpha| d_1/(d_1 + lam) = "
            f"{rate:.4g}, and a limit needs less than 1"
        )


def blend_filters(d, lam: float, alpha, steps) -> np.ndarray:
    """The blend filters w^(tau), (len(steps), n), each at O(n) however late the step.

    From step s on, where the weight is constant, w^(tau) = alpha + (1 - alpha) A w^(tau-1) is a geometric
    series in q = (1 - alpha) A (Borup & Andersen, written so that nothing cancels when q is near
    1):

        w^(s+m) = q^m w^(s) + alpha (1 - q^m) / (1 - q),    w^(inf) = alpha / (1 - q).

    Raises DivergentChainError for a limit that does not exist and where the step overflows.
    """
    d = np.asarray(d, dtype=np.float64)
    A, alphas, steps = shrinkage(d, lam), _schedule(alpha), _steps(steps)
    if lam == 0:  # A = I: the blend of y with y is y. The series below would give it with rounding, or 0/0
        return np.ones((len(steps), len(d)))
    *head, last = alphas
    w = [np.ones_like(d)]
    for weight in head:
        # w^(tau) = alpha_tau + (1 - alpha_tau) A w^(tau-1)
        w.append(weight + (1 - weight) * A * w[-1])
    if math.inf in steps:
        _refuse_divergence(d, lam, last)
    out = np.empty((len(steps), len(d)))
    gap = (last * d + lam) / (d + lam)  # 1 - q, without the cancellation
    for row, step in zip(out, steps, strict=True):
        if step <= len(w):
            row[:] = w[int(step) - 1]
        elif step == math.inf:
            row[:] = last / gap
        else:
            power, series = _geometric(gap, step - len(w))
            with np.errstate(over="ignore", invalid="ignore"):
                row[:] = power * w[-1] + last * series
            if not np.isfinite(row).all():
                raise DivergentChainError(
                    f"the chain diverges: with alpha = {last:g}, lam = {lam:g} step {step:g} is past 1e308"
                )
    return out


def _geometric(gap, m):
    """q^m and 1 + q + ... + q^(m-1) for q = 1 - gap, m >= 1."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # q^m = exp(m log q); 1 - q^m = -expm1(m log q) keeps its digits where q^m is near 1
        log_power = m * np.log1p(-np.minimum(gap, 1.0))
        power = np.where(gap <= 1, np.exp(log_power), np.power(1 - gap, m))
        series = np.where(gap <= 1, -np.expm1(log_power), 1 - power) / np.where(gap == 0, 1, gap)
    return power, np.where(gap == 0, m, series)


def diagonals(d, lam: float, alpha, steps) -> np.ndarray:
    """B^(tau) in closed form, (len(steps), n): y^(tau) = V B^(tau) V^T y. Errors as `blend_filters`."""
    # B^(tau) = A w^(tau)
    return shrinkage(d, lam) * blend_filters(d, lam, alpha, steps)


def diagonals_by_recursion(d, lams, alphas, n_steps: int) -> np.ndarray:
    """B^(1), ..., B^(n_steps) by the recursion itself, (n_steps, n); lam and alpha may differ by step.

    `lams`: a number or a sequence from fit 1, `alphas`: a number or a sequence from fit 2; the last repeats.
    """
    lams, alphas = np.atleast_1d(np.asarray(lams, dtype=np.float64)), _schedule(alphas)
    B = np.ones((n_steps + 1, len(d)))  # B^(0) = I
    for tau in range(1, n_steps + 1):
        A = shrinkage(d, float(lams[min(tau, len(lams)) - 1]))
        alpha = alphas[min(max(tau - 2, 0), len(alphas) - 1)]
        # B^(tau) = A (alpha_tau I + (1 - alpha_tau) B^(tau-1))
        B[tau] = A * (alpha + (1 - alpha) * B[tau - 1])
    return B[1:]


def limit_diagonal(d, lam: float, alpha: float) -> np.ndarray:
    """B^(inf) = alpha D (alpha D + lam)^-1, (n,): an ordinary fit with ridge lam/alpha; 0 for alpha = 0."""
    return diagonals(d, lam, alpha, math.inf)[0]


def convergence_bound(d, lam: float, alpha: float, steps, first_distance: float = 1.0) -> np.ndarray:
    """Upper bounds (len(steps),) on ‖y^(tau) - y^(inf)‖, given `first_distance` = ‖y^(1) - y^(inf)‖.

    (|1 - alpha| d_1/(d_1 + lam))^(tau-1) ‖y^(1) - y^(inf)‖
    """
    _refuse_divergence(d, lam, alpha)
    return convergence_rate(d, lam, alpha) ** (np.array(_steps(steps)) - 1) * first_distance


def fitted_values(spectrum: Spectrum, y, B) -> np.ndarray:
    """y^(tau) = V B^(tau) V^T y at the training points, (steps, n[, m]), for diagonals `B` (steps, n)."""
    y = _targets(y, len(spectrum.d))
    return _rotate(spectrum.V, np.asarray(B), product(spectrum.V.T, y))


def dual_coefficients(spectrum: Spectrum, y, lam: float, alpha, steps) -> np.ndarray:
    """c^(tau), (len(steps), n[, m]), with f^(tau)(x) = k(x, X) c^(tau). Errors as `blend_filters`."""
    y = _targets(y, len(spectrum.d))
    # c^(tau) = V (D + lam)^-1 w^(tau) z
    return _rotate(
        spectrum.V,
        blend_filters(spectrum.d, lam, alpha, steps) / (spectrum.d + lam),
        product(spectrum.V.T, y),
    )


def _rotate(V, filters, z) -> np.ndarray:
    """V diag(filter) z for each of `filters` (steps, n) in one matrix product: (steps, n[, m])."""
    columns = filters.reshape(*filters.shape, *[1] * (z.ndim - 1)) * z  # (steps, n[, m])
    return _at_once(partial(product, V), columns)


def _at_once(multiply, columns) -> np.ndarray:
    """A linear map of the columns of an (n, k), for all `columns` (steps, n[, m]) in one call: (steps, q[, m])."""
    flat = multiply(np.moveaxis(columns, 0, -1).reshape(columns.shape[1], -1))
    return np.moveaxis(flat.reshape(len(flat), *columns.shape[2:], len(columns)), -1, 0)


def predict(K_new, coefficients) -> np.ndarray:
    """f^(tau)(x) = k(x, X) c^(tau) at q new points for many steps at once: (steps, q[, m]).

    `K_new` (q, n) holds k(x, X), `coefficients` (steps, n[, m]) come from `dual_coefficients` or `chain`.
    """
    return _at_once(partial(product, np.asarray(K_new, dtype=np.float64)), np.asarray(coefficients))


# ---- what a chain does to the spectrum


def sparsification_ratios(B) -> np.ndarray:
    """R_k = B_k / B_(k+1), (..., n-1), of diagonals `B` (..., n) with d from large to small.

    inf where only B_(k+1) has vanished, NaN where both have: a ratio of nothing to nothing. For alpha = 0 the
    ratios grow with the step without bound, for alpha > 0 they settle at those of the limit.
    """
    B = np.asarray(B)
    with np.errstate(divide="ignore", invalid="ignore"):
        return B[..., :-1] / B[..., 1:]


def degrees_of_freedom(B) -> np.ndarray:
    """Effective degrees of freedom tr B^(tau), (...,), of diagonals `B` (..., n)."""
    return np.asarray(B).sum(axis=-1)


def generalised_cross_validation(spectrum: Spectrum, y, B) -> np.ndarray:
    """GCV(tau) = (‖(I - B) z‖² / (n m)) / (1 - tr(B)/n)², (steps,): estimates of the prediction error.

    Golub, Heath & Wahba 1979. `B` (steps, n). inf where tr(B) = n: an interpolant tells nothing of its error.
    """
    B, y = np.atleast_2d(B), _targets(y, len(spectrum.d))
    z = (product(spectrum.V.T, y)).reshape(len(y), -1)
    left = 1 - B
    error = (left**2 * (z**2).sum(axis=1)).sum(axis=1) / z.size
    share = left.mean(axis=1)
    return np.divide(error, share**2, out=np.full(len(B), np.inf), where=share > EPS)


# ---- the best weight: what distill.weights needs of the spectrum


def power_coefficients(spectrum: Spectrum, y, lam: float, k: int) -> np.ndarray:
    """Dual coefficients of A y, ..., A^k y (k, n[, m]), whose span holds fit k of every chain with lam."""
    y, A = _targets(y, len(spectrum.d)), shrinkage(spectrum.d, lam)
    # V (D + lam)^-1 A^(j-1) z
    return _rotate(spectrum.V, A ** np.arange(k)[:, None] / (spectrum.d + lam), product(spectrum.V.T, y))


def gcv_residuals(spectrum: Spectrum, y, lam: float, k: int) -> np.ndarray:
    """r_j = (1 - A^j) z / (1 - tr(A^j)/n), (k, n[, m]), j = 1..k: for the best weights without held-out data.

    Dang, Patil & Rinaldo 2026, arXiv 2602.17565. It needs n in the hundreds. Raises ValueError at lam = 0,
    where every residual is 0/0.
    """
    y = _targets(y, len(spectrum.d))
    _check_lam(spectrum.d, lam)
    if lam == 0:
        raise ValueError("generalised cross-validation needs lam > 0: an interpolant has no residuals")
    j = np.arange(1, k + 1)[:, None]
    with np.errstate(divide="ignore"):  # 1 - A^j = -expm1(j log(1 - lam/(d + lam))), exact for small lam
        left = -np.expm1(j * np.log1p(-lam / (spectrum.d + lam)))
    filters = left / left.mean(axis=1, keepdims=True)
    z = product(spectrum.V.T, y)
    return filters.reshape(*filters.shape, *[1] * (z.ndim - 1)) * z


# ---- solving: one eigendecomposition, or one Cholesky factorisation for each lam


@dataclass(frozen=True)
class Chain:
    """Dual coefficients (steps, n[, m]), the condition number of K + lam I, and the solver that was taken.

    The condition number with "eigh" is that of the 2-norm. With "cholesky" it is an upper bound of it, or where that
    is past UNTRUSTED an estimate for the 1-norm (`distill.linalg.cholesky_condition`).
    """

    coefficients: np.ndarray
    condition: float
    solver: str


def choose_solver(n: int, factorisations: int, solves: float, *, cholesky_possible: bool = True) -> str:
    """The cheaper of "eigh" and "cholesky" for a job with that many Cholesky factorisations and solves."""
    # One more factorisation tests the sign of K's eigenvalues, which the eigendecomposition tells anyway.
    cheaper = _cholesky_cost(n, factorisations, solves) < EIGH_COST
    return "cholesky" if cholesky_possible and cheaper else "eigh"


def choose_map_solver(n: int, factorisations: int, solves: float, columns: int) -> str:
    """The cheapest of "eigh", "cholesky" and "tridiagonal" for a map of `columns` predictions, all possible."""
    by_cholesky = _cholesky_cost(n, factorisations, solves)
    by_tridiagonal = TRIDIAGONAL_COST * n if columns <= TRIDIAGONAL_COLUMNS * n**2 else math.inf
    if by_cholesky < min(by_tridiagonal, EIGH_COST):
        return "cholesky"
    # The eigendecomposition starts with the tridiagonal form, so that it costs more at every n.
    return "tridiagonal" if by_tridiagonal < math.inf else "eigh"


def _cholesky_cost(n, factorisations, solves) -> float:
    return 1 + factorisations + solves * SOLVE_COST / n


def _check_solver(solver: str, *others: str) -> None:
    solvers = ("auto", "eigh", "cholesky", *others)
    if solver not in solvers:
        raise ValueError(f"solver must be one of {', '.join(solvers)}, not {solver!r}")


def chain(
    K, y, lam: float, alpha, steps, *, solver: str = "auto", overwrite: bool = False, trusted: bool = False
) -> Chain:
    """One chain from the kernel matrix: its dual coefficients at `steps`.

    K (n, n), y (n,) or (n, m). "cholesky" factorises K + lam I once and solves once a step; "eigh" decomposes
    K and takes any step at once; "auto" takes the cheaper. `overwrite` lets K's memory be used: at most three
    n × n arrays at once. A `trusted` K is symmetric and positive semidefinite by its making, as an RBF kernel's is
    among any points: the tests of both, which double the cost of a factorisation, are left out. Raises
    KernelMatrixError's subclasses, SingularKernelError, DivergentChainError, MatrixTooLargeError, and ValueError
    for an argument out of its range.
    """
    _check_solver(solver)
    K = np.ascontiguousarray(K, dtype=np.float64) if trusted else check_kernel(K)
    steps, y = _steps(steps), _targets(y, len(K))
    _check_lam(np.ones(1), lam)
    finite = [step for step in steps if step < math.inf]
    if solver == "auto":
        solver = choose_solver(
            len(K),
            len(steps) - len(finite) + bool(finite),
            max(finite, default=0),
            cholesky_possible=lam > 0 and _limit_sure(steps, [_schedule(alpha)[-1]]),
        )
        if solver == "cholesky":
            try:
                return _chain_by_cholesky(K, y, lam, alpha, steps, trusted)
            except SingularKernelError:  # lam is below K's rounding; the spectrum, cut off at 0, still serves
                solver = "eigh"
    if solver == "cholesky":
        return _chain_by_cholesky(K, y, lam, alpha, steps, trusted)
    spectrum = decompose(K, overwrite=overwrite)
    coefficients = dual_coefficients(spectrum, y, lam, alpha, steps)
    return Chain(coefficients, (spectrum.d[0] + lam) / (spectrum.d[-1] + lam), "eigh")


def _limit_sure(steps, alphas) -> bool:
    """Whether it takes no eigenvalue to know that the limit exists, if it is asked for."""
    return math.inf not in steps or all(0 <= alpha <= 1 for alpha in alphas)


def _chain_by_cholesky(K, y, lam, alpha, steps, trusted) -> Chain:
    _refuse_missing_limit(K, lam, alpha, steps)
    if not trusted:
        refuse_negative_eigenvalues(K)
    L = cholesky(K, lam)
    condition = cholesky_condition(K, L, lam, enough=UNTRUSTED)
    if lam == 0 and condition * len(K) * EPS >= 1:
        raise SingularKernelError("lam = 0 needs a nonsingular K; take lam > 0, or drop repeated points")
    alphas, coefficients = _schedule(alpha), {}
    dense, target = Dense(K), y
    for step in range(1, int(max((step for step in steps if step < math.inf), default=0)) + 1):
        # c^(tau) = (K + lam I)^-1 (alpha_tau y + (1 - alpha_tau) y^(tau-1))
        c = cholesky_solve(L, target)
        if not np.isfinite(c).all():
            raise DivergentChainError(f"the chain diverges: step {step} is past 1e308")
        if step in steps:
            coefficients[step] = c
        weight = alphas[min(step, len(alphas)) - 1]
        with np.errstate(over="ignore", invalid="ignore"):  # a chain that overflows is named at the next step
            target = weight * y + (1 - weight) * _fitted(dense, lam, target, c)
    if math.inf in steps:
        coefficients[math.inf] = cholesky_solve(L, y) if lam == 0 else _limit_by_solving(dense, y, lam, alphas[-1])
    return Chain(np.array([coefficients[step] for step in steps]), condition, "cholesky")


def _fitted(matrix, lam, target, c):
    """y^(tau) = K c = target - lam c: the first rounds off for small lam, the second cancels for large."""
    return target - lam * c if lam <= matrix.mean_eigenvalue else matrix.times(c)


def _limit_by_solving(matrix, y, lam, alpha) -> np.ndarray:
    """c^(inf) = (alpha K + lam I)^-1 alpha y, at lam > 0: defined at alpha = 0 too, where it is 0."""
    return matrix.solver(lam, alpha)(alpha * y) if alpha else np.zeros_like(y)


def _refuse_missing_limit(K, lam, alpha, steps) -> None:
    """Raise DivergentChainError for a limit that does not exist; takes d_1 if alpha is outside [0, 1]."""
    last = _schedule(alpha)[-1]
    if not _limit_sure(steps, [last]):
        n = len(K)
        d = scipy.linalg.eigvalsh(K, subset_by_index=[n - 1, n - 1])
        _refuse_divergence(np.array([d[0], d[0]]), lam, last)


def risk_map(K, y, K_new, target, alphas, lams, steps, *, solver: str = "auto", overwrite: bool = False):
    """Mean squared error of every chain at every step: (len(alphas), len(lams), len(steps)) float64.

    K (n, n) kernel matrix, or its `Spectrum`; y (n,) or (n, m); K_new (q, n) holds k(x, X) at the q points
    where `target` (q,) or (q, m) is known; alphas any numbers, lams >= 0, steps from 1, `math.inf` for the
    limit. inf where a chain has no limit or has left float64's range. `solver`, `overwrite` and errors as in
    `chain`; there is also "tridiagonal", which reduces K to tridiagonal form once and does without eigenvectors.
    With it and "cholesky" the lams must be > 0, finite steps few, and limits only at alpha in [0, 1].

    For one lam the fits of every alpha lie in the span of A y, A² y, ... So these are predicted once, P_j,
    and a triangle T with ‖t - sum_j c_j P_j‖ = ‖T (1, -c)‖ takes their place: an alpha costs nothing that
    grows with n. Limits, and steps too late for powers, are columns of their own.
    """
    _check_solver(solver, "tridiagonal")
    alphas, lams, steps = _schedule(alphas), np.atleast_1d(np.asarray(lams, dtype=np.float64)), _steps(steps)
    K_new, target = np.asarray(K_new, dtype=np.float64), np.asarray(target, dtype=np.float64)
    n = K_new.shape[1]
    y = _targets(y, n)
    if len(target) != len(K_new) or target.shape[1:] != y.shape[1:]:
        raise ValueError(f"target {target.shape} belongs neither to y {y.shape} nor to K_new {K_new.shape}")
    finite = [step for step in steps if step < math.inf]
    depth = int(max(finite, default=0))
    if depth > max(len(alphas) * len(finite), 32):
        depth = 0
    own = [(i, j) for i in range(len(alphas)) for j, step in enumerate(steps) if step > depth]
    if isinstance(K, Spectrum):
        columns = _spectral_columns(K, y, K_new, len(lams) * (depth + len(own)))
    else:
        K = check_kernel(K)
        # Columns of their own serve as limits here, where alpha in [0, 1] says that there is one.
        possible = (lams > 0).all() and _limit_sure(steps, alphas) and (depth > 0 or not finite)
        if solver not in ("auto", "eigh") and not possible:
            raise ValueError(
                f"solver={solver!r} makes no map for lam = 0, late steps, or limits outside 0 <= alpha <= 1"
            )
        per_lam = depth + len(own)
        chosen = solver
        if solver == "auto":
            factorisations, solves = len(lams) * (bool(depth) + len(own)), len(lams) * depth
            chosen = choose_map_solver(n, factorisations, solves, len(lams) * per_lam) if possible else "eigh"
        try:
            columns = _matrix_columns(K, y, K_new, lams, per_lam, chosen, overwrite)
        except SingularKernelError:  # lam is below K's rounding; the spectrum, cut off at 0, still serves
            if solver != "auto":
                raise
            columns = _matrix_columns(K, y, K_new, lams, per_lam, "eigh", overwrite)

    early = [j for j, step in enumerate(steps) if step <= depth]
    # Rows of (1, -c), c = (alpha, alpha (1 - alpha), ..., (1 - alpha)^(k-1)) by stick breaking with one
    # alpha.
    combinations = np.zeros((len(alphas), len(early), depth + 1))
    combinations[..., 0] = 1
    for i, alpha in enumerate(alphas):
        for row, j in zip(combinations[i], early, strict=True):
            row[1 : int(steps[j]) + 1] = -alphas_to_weights(np.full(int(steps[j]) - 1, alpha))
    out = np.full((len(alphas), len(lams), len(steps)), np.inf)
    for i, lam in enumerate(lams):
        powers, lone = columns(lam, depth, [(alphas[a], steps[j]) for a, j in own])
        if depth:
            T = _triangle(np.stack([target.ravel(), *powers.reshape(depth, -1)]))
            with np.errstate(over="ignore", invalid="ignore"):
                out[:, i, early] = ((combinations @ T.T) ** 2).sum(axis=-1) / target.size
        for (a, j), prediction in zip(own, lone, strict=True):
            if prediction is not None:
                with np.errstate(over="ignore"):
                    out[a, i, j] = np.mean((prediction - target) ** 2)
    return np.where(np.isnan(out), np.inf, out)


def _triangle(rows) -> np.ndarray:
    """The upper triangle T (k, k) with ‖sum_j a_j rows_j‖ = ‖T a‖ for every a (k,), `rows` (k, q) as given.

    Modified Gram-Schmidt, whose T is as accurate as Householder's. By hand, because waking LAPACK's threads
    for a matrix this small takes ten times as long as the arithmetic.
    """
    rows, T = rows.copy(), np.zeros((len(rows), len(rows)))
    for j, row in enumerate(rows):
        T[j, j] = np.sqrt(np.einsum("q,q", row, row))
        if T[j, j] > 0:
            row /= T[j, j]
            T[j, j + 1 :] = np.einsum("q,kq->k", row, rows[j + 1 :])
            rows[j + 1 :] -= T[j, j + 1 :, None] * row
    return T


def _spectral_columns(spectrum, y, K_new, total):
    """columns(lam, depth, own): predictions of A y, ..., A^depth y, and for each (alpha, step) of own."""
    z, d = product(spectrum.V.T, y), spectrum.d
    rotated = product(K_new, spectrum.V) if total >= len(K_new) else None  # worth its product only for many columns

    def predict_filters(filters):
        if rotated is None:
            return predict(K_new, _rotate(spectrum.V, filters, z))
        return _rotate(rotated, filters, z)

    def columns(lam, depth, own):
        filters = list(np.vander(shrinkage(d, lam), depth, increasing=True).T)  # 1, A, A², ...
        alive = []
        for alpha, step in own:
            try:
                filters.append(blend_filters(d, lam, alpha, step)[0])
                alive.append(True)
            except DivergentChainError:
                alive.append(False)
        predictions = iter(predict_filters(np.array(filters).reshape(-1, len(d)) / (d + lam)))
        powers = np.array([next(predictions) for _ in range(depth)])
        return powers, [next(predictions) if is_alive else None for is_alive in alive]

    return columns


def _matrix_columns(K, y, K_new, lams, per_lam, solver, overwrite):
    """As `_spectral_columns`, from K, for maps with `per_lam` columns for each of `lams`."""
    total = len(lams) * per_lam
    if solver == "eigh":
        return _spectral_columns(decompose(K, overwrite=overwrite), y, K_new, total)
    if solver == "cholesky":
        refuse_negative_eigenvalues(K)
        return _columns_by_solving(Dense(K), y, partial(predict, K_new))
    if len(K) == 1:
        raise ValueError("solver='tridiagonal' needs at least two points")
    T = tridiagonalise(K)
    T.solver(lams.min())  # raises SingularKernelError now, where there is still another way, if it is too small
    if total >= len(K_new):  # the fewer columns are rotated
        return _columns_by_solving(T, T.rotate(y), partial(predict, T.rotate(K_new.T).T))
    return _columns_by_solving(T, T.rotate(y), lambda c: predict(K_new, _at_once(T.rotate_back, c)))


def _columns_by_solving(matrix, y, predict_duals):
    """As `_spectral_columns`, by solves with `matrix`, a Dense or a Tridiagonal, for each lam and each limit."""

    def columns(lam, depth, own):
        powers, target = [], y
        solve = matrix.solver(lam) if depth else None
        for _ in range(depth):
            powers.append(solve(target))
            target = _fitted(matrix, lam, target, powers[-1])  # A^j y
        limits = [_limit_by_solving(matrix, y, lam, alpha) for alpha, _ in own]
        predictions = predict_duals(np.array(powers + limits))
        return predictions[:depth], list(predictions[depth:])

    return columns
