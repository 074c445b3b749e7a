import hashlib
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import CLASSES, patterned_images, write_cifar_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.config import DataConfig
from distill.data import sources as datafiles
from distill.data.sources import Source, from_arrays, load_source
from distill.data.splits import make_dataset
from distill.errors import DataError

BATCHES = "cifar-10-batches-py"


def assert_same_dataset(a, b):
    assert (a.val is None) == (b.val is None)
    for part in ("train", "val", "test"):
        if getattr(a, part) is not None:
            assert_same_split(getattr(a, part), getattr(b, part))
    np.testing.assert_array_equal([a.mean, a.std], [b.mean, b.std])


def assert_same_split(a, b):
    for name in ("images", "labels", "true_labels", "index"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_importing_the_module_imports_no_heavy_package():
    heavy = ("torch", "torchvision", "sklearn", "PIL", "tqdm", "scipy")
    program = f"import sys, distill.data; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


# ------------------------------------------------------------------------------------- splits, subsets, label noise


def toy_source(counts: list[int], test_each: int = 4) -> Source:
    """Unbalanced training classes in mixed order. An image's pixels are its position, so that mix-ups listener."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    test_labels = np.tile(np.arange(len(counts)), test_each)
    classes = tuple(f"class{c}" for c in range(len(counts)))
    return Source("toy", positions_as_images(len(labels)), labels, positions_as_images(len(test_labels)), test_labels,
                  classes, flip=True)  # fmt: skip


def positions_as_images(n: int) -> np.ndarray:
    return np.arange(n, dtype=">u2").view(np.uint8).reshape(n, 1, 1, 2)


COUNTS = st.lists(st.integers(5, 30), min_size=2, max_size=6)
SEEDS = st.integers(0, 2**31)


def assert_balanced(labels: np.ndarray, classes: int):
    counts = np.bincount(labels, minlength=classes)
    assert counts.max() - counts.min() <= 1


@given(counts=COUNTS, seed=SEEDS, data=st.data())
@settings(max_examples=60)
def test_subsets_are_balanced_disjoint_and_true_to_the_source(counts, seed, data):
    source, c = toy_source(counts), len(counts)
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


@given(counts=COUNTS, seed=SEEDS, noise=st.floats(0, 1), kind=st.sampled_from(["symmetric", "pairflip"]))
@settings(max_examples=60)
def test_label_noise_is_exact_in_number_never_true_and_in_training_labels_only(counts, seed, noise, kind):
    source, c = toy_source(counts), len(counts)
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
def test_one_size_never_shifts_the_draw_of_another_part(seed, train_size, test_size, noise):
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
def test_more_noise_corrupts_more_of_the_same(seed, low, high):
    source, (low, high) = toy_source([20, 20, 20]), sorted((low, high))
    little, much = (make_dataset(source, DataConfig(label_noise=p), seed).train for p in (low, high))
    wrong = little.labels != little.true_labels
    np.testing.assert_array_equal(little.labels[wrong], much.labels[wrong])


@given(seed=SEEDS, train_size=st.integers(3, 60), noise=st.floats(0, 1))
@settings(max_examples=25)
def test_a_subset_is_corrupted_as_the_whole_is(seed, train_size, noise):
    """One order decides which images are corrupted first, so of two runs' choices one contains the other."""
    source = toy_source([20, 20, 20])
    whole = make_dataset(source, DataConfig(label_noise=noise), seed).train
    some = make_dataset(source, DataConfig(train_size=train_size, label_noise=noise), seed).train
    in_whole, in_some = (s.labels != s.true_labels for s in (whole, some))
    in_whole = in_whole[some.index]
    assert np.all(in_whole <= in_some) or np.all(in_some <= in_whole)
    both = in_whole & in_some
    np.testing.assert_array_equal(some.labels[both], whole.labels[some.index][both])


def test_training_and_test_subsets_are_drawn_apart():
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
        (DataConfig(train_size=15), r"--train-size 15 needs 5 images of class 'class1', of which there are 4"),
        (DataConfig(train_size=17), r"--train-size 17 needs 5 images of class 'class1', of which there are 4"),
        (DataConfig(val_size=16), r"--val-size 16 needs 5 images of class 'class1'"),
        (
            DataConfig(val_size=3, train_size=12),
            r"--train-size 12 needs 4 images of class 'class1', of which there are 3",
        ),
        (DataConfig(test_size=13), r"--test-size 13 needs 5 images of class"),
    ],
)
def test_a_class_with_too_few_images_is_named(config, message):
    with pytest.raises(DataError, match=message):
        make_dataset(toy_source([9, 4, 5]), config, seed=1)


