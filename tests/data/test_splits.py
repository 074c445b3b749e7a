"""splits.py: what is drawn, from what, and what that may depend on."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.config import DataConfig
from distill.data.load import load_source
from distill.data.source import Source, from_arrays
from distill.data.splits import Split, make_dataset
from distill.errors import DataError
from distill.noise import NOISE_KINDS, NoiseKind


def assert_same_dataset(a, b):
    assert (a.val is None) == (b.val is None)
    for part in ("train", "val", "test"):
        if getattr(a, part) is not None:
            assert_same_split(getattr(a, part), getattr(b, part))
    np.testing.assert_array_equal([a.mean, a.std], [b.mean, b.std])


def assert_same_split(a, b):
    for name in ("images", "labels", "true_labels", "index"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def toy_source(counts: list[int], test_each: int = 4) -> Source:
    """Unbalanced training classes in mixed order. An image's pixels are its position, so that mix-ups show."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    test_labels = np.tile(np.arange(len(counts)), test_each)
    classes = tuple(f"class{c}" for c in range(len(counts)))
    images = positions_as_images(len(labels))
    test_images = positions_as_images(len(test_labels))
    return Source("toy", images, labels, test_images, test_labels, classes, flip=True)


def positions_as_images(n: int) -> np.ndarray:
    """(n, 1, 1, 2) uint8: the two bytes of 0, 1, 2, ..."""
    return np.arange(n, dtype=">u2").view(np.uint8).reshape(n, 1, 1, 2)


COUNTS = st.lists(st.integers(5, 30), min_size=2, max_size=6)
SEEDS = st.integers(0, 2**31)


def assert_balanced(labels: np.ndarray, classes: int):
    counts = np.bincount(labels, minlength=classes)
    assert counts.max() - counts.min() <= 1


@given(counts=COUNTS, seed=SEEDS, data=st.data())
@settings(max_examples=60)
def test_subsets_are_balanced_disjoint_and_match_the_source(counts, seed, data):
    source = toy_source(counts)
    c = len(counts)
    val_size = data.draw(st.integers(1, 2 * c))
    train_size = data.draw(st.integers(1, 2 * c))  # every class has five, of which the held-out images take two at most
    test_size = data.draw(st.integers(1, 4 * c))
    dataset = make_dataset(source, DataConfig(val_size=val_size, train_size=train_size, test_size=test_size), seed)
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [train_size, val_size, test_size]
    assert not set(dataset.train.index) & set(dataset.val.index)
    for split, images, labels in (
        (dataset.train, source.train_images, source.train_labels),
        (dataset.val, source.train_images, source.train_labels),
        (dataset.test, source.test_images, source.test_labels),
    ):
        assert_balanced(split.labels, c)
        assert np.all(np.diff(split.index) > 0)
        assert split.labels is split.true_labels
        assert (split.labels.dtype, split.index.dtype, split.images.dtype) == (np.int64, np.int64, np.uint8)
        np.testing.assert_array_equal(split.images, images[split.index])
        np.testing.assert_array_equal(split.labels, labels[split.index])


@given(counts=COUNTS, seed=SEEDS, noise=st.floats(0, 1), kind=st.sampled_from(["pairflip", "symmetric"]))
@settings(max_examples=60)
def test_label_noise_is_exact_and_in_training_labels_only(counts, seed, noise, kind):
    source = toy_source(counts)
    c = len(counts)
    dataset = make_dataset(source, DataConfig(val_size=c, label_noise=noise, label_noise_kind=kind), seed)
    train = dataset.train
    wrong = train.labels != train.true_labels
    assert wrong.sum() == round(noise * len(train))
    assert train.labels.min() >= 0
    assert train.labels.max() < c
    np.testing.assert_array_equal(train.true_labels, source.train_labels[train.index])
    if kind == "pairflip":
        np.testing.assert_array_equal(train.labels[wrong], (train.true_labels[wrong] + 1) % c)
    for clean in (dataset.val, dataset.test):
        assert clean.labels is clean.true_labels
    np.testing.assert_array_equal(dataset.val.labels, source.train_labels[dataset.val.index])


