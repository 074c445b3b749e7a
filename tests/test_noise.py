"""noise.py: what every kind of label noise promises, and what each kind does."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError
from distill.noise import NOISE_KINDS, PAIRS, TrueLabels

FOR_ALL_CLASSES = ("symmetric", "pairflip")  # other kinds may leave classes alone, or fit certain data only
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def wrong_labels(kind: str, labels: np.ndarray, classes: int | tuple[str, ...], seed: int = 0, **needs) -> np.ndarray:
    names = classes if isinstance(classes, tuple) else tuple(map(str, range(classes)))
    return NOISE_KINDS[kind].wrong_labels(TrueLabels(labels, names, **needs), np.random.default_rng(seed))


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


def transitions(labels: np.ndarray, wrong: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) counts of true and given labels."""
    return np.array([np.bincount(wrong[labels == c], minlength=classes) for c in range(classes)])


def test_symmetric_is_uniform_over_the_other_classes():
    labels = np.repeat(np.arange(4), 3000)
    expected = 1000 * (1 - np.eye(4))
    counts = transitions(labels, wrong_labels("symmetric", labels, 4), 4)
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(3000 * (1 / 3) * (2 / 3)))  # five deviations


def test_pairflip_gives_the_next_class():
    np.testing.assert_array_equal(wrong_labels("pairflip", np.array([0, 1, 2]), 3), [1, 2, 0])


def test_asymmetric_has_the_usual_pairs_of_cifar10():
    wrong = wrong_labels("asymmetric", np.arange(10), CIFAR10)
    changed = {CIFAR10[c]: CIFAR10[w] for c, w in enumerate(wrong) if w != c}
    assert changed == PAIRS
    np.testing.assert_array_equal(wrong_labels("asymmetric", np.array([0, 1, 1]), ("cat", "dog")), [1, 0, 0])


def test_superclass_gives_the_next_class_of_the_same_superclass():
    groups = (0, 1, 0, 1, 0, 2)
    wrong = wrong_labels("superclass", np.array([0, 1, 2, 3, 4, 5]), 6, superclasses=groups)
    np.testing.assert_array_equal(wrong, [2, 3, 4, 1, 0, 5])


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_label_dp_keeps_a_label_with_the_probability_of_randomised_response(epsilon):
    labels = np.repeat(np.arange(5), 20_000)
    counts = transitions(labels, wrong_labels("label-dp", labels, 5, epsilon=epsilon), 5) / 20_000
    other = 1 / (math.exp(epsilon) + 4)
    expected = np.where(np.eye(5), math.exp(epsilon) * other, other)
    np.testing.assert_allclose(counts, expected, atol=5 * 0.5 / math.sqrt(20_000))


@pytest.mark.parametrize(("epsilon", "wrong"), [(1e-300, 0.8), (1e38, 0.0)])
def test_label_dp_at_its_limits(epsilon, wrong):
    labels = np.zeros(20_000, np.int64)
    assert np.mean(wrong_labels("label-dp", labels, 5, epsilon=epsilon) != 0) == pytest.approx(wrong, abs=0.02)


def leave_confusions(folder, confusions, classes=("0", "1", "2", "3")) -> str:
    (folder / "result.json").write_text(json.dumps({"classes": classes, "confusions": confusions}))
    return str(folder)


def test_confusable_draws_classes_as_often_as_the_model_mistook_them(tmp_path):
    confusion = leave_confusions(tmp_path, {"0": {"1": 3, "3": 1}, "2": {"0": 7}})
    labels = np.repeat(np.arange(4), 4000)
    counts = transitions(labels, wrong_labels("confusable", labels, 4, confusion=confusion), 4)
    np.testing.assert_array_equal(counts[1:], [[0, 4000, 0, 0], [4000, 0, 0, 0], [0, 0, 0, 4000]])
    assert counts[0].tolist()[::2] == [0, 0]
    assert counts[0, 1] == pytest.approx(3000, abs=5 * math.sqrt(4000 * 0.75 * 0.25))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be used"),
        ("[]", "cannot be used"),
        ('{"classes": ["0", "1", "2", "4"]}', "its model has other classes: 0, 1, 2, 4"),
        ('{"classes": ["0", "1", "2", "3"]}', "it lacks 'confusions'"),
        ('{"classes": ["0", "1", "2", "3"], "confusions": {}}', "it has no confusions"),
        ('{"classes": ["0", "1", "2", "3"], "confusions": {"0": {"0": 1}}}', "it has no confusions"),
        ('{"classes": ["0", "1", "2", "3"], "confusions": {"0": {"1": -1}}}', "it has no confusions"),
        ('{"classes": ["0", "1", "2", "3"], "confusions": {"9": {"1": 1}}}', "cannot be used"),
        ('{"classes": ["0", "1", "2", "3"], "confusions": {"0": {"-1": 1}}}', "it lacks '-1'"),
        ('{"classes": ["0", "1", "2", "3"], "confusions": {"0": {"1": 1}}, "sha256": "0"}', "its SHA-256 is not"),
    ],
)
def test_a_record_without_usable_confusions_is_refused(tmp_path, content, said):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(DataError) as caught:
        wrong_labels("confusable", np.arange(4), 4, confusion=str(tmp_path))
    assert said in str(caught.value)
    assert "result.json" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("asymmetric", "needs classes named as in CIFAR-10"),
        ("superclass", "needs data with superclasses"),
        ("human", "is for --dataset cifar10 and cifar100"),
    ],
)
def test_data_that_a_kind_does_not_fit_are_refused(kind, said):
    with pytest.raises(DataError, match=said):
        wrong_labels(kind, np.arange(3), 3)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_every_kind_has_a_help_text(kind):
    assert NOISE_KINDS[kind].help