def test_holding_out_everything_is_refused():
    with pytest.raises(DataError, match="--val-size 12 leaves no image to train on"):
        make_dataset(toy_source([4, 4, 4]), DataConfig(val_size=12), seed=1)


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


# ---------------------------------------------------------------------------------------------------------- digits


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


def test_digits_keep_their_split_whatever_is_asked_of_it():
    source = load_source(DataConfig("digits"))
    whole = make_dataset(source, DataConfig("digits"), seed=1)
    config = DataConfig("digits", val_size=200, train_size=1000, test_size=100, label_noise=0.4)
    part = make_dataset(source, config, seed=1)
    assert set(part.test.index) < set(whole.test.index)
    assert not set(part.test.index) & {*part.train.index, *part.val.index}
    assert (part.train.labels != part.train.true_labels).sum() == 400
    with pytest.raises(DataError, match="--test-size 501"):
        make_dataset(source, DataConfig("digits", test_size=501), seed=1)


def test_digits_scale_ink_to_bytes():
    from sklearn.datasets import load_digits

    levels = load_digits().images.astype(int)
    images = load_source(DataConfig("digits")).train_images[:, 0]
    for level, byte in ((0, 0), (1, 16), (8, 128), (15, 239), (16, 255)):
        assert set(images[levels == level]) == {byte}


# ---------------------------------------------------------------------------------------------- arrays from Python


@pytest.mark.parametrize("layout", ["nhw", "nhw1", "nhw3", "n1hw", "n3hw"])
def test_from_arrays_reads_the_usual_layouts(layout):
    rng = np.random.default_rng(0)
    c = 3 if "3" in layout else 1
    expected = rng.integers(0, 256, (6, c, 5, 4), dtype=np.uint8)
    images = {
        "nhw": expected[:, 0], "nhw1": expected.transpose(0, 2, 3, 1), "nhw3": expected.transpose(0, 2, 3, 1),
        "n1hw": expected, "n3hw": expected,
    }[layout]  # fmt: skip
    source = from_arrays(images, [0, 1, 2, 0, 1, 2], images[:2], np.array([2, 0], np.int32))
    np.testing.assert_array_equal(source.train_images, expected)
    np.testing.assert_array_equal(source.test_images, expected[:2])
    assert (source.name, source.classes, source.flip) == ("custom", ("0", "1", "2"), True)
    assert (source.train_labels.dtype, source.test_labels.dtype) == (np.int64, np.int64)
    assert source.train_images.flags["C_CONTIGUOUS"]


GOOD = np.zeros((4, 5, 5), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GOOD / 255, [0, 1, 0, 1], GOOD, [0, 1, 0, 1]), "train_images must be uint8 .* not float64"),
        ((np.zeros((4, 3, 5, 3), np.uint8), [0, 1, 0, 1], GOOD, [0, 1, 0, 1]), "can be read as"),
        ((np.zeros((4, 5, 5, 5), np.uint8), [0, 1, 0, 1], GOOD, [0, 1, 0, 1]), "no axis of 1 or 3 channels"),
        ((np.zeros((4, 5), np.uint8), [0, 1, 0, 1], GOOD, [0, 1, 0, 1]), r"not \(4, 5\)"),
        ((GOOD[:0], [], GOOD, [0, 1, 0, 1]), "non-empty"),
        (([[1], [1, 2]], [0, 1], GOOD, [0, 1, 0, 1]), "train_images cannot be made an array"),
        ((GOOD, [0, 1, 0, 1], GOOD[:, :4], [0, 1, 0, 1]), r"\(1, 5, 5\) and \(1, 4, 5\)"),
        ((GOOD, [0, 1, 0], GOOD, [0, 1, 0, 1]), "train_labels must be 4 integers"),
        ((GOOD, [0, 1, 0, 1], GOOD, [0.0, 1.0, 0.0, 1.0]), "test_labels must be 4 integers, .* not float64"),
        ((GOOD, [0, 1, 0, -1], GOOD, [0, 1, 0, 1]), "train_labels holds -1"),
        ((GOOD, [0, 1, 0, 1], GOOD, [0, 1, 0, 2], ("a", "b")), "label 2 is out of range for 2 classes"),
        ((GOOD, [0, 0, 0, 0], GOOD, [0, 0, 0, 0]), "at least two classes"),
    ],
)
def test_from_arrays_refuses_what_it_cannot_read(arguments, message):
    with pytest.raises(DataError, match=message) as caught:
        from_arrays(*arguments)
    assert "\n" not in str(caught.value)


