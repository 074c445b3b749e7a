"""The kernel twin of a network: kernel ridge self-distillation on features. Arrays only, nothing of networks.

Fit 1 of the chain of `distill.krr` stands for the teacher (step 0), fit k + 1 for the student of step k. The ridge
regressions have an intercept that is not shrunk: predictions sum to 1 over the classes, as a softmax's do, and a
chain without ground truth ends at the class frequencies instead of 0. Squared errors are sums over the classes and
means over points (Brier's score).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from distill.kernel import krr
from distill.kernel.linalg import Spectrum, decompose, product
from distill.kernel.mixing import greedy_within, weights_to_alphas

ALPHAS = np.round(np.linspace(0, 1, 21), 10)  # of the risk map
LAMS = np.geomspace(1e-6, 10, 141)  # in units of the kernel's largest eigenvalue


def standardise(features, others) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, p) and others (q, p), less the mean and over the deviation of the first; constant ones are 0."""
    features, others = np.asarray(features, dtype=np.float64), np.asarray(others, dtype=np.float64)
    mean, sd = features.mean(0), features.std(0)
    sd = np.where(sd > 1e-7 * np.abs(mean), sd, np.inf)  # below it is the rounding of float32
    return (features - mean) / sd, (others - mean) / sd


def kernel_matrices(kernel: str, X, Z) -> tuple[np.ndarray, np.ndarray]:
    """K (n, n) among the points X (n, p) and k(z, x) (q, n) from new ones Z (q, p).

    "linear": x·z / p. "rbf": exp(-‖x - z‖² / (2 m)), m the median squared distance between two points of X.
    """
    K, K_new = product(X, X.T), product(Z, X.T)
    if kernel == "linear":
        return K / X.shape[1], K_new / X.shape[1]
    square = K.diagonal().copy()
    K = np.maximum(square[:, None] + square - 2 * K, 0)
    K_new = np.maximum((Z**2).sum(1)[:, None] + square - 2 * K_new, 0)
    median = np.median(K[np.triu_indices(len(K), 1)]) or 1.0
    return np.exp(K / (-2 * median)), np.exp(K_new / (-2 * median))


def contrasts(M) -> np.ndarray:
    """The rows of M (n, ...) in n - 1 orthonormal contrasts: what is left of it when an intercept is fitted.

    Householder's reflection that takes the constant vector to the first axis, less that axis. Kernel ridge regression
    with an intercept that is not shrunk is kernel ridge regression without one on the contrasts of targets and kernel.
    """
    w = np.full(len(M), len(M) ** -0.5)
    w[0] -= 1
    return (M - np.multiply.outer(w, w @ M * (2 / (w @ w))))[1:]


@dataclass(frozen=True)
class Twin:
    """What every chain on one kernel needs, from one eigendecomposition of it."""

    name: str
    lam: float
    spectrum: Spectrum  # of the kernel among the n - 1 contrasts of the n points
    mean: np.ndarray  # (classes,) the mean target: the intercept
    y: np.ndarray  # (n - 1, classes) contrasts of the targets
    z: np.ndarray  # (n - 1, classes) V^T y
    Q: np.ndarray  # (q, n - 1) the kernel from the held-out points to the contrasts, times V
    truth: np.ndarray  # (q, classes) one-hot, at the held-out points

    def predict(self, alpha, steps) -> np.ndarray:
        """Predictions (len(steps), q, classes) at the held-out points; `alpha` a number, or step 1's, 2's, ..."""
        w = krr.blend_filters(self.spectrum.d, self.lam, alpha, np.asarray(steps) + 1)
        return self.mean + krr.predict(self.Q, (w / (self.spectrum.d + self.lam))[:, :, None] * self.z)

    def score(self, alpha, steps) -> tuple[np.ndarray, np.ndarray]:
        """Squared error and accuracy on the held-out points, each (len(steps),)."""
        return scores(self.predict(alpha, steps), self.truth)

    def degrees_of_freedom(self, alpha, steps) -> np.ndarray:
        """tr B by step, (len(steps),), and 1 for the intercept."""
        B = krr.diagonals(self.spectrum.d, self.lam, alpha, np.asarray(steps) + 1)
        return 1 + krr.degrees_of_freedom(B)

    def residuals(self, k: int) -> np.ndarray:
        """truth - (prediction of A^j y), j = 1..k, (k, q, classes), for the best weights on held-out points."""
        filters = krr.shrinkage(self.spectrum.d, self.lam) ** np.arange(k)[:, None] / (self.spectrum.d + self.lam)
        return self.truth - self.mean - krr.predict(self.Q, filters[:, :, None] * self.z)

    def cross_validated_residuals(self, k: int) -> np.ndarray:
        """The same from the training points and the targets as given alone (`krr.gcv_residuals`), (k, n, classes)."""
        return krr.gcv_residuals(self.spectrum, self.y, self.lam, k)


