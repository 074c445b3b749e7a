"""The best alphas, computed from predictions alone, of kernel models or networks.

A student's fit is affine in its alpha, f = alpha f^(1) + (1 - alpha) g, where g is the student trained on the teacher's
output alone. The alpha of least squared error is therefore a projection. Fit k of a chain with one ridge is
f^(k) = sum_j c_j A^j y with *weights* c that sum to 1, and the best c solves a least-squares problem.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel.arrays import EPS, FloatArray, as_floats, check_overflow

AUTO_FITS = 6  # with alpha="auto" the alphas of fits 2 to 6 are chosen
LIMIT_ALPHAS = np.geomspace(1e-3, 1, 61)  # from which alpha="auto" chooses for the limit of a chain


def best_alpha(first: ArrayLike, probe: ArrayLike, target: ArrayLike) -> float:
    """The alpha for which alpha * first + (1 - alpha) * probe is closest to ``target`` in squares.

    Arrays of one shape, at held-out points: the first fit, the student trained on the teacher's output alone
    (alpha = 0), and the ground truth. The result may be outside [0, 1]. NaN if
    ``first`` and ``probe`` agree to rounding: then alpha has no effect. (Borup & Andersen, Algorithm 1.)
    """
    arrays = [as_floats(*named) for named in (("first", first), ("probe", probe), ("target", target))]
    shapes = [a.shape for a in arrays]
    if len(set(shapes)) > 1:
        raise ValueError(f"first, probe and target must have one shape, not {', '.join(map(str, shapes))}")
    # Divided by a power of two: no bit of the result changes, and the squares stay in float64's range.
    exponent = np.frexp(max(np.abs(a).max() for a in arrays))[1]
    f, g, t = (np.ldexp(a.ravel(), -exponent) for a in arrays)
    e = f - g
    square = e @ e
    if square <= (4 * EPS) ** 2 * (f @ f):
        return math.nan
    # alpha* = <t - g, e> / <e, e>
    return float((t - g) @ e / square)


def alphas_to_weights(alphas: ArrayLike) -> FloatArray:
    """Stick breaking: the weights c (k,) of A y, ..., A^k y in fit k = len(alphas) + 1; they sum to 1.

    ``alphas`` (k-1,) are those of fits 2, ..., k. c_1 = alpha_k, c_2 = (1 - alpha_k) alpha_(k-1), ...,
    c_k = (1 - alpha_k) ... (1 - alpha_2).
    """
    weights = []
    stick = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        for alpha in reversed(as_floats("alphas", alphas, 1, may_be_empty=True)):
            weights.append(stick * alpha)
            stick *= 1 - alpha
    return check_overflow("the weights", np.array([*weights, stick]))


def weights_to_alphas(weights: ArrayLike) -> FloatArray:
    """The alphas (k-1,) of fits 2, ..., k whose stick breaking gives ``weights`` (k,), which must sum to 1.

    alpha_k = c_1, alpha_(k-1) = c_2 / (1 - c_1), ... If the rest of the stick is 0, the earlier alphas have no
    effect and are set to 1. Raises ValueError if no alphas give the weights: their sum is not 1, or a weight is not 0
    although the rest of the stick is.
    """
    weights = as_floats("weights", weights, 1)
    scale = np.abs(weights).max()
    if not abs(weights.sum() - 1) <= 1e-8 * scale:
        raise ValueError(f"weights must sum to 1, not {weights.sum()}")
    alphas = []
    for j, weight in enumerate(weights[:-1]):
        # The rest of the stick before c_j is the sum of c_j and all later weights.
        stick = weights[j:].sum()
        if abs(stick) > len(weights) * EPS * scale:
            alphas.append(weight / stick)
        elif np.abs(weights[j:]).max() > len(weights) * EPS * scale:
            raise ValueError(f"no alphas give these weights: weights {j + 1} to {len(weights)} sum to 0 but are not 0")
        else:
            alphas.append(1.0)
    return np.array(alphas[::-1])


def greedy_alphas(residuals: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The best alpha of each fit in turn, given the ones before: (alphas (k-1,) of fits 2..k, risks (k,)).

    ``residuals`` (k, ...): r_j = target - (the prediction of A^j y), held out, or ``gcv_residuals``. A risk is
    the mean square of a residual. An alpha that has no effect is set to 1, a fit without a teacher.
    """
    alphas, _, risks = bounded_greedy_alphas(residuals, -math.inf, math.inf)
    return alphas, risks


def bounded_greedy_alphas(residuals: ArrayLike, low: float, high: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """``greedy_alphas`` within [low, high], the same before clipping, (k-1,) each, and the risks (k,).

    The risk is a parabola in each alpha, so the clipped alpha is the best in [low, high].
    """
    R = as_rows(residuals)
    weights = np.ones(1)
    alphas: list[float] = []
    free: list[float] = []
    risks = [np.mean(R[0] ** 2)]
    for k in range(2, len(R) + 1):
        first = R[0]
        probe = weights @ R[1:k]  # a fit on y^(k-1) alone multiplies each A^j by A
        # residuals for predictions: t - g = r_g and f - g = r_g - r_1, so ``best_alpha`` of -r against 0
        alpha = best_alpha(-first, -probe, np.zeros_like(first))
        free.append(1.0 if math.isnan(alpha) else alpha)
        alphas.append(min(max(free[-1], low), high))
        weights = alphas_to_weights(alphas)
        risks.append(np.mean((weights @ R[:k]) ** 2))
    return np.array(alphas), np.array(free), np.array(risks)


def as_rows(residuals: ArrayLike) -> FloatArray:
    """Residuals (k, ...) as a matrix (k, q)."""
    R = as_floats("residuals", residuals)
    if R.ndim < 2:
        raise ValueError(f"residuals must have a row for each fit, not shape {R.shape}")
    return R.reshape(len(R), -1)


def auto_schedule(residuals: ArrayLike) -> FloatArray:
    """The schedule of alpha="auto", (k,): ``greedy_alphas`` of fits 2..k, then the last one clipped to [0, 1].

    A chain that repeats its best alpha may diverge; one that repeats an alpha in [0, 1] always has a limit.
    """
    alphas, _ = greedy_alphas(residuals)
    return np.append(alphas, np.clip(alphas[-1:], 0, 1))


def joint_weights(residuals: ArrayLike) -> tuple[FloatArray, float]:
    """The best weights of A y, ..., A^k y together: (c (k,) with sum 1, its risk).

    Pareek, Du & Oh, NeurIPS 2024, arXiv 2407.04600:
    c* = G^-1 1 / (1^T G^-1 1), G_ij = <r_i, r_j>, is the minimum of ‖sum_j c_j r_j‖² with sum_j c_j = 1. The
    condition number of G is the square of the residuals', so G is not formed: with c_1 = 1 - c_2 - ... - c_k this
    is the least-squares problem r_1 + sum_(j>1) c_j (r_j - r_1) -> min. ``residuals`` as for ``greedy_alphas``.
    """
    R = as_rows(residuals)
    differences = R[1:] - R[0]
    rounding = np.linalg.norm(differences, axis=1) <= 4 * EPS * np.linalg.norm(R[0])
    differences[rounding] = 0  # not a direction
    free = np.linalg.lstsq(differences.T, -R[0], rcond=None)[0]
    weights = np.array([1 - free.sum(), *free])
    return weights, float(np.mean((weights @ R) ** 2))
