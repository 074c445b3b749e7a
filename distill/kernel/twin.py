"""The kernel twin of a network: kernel ridge self-distillation on its features, given as arrays.

Fit 1 of the chain of ``distill.krr`` corresponds to the teacher (step 0), fit k + 1 to the student of step k. The
ridge regressions have an intercept that is not shrunk: predictions sum to 1 over the classes, as a softmax's do, and
the limit of a chain without ground truth is the class frequencies instead of 0. Squared errors are sums over the
classes and means over points (the Brier score).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from distill.kernel import spectral
from distill.kernel.arrays import FloatArray
from distill.kernel.linalg import Spectrum, decompose, product
from distill.kernel.mixing import as_rows, greedy_within, weights_to_alphas

ALPHAS = np.round(np.linspace(0, 1, 21), 10)  # of the risk map
LAMS = np.geomspace(1e-6, 10, 141)  # in units of the kernel's largest eigenvalue


def standardise(features: ArrayLike, others: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Features (n, p) and others (q, p), both centred and scaled by the mean and deviation of the first.

    A feature that is constant in the first is 0 in both.
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
    """The n - 1 orthonormal contrasts (n - 1, ...) of the rows of M (n, ...): M without its mean row.

    A Householder reflection that maps the constant vector to the first axis, without that axis. Kernel ridge
    regression with an intercept that is not shrunk is kernel ridge regression without one on the contrasts of targets
    and kernel.
    """
    w = np.full(len(M), len(M) ** -0.5)
    w[0] -= 1
    return (M - np.multiply.outer(w, w @ M * (2 / (w @ w))))[1:]


@dataclass(frozen=True)
class Twin:
    """The decomposed kernel, the targets and the held-out points: everything that a chain on one kernel needs."""

    name: str
    lam: float
    spectrum: Spectrum  # of the kernel among the n - 1 contrasts of the n points
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
        """Residuals (k, n - 1, classes) from the training points and given targets alone (``krr.gcv_residuals``)."""
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
    """The twin on features (n, p), n >= 2, with targets (n, classes), judged at held-out features (q, p).

    ``true`` (q, classes) are the held-out points' true labels, one-hot. The ridge is ``lam`` > 0. If it is None it is
    chosen from ``LAMS``: with ``teacher_outputs`` (n, classes), a network's at the training points, the ridge whose
    fit 1 is closest to them in squares, so that the twin's students learn from targets as much over- or underfitted
    as the network's do. Otherwise the ridge that generalised cross-validation finds best for fit 1 on the targets;
    the best alpha by cross-validation is then near 1 by construction.
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


def joint_within(residuals: FloatArray) -> FloatArray:
    """The alphas in [0, 1] of all students, (k-1,), that together give the last one the least error.

    By stick breaking they are weights c >= 0 with sum 1, and the least ‖sum_j c_j r_j‖² among these is a nonnegative
    least-squares problem: for the minimum u >= 0 of ‖sum_j u_j r_j‖² + (sum u - 1)², c = u / sum u, because along a
    ray the best length depends on c by ‖sum_j c_j r_j‖ alone, and grows as that shrinks. ``residuals`` (k, ...) as
    for ``mixing.greedy_alphas``.
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
    free: FloatArray | None = None  # (steps,) before clipping


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

    def schedule(alphas: FloatArray, free: FloatArray | None = None) -> Schedule:
        error, accuracy = twin.score(alphas, steps[:-1])
        return Schedule(alphas, error, accuracy, free)

    return Forecast(
        twin,
        steps,
        error=np.array([error for error, _ in both]),
        accuracy=np.array([accuracy for _, accuracy in both]),
        freedom=np.array([twin.degrees_of_freedom(alpha, steps) for alpha in ALPHAS]),
        schedules={
            "greedy": schedule(*greedy_within(held_out)),
            "joint": schedule(joint_within(held_out)),
            "cross-validated": schedule(*greedy_within(cross_validated)),
        },
    )