def test_fingerprint_tells_data_apart():
    def fingerprint(pixel=0, label=1, classes=("a", "b"), test_label=1):
        images = np.zeros((2, 2, 2), np.uint8)
        images[0, 0, 0] = pixel
        return from_arrays(images, [0, label], images[1:], [test_label], classes).fingerprint

    prints = [fingerprint(), fingerprint(pixel=1), fingerprint(label=0), fingerprint(test_label=0)]
    prints += [fingerprint(classes=("a", "c"))]
    assert len(set(prints)) == 5
    assert fingerprint() == prints[0]
    assert len(prints[0]) == 64


def test_an_unknown_name_is_refused():
    with pytest.raises(DataError, match="'custom'; arrays from Python go through from_arrays"):
        load_source(DataConfig("custom"))


# ----------------------------------------------------------------------------------------------------------- CIFAR


@pytest.fixture
def cifar10(tiny_cifar10, tmp_path):
    """A copy to damage: the folder with the batches."""
    shutil.copytree(tiny_cifar10, tmp_path / "data")
    return tmp_path / "data" / BATCHES


def load_cifar(folder, dataset="cifar10"):
    return load_source(DataConfig(dataset, data_dir=str(folder.parent)))


def refused(folder, dataset="cifar10") -> str:
    with pytest.raises(DataError) as caught:
        load_cifar(folder, dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cifar10_subset_is_read_with_one_note(tiny_cifar10, capsys):
    source = load_cifar(tiny_cifar10 / BATCHES)
    labels = np.random.default_rng(1).permutation(np.arange(40) % 10)  # as the fixture draws data_batch_2
    np.testing.assert_array_equal(source.train_labels[40:80], labels)
    np.testing.assert_array_equal(source.train_images[40:80], patterned_images(labels, 10, 32, 1))
    assert (source.train_images.shape, source.test_images.shape) == ((200, 3, 32, 32), (60, 3, 32, 32))
    assert (source.classes, source.flip) == (CLASSES, True)
    [line] = capsys.readouterr().err.splitlines()
    assert "not hold the original files: 200 training and 60 test images" in line


def test_files_with_the_published_checksums_need_no_note(cifar10, capsys, monkeypatch):
    from torchvision.datasets import CIFAR10

    def with_md5(listed):
        return [(file, hashlib.md5((folder / file).read_bytes()).hexdigest()) for file, _ in listed]

    folder = cifar10
    monkeypatch.setattr(CIFAR10, "train_list", with_md5(CIFAR10.train_list))
    monkeypatch.setattr(CIFAR10, "test_list", with_md5(CIFAR10.test_list))
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": with_md5([("batches.meta", "")])[0][1]})
    load_cifar(folder)
    assert capsys.readouterr().err == ""
    (folder / "data_batch_5").unlink()
    with pytest.raises(DataError, match="has no data_batch_5"):  # a fifth of the original would be missing
        load_cifar(folder)


def test_one_training_batch_is_enough(cifar10, capsys):
    for i in range(2, 6):
        (cifar10 / f"data_batch_{i}").unlink()
    assert load_cifar(cifar10).train_labels.shape == (40,)
    assert "40 training and 60 test images" in capsys.readouterr().err


def test_cifar100_is_read_by_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    labels = np.arange(100)
    for part in ("train", "test"):
        write_cifar_batch(folder / part, patterned_images(labels, 100, 32, 0), labels, "fine_labels")
    names = [f"class {c}" for c in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["x"] * 20}))
    source = load_cifar(folder, "cifar100")
    assert source.classes == tuple(names)
    np.testing.assert_array_equal(source.test_labels, labels)


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 and NumPy 1 pickled the original files: byte strings, and 0 and 1 for dtype's booleans."""

    def string(b: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(b)) + b

    def integer(i: int) -> bytes:
        return b"J" + struct.pack("<i", i)

    dtype = (
        b"cnumpy\ndtype\n("
        + string(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + string(b"|")
        + b"NNN"
        + 2 * integer(-1)
        + b"K\x00tb"
    )
    shape = b"(" + integer(len(images)) + integer(3072) + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
    array += b"(K\x01" + shape + dtype + b"\x89" + string(images.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + listed + b"u."


def test_a_batch_pickled_by_python_2_is_read_without_a_warning(cifar10):
    images = patterned_images(np.arange(10), 10, 32, 9)
    (cifar10 / "test_batch").write_bytes(python2_batch(images, list(range(10))))
    source = load_cifar(cifar10)
    np.testing.assert_array_equal(source.test_images, images)
    np.testing.assert_array_equal(source.test_labels, np.arange(10))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(cifar10, protocol):
    batch = {"data": np.zeros((4, 3072), np.uint8), "labels": np.array([0, 1, 2, 3])}
    (cifar10 / "test_batch").write_bytes(pickle.dumps(batch, protocol))
    np.testing.assert_array_equal(load_cifar(cifar10).test_labels, [0, 1, 2, 3])


def test_a_damaged_original_is_refused(cifar10):
    write_cifar_batch(cifar10 / "data_batch_3", np.zeros((10_000, 3, 32, 32), np.uint8), np.zeros(10_000, int))
    message = refused(cifar10)
    assert str(cifar10 / "data_batch_3") in message
    assert f"delete {cifar10}" in message


def batch(n=4, pixels=3072, dtype=np.uint8, labels=(0, 1, 2, 3), **more) -> bytes:
    return pickle.dumps({"data": np.zeros((n, pixels), dtype), "labels": list(labels)} | more)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        batch()[:-100],
        pickle.dumps([1, 2]),
        pickle.dumps({"labels": [0]}),
        pickle.dumps({"data": np.zeros((4, 3072), np.uint8)}),
        batch(pixels=3071),
        batch(dtype=np.float32),
        batch(n=5),
        batch(n=0, labels=()),
        batch(labels=(0, 1, 2, 10)),
        batch(labels=(0, 1, 2, -1)),
        batch(labels=(0, 1, 2, 0.5)),
        batch(labels=([0], [1, 2], 2, 3)),
        batch(labels=(0, 1, 2, 2**70)),
    ],
)
@pytest.mark.parametrize("name", ["data_batch_4", "test_batch"])
def test_a_broken_batch_is_named(cifar10, name, content):
    (cifar10 / name).write_bytes(content)
    assert str(cifar10 / name) in refused(cifar10)


