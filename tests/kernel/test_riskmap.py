"""kernel/riskmap.py: risks of combinations against each combination's own risk."""

import numpy as np
import pytest

from distill.kernel.riskmap import make_risk

rng = np.random.default_rng(0)
POWERS = rng.standard_normal((4, 50, 3))
COMBINATIONS = rng.standard_normal((2, 5, 4))
TARGET = rng.standard_normal((50, 3))


@pytest.mark.parametrize("offset", [0.0, np.array([1.0, -2.0, 0.5])])
def test_combinations_have_the_risk_of_their_predictions(offset):
    squared = make_risk("squared", TARGET, offset).in_span(POWERS, COMBINATIONS)
    zero_one = make_risk("zero_one", TARGET, offset).in_span(POWERS, COMBINATIONS)
    for i, j in np.ndindex(2, 5):
        prediction = np.tensordot(COMBINATIONS[i, j], POWERS, 1) + offset
        assert squared[i, j] == pytest.approx(np.mean((prediction - TARGET) ** 2), rel=1e-12)
        assert zero_one[i, j] == np.mean(prediction.argmax(axis=1) != TARGET.argmax(axis=1))


def test_a_tie_goes_to_the_first_class():
    target = np.eye(3)
    prediction = np.array([[1.0, 1, 0], [1, 1, 0], [0, 1, 1]])
    assert make_risk("zero_one", target)(prediction) == pytest.approx(2 / 3)
    assert make_risk("zero_one", target)(np.zeros((3, 3))) == pytest.approx(2 / 3)


def test_a_class_without_points_can_still_win():
    target = np.eye(3)[[0, 0, 2]]
    assert make_risk("zero_one", target)(np.eye(3)[[1, 0, 1]]) == pytest.approx(2 / 3)


def test_a_prediction_that_overflowed_has_infinite_risk():
    prediction = np.full((50, 3), np.inf)
    assert make_risk("zero_one", TARGET)(prediction) == np.inf
    assert make_risk("squared", TARGET)(np.full((50, 3), 1e200)) == np.inf


@pytest.mark.parametrize(
    ("loss", "target"), [("brier", TARGET), ("zero_one", TARGET[:, 0]), ("zero_one", TARGET[:, :1])]
)
def test_refuses_a_loss_that_does_not_fit_the_target(loss, target):
    with pytest.raises(ValueError, match="loss"):
        make_risk(loss, target)