def test_noise_that_spares_classes_corrupts_its_share_of_the_others(monkeypatch):
    """Class 0 becomes 1 and nothing else changes: 40 % of class 0 is wrong."""

    def zero_to_one(true, rng):
        return np.where(true.labels == 0, 1, true.labels)

    monkeypatch.setitem(NOISE_KINDS, "zero-to-one", NoiseKind(zero_to_one, ""))
    config = DataConfig(label_noise=0.4)
    object.__setattr__(config, "label_noise_kind", "zero-to-one")
    train = make_dataset(toy_source([50, 30, 20]), config, seed=1).train
    wrong = train.labels != train.true_labels
    assert wrong.sum() == 20
    assert set(train.true_labels[wrong]) == {0}
    assert set(train.labels[wrong]) == {1}


def test_symmetric_noise_is_uniform_over_images_and_over_the_other_classes():
    source = toy_source([3000] * 4)
    train = make_dataset(source, DataConfig(label_noise=0.5), seed=3).train
    shift = (train.labels - train.true_labels) % 4
    counts = np.array([np.bincount(shift[train.true_labels == c], minlength=4) for c in range(4)])
    np.testing.assert_allclose(counts[:, 0], 1500, atol=5 * np.sqrt(3000 / 4))
    np.testing.assert_allclose(counts[:, 1:], 500, atol=5 * np.sqrt(3000 * (1 / 6) * (5 / 6)))


@given(counts=COUNTS, seed=SEEDS)
@settings(max_examples=25)
def test_the_same_seed_gives_the_same_arrays_and_another_seed_others(counts, seed):
    source = toy_source([10 + n for n in counts])
    config = DataConfig(val_size=6, train_size=10, test_size=4, label_noise=0.4)
    assert_same_dataset(make_dataset(source, config, seed), make_dataset(source, config, seed))
    others = [make_dataset(source, config, seed + i) for i in range(1, 6)]
    for part in ("train", "val", "test"):
        assert len({getattr(d, part).index.tobytes() for d in others}) > 1, part


@given(seed=SEEDS, train_size=st.integers(1, 40), test_size=st.integers(1, 12), noise=st.floats(0, 1))
@settings(max_examples=40)
def test_one_size_does_not_change_the_draws_of_another_part(seed, train_size, test_size, noise):
    source = toy_source([20, 25, 30])
    base = DataConfig(val_size=6, train_size=20, test_size=6, label_noise=0.25)
    expected = make_dataset(source, base, seed)
    other_test = make_dataset(source, replace(base, test_size=test_size), seed)
    assert_same_split(other_test.train, expected.train)
    assert_same_split(other_test.val, expected.val)
    other_train = make_dataset(source, replace(base, train_size=train_size, label_noise=noise), seed)
    assert_same_split(other_train.val, expected.val)
    assert_same_split(other_train.test, expected.test)
    smaller, larger = sorted((other_train, expected), key=lambda d: len(d.train))
    assert set(smaller.train.index) <= set(larger.train.index)


@given(seed=SEEDS, low=st.floats(0, 1), high=st.floats(0, 1))
@settings(max_examples=25)
def test_more_noise_keeps_the_labels_that_less_noise_corrupts(seed, low, high):
    source = toy_source([20, 20, 20])
    little = make_dataset(source, DataConfig(label_noise=min(low, high)), seed).train
    much = make_dataset(source, DataConfig(label_noise=max(low, high)), seed).train
    wrong = little.labels != little.true_labels
    np.testing.assert_array_equal(little.labels[wrong], much.labels[wrong])


@given(seed=SEEDS, train_size=st.integers(3, 60), noise=st.floats(0, 1))
@settings(max_examples=25)
def test_wrong_labels_do_not_depend_on_the_subset(seed, train_size, noise):
    """One order decides which images are corrupted first, so of two runs' choices one contains the other."""
    source = toy_source([20, 20, 20])
    whole = make_dataset(source, DataConfig(label_noise=noise), seed).train
    some = make_dataset(source, DataConfig(train_size=train_size, label_noise=noise), seed).train
    in_whole = (whole.labels != whole.true_labels)[some.index]
    in_some = some.labels != some.true_labels
    assert np.all(in_whole <= in_some) or np.all(in_some <= in_whole)
    both = in_whole & in_some
    np.testing.assert_array_equal(some.labels[both], whole.labels[some.index][both])