@given(cut=st.integers(0, 10**6), flipped=st.integers(0, 255))
@settings(max_examples=60)
def test_no_damage_to_a_pickle_escapes_as_another_exception(tmp_path_factory, cut, flipped):
    content = bytearray(batch(labels=range(4)))
    header = len(content) - 4 * 3072
    content[cut % header if flipped % 2 else -1 - cut % header] ^= flipped or 1
    path = tmp_path_factory.mktemp("pickle") / "test_batch"
    path.write_bytes(content)
    try:
        datafiles._cifar_batch(path, "", "labels", 10)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 - a flip in the pixels raises nothing, and need not


def test_a_pickle_that_calls_something_is_refused_and_not_run(cifar10, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (cifar10 / "test_batch").write_bytes(pickle.dumps({"data": Attack()}))
    assert f"it calls {os.name}.mkdir" in refused(cifar10)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_missing_file_is_named(cifar10, name):
    (cifar10 / name).unlink()
    message = refused(cifar10)
    assert name in message
    assert "delete the folder" in message


def test_missing_training_batches_are_named(cifar10):
    for i in range(1, 6):
        (cifar10 / f"data_batch_{i}").unlink()
    assert "data_batch_1" in refused(cifar10)


@pytest.mark.parametrize("content", [b"garbage", pickle.dumps({}), pickle.dumps({"label_names": [1, 2]})])
def test_broken_class_names_are_refused(cifar10, content):
    (cifar10 / "batches.meta").write_bytes(content)
    assert str(cifar10 / "batches.meta") in refused(cifar10)


# -------------------------------------------------------------------------------------------------- CIFAR: download


@pytest.fixture
def mirror(tiny_cifar10_archive, http_server, monkeypatch):
    """The environment names a mirror of the tiny archive."""
    path, md5 = tiny_cifar10_archive
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_URL", f"{http_server(path.parent)}/{path.name}")
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_MD5", md5)
    return path


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def nothing_unfinished(data_dir) -> bool:
    return not [p.name for p in data_dir.iterdir() if p.name.startswith(".unfinished")]


def test_download_from_a_mirror_into_a_new_folder(mirror, tiny_cifar10, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "data" / BATCHES
    timeout = socket.getdefaulttimeout()
    assert load_cifar(folder).fingerprint == load_cifar(tiny_cifar10 / BATCHES).fingerprint
    assert socket.getdefaulttimeout() == timeout
    assert sorted(p.name for p in folder.parent.iterdir()) == [BATCHES, mirror.name]
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_URL", f"http://127.0.0.1:{unused_port()}/x")
    load_cifar(folder)  # from here on without the network
    shutil.rmtree(folder)
    load_cifar(folder)  # and without the folder, from the archive


@pytest.mark.parametrize("trouble", ["no server", "no file", "wrong checksum", "no address"])
def test_a_failed_download_says_what_to_do(trouble, mirror, tmp_path, monkeypatch):
    if trouble == "wrong checksum":
        monkeypatch.setenv("SELF_DISTILLER_CIFAR_MD5", "0" * 32)
    else:
        url = os.environ["SELF_DISTILLER_CIFAR_URL"]
        bad = {"no server": f"http://127.0.0.1:{unused_port()}/x.tar.gz", "no file": url + "x", "no address": "nowhere"}
        monkeypatch.setenv("SELF_DISTILLER_CIFAR_URL", bad[trouble])
    message = refused(tmp_path / "data" / BATCHES)
    assert os.environ["SELF_DISTILLER_CIFAR_URL"] in message
    assert f"put cifar-10-python.tar.gz into {tmp_path / 'data'} by hand" in message
    assert "--dataset digits" in message
    assert ("MD5" in message) == (trouble == "wrong checksum")
    assert list((tmp_path / "data").iterdir()) == []


def test_an_archive_put_there_by_hand_is_used(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_URL", f"http://127.0.0.1:{unused_port()}/x")
    shutil.copy(mirror, tmp_path)
    assert len(load_cifar(tmp_path / BATCHES).train_labels) == 200


def test_a_damaged_archive_is_named_and_left_alone(mirror, tmp_path):
    (tmp_path / mirror.name).write_bytes(mirror.read_bytes()[:-10])
    message = refused(tmp_path / BATCHES)
    assert str(tmp_path / mirror.name) in message
    assert "delete it" in message
    assert (tmp_path / mirror.name).exists()


def test_an_archive_of_something_else_is_refused(tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"not an archive")
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_MD5", hashlib.md5(b"not an archive").hexdigest())
    assert f"cannot unpack {archive}" in refused(tmp_path / BATCHES)
    assert nothing_unfinished(tmp_path)


def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path, monkeypatch):
    archive = tmp_path / "data" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("../../outside"))
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert f"cannot unpack {archive}" in refused(archive.parent / BATCHES)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", archive.name]


def test_interrupted_unpacking_leaves_no_folder_that_looks_complete(mirror, tmp_path, monkeypatch):
    whole = tarfile.TarFile.extractall

    def half(archive, folder, **options):
        whole(archive, folder, **options)
        for name in ("data_batch_5", "test_batch"):
            os.remove(os.path.join(folder, BATCHES, name))
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extractall", half)
    with pytest.raises(KeyboardInterrupt):
        load_cifar(tmp_path / BATCHES)
    assert not (tmp_path / BATCHES).exists()
    assert nothing_unfinished(tmp_path)
    monkeypatch.setattr(tarfile.TarFile, "extractall", whole)
    (tmp_path / ".unfinished-killed" / BATCHES).mkdir(parents=True)  # what kill -9 leaves
    assert len(load_cifar(tmp_path / BATCHES).train_labels) == 200


def test_a_data_folder_that_cannot_be_written_is_named(mirror, tmp_path):
    (tmp_path / "file").write_text("")
    assert f"cannot write into {tmp_path / 'file' / 'data'}" in refused(tmp_path / "file" / "data" / BATCHES)


# --------------------------------------------------------------------------------------------------- image folders


@pytest.fixture
def tree(tiny_imagefolder, tmp_path):
    """A copy of the folder to change, without a cache."""
    shutil.copytree(tiny_imagefolder, tmp_path / "tree", ignore=shutil.ignore_patterns(".*"))
    return tmp_path / "tree"


def load_tree(data_dir, image_size=None, progress=False):
    return load_source(DataConfig("imagefolder", data_dir=str(data_dir), image_size=image_size), progress)


def refused_tree(data_dir, image_size=None) -> str:
    with pytest.raises(DataError) as caught:
        load_tree(data_dir, image_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def decoded(monkeypatch):
    """The paths decoded since the list was last cleared."""
    paths, decode = [], datafiles._decode
    monkeypatch.setattr(datafiles, "_decode", lambda path, size: paths.append(path) or decode(path, size))
    return paths


def test_imagefolder_reads_a_tree(tree):
    for name in (
        "train/.hidden.png",
        "train/cat/.DS_Store",
        "train/cat/Thumbs.db",
        "test/eel/notes.txt",
        "train/README",
    ):
        (tree / name).write_text("no image")
    (tree / "train/.git").mkdir()
    source = load_tree(tree)
    assert (source.classes, source.flip, source.name) == (("cat", "dog", "eel"), True, "imagefolder")
    assert (source.train_images.shape, source.test_images.shape) == ((36, 3, 16, 16), (18, 3, 16, 16))
    np.testing.assert_array_equal(source.train_labels, np.repeat([0, 1, 2], 12))
    np.testing.assert_array_equal(source.test_labels, np.repeat([0, 1, 2], 6))
    np.testing.assert_array_equal(source.train_images, patterned_images(np.repeat([0, 1, 2], 12), 3, 16, 0))
    np.testing.assert_array_equal(source.test_images, patterned_images(np.repeat([0, 1, 2], 6), 3, 16, 1))


def test_threads_decode_what_one_thread_decodes(tree, monkeypatch):
    expected = load_tree(tree)
    os.remove(tree / ".self-distiller-native.npz")
    large = datafiles._list_images

    def as_if_large(*arguments):
        return [file._replace(size=10**6) for file in large(*arguments)]

    monkeypatch.setattr(datafiles, "_list_images", as_if_large)
    assert load_tree(tree).fingerprint == expected.fingerprint


def test_test_may_lack_a_class_and_train_may_not(tree):
    shutil.rmtree(tree / "test" / "dog")
    source = load_tree(tree)
    np.testing.assert_array_equal(np.bincount(source.test_labels, minlength=3), [6, 0, 6])
    (tree / "test" / "fox").mkdir()
    assert f"{tree / 'test' / 'fox'} is a class without a folder" in refused_tree(tree)


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_a_missing_folder_is_named(tree, missing):
    shutil.rmtree(tree / missing)
    assert f"no folder {tree / missing};" in refused_tree(tree)


@pytest.mark.parametrize("emptied", ["train/dog", "test/dog"])
def test_an_empty_class_is_named(tree, emptied):
    for file in (tree / emptied).iterdir():
        file.unlink()
    (tree / emptied / "notes.txt").write_text("no image")
    assert str(tree / emptied) in refused_tree(tree)


def test_a_part_without_classes_is_named(tree):
    shutil.rmtree(tree / "test")
    (tree / "test").mkdir()
    assert f"{tree / 'test'} has no class folders" in refused_tree(tree)
    for name in ("dog", "eel"):
        shutil.rmtree(tree / "train" / name)
    assert f"{tree / 'train'} has 1 class folders; it needs two or more" in refused_tree(tree)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "link to nothing"])
def test_a_file_that_cannot_be_decoded_is_named(tree, damage):
    path = tree / "test" / "eel" / "damaged.png"
    if damage == "link to nothing":
        path.symlink_to(tree / "nothing")
    else:
        whole = (tree / "test" / "eel" / "0012.png").read_bytes()
        path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"no image", "empty": b""}[damage])
    assert str(path) in refused_tree(tree)
    assert not (tree / ".self-distiller-native.npz").exists()


def test_sizes_that_differ_name_two_files_and_the_option(tree):
    Image.new("RGB", (20, 16)).save(tree / "test" / "cat" / "wide.bmp")
    message = refused_tree(tree)
    assert str(tree / "train" / "cat" / "0000.png") in message
    assert f"{tree / 'test' / 'cat' / 'wide.bmp'} differ in size (16x16 and 20x16)" in message
    assert "--image-size" in message
    assert load_tree(tree, image_size=8).train_images.shape == (36, 3, 8, 8)


def test_resizing_averages_over_the_pixels_it_drops(tmp_path):
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "checkers.png")
    small = datafiles._decode(tmp_path / "checkers.png", 8)
    assert small.shape == (3, 8, 8)
    assert np.abs(small.astype(int) - 127).max() <= 4


GREY16 = np.array([[0, 200], [32896, 65535]], np.uint16)
RGBA = np.array([[[200, 100, 50, 255], [9, 9, 9, 0]]], np.uint8)
BLENDED = np.array([[[200, 100, 50], [255, 255, 255]]])


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 9, 9, 9])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("grey.png", Image.fromarray(np.array([[0, 255]], np.uint8)), {}, [[[0] * 3, [255] * 3]]),
        ("bits.png", Image.fromarray(np.array([[False, True]])), {}, [[[0] * 3, [255] * 3]]),
        ("grey16.png", Image.fromarray(GREY16), {}, np.repeat([[[0], [1]], [[128], [255]]], 3, 2)),
        ("grey16.tiff", Image.fromarray(GREY16), {}, np.repeat([[[0], [1]], [[128], [255]]], 3, 2)),
        ("grey32.tiff", Image.fromarray(GREY16.astype(np.int32)), {}, np.repeat([[[0], [1]], [[128], [255]]], 3, 2)),
        ("palette.png", palette_image(), {}, [[[200, 100, 50], [9, 9, 9]]]),
        ("palette.gif", palette_image(), {}, [[[200, 100, 50], [9, 9, 9]]]),
        ("clear.png", palette_image(), {"transparency": 1}, BLENDED),
        ("clear2.png", palette_image(), {"transparency": b"\xff\x00"}, BLENDED),
        ("rgba.png", Image.fromarray(RGBA), {}, BLENDED),
        ("rgba.webp", Image.fromarray(RGBA), {"lossless": True}, BLENDED),
        ("la.png", Image.fromarray(np.array([[[7, 255], [9, 0]]], np.uint8), "LA"), {}, [[[7] * 3, [255] * 3]]),
        ("half.png", Image.fromarray(np.array([[[0, 0, 0, 51]]], np.uint8)), {}, [[[204] * 3]]),
        ("cmyk.tiff", Image.new("CMYK", (1, 1), (0, 255, 255, 0)), {}, [[[255, 0, 0]]]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_mode_becomes_rgb(tmp_path, name, image, options, expected):
    image.save(tmp_path / name, **options)
    pixels = datafiles._decode(tmp_path / name, None)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), expected)


