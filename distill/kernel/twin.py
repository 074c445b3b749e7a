"""The kernel twin of a network: a chain of kernel ridge regressions on the network's features.

Fit 1 of the chain of ``distill.krr`` corresponds to the teacher (step 0), fit k + 1 to the student of step k. The ridge
regressions have an intercept that is not penalised. Therefore predictions sum to 1 over the classes, like a softmax,
and the limit of a chain without ground truth is the class frequencies instead of 0. Squared errors are summed over
classes and averaged over points (the Brier score).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from distill.kernel import spectral
from distill.kernel.arrays import FloatArray
from distill.kernel.linalg import Spectrum, decompose, product
from distill.kernel.mixing import as_rows, bounded_greedy_alphas, weights_to_alphas

ALPHAS = np.round(np.linspace(0, 1, 21), 10)  # of the risk map
LAMS = np.geomspace(1e-6, 10, 141)  # in units of the kernel's largest eigenvalue


def standardise(features: ArrayLike, others: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Features (n, p) and others (q, p), both centred and scaled by mean and standard deviation of ``features``.

    A feature that is constant in ``features`` becomes 0 in both.
    """
    X = np.asarray(features, dtype=np.float64)
    Z = np.asarray(others, dtype=np.float64)
    mean = X.mean(0)
    sd = X.std(0)
    sd = np.where(sd > 1e-7 * np.abs(mean), sd, np.inf)  # smaller deviations are float32's rounding
    return (X - mean) / sd, (Z - mean) / sd


