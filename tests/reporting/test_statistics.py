import numpy as np
import pytest
import scipy.stats

from distill.reporting.statistics import interval, spread


@pytest.mark.parametrize("values", [[0.25], [0.25, 0.5], [0.1, 0.7, 0.4]])
def test_spread_is_the_mean_and_the_sample_deviation(values):
    expected = (np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0)
    np.testing.assert_allclose(spread(values), expected, rtol=1e-12)


def test_interval_is_scipys_by_students_t():
    values = np.array([0.1, 0.7, 0.4, 0.2])
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
    mean, half = interval(values)
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-12)
    assert interval(values.tolist()) == (mean, half)


def test_a_single_value_has_no_interval():
    mean, half = interval([0.25])
    assert mean == 0.25
    assert np.isnan(half)