@pytest.mark.parametrize("pixels", [np.array([[70_000]], np.int32), np.array([[0.5]], np.float32)])
def test_pixels_without_a_known_range_are_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "odd.tiff")
    with pytest.raises(DataError, match=r"odd\.tiff cannot be read as an image"):
        datafiles._decode(tmp_path / "odd.tiff", None)


def test_the_second_load_decodes_nothing(tree, decoded):
    first = load_tree(tree)
    assert len(decoded) == 36 + 18 + 1  # the first file tells the size
    decoded.clear()
    second = load_tree(tree)
    assert decoded == []
    assert second.fingerprint == first.fingerprint
    load_tree(tree, image_size=8)
    assert decoded != []
    assert load_tree(tree).train_images.shape[2:] == (16, 16)


@pytest.mark.parametrize("change", ["add", "touch", "remove", "swap", "rename a class"])
def test_a_changed_tree_is_read_anew(tree, decoded, change):
    first = load_tree(tree)
    cats = tree / "train" / "cat"
    if change == "add":
        shutil.copy(cats / "0000.png", cats / "new.png")
    elif change == "touch":
        os.utime(cats / "0000.png", ns=(1, 1))
    elif change == "remove":
        (cats / "0000.png").unlink()
    elif change == "swap":
        (cats / "0000.png").rename(cats / "x.png")
        (cats / "0001.png").rename(cats / "0000.png")
        (cats / "x.png").rename(cats / "0001.png")
    else:
        (tree / "train" / "cat").rename(tree / "train" / "yak")
        (tree / "test" / "cat").rename(tree / "test" / "yak")
    decoded.clear()
    second = load_tree(tree)
    assert decoded != []
    assert (second.fingerprint == first.fingerprint) == (change == "touch")


