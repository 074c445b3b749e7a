"""The chain in the eigenbasis of the kernel matrix: closed forms for every fit and for the limit.

With K = V D V^T, A = D (D + lam)^-1 and z = V^T y every fit of the chain (see ``distill.krr``) is diagonal:

    y^(tau) = V B^(tau) z,    B^(tau) = A w^(tau),
    c^(tau) = V (D + lam)^-1 w^(tau) z,    f^(tau)(x) = k(x, X) c^(tau),

The *blend filter* w^(tau) = alpha_tau + (1 - alpha_tau) B^(tau-1), w^(1) = 1, is the factor by which blending
multiplies each component of the targets. B and c follow from it without a division by D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.kernel.arguments import as_count, as_new_kernel, as_ridges, as_schedule, as_steps, as_targets, check_ridge
from distill.kernel.arrays import EPS, LARGEST_FLOAT, FloatArray, as_floats, check_overflow
from distill.kernel.linalg import Spectrum, product


class DivergentChainError(ValueError):
    """The chain has no limit, or exceeded the range of float64 before the requested step."""


def shrinkage(d: ArrayLike, lam: float) -> FloatArray:
    """A = D (D + lam)^-1, (n,) in [0, 1]: the factor by which one ridge fit multiplies each eigen-component."""
    d, lam = check_ridge(d, lam)
    return d / (d + lam)


def convergence_rate(d: ArrayLike, lam: float, alpha: float) -> float:
    """|1 - alpha| d_1 / (d_1 + lam): each fit reduces the distance to the limit by this factor, which must be below 1.

    ‖y^(tau) - y^(inf)‖ <= rate^(tau-1) ‖y^(1) - y^(inf)‖. At lam = 0 every fit interpolates y, and the rate is 0.
    """
    d, lam = check_ridge(d, lam)
    alpha = float(as_floats("alpha", alpha, 0))
    return 0.0 if lam == 0 else abs(1 - alpha) * d[0] / (d[0] + lam)


def always_converges(alphas: ArrayLike) -> NDArray[np.bool_]:
    """Whether a chain with lam > 0 has a limit whatever its kernel, for each of ``alphas``."""
    alphas = np.asarray(alphas)
    return (alphas >= 0) & (alphas < 2)


def check_limit_exists(d: ArrayLike, lam: float, alpha: float) -> None:
    """Raise DivergentChainError if the chain has no limit."""
    rate = convergence_rate(d, lam, alpha)
    if rate >= 1 and not always_converges(alpha):  # the rate of alpha = 0 and a small lam is rounded to 1
        raise DivergentChainError(
            f"the chain diverges: alpha = {alpha:g}, lam = {lam:g} give |1 - alpha| d_1/(d_1 + lam) = "
            f"{rate:.4g}, and a limit needs less than 1"
        )


def blend_filters(d: ArrayLike, lam: float, alpha: ArrayLike, steps: ArrayLike) -> FloatArray:
    """The blend filters w^(tau), (len(steps), n), in O(n) operations for any step.

    From step s on, where alpha is constant, w^(tau) = alpha + (1 - alpha) A w^(tau-1) is a geometric
    series in q = (1 - alpha) A (Borup & Andersen; in this form no digits cancel when q is near 1):

        w^(s+m) = q^m w^(s) + alpha (1 - q^m) / (1 - q),    w^(inf) = alpha / (1 - q).

    Raises DivergentChainError for a limit that does not exist and for a step that overflows.
    """
    d, lam = check_ridge(d, lam)
    A = d / (d + lam)
    alphas = as_schedule(alpha)
    steps = as_steps(steps)
    if lam == 0:  # A = I: the blend of y with y is y. The series below would give it with rounding, or 0/0
        return np.ones((len(steps), len(d)))
    last = alphas[-1]
    w = [np.ones_like(d)]
    with np.errstate(over="ignore", invalid="ignore"):
        for alpha_tau in alphas[:-1]:
            # w^(tau) = alpha_tau + (1 - alpha_tau) A w^(tau-1)
            w.append(alpha_tau + (1 - alpha_tau) * A * w[-1])
    if math.inf in steps:
        check_limit_exists(d, lam, last)
    out = np.empty((len(steps), len(d)))
    gap = (last * d + lam) / (d + lam)  # 1 - q, without the cancellation
    for row, step in zip(out, steps, strict=True):
        if step <= len(w):
            row[:] = w[int(step) - 1]
        elif step == math.inf:
            row[:] = last / gap if last else 0.0  # even if the gap is too small for float64
        else:
            power, series = geometric(gap, step - len(w))
            with np.errstate(over="ignore", invalid="ignore"):
                row[:] = power * w[-1] + last * series
    check_divergence(out, steps)
    return out


def check_divergence(fits: FloatArray, steps: list[float], first: FloatArray | None = None) -> None:
    """Raise DivergentChainError for the first of ``fits`` (steps, ...) that exceeds float64's range.

    If fit 1 does, it is not for its teacher: with ``first``, the fit or a part of it, NotFiniteError is raised.
    """
    for fit, step in zip(fits, steps, strict=True):
        if not np.isfinite(fit).all():
            if first is not None:
                check_overflow("the coefficients of fit 1", first)
            raise DivergentChainError(f"the chain diverges: step {step:g} exceeds 1e308")


def geometric(gap: FloatArray, m: float) -> tuple[FloatArray, FloatArray]:
    """q^m and 1 + q + ... + q^(m-1) for q = 1 - gap, m >= 1."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # q^m = exp(m log q); 1 - q^m = -expm1(m log q) keeps its digits where q^m is near 1
        log_power = m * np.log1p(-np.minimum(gap, 1.0))
        power = np.where(gap <= 1, np.exp(log_power), np.power(1 - gap, m))
        series = np.where(gap <= 1, -np.expm1(log_power), 1 - power) / np.where(gap == 0, 1, gap)
    return power, np.where(gap == 0, m, series)


