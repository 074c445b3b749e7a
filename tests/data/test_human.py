"""human.py: files of CIFAR-10N and CIFAR-100N as their authors write them, and others."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from distill.cli import parse
from distill.config import DataConfig
from distill.data.load import load_source
from distill.data.splits import make_dataset
from distill.errors import DataError
from distill.running.settings import prepare_study

KEYS = ("clean_label", "aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")
NETWORK = ["--resnet", "8", "--width", "4", "--batch-size", "50"]
NAMES = {"aggre": "aggre_label", "worst": "worse_label", "random1": "random_label1", "random3": "random_label3"}


def human_file(content: object) -> bytes:
    """A file as torch.save writes it: a zip with a pickle of protocol 2."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as parts:
        parts.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, 2))
        parts.writestr("archive/version", "3\n")
    return file.getvalue()


@pytest.fixture
def data_dir(tiny_cifar10, tmp_path):
    """A folder with the tiny CIFAR-10 of 200 training images, to put a file of labels into."""
    (tmp_path / "cifar-10-batches-py").symlink_to(tiny_cifar10 / "cifar-10-batches-py")
    return tmp_path


def true_labels(data_dir) -> np.ndarray:
    return load_source(DataConfig("cifar10", data_dir=str(data_dir))).train_labels


def arrays(data_dir) -> dict[str, np.ndarray]:
    """Arrays as in CIFAR-10N: of each, other labels are wrong."""
    true = true_labels(data_dir)
    shift = {name: (np.random.default_rng(i).random(len(true)) < 0.1 * i) for i, name in enumerate(KEYS)}
    return {name: (true + wrong) % 10 for name, wrong in shift.items()}


def config_of(data_dir, labels: str, **options) -> DataConfig:
    return DataConfig("cifar10", data_dir=str(data_dir), label_noise_kind="human", human_labels=labels, **options)


@pytest.mark.parametrize(("name", "key"), NAMES.items())
def test_the_named_labels_are_given_to_the_training_images(data_dir, name, key):
    stored = arrays(data_dir)
    (data_dir / "CIFAR-10_human.pt").write_bytes(human_file(stored))
    config = config_of(data_dir, name)
    train = make_dataset(load_source(config), config, seed=1).train
    np.testing.assert_array_equal(train.labels, stored[key])
    np.testing.assert_array_equal(train.true_labels, stored["clean_label"])


def test_each_setting_of_a_study_has_its_own_labels(data_dir):
    stored = arrays(data_dir)
    (data_dir / "CIFAR-10_human.pt").write_bytes(human_file(stored))
    words = ["--data-dir", str(data_dir), "--label-noise-kind", "human", "--human-labels", *NAMES, *NETWORK]
    for experiment, key in zip(prepare_study(parse(words).study), NAMES.values(), strict=True):
        np.testing.assert_array_equal(experiment.dataset(1).train.labels, stored[key])


def test_a_subset_keeps_its_images_labels_and_states_its_own_rate(data_dir):
    stored = arrays(data_dir)
    (data_dir / "CIFAR-10_human.pt").write_bytes(human_file(stored))
    config = config_of(data_dir, "worst", train_size=60, val_size=20)
    data = make_dataset(load_source(config), config, seed=3)
    np.testing.assert_array_equal(data.train.labels, stored["worse_label"][data.train.index])
    rate = np.mean(data.train.labels != data.train.true_labels)
    assert data.label_noise == {"kind": "human", "rate": rate}
    assert data.val.labels is data.val.true_labels


class Calls:
    def __reduce__(self):
        return os.mkdir, ("made",)


def without(content: dict, key: str) -> dict:
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: {name: value[:100] for name, value in c.items()}, "of shape (100,), but there are 200"),
        (lambda c: {name: np.roll(value, 1) for name, value in c.items()}, "another order: its clean labels differ"),
        (lambda c: without(c, "worse_label"), "has no worse_label; choose another --human-labels (it has clean_label"),
        (lambda c: without(c, "clean_label"), "has no clean_label"),
        (lambda c: c | {"worse_label": c["worse_label"] + 5}, "but there are 10 classes"),
        (lambda c: c | {"worse_label": c["worse_label"].astype(float)}, "worse_label is float64"),
        (lambda c: Calls(), "it calls posix.mkdir"),
        (lambda c: [1, 2], "cannot be read"),
        (lambda c: b"\x80\x02garbage", "cannot be read"),
        (lambda c: b"", "cannot be read"),
    ],
)
def test_another_file_is_refused_by_name_and_runs_no_code(data_dir, change, said, monkeypatch):
    monkeypatch.chdir(data_dir)
    (data_dir / "CIFAR-10_human.pt").write_bytes(human_file(change(arrays(data_dir))))
    with pytest.raises(DataError) as caught:
        load_source(config_of(data_dir, "worst"))
    assert said in str(caught.value)
    assert "CIFAR-10_human.pt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (data_dir / "made").exists()


@pytest.mark.parametrize("content", [None, b"", b"no zip file"])
def test_a_missing_file_and_one_that_is_no_zip_are_refused(data_dir, content):
    if content is not None:
        (data_dir / "CIFAR-10_human.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"CIFAR-10_human\.pt"):
        load_source(config_of(data_dir, "worst"))
