"""Closed forms in the eigenbasis for three questions: redrawn labels, the best spectral filter, predictive variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from distill.kernel.arguments import as_count, as_new_kernel, as_ridges, as_steps, check_ridge
from distill.kernel.arrays import LARGEST_FLOAT, FloatArray, as_floats
from distill.kernel.linalg import SingularKernelError, Spectrum, product
from distill.kernel.spectral import DivergentChainError, blend_filters, geometric


def fresh_label_variances(
    d: ArrayLike, lam: float, alpha: float, steps: ArrayLike, *, noise: float = 1.0, teacher_noise: float = 0.0
) -> FloatArray:
    """Variances of the components of y^(tau) if labels are redrawn for each fit, (len(steps), n).

    The labels of fit tau are y_tau = truth + fresh noise of variance ``noise``, and those of its teacher
    y^(tau-1) + fresh noise of variance ``teacher_noise``, as if drawn from a generative model. The means stay
    B^(tau) V^T truth. With q = ((1 - alpha) A)² the variances v obey, componentwise,

        v^(1) = A² noise,    v^(tau) = A² (alpha² noise + (1 - alpha)² teacher_noise) + q v^(tau-1).

    With equal noises and A = 1 the limit is least at alpha = 1 / golden ratio. (Garg et al. 2025, arXiv 2509.22341.)
    Raises DivergentChainError if |1 - alpha| A >= 1 for a component.
    """
    d, lam = check_ridge(d, lam)
    A = d / (d + lam)
    alpha = float(as_floats("alpha", alpha, 0))
    noise = float(as_ridges("noise", noise, 0))
    teacher_noise = float(as_ridges("teacher_noise", teacher_noise, 0))
    gap = (alpha * d + lam) / (d + lam)  # 1 - (1 - alpha) A, without the cancellation
    gap *= 2 - gap  # 1 - q
    if not (gap > 0).all():
        raise DivergentChainError(f"the variances diverge: alpha = {alpha:g} gives |1 - alpha| A >= 1")
    added = A**2 * (alpha**2 * noise + (1 - alpha) ** 2 * teacher_noise)
    first = A**2 * noise
    steps = as_steps(steps)
    out = np.empty((len(steps), len(d)))
    for row, step in zip(out, steps, strict=True):
        power, series = geometric(gap, step - 1) if 1 < step < math.inf else (0.0, 1 / gap)
        row[:] = first if step == 1 else power * first + series * added
    return out


@dataclass(frozen=True)
class FilterRisk:
    """The risk of ridge regression on features as a quadratic function of its filter B (p,): B^T M B - 2 q^T B + c.

    For rows x of mean 0 and covariance ``covariance`` (p, p), coefficients beta of mean 0 and covariance ``prior``
    (p, p), and labels with noise of variance ``noise``, the fit with filter B is W B S^-1 W^T Phi^T y, with
    Phi^T Phi = W S W^T. Its excess risk E (x^T fit - x^T beta)², over x, beta and noise, has

        M = (W^T prior W) * (W^T covariance W) + noise diag(W^T covariance W) S^-1,
        q = diag(W^T covariance prior W),    c = tr(covariance prior).

    The products of matrices are those of entries where * is written. The minimum over all filters is the floor of every
    chain, whose filters are sum_j c_j A^j with sum_j c_j = 1. (Lecoiu et al. 2026, arXiv 2605.17778, on spiked data.)
    """

    M: FloatArray
    q: FloatArray
    c: float

    def __call__(self, B: ArrayLike) -> FloatArray:
        """The risks of filters B (..., p), (...,)."""
        B = as_floats("B", B)
        return ((B @ self.M) * B).sum(axis=-1) - 2 * B @ self.q + self.c

    def best(self) -> tuple[FloatArray, float]:
        """The best filter (p,) and its risk, the floor."""
        B = scipy.linalg.solve(self.M, self.q, assume_a="pos")
        return B, float(self.c - B @ self.q)

    def residuals(self, d: ArrayLike, lam: float, k: int) -> FloatArray:
        """Rows r_1, ..., r_k whose combinations have the squares (risk - floor) of the filters sum_j c_j A^j, (k, p).

        For ``joint_weights`` and ``greedy_alphas``, whose risks are means over p.
        """
        d, lam = check_ridge(d, lam)
        powers = (d / (d + lam)) ** np.arange(1, as_count("k", k) + 1)[:, None]
        return (powers - self.best()[0]) @ scipy.linalg.cholesky(self.M, lower=True)


def filter_risk(spectrum: Spectrum, covariance: ArrayLike, prior: ArrayLike, noise: float) -> FilterRisk:
    """``FilterRisk`` for the spectrum S (p,), W (p, p) of Phi^T Phi, which must be nonsingular."""
    W = spectrum.V
    if spectrum.d[-1] <= 0:
        raise SingularKernelError("Phi^T Phi is singular: take more points, or fewer features")
    sigma = W.T @ as_floats("covariance", covariance, 2) @ W
    tau = W.T @ as_floats("prior", prior, 2) @ W
    M = tau * sigma + np.diag(float(as_ridges("noise", noise, 0)) * sigma.diagonal() / spectrum.d)
    q = (sigma * tau.T).sum(axis=1)
    return FilterRisk(M, q, float(q.sum()))


def predictive_variances(
    spectrum: Spectrum, K_new: ArrayLike, k_new: ArrayLike, lam: float, alpha: ArrayLike, steps: ArrayLike
) -> FloatArray:
    """E (f(x) - f^(tau)(x))² at q new points if f is a Gaussian process, (len(steps), q).

    ``K_new`` (q, n) holds its covariances k(x, X), ``k_new`` (q,) its variances k(x, x), and labels have noise of
    variance ``lam``. f^(tau)(x) = k(x, X) C y with C = V (D + lam)^-1 w V^T, so the error is

        k(x, x) - 2 k(x, X) C k(X, x) + k(x, X) C (K + lam I) C k(X, x)
            = k(x, x) - sum_i (k(x, X) v_i)² (2 w_i - w_i²) / (d_i + lam).

    Fit 1, with w = 1, is the posterior mean, and has the posterior variance, the least; a later fit has
    sum_i (k(x, X) v_i)² (1 - w_i)² / (d_i + lam) more. If instead the teacher's whole posterior is the student's prior,
    the labels are used again, and fit tau has the posterior variance of noise lam/tau. (Borup & Andersen 2023,
    arXiv 2304.02641.)
    """
    d, lam = check_ridge(spectrum.d, lam)
    K_new = as_new_kernel(K_new, len(spectrum.V))
    prior = as_floats("k_new", k_new, 1, largest=LARGEST_FLOAT)
    w = blend_filters(d, lam, alpha, steps)
    return prior - ((2 * w - w**2) / (d + lam)) @ (product(K_new, spectrum.V) ** 2).T