def kernel_matrices(kernel: str, X: FloatArray, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """K (n, n) of the points X (n, p), and k(z, x) (q, n) for new points Z (q, p).

    "linear": x·z / p. "rbf": exp(-‖x - z‖² / (2 m)), m the median squared distance between two points of X.
    """
    K = product(X, X.T)
    K_new = product(Z, X.T)
    if kernel == "linear":
        return K / X.shape[1], K_new / X.shape[1]
    square = K.diagonal().copy()
    K = np.maximum(square[:, None] + square - 2 * K, 0)
    K_new = np.maximum((Z**2).sum(1)[:, None] + square - 2 * K_new, 0)
    median = np.median(K[np.triu_indices(len(K), 1)]) or 1.0
    return np.exp(K / (-2 * median)), np.exp(K_new / (-2 * median))


def contrasts(M: FloatArray) -> FloatArray:
    """Orthonormal contrasts (n - 1, ...) of the rows of M (n, ...), which remove the mean over rows.

    Computed by the Householder reflection that maps the constant vector to the first axis, which is then dropped.
    Kernel ridge regression with an unpenalised intercept is kernel ridge regression without intercept on the contrasts
    of targets and kernel.
    """
    w = np.full(len(M), len(M) ** -0.5)
    w[0] -= 1
    return (M - np.multiply.outer(w, w @ M * (2 / (w @ w))))[1:]


@dataclass(frozen=True)
class Twin:
    """The decomposed kernel, the targets and the held-out points, from which every chain on one kernel follows."""

    name: str
    lam: float
    spectrum: Spectrum  # of the kernel between the n - 1 contrasts of the n points
    mean: FloatArray  # (classes,) the mean target: the intercept
    y: FloatArray  # (n - 1, classes) contrasts of the targets
    z: FloatArray  # (n - 1, classes) V^T y
    Q: FloatArray  # (q, n - 1) the kernel from the held-out points to the contrasts, times V
    true: FloatArray  # (q, classes) the held-out points' true labels, one-hot

    def predict(self, alpha: ArrayLike, steps: ArrayLike) -> FloatArray:
        """Predictions (len(steps), q, classes) at the held-out points; ``alpha`` a number, or one for each student."""
        w = spectral.blend_filters(self.spectrum.d, self.lam, alpha, np.asarray(steps) + 1)
        return self.mean + spectral.apply_filters(self.Q, w / (self.spectrum.d + self.lam), self.z)

    def score(self, alpha: ArrayLike, steps: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Squared error and accuracy on the held-out points, each (len(steps),)."""
        return scores(self.predict(alpha, steps), self.true)

    def degrees_of_freedom(self, alpha: ArrayLike, steps: ArrayLike) -> FloatArray:
        """tr B by step, (len(steps),), plus 1 for the intercept."""
        B = spectral.diagonals(self.spectrum.d, self.lam, alpha, np.asarray(steps) + 1)
        return 1 + spectral.degrees_of_freedom(B)

    def residuals(self, k: int) -> FloatArray:
        """true - (prediction of A^j y), j = 1..k, (k, q, classes), for the best alphas on held-out points."""
        filters = spectral.power_filters(self.spectrum.d, self.lam, k)
        return self.true - self.mean - spectral.apply_filters(self.Q, filters, self.z)

    def cross_validated_residuals(self, k: int) -> FloatArray:
        """Residuals (k, n - 1, classes) without held-out points (``krr.gcv_residuals``)."""
        return spectral.gcv_residuals(self.spectrum, self.y, self.lam, k)


def scores(predictions: FloatArray, true: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Squared error and accuracy, each (...), of predictions (..., q, classes) for one-hot labels (q, classes)."""
    squares = ((predictions - true) ** 2).sum(-1).mean(-1)
    return squares, (predictions.argmax(-1) == true.argmax(-1)).mean(-1)


def make_twin(
    kernel: str,
    features: ArrayLike,
    targets: ArrayLike,
    held_out: ArrayLike,
    true: ArrayLike,
    *,
    lam: float | None = None,
    teacher_outputs: ArrayLike | None = None,
    name: str = "",
) -> Twin:
    """The twin on features (n, p), n >= 2, with targets (n, classes), scored on held-out features (q, p).

    ``true`` (q, classes) are the held-out points' true labels, one-hot. The ridge is ``lam`` > 0. If it is None, it is
    chosen from ``LAMS``. With ``teacher_outputs`` (n, classes), a network's outputs at the training points, it is the
    ridge whose fit 1 has the least squared distance to them: then the twin's teacher over- or underfits like the
    network. Without them it is the best ridge for fit 1 by generalised cross-validation; the best alpha by
    cross-validation is then near 1 by construction.
    """
    X, Z = standardise(features, held_out)
    K, K_new = kernel_matrices(kernel, X, Z)
    K_new = contrasts((K_new - K.mean(0)).T).T
    K = contrasts(contrasts(K).T)
    spectrum = decompose((K + K.T) / 2, overwrite=True)
    targets = np.asarray(targets, dtype=np.float64)
    y = contrasts(targets)
    z = product(spectrum.V.T, y)
    Q = product(K_new, spectrum.V)
    if lam is None:
        lam = _choose_ridge(spectrum, y, z, teacher_outputs)
    return Twin(name or kernel, float(lam), spectrum, targets.mean(0), y, z, Q, np.asarray(true, dtype=np.float64))


def _choose_ridge(spectrum: Spectrum, y: FloatArray, z: FloatArray, teacher_outputs: ArrayLike | None) -> float:
    lams = LAMS * (spectrum.d[0] or 1.0)
    A = spectrum.d / (spectrum.d + lams[:, None])
    if teacher_outputs is None:
        misfit = spectral.generalised_cross_validation(spectrum, y, A)
    else:
        t = product(spectrum.V.T, contrasts(np.asarray(teacher_outputs, dtype=np.float64)))
        misfit = A**2 @ (z * z).sum(1) - 2 * A @ (z * t).sum(1)  # ‖A z - t‖² less ‖t‖²
    return lams[np.argmin(misfit)]


def joint_alphas(residuals: FloatArray) -> FloatArray:
    """The alphas in [0, 1] of all students, (k-1,), that minimise the last student's error.

    By stick breaking they correspond to weights c >= 0 with sum 1 that minimise ‖sum_j c_j r_j‖². This is a nonnegative
    least-squares problem: if u >= 0 minimises ‖sum_j u_j r_j‖² + (sum u - 1)², then c = u / sum u. (For u = s c the
    minimum over s is ‖r‖² / (1 + ‖r‖²) with r = sum_j c_j r_j, which rises with ‖r‖.) ``residuals`` (k, ...) as for
    ``mixing.greedy_alphas``.
    """
    R = as_rows(residuals)
    triangle = np.asarray(np.linalg.qr(R.T, mode="r"))  # ‖triangle c‖ = ‖R^T c‖
    scale = float(np.abs(triangle).max()) or 1.0
    u, _ = nnls(np.vstack([triangle / scale, np.ones(len(R))]), np.append(np.zeros(len(triangle)), 1.0))
    return np.clip(weights_to_alphas(u / u.sum()), 0, 1)


@dataclass(frozen=True)
class Schedule:
    """The alphas of steps 1, 2, ..., and the twin's forecast for them at steps 0, 1, ..."""

    alphas: FloatArray  # (steps,)
    error: FloatArray  # (steps + 1,)
    accuracy: FloatArray  # (steps + 1,)
    unclipped: FloatArray | None = None  # (steps,) before clipping to [0, 1]


@dataclass(frozen=True)
class Forecast:
    """The twin's forecast for chains of a number of students. In arrays (alphas, steps + 2) the limit is last."""

    twin: Twin
    steps: FloatArray  # 0, 1, ..., and inf
    error: FloatArray  # (len(ALPHAS), steps + 2)
    accuracy: FloatArray  # (len(ALPHAS), steps + 2)
    freedom: FloatArray  # (len(ALPHAS), steps + 2) effective degrees of freedom
    schedules: dict[str, Schedule]  # "greedy" and "joint" on held-out points, "cross-validated" without any


def forecast(twin: Twin, students: int) -> Forecast:
    """The forecast for chains of ``students`` students. Raises ValueError for fewer than one."""
    if students < 1:
        raise ValueError(f"a chain needs at least one student, not {students}")
    steps = np.append(np.arange(students + 1.0), math.inf)
    both = [twin.score(alpha, steps) for alpha in ALPHAS]
    held_out = twin.residuals(students + 1)
    cross_validated = twin.cross_validated_residuals(students + 1)

    def schedule(alphas: FloatArray, unclipped: FloatArray | None = None) -> Schedule:
        error, accuracy = twin.score(alphas, steps[:-1])
        return Schedule(alphas, error, accuracy, unclipped)

    return Forecast(
        twin,
        steps,
        error=np.array([error for error, _ in both]),
        accuracy=np.array([accuracy for _, accuracy in both]),
        freedom=np.array([twin.degrees_of_freedom(alpha, steps) for alpha in ALPHAS]),
        schedules={
            "greedy": schedule(*bounded_greedy_alphas(held_out, 0.0, 1.0)[:2]),
            "joint": schedule(joint_alphas(held_out)),
            "cross-validated": schedule(*bounded_greedy_alphas(cross_validated, 0.0, 1.0)[:2]),
        },
    )
