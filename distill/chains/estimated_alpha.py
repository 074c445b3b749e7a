"""Which weight of the ground truth a step takes where it is to be estimated: Algorithm 1 of the paper.

A student's fit is nearly affine in its alpha: alpha * f + (1 - alpha) * g, with f the teacher trained on the ground
truth (step 0) and g this step's student trained with alpha = 0, the *probe*. On held-out images the alpha of least
squared error is then a projection (Borup & Andersen 2021, arXiv 2102.13088; exact for kernel ridge regression). One
training a step instead of a grid. The formula is the kernel wing's own.
"""

from dataclasses import dataclass

import numpy as np

from distill.kernel.mixing import best_alpha

RESAMPLES = 1000  # of the bootstrap
SAME = 16 * float(np.finfo(np.float32).eps)  # predictions are float32: closer than this they differ by rounding alone


@dataclass(frozen=True)
class Choice:
    """An estimated weight. Errors are Brier scores on the held-out images: mean of |p - one_hot|^2, in [0, 2]."""

    alpha_star: float | None  # of least error, not clipped; None where f and g agree to rounding: alpha does not matter
    standard_error: float | None  # of alpha_star, over resampled held-out images
    alpha: float  # what the student is trained with: alpha_star in [0, 1], or 0 where the probe is taken
    takes_probe: bool  # the probe is the student: alpha_star is within its error of 0, below it, or does not matter
    probe_val_brier: float
    predicted_val_brier: float  # of alpha * f + (1 - alpha) * g


def choose(first: np.ndarray, probe: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Choice:
    """The weight for a student, from held-out probabilities f and g (n, classes) float64 and true labels (n,) int64."""
    truth = np.eye(first.shape[1])[labels]
    best, error = _estimate(first, probe, truth, rng)
    takes_probe = best is None or best <= error
    alpha = 0.0 if takes_probe else min(best, 1.0)

    def brier(p: np.ndarray) -> float:
        return float(np.mean(((p - truth) ** 2).sum(1)))

    return Choice(best, error, alpha, takes_probe, brier(probe), brier(alpha * first + (1 - alpha) * probe))


def _estimate(first, probe, truth, rng) -> tuple[float | None, float | None]:
    """alpha_star and its standard error, or None twice."""
    e = first - probe
    if np.linalg.norm(e) <= SAME * np.linalg.norm(first):
        return None, None
    best = best_alpha(first, probe, truth)
    # alpha* = sum_i <t_i - g_i, e_i> / sum_i <e_i, e_i>: a resample of the images weights the two sums' terms.
    above, below = ((truth - probe) * e).sum(1), (e * e).sum(1)
    n, resampled = len(truth), []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, n, n)
        if (weight := below[rows].sum()) > 0:
            resampled.append(above[rows].sum() / weight)
    return best, float(np.std(resampled))
