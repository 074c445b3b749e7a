"""Intervals and p-values against SciPy's and statsmodels' definitions, by a second route."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from distill.reporting.statistics import holm, interval, over_images, over_seeds, spread

VALUES = [0.1, 0.7, 0.4, 0.2]


@pytest.mark.parametrize("values", [[0.25], [0.25, 0.5], [0.1, 0.7, 0.4]])
def test_spread_is_the_mean_and_the_sample_deviation(values):
    expected = (np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0)
    np.testing.assert_allclose(spread(values), expected, rtol=1e-12)


def test_interval_is_scipys_by_students_t():
    values = np.array(VALUES)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
    mean, half = interval(values)
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-12)
    assert interval(values.tolist()) == (mean, half)


def test_over_seeds_is_scipys_paired_test():
    students = np.array([0.8, 0.9, 0.7, 0.85])
    test = scipy.stats.ttest_rel(students, VALUES)
    found = over_seeds((students - VALUES).tolist())
    np.testing.assert_allclose([found.p, found.low, found.high], [test.pvalue, *test.confidence_interval()], rtol=1e-10)
    assert found.method == "t, 4 seeds"
    assert found.has_interval


@pytest.mark.parametrize(("values", "p"), [([0.0, 0.0], 1.0), ([0.25, 0.25], 0.0)])
def test_equal_differences_have_an_interval_of_one_point(values, p):
    found = over_seeds(values)
    assert (found.low, found.mean, found.high, found.p) == (values[0], values[0], values[0], p)
    images = over_images(values)
    assert (images.low, images.high, images.p) == (values[0], values[0], p)


def test_a_single_seed_has_no_interval():
    found = over_seeds([0.25])
    assert found.mean == 0.25
    assert not found.has_interval
    assert math.isnan(found.p)
    assert math.isnan(interval([0.25])[1])


def test_the_bootstrap_agrees_with_the_normal_interval_of_many_images():
    differences = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 2000, p=[0.1, 0.6, 0.3])
    found = over_images(differences)
    half = 1.96 * differences.std() / 2000**0.5
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)
    assert found.method == "bootstrap, 2,000 images; one seed: no interval over seeds"
    assert found == over_images(differences)
    assert found.p < 0.001
    assert over_images(np.array([1.0, -1.0] * 20)).p > 0.5


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    found = holm([math.nan, 0.01, 0.5])
    assert math.isnan(found[0])
    assert found[1:] == [0.02, 0.5]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_as_the_step_down_procedure_does(p_values):
    """Reject the smallest p-values while p <= 0.05 / (number left)."""
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= 0.05} == rejected
