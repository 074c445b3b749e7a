"""noise.py: what every kind of label noise promises, and what each kind does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.noise import NOISE_KINDS

FOR_ALL_CLASSES = ("symmetric", "pairflip")  # other kinds may leave classes alone, or fit certain data only


def wrong_labels(kind: str, labels: np.ndarray, classes: int, seed: int = 0) -> np.ndarray:
    return NOISE_KINDS[kind].wrong_labels(labels, classes, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", FOR_ALL_CLASSES)
@given(labels=st.lists(st.integers(0, 4), max_size=30), seed=st.integers(0, 2**31))
def test_kinds_for_all_classes_give_labels_of_other_classes(kind, labels, seed):
    labels = np.array(labels, dtype=np.int64)
    wrong = wrong_labels(kind, labels, 5, seed)
    assert (wrong.dtype, wrong.shape) == (np.int64, labels.shape)
    assert np.all(wrong != labels)
    assert np.all((wrong >= 0) & (wrong < 5))


@pytest.mark.parametrize("kind", FOR_ALL_CLASSES)
def test_the_draws_of_a_kind_are_those_of_the_generator(kind):
    labels = np.arange(60) % 3
    np.random.default_rng(1).random(100)  # another generator, which must not matter
    np.testing.assert_array_equal(wrong_labels(kind, labels, 3), wrong_labels(kind, labels, 3))


@pytest.mark.parametrize("kind", FOR_ALL_CLASSES)
def test_of_two_classes_the_other_one_is_wrong(kind):
    np.testing.assert_array_equal(wrong_labels(kind, np.array([0, 1, 1, 0]), 2), [1, 0, 0, 1])


def test_symmetric_is_uniform_over_the_other_classes():
    labels = np.repeat(np.arange(4), 3000)
    wrong = wrong_labels("symmetric", labels, 4)
    counts = np.array([np.bincount(wrong[labels == c], minlength=4) for c in range(4)])
    expected = 1000 * (1 - np.eye(4))
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(3000 * (1 / 3) * (2 / 3)))  # five deviations


def test_pairflip_gives_the_next_class():
    np.testing.assert_array_equal(wrong_labels("pairflip", np.array([0, 1, 2]), 3), [1, 2, 0])


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_every_kind_has_a_help_text(kind):
    assert NOISE_KINDS[kind].help
