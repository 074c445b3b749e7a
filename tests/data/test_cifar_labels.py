"""cifar.py: the coarse labels of CIFAR-100, and the superclasses of its fine ones."""

import pickle

import numpy as np
import pytest

from distill.config import DataConfig
from distill.data.load import load_source
from distill.data.splits import make_dataset
from distill.errors import DataError


def leave_cifar100(folder, groups):
    """Four classes with an image each in both parts, and the superclasses of the training images."""
    folder.mkdir()
    labels = np.arange(4)
    for part in ("train", "test"):
        content = {"data": np.zeros((4, 3072), np.uint8), "fine_labels": labels.tolist(), "coarse_labels": groups}
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
    names = {"fine_label_names": ["maple", "rose", "oak", "tulip"], "coarse_label_names": ["trees", "flowers"]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))


def test_cifar100_has_coarse_labels_and_superclasses(tmp_path):
    folder = tmp_path / "cifar-100-python"
    leave_cifar100(folder, [0, 1, 0, 1])
    coarse = load_source(DataConfig("cifar100", data_dir=str(tmp_path), labels="coarse"))
    assert coarse.classes == ("trees", "flowers")
    np.testing.assert_array_equal(coarse.test_labels, [0, 1, 0, 1])
    noise = DataConfig("cifar100", data_dir=str(tmp_path), label_noise_kind="superclass", label_noise=1.0)
    source = load_source(noise)
    assert source.superclasses == (0, 1, 0, 1)
    np.testing.assert_array_equal(make_dataset(source, noise, seed=1).train.labels, [2, 3, 0, 1])


def test_superclasses_that_are_missing_are_refused(tmp_path):
    folder = tmp_path / "cifar-100-python"
    leave_cifar100(folder, [0, 1, 0])
    with pytest.raises(DataError, match="coarse_labels"):
        load_source(DataConfig("cifar100", data_dir=str(tmp_path), label_noise_kind="superclass"))