def diagonals(d: ArrayLike, lam: float, alpha: ArrayLike, steps: ArrayLike) -> FloatArray:
    """B^(tau) in closed form, (len(steps), n): y^(tau) = V B^(tau) V^T y. Errors as in ``blend_filters``."""
    # B^(tau) = A w^(tau)
    return shrinkage(d, lam) * blend_filters(d, lam, alpha, steps)


def limit_diagonal(d: ArrayLike, lam: float, alpha: float) -> FloatArray:
    """B^(inf) = alpha D (alpha D + lam)^-1, (n,): an ordinary fit with ridge lam/alpha; 0 for alpha = 0."""
    return diagonals(d, lam, alpha, math.inf)[0]


def diagonals_by_recursion(d: ArrayLike, lams: ArrayLike, alphas: ArrayLike, n_steps: int) -> FloatArray:
    """B^(1), ..., B^(n_steps) by the recursion itself, (n_steps, n); lam and alpha may differ by step.

    ``lams``: a number or a sequence from fit 1; ``alphas``: a number or a sequence from fit 2; the last repeats.
    Errors as in ``blend_filters``.
    """
    lams = np.atleast_1d(as_ridges("lams", lams, 0, 1))
    alphas = as_schedule(alphas)
    n_steps = as_count("n_steps", n_steps)
    d = as_floats("d", d, 1, largest=LARGEST_FLOAT)
    B = np.ones((n_steps + 1, len(d)))  # B^(0) = I
    for tau in range(1, n_steps + 1):
        A = shrinkage(d, float(lams[min(tau, len(lams)) - 1]))
        alpha = alphas[min(max(tau - 2, 0), len(alphas) - 1)]
        # B^(tau) = A (alpha_tau I + (1 - alpha_tau) B^(tau-1))
        with np.errstate(over="ignore", invalid="ignore"):
            B[tau] = A * (alpha + (1 - alpha) * B[tau - 1])
    check_divergence(B, list(range(n_steps + 1)))
    return B[1:]


def convergence_bound(
    d: ArrayLike, lam: float, alpha: float, steps: ArrayLike, first_distance: float = 1.0
) -> FloatArray:
    """Upper bounds (len(steps),) on ‖y^(tau) - y^(inf)‖, given ``first_distance`` = ‖y^(1) - y^(inf)‖.

    They are rate^(tau-1) ‖y^(1) - y^(inf)‖, see ``convergence_rate``. Raises DivergentChainError without a limit.
    """
    check_limit_exists(d, lam, alpha)
    first_distance = float(as_floats("first_distance", first_distance, 0))
    return convergence_rate(d, lam, alpha) ** (np.array(as_steps(steps)) - 1) * first_distance


def fitted_values(spectrum: Spectrum, y: ArrayLike, B: ArrayLike) -> FloatArray:
    """y^(tau) = V B^(tau) V^T y at the training points, (steps, n[, m]), for diagonals ``B`` (steps, n)."""
    z = components(spectrum, y)
    return check_overflow("the fitted values", apply_filters(spectrum.V, as_diagonals(B, len(z)), z))


def as_diagonals(B: ArrayLike, n: int) -> FloatArray:
    """Diagonals ``B``, (n,) or (steps, n), as (steps, n). Raises ValueError."""
    B = np.atleast_2d(as_floats("B", B, 1, 2))
    if B.shape[1] != n:
        raise ValueError(f"B must have a column for each of the {n} eigenvalues, not shape {B.shape}")
    return B


def components(spectrum: Spectrum, y: ArrayLike) -> FloatArray:
    """z = V^T y, the components of targets y (n,) or (n, m) in the eigenbasis. Raises ValueError and TypeError."""
    if not isinstance(spectrum, Spectrum):
        raise TypeError(f"spectrum must be a Spectrum, from decompose(K), not {type(spectrum).__name__}")
    return product(spectrum.V.T, as_targets(y, len(spectrum.V)))


def dual_coefficients(spectrum: Spectrum, y: ArrayLike, lam: float, alpha: ArrayLike, steps: ArrayLike) -> FloatArray:
    """c^(tau), (len(steps), n[, m]), with f^(tau)(x) = k(x, X) c^(tau).

    Errors as in ``blend_filters``, and NotFiniteError if fit 1 exceeds float64's range.
    """
    z = components(spectrum, y)
    w = blend_filters(spectrum.d, lam, alpha, steps)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # c^(tau) = V (D + lam)^-1 w^(tau) z
        coefficients = apply_filters(spectrum.V, w / (spectrum.d + lam), z)
        check_divergence(coefficients, as_steps(steps), first=z.T / (spectrum.d + lam))
    return coefficients


def apply_filters(V: FloatArray, filters: FloatArray, z: FloatArray) -> FloatArray:
    """V diag(filter) z for each of ``filters`` (steps, n): V (q, n), z (n[, m]) give (steps, q[, m])."""
    return times(V, filtered(filters, z))


def filtered(filters: FloatArray, z: FloatArray) -> FloatArray:
    """diag(filter) z for each of ``filters`` (steps, n): (steps, n[, m])."""
    extra_axes = [1] * (z.ndim - 1)
    return filters.reshape(*filters.shape, *extra_axes) * z


def map_columns(linear_map: Callable[[FloatArray], FloatArray], columns: FloatArray) -> FloatArray:
    """A linear map from (n, k) to (q, k), applied to ``columns`` (steps, n[, m]) in one call: (steps, q[, m])."""
    flat = linear_map(np.moveaxis(columns, 0, -1).reshape(columns.shape[1], -1))
    return np.moveaxis(flat.reshape(len(flat), *columns.shape[2:], len(columns)), -1, 0)


def times(A: FloatArray, columns: FloatArray) -> FloatArray:
    """A (q, n) times each of ``columns`` (steps, n[, m]) in one product: (steps, q[, m])."""
    return map_columns(partial(product, A), columns)


def predict(K_new: ArrayLike, coefficients: ArrayLike) -> FloatArray:
    """f^(tau)(x) = k(x, X) c^(tau) at q new points for many steps at once: (steps, q[, m]).

    ``K_new`` (q, n) holds k(x, X), ``coefficients`` (steps, n[, m]) come from ``dual_coefficients`` or ``chain``.
    Raises ValueError for another shape, and NotFiniteError for NaN and for predictions past float64's range.
    """
    c = as_floats("coefficients", coefficients, 2, 3, largest=LARGEST_FLOAT)
    return check_overflow("the predictions", times(as_new_kernel(K_new, c.shape[1]), c))


