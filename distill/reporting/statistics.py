"""Means over seeds with their uncertainty, and paired differences."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000  # of a bootstrap
LEVEL = 0.95


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation, which is 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with its 95 % interval and two-sided p-value; NaN if there is no interval."""

    mean: float
    low: float
    high: float
    p: float
    method: str  # what it is over: ``t, 3 seeds``

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval: not for a single seed without predictions."""
        return not math.isnan(self.low)

    def __str__(self) -> str:
        return (
            f"{self.mean:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f}"
            if self.has_interval
            else f"{self.mean:+.4f}"
        )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half width of its 95 % interval by Student's t, which is NaN for a single value."""
    import numpy as np
    from scipy.special import stdtrit  # the quantile in scipy.stats.t, which takes a second to import

    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    quantile = stdtrit(len(array) - 1, (1 + LEVEL) / 2)
    return float(array.mean()), float(quantile * array.std(ddof=1) / len(array) ** 0.5)


def over_seeds(differences: Sequence[float]) -> Difference:
    """Paired differences, one per seed, by Student's t; a single one has no interval."""
    from scipy.special import stdtr

    n = len(differences)
    mean, half = interval(differences)
    if n < 2:
        return Difference(mean, math.nan, math.nan, math.nan, "one seed: no interval")
    error = statistics.stdev(differences) / n**0.5
    p = float(2 * stdtr(n - 1, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, f"t, {n} seeds")


def over_images(differences: Sequence[float]) -> Difference:
    """Paired differences of one seed, one per test image, by the percentile bootstrap; the same draws in every call.

    The interval shows how much the difference depends on these test images, not how much on the seed.
    """
    import numpy as np
    from scipy.stats import bootstrap

    array = np.asarray(differences, dtype=np.float64)
    method = f"bootstrap, {len(array):,} images; one seed: no interval over seeds"
    if np.ptp(array) == 0:
        return Difference(float(array[0]), float(array[0]), float(array[0]), float(array[0] == 0), method)
    found = bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, batch=100, confidence_level=LEVEL, method="percentile", random_state=0
    )
    means = found.bootstrap_distribution
    tail = 1 + min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * float(tail) / (1 + RESAMPLES))
    low, high = found.confidence_interval
    return Difference(float(array.mean()), float(low), float(high), p, method)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method (1979); NaN stays NaN and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected
