"""source.py: arrays of every usual layout as a Source, and a fingerprint that tells data apart."""

import numpy as np
import pytest

from distill.data.source import MappedImages, from_arrays, is_mapped, take
from distill.errors import DataError


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
        (([[1], [1, 2]], [0, 1], GOOD, [0, 1, 0, 1]), "train_images cannot be converted to an array"),
        ((GOOD, [0, 1, 0, 1], GOOD[:, :4], [0, 1, 0, 1]), r"\(1, 5, 5\) and \(1, 4, 5\)"),
        ((GOOD, [0, 1, 0], GOOD, [0, 1, 0, 1]), "train_labels must be 4 integers"),
        ((GOOD, [0, 1, 0, 1], GOOD, [0.0, 1.0, 0.0, 1.0]), "test_labels must be 4 integers, .* not float64"),
        ((GOOD, [0, 1, 0, -1], GOOD, [0, 1, 0, 1]), "train_labels contains -1"),
        ((GOOD, [0, 1, 0, 1], GOOD, [0, 1, 0, 2], ("a", "b")), "label 2 is out of range for 2 classes"),
        ((GOOD, [0, 1, 0, 10**9], GOOD, [0, 1, 0, 1]), "label 1000000000 would make 1,000,000,001 classes of 8 images"),
        ((GOOD, [0, 1, 0, 1], GOOD, np.full(4, 2**63 + 1, np.uint64)), "test_labels contains 9223372036854775809"),
        ((GOOD, [0, 0, 0, 0], GOOD, [0, 0, 0, 0]), "at least two classes"),
        ((GOOD, [0, 1, 0, 1], GOOD, [0, 1, 0, 1], ("a", "a")), "two classes have one name: a, a"),
    ],
)
def test_from_arrays_refuses_what_it_cannot_read(arguments, message):
    with pytest.raises(DataError, match=message) as caught:
        from_arrays(*arguments)
    assert "\n" not in str(caught.value)


def test_fingerprints_of_different_data_differ():
    def fingerprint(pixel=0, label=1, classes=("a", "b"), test_label=1):
        images = np.zeros((2, 2, 2), np.uint8)
        images[0, 0, 0] = pixel
        return from_arrays(images, [0, label], images[1:], [test_label], classes).fingerprint

    prints = [fingerprint(), fingerprint(pixel=1), fingerprint(label=0), fingerprint(test_label=0)]
    prints += [fingerprint(classes=("a", "c"))]
    assert len(set(prints)) == 5
    assert fingerprint() == prints[0]
    assert len(prints[0]) == 64


def mapped(tmp_path, images: np.ndarray) -> np.ndarray:
    """The same images, memory-mapped."""
    np.save(tmp_path / "images.npy", images)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


def test_mapped_images_stay_in_their_file(tmp_path):
    images = np.arange(10 * 3 * 8 * 8, dtype=np.uint8).reshape(10, 3, 8, 8)
    labels = np.arange(10) % 2
    source = from_arrays(mapped(tmp_path, images), labels, images, labels)
    assert is_mapped(source.train_images)
    assert not is_mapped(source.test_images)
    assert source.fingerprint == from_arrays(images, labels, images, labels).fingerprint
    part = take(source.train_images, np.array([1, 4, 7, 9]))
    assert isinstance(part, MappedImages)
    assert (part.shape, len(part), part.nbytes) == ((4, 3, 8, 8), 4, 4 * 3 * 64)
    smaller = take(part, np.array([0, 3]))
    assert isinstance(smaller, MappedImages)
    assert np.array_equal(part, images[[1, 4, 7, 9]])
    assert np.array_equal(part[1:3], images[[4, 7]])
    assert np.array_equal(smaller, images[[1, 9]])


def test_one_channel_stays_mapped(tmp_path):
    images = np.arange(10 * 64, dtype=np.uint8).reshape(10, 8, 8)
    labels = np.arange(10) % 2
    assert is_mapped(from_arrays(mapped(tmp_path, images), labels, images, labels).train_images)