def sparsification_ratios(B: ArrayLike) -> FloatArray:
    """R_k = B_k / B_(k+1), (..., n-1), of diagonals ``B`` (..., n) with d from large to small.

    inf if only B_(k+1) is zero, NaN (0/0) if both are. For alpha = 0 the ratios grow with the step without bound; for
    alpha > 0 they tend to those of the limit.
    """
    B = as_floats("B", B, 1, 2, 3, largest=LARGEST_FLOAT)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return B[..., :-1] / B[..., 1:]


def degrees_of_freedom(B: ArrayLike) -> FloatArray:
    """Effective degrees of freedom tr B^(tau), (...,), of diagonals ``B`` (..., n)."""
    return np.asarray(as_floats("B", B, 1, 2, 3).sum(axis=-1))


def generalised_cross_validation(spectrum: Spectrum, y: ArrayLike, B: ArrayLike) -> FloatArray:
    """GCV(tau) = (‖(I - B) z‖² / (n m)) / (1 - tr(B)/n)², (steps,): estimates of the prediction error.

    Golub, Heath & Wahba 1979. ``B`` (steps, n). inf if tr(B) = n: an interpolant's residuals do not show its error.
    """
    z = components(spectrum, y)
    z = z.reshape(len(z), -1)
    left = 1 - as_diagonals(B, len(z))
    with np.errstate(over="ignore"):
        error = check_overflow("the squared errors", (left**2 * (z**2).sum(axis=1)).sum(axis=1) / z.size)
    share = left.mean(axis=1)
    return np.divide(error, share**2, out=np.full(len(left), np.inf), where=share > EPS)


def power_filters(d: FloatArray, lam: float, k: int) -> FloatArray:
    """(D + lam)^-1 A^(j-1), j = 1..k, (k, n): the filters of the dual coefficients of A y, ..., A^k y."""
    return shrinkage(d, lam) ** np.arange(as_count("k", k))[:, None] / (d + lam)


def power_coefficients(spectrum: Spectrum, y: ArrayLike, lam: float, k: int) -> FloatArray:
    """Dual coefficients of A y, ..., A^k y (k, n[, m]), whose span contains fit k of every chain with ridge lam."""
    z = components(spectrum, y)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # V (D + lam)^-1 A^(j-1) z
        coefficients = apply_filters(spectrum.V, power_filters(spectrum.d, lam, k), z)
    return check_overflow("the coefficients", coefficients)


def gcv_residuals(spectrum: Spectrum, y: ArrayLike, lam: float, k: int) -> FloatArray:
    """r_j = (1 - A^j) z / (1 - tr(A^j)/n), (k, n[, m]), j = 1..k, from which best alphas follow without held-out data.

    Dang, Patil & Rinaldo 2026, arXiv 2602.17565. It needs n in the hundreds. Raises ValueError at lam = 0,
    where every residual is 0/0.
    """
    z = components(spectrum, y)
    left = residual_filters(spectrum.d, lam, k)
    with np.errstate(divide="ignore", invalid="ignore"):
        filters = check_overflow("the residuals", left / left.mean(axis=1, keepdims=True))
    return filtered(filters, z)


def residual_filters(d: ArrayLike, lam: float, k: int) -> FloatArray:
    """1 - A^j, j = 1..k, (k, n): what fits with these weights leave of each component. Raises ValueError at lam = 0."""
    d, lam = check_ridge(d, lam)
    if lam == 0:
        raise ValueError("generalised cross-validation needs lam > 0: an interpolant has no residuals")
    j = np.arange(1, as_count("k", k) + 1)[:, None]
    with np.errstate(divide="ignore"):  # 1 - A^j = -expm1(j log(1 - lam/(d + lam))), exact for small lam
        return -np.expm1(j * np.log1p(-lam / (d + lam)))