def test_training_and_test_subsets_are_independent_draws():
    toy = toy_source([20, 20, 20])
    source = replace(toy, test_images=toy.train_images, test_labels=toy.train_labels)
    dataset = make_dataset(source, DataConfig(train_size=30, test_size=30), seed=1)
    assert set(dataset.train.index) != set(dataset.test.index)


def test_which_classes_get_the_extra_image_is_drawn():
    source = toy_source([10, 10, 10])
    subsets = [make_dataset(source, DataConfig(train_size=4), seed).train for seed in range(30)]
    assert {int(np.bincount(subset.labels).argmax()) for subset in subsets} == {0, 1, 2}


def test_the_extra_image_comes_from_a_class_that_has_one():
    source = toy_source([3, 9, 9])
    for seed in range(20):
        labels = make_dataset(source, DataConfig(train_size=11), seed).train.labels
        np.testing.assert_array_equal(np.bincount(labels), [3, 4, 4])


def test_without_sizes_everything_is_taken_uncopied():
    source = toy_source([5, 7])
    dataset = make_dataset(source, DataConfig(), seed=1)
    assert dataset.train.images is source.train_images
    assert dataset.test.images is source.test_images
    assert dataset.val is None
    assert (len(dataset.train), len(dataset.test)) == (12, 8)
    np.testing.assert_array_equal(dataset.train.index, np.arange(12))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(train_size=15), r"--train-size 15 needs 5 images of class 'class1', but there are 4"),
        (DataConfig(train_size=17), r"--train-size 17 needs 5 images of class 'class1', but there are 4"),
        (DataConfig(val_size=16), r"--val-size 16 needs 5 images of class 'class1'"),
        (
            DataConfig(val_size=3, train_size=12),
            r"--train-size 12 needs 4 images of class 'class1', but there are 3",
        ),
        (DataConfig(test_size=13), r"--test-size 13 needs 5 images of class"),
    ],
)
def test_a_class_with_too_few_images_is_named(config, message):
    with pytest.raises(DataError, match=message):
        make_dataset(toy_source([9, 4, 5]), config, seed=1)


def test_holding_out_all_images_is_refused():
    with pytest.raises(DataError, match="--val-size 12 leaves no image to train on"):
        make_dataset(toy_source([4, 4, 4]), DataConfig(val_size=12), seed=1)


def test_testing_on_all_images_is_refused():
    unsplit = replace(toy_source([4, 4, 4]), test_images=None, test_labels=None)
    with pytest.raises(DataError, match="--test-size 12 leaves no image to train on"):
        make_dataset(unsplit, DataConfig(test_size=12), seed=1)


def test_a_black_square_larger_than_the_images_is_refused():
    side = toy_source([4, 4]).train_images.shape[2]
    make_dataset(toy_source([4, 4]), DataConfig(cutout=side), seed=1)
    with pytest.raises(DataError, match=f"--cutout {side + 1} is more than the {side} pixels"):
        make_dataset(toy_source([4, 4]), DataConfig(cutout=side + 1), seed=1)