def test_swapping_files_of_one_size_and_time_is_a_change(tree):
    paths = [tree / "train" / "cat" / name for name in ("a.bmp", "b.bmp", "c.bmp")]
    for path, grey in zip(paths, (10, 20, 30), strict=True):
        Image.new("RGB", (16, 16), (grey,) * 3).save(path)
        os.utime(path, ns=(1, 1))
    before = load_tree(tree).train_images[12:15, 0, 0, 0].tolist()
    paths[0].rename(tree / "train" / "cat" / "d.bmp")
    after = load_tree(tree).train_images[12:15, 0, 0, 0].tolist()
    assert (before, after) == ([10, 20, 30], [20, 30, 10])


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "flipped", "without a key", "pickled"])
def test_a_damaged_cache_is_made_again(tree, damage):
    first = load_tree(tree)
    cache = tree / ".self-distiller-native.npz"
    content = cache.read_bytes()
    if damage == "without a key":
        np.savez(cache, images=first.train_images)
    elif damage == "pickled":
        with open(cache, "rb") as file:
            key = np.load(file)["key"]
        np.savez(cache, images=np.array([{}], dtype=object), key=key)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        cache.write_bytes(
            {"empty": b"", "truncated": content[:-100], "garbage": b"x" * 100, "flipped": flipped}[damage]
        )
    assert load_tree(tree).fingerprint == first.fingerprint
    assert cache.read_bytes() == content


