"""Means over seeds with their uncertainty."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation, which is 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half width of its 95 % interval by Student's t, which is NaN for a single value.

    For paired differences, one per seed, it shows whether their mean differs from 0.
    """
    import numpy as np
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    return float(array.mean()), float(t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)