@pytest.mark.parametrize(("classes", "test_size", "expected"), [("01", None, 100), ("31", 60, 60), ("012", 90, 90)])
def test_some_classes_of_the_digits(classes, test_size, expected):
    config = DataConfig("digits", classes=tuple(classes), train_size=90, test_size=test_size)
    data = make_dataset(load_source(config), config, seed=1)
    assert (data.classes, len(data.train), len(data.test)) == (tuple(classes), 90, expected)
    assert set(np.bincount(data.test.labels)) == {expected // len(classes)}
    assert not set(data.train.index) & set(data.test.index)


def test_moments_are_those_of_the_final_training_images():
    rng = np.random.default_rng(0)
    labels = np.arange(6000) % 2
    images = (rng.integers(0, 256, (6000, 3, 4, 4)) // np.array([1, 2, 3])[:, None, None]).astype(np.uint8)
    source = from_arrays(images, labels, images[:4], labels[:4])
    for config in (DataConfig(), DataConfig(train_size=100)):
        dataset = make_dataset(source, config, seed=1)
        scaled = dataset.train.images.astype(np.float64) / 255
        np.testing.assert_allclose(dataset.mean, scaled.mean((0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(dataset.std, scaled.std((0, 2, 3)), rtol=1e-6)
        assert (dataset.mean.dtype, dataset.std.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_channel_has_deviation_one(value):
    images = np.full((10, 3, 3), value, np.uint8)
    source = from_arrays(images, np.arange(10) % 2, images, np.arange(10) % 2)
    dataset = make_dataset(source, DataConfig(), seed=1)
    assert dataset.std == 1
    assert dataset.mean == np.float32(value / 255)


def test_digits_are_split_by_seed_with_fifty_test_images_a_class():
    source = load_source(DataConfig("digits"))
    assert source.train_images.shape == (1797, 1, 8, 8)
    assert (source.train_images.min(), source.train_images.max()) == (0, 255)
    assert (source.test_images, source.flip, source.classes) == (None, False, tuple("0123456789"))
    first = make_dataset(source, DataConfig("digits"), seed=1)
    assert (len(first.train), len(first.test), first.flip) == (1297, 500, False)
    np.testing.assert_array_equal(np.bincount(first.test.labels), [50] * 10)
    assert sorted([*first.train.index, *first.test.index]) == list(range(1797))
    np.testing.assert_array_equal(first.test.images, source.train_images[first.test.index])
    second = make_dataset(source, DataConfig("digits"), seed=2)
    assert set(first.test.index) != set(second.test.index)


def test_digits_keep_their_test_split_whatever_the_sizes():
    source = load_source(DataConfig("digits"))
    whole = make_dataset(source, DataConfig("digits"), seed=1)
    config = DataConfig("digits", val_size=200, train_size=1000, test_size=100, label_noise=0.4)
    part = make_dataset(source, config, seed=1)
    assert set(part.test.index) < set(whole.test.index)
    assert not set(part.test.index) & {*part.train.index, *part.val.index}
    assert (part.train.labels != part.train.true_labels).sum() == 400
    with pytest.raises(DataError, match="--test-size 501"):
        make_dataset(source, DataConfig("digits", test_size=501), seed=1)


# ------------------------------------------------------------------------------------------------------ rows of a split


def test_take_gives_the_rows_of_every_array():
    train = make_dataset(toy_source([20, 20]), DataConfig(train_size=30, label_noise=0.5), seed=1).train
    rows = np.array([0, 3, 29])
    part = train.take(rows)
    assert len(part) == 3
    assert_same_split(part, Split(train.images[rows], train.labels[rows], train.true_labels[rows], train.index[rows]))


def test_take_shares_uncorrupted_labels():
    train = make_dataset(toy_source([20, 20]), DataConfig(), seed=1).train
    part = train.take(np.array([1, 2]))
    assert part.labels is part.true_labels


def test_taking_all_rows_copies_nothing():
    train = make_dataset(toy_source([20, 20]), DataConfig(label_noise=0.5), seed=1).train
    assert train.take(np.arange(40)) is train


# ------------------------------------------------------------------------------------------------ the same draws always


def digest(dataset) -> str:
    """The first 16 digits of the SHA-256 of what is drawn."""
    splits = (dataset.train, dataset.val, dataset.test)
    return hashlib.sha256(repr([(s.labels.tolist(), s.index.tolist()) for s in splits]).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("kind", "expected"), [("symmetric", "87c6a81f285ace4e"), ("pairflip", "c46824e6d5022f75")])
def test_a_seed_means_the_same_data_as_in_earlier_versions(kind, expected):
    """If this fails, nobody can repeat with this version what they published with an earlier one."""
    config = DataConfig("digits", val_size=203, train_size=500, test_size=101, label_noise=0.4, label_noise_kind=kind)
    assert digest(make_dataset(load_source(config), config, seed=1)) == expected