def test_a_write_that_is_cut_off_leaves_no_cache(tree, monkeypatch):
    def cut_off(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", cut_off)
        with pytest.raises(KeyboardInterrupt):
            load_tree(tree)
    assert [p.name for p in tree.iterdir() if "npz" in p.name] == []
    assert load_tree(tree).train_images.shape == (36, 3, 16, 16)


def test_without_a_place_for_the_cache_there_is_one_note(tree, capsys):
    (tree / ".self-distiller-native.npz" / "in the way").mkdir(parents=True)
    assert len(load_tree(tree).train_labels) == 36
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line
    assert [p.name for p in tree.iterdir() if "npz." in p.name] == []


def test_a_folder_without_write_permission_is_read_all_the_same(tree, capsys):
    tree.chmod(0o555)
    if os.access(tree, os.W_OK):
        pytest.skip("permissions do not bind this user")
    assert len(load_tree(tree).train_labels) == 36
    assert "cannot be written" in capsys.readouterr().err


def test_progress_is_one_plain_line_where_there_is_no_terminal(tree, capsys):
    load_tree(tree)
    assert capsys.readouterr().err == ""
    os.remove(tree / ".self-distiller-native.npz")
    load_tree(tree, progress=True)
    assert capsys.readouterr() == (f"reading 54 images from {tree}\n", "")


def test_progress_is_a_bar_on_a_terminal(tree, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    load_tree(tree, progress=True)
    assert "54/54" in capsys.readouterr().err