def scores(predictions, truth) -> tuple[np.ndarray, np.ndarray]:
    """Squared error and accuracy of predictions (..., q, classes) against one-hot truth (q, classes), each (...)."""
    squares = ((predictions - truth) ** 2).sum(-1).mean(-1)
    return squares, (predictions.argmax(-1) == truth.argmax(-1)).mean(-1)


def make_twin(
    kernel: str, features, targets, held_out, truth, *, lam: float | None = None, teacher=None, name: str = ""
) -> Twin:
    """The twin on features (n, p), n >= 2, with targets (n, classes), seen at held-out ones (q, p), truth (q, classes).

    The ridge is ``lam`` > 0 or, where it is None, one of `LAMS`: with ``teacher`` (n, classes), a network's outputs at
    the training points, the one whose fit 1 is closest to them in squares, so that the twin's students learn from
    targets as much over- or underfitted as the network's do. Without, the one that generalised cross-validation finds
    best for fit 1 on the targets as given; the best alpha by cross-validation is then near 1 by construction.
    """
    X, Z = standardise(features, held_out)
    K, K_new = kernel_matrices(kernel, X, Z)
    K_new = contrasts((K_new - K.mean(0)).T).T
    K = contrasts(contrasts(K).T)
    spectrum = decompose((K + K.T) / 2, overwrite=True)
    targets = np.asarray(targets, dtype=np.float64)
    y = contrasts(targets)
    z, Q = product(spectrum.V.T, y), product(K_new, spectrum.V)
    if lam is None:
        lams = LAMS * (spectrum.d[0] or 1.0)
        A = spectrum.d / (spectrum.d + lams[:, None])
        if teacher is None:
            misfit = krr.generalised_cross_validation(spectrum, y, A)
        else:
            t = product(spectrum.V.T, contrasts(np.asarray(teacher, dtype=np.float64)))
            misfit = A**2 @ (z * z).sum(1) - 2 * A @ (z * t).sum(1)  # ‖A z - t‖² less ‖t‖²
        lam = lams[np.argmin(misfit)]
    return Twin(name or kernel, float(lam), spectrum, targets.mean(0), y, z, Q, np.asarray(truth, dtype=np.float64))


# ---- best weights, within the [0, 1] that a network's alpha has


def joint_within(residuals) -> np.ndarray:
    """The alphas in [0, 1] of all students, (k-1,), that are best together for the last one.

    By stick breaking they are weights c >= 0 with sum 1, and the least ‖sum_j c_j r_j‖² among these is a nonnegative
    least-squares problem: for the minimum u >= 0 of ‖sum_j u_j r_j‖² + (sum u - 1)², c = u / sum u, because along a
    ray the best length depends on c by ‖sum_j c_j r_j‖ alone, and rises as that falls.
    """
    R = np.reshape(residuals, (len(residuals), -1))
    triangle = np.linalg.qr(R.T, mode="r")  # ‖triangle c‖ = ‖R^T c‖
    scale = np.abs(triangle).max() or 1.0
    u, _ = nnls(np.vstack([triangle / scale, np.ones(len(R))]), np.append(np.zeros(len(triangle)), 1.0))
    return np.clip(weights_to_alphas(u / u.sum()), 0, 1)


@dataclass(frozen=True)
class Schedule:
    """Weights of steps 1, 2, ... and what the twin expects of them at steps 0, 1, ..."""

    alphas: np.ndarray  # (steps,)
    error: np.ndarray  # (steps + 1,)
    accuracy: np.ndarray  # (steps + 1,)
    free: np.ndarray | None = None  # (steps,) before clipping


@dataclass(frozen=True)
class Forecast:
    """What the twin expects of every chain of so many students. In arrays (alphas, steps + 2) the limit is last."""

    twin: Twin
    steps: np.ndarray  # 0, 1, ..., and inf
    error: np.ndarray  # (len(ALPHAS), steps + 2)
    accuracy: np.ndarray  # (len(ALPHAS), steps + 2)
    freedom: np.ndarray  # (len(ALPHAS), steps + 2)
    schedules: dict[str, Schedule]  # "greedy" and "joint" on held-out points, "cross-validated" without any


def forecast(twin: Twin, students: int) -> Forecast:
    """All that the preview shows of one twin. Raises ValueError for fewer than one student."""
    if students < 1:
        raise ValueError(f"a chain needs at least one student, not {students}")
    steps = np.append(np.arange(students + 1.0), math.inf)
    both = [twin.score(alpha, steps) for alpha in ALPHAS]
    held_out, without = twin.residuals(students + 1), twin.cross_validated_residuals(students + 1)

    def schedule(alphas, free=None) -> Schedule:
        return Schedule(alphas, *twin.score(alphas, steps[:-1]), free)

    return Forecast(
        twin,
        steps,
        np.array([error for error, _ in both]),
        np.array([accuracy for _, accuracy in both]),
        np.array([twin.degrees_of_freedom(alpha, steps) for alpha in ALPHAS]),
        {
            "greedy": schedule(*greedy_within(held_out)),
            "joint": schedule(joint_within(held_out)),
            "cross-validated": schedule(*greedy_within(without)),
        },
    )
