"""arrays.py: images and vectors in files of arrays, and files that are no such thing; --classes."""

import numpy as np
import pytest
import torch
from tiny import config, contents, killed_at
from torch import nn

import distill
from distill.config import DataConfig
from distill.data.load import load_source
from distill.data.splits import make_dataset
from distill.errors import DataError


def vectors(n: int = 90, seed: int = 0) -> dict[str, np.ndarray]:
    """Vectors of 5 numbers around three means, as X, y, and 30 each for test and validation."""
    rng = np.random.default_rng(seed)
    means = 3 * rng.standard_normal((3, 5))
    parts = {}
    for part, size in (("", n), ("_test", 30), ("_val", 30)):
        labels = np.arange(size) % 3
        parts[f"X{part}"] = (means[labels] + rng.standard_normal((size, 5))).astype(np.float32)
        parts[f"y{part}"] = labels
    return parts


def saved(path, arrays, folder=False) -> str:
    if folder:
        path.mkdir()
        for name, values in arrays.items():
            np.save(path / f"{name}.npy", values)
    else:
        path = path.with_suffix(".npz")
        np.savez(path, **arrays)
    return str(path)


def load(path, arrays, dataset="features", folder=False):
    return load_source(DataConfig(dataset, data=saved(path, arrays, folder)))


@pytest.mark.parametrize("folder", [False, True])
def test_vectors_become_images_of_one_pixel(tmp_path, folder):
    arrays = vectors()
    source = load(tmp_path / "x", arrays, folder=folder)
    np.testing.assert_array_equal(source.train_images[:, :, 0, 0], arrays["X"])
    np.testing.assert_array_equal(source.test_images[:, :, 0, 0], arrays["X_test"])
    assert (source.train_images.dtype, source.train_images.shape) == (np.float32, (90, 5, 1, 1))
    data = make_dataset(source, DataConfig("features", data="x", val_size=9), seed=1)
    assert len(data.train) == 90  # the held-out vectors are the file's own
    np.testing.assert_array_equal(np.asarray(data.val.images)[:, :, 0, 0], arrays["X_val"][data.val.index])
    np.testing.assert_allclose(data.mean, arrays["X"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(data.std, arrays["X"].std(0), rtol=1e-5)


def test_images_are_read_as_from_arrays(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 2
    source = load(tmp_path / "x", {"X": images, "y": labels, "X_test": images[:8], "y_test": labels[:8]}, "arrays")
    np.testing.assert_array_equal(source.train_images, images.transpose(0, 3, 1, 2))


def test_given_labels_are_trained_on_and_recorded(tmp_path):
    arrays = vectors()
    arrays["given"] = np.where(np.arange(90) < 30, (arrays["y"] + 1) % 3, arrays["y"])
    source = load(tmp_path / "x", arrays)
    data = make_dataset(source, DataConfig("features", data="x", train_size=30), seed=1)
    np.testing.assert_array_equal(data.train.labels, arrays["given"][data.train.index])
    np.testing.assert_array_equal(data.train.true_labels, arrays["y"][data.train.index])
    assert data.label_noise == {"kind": "given", "rate": np.mean(data.train.index < 30)}
    with pytest.raises(DataError, match="leave --label-noise out"):
        make_dataset(source, DataConfig("features", data="x", label_noise=0.2), seed=1)


def changed(name, change):
    return lambda arrays: arrays | {name: change(arrays[name].copy())}


def with_nan(values):
    values[7, 2] = np.nan
    return values


def with_constant(values):
    values[:, 3] = 1
    return values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("X", with_nan), "X is not finite as float32 in row 7, column 2"),
        (changed("X_test", with_nan), "X_test is not finite as float32 in row 7, column 2"),
        (changed("X", with_constant), "column 3 of X is constant"),
        (changed("X", lambda x: x[:, :4]), "X has 4 features, but X_test has 5"),
        (changed("X", lambda x: x[0]), "X must be numbers (n, p)"),
        (
            changed("y", lambda y: y + 1),
            "y must hold the labels 0, 1, 2, ..., each at least once, but goes from 1 to 3",
        ),
        (changed("y", lambda y: 2 * y), "from 0 to 4 with 3 different ones"),
        (changed("y", lambda y: y[1:]), "y must be 90 integers"),
        (changed("y_test", lambda y: y + 1), "label 3 is out of range"),
        (lambda a: {k: v for k, v in a.items() if k != "y_val"}, "must hold X_val and y_val, or neither"),
        (lambda a: {"y": a["y"]}, "has no array X"),
        (changed("X", lambda x: x.astype(float) * 1e39), "X is not finite as float32 in row 0"),
        (lambda a: a | {"given": a["y"] + 1}, "label 3 is out of range"),
        (lambda a: a | {"classes": ["a", "b"]}, "label 2 is out of range for 2 classes"),
        (changed("X", lambda x: x.astype(object)), "cannot be read as an NPZ file of arrays"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, change, said):
    with pytest.raises(DataError) as caught:
        load(tmp_path / "x", change(vectors()))
    assert said in str(caught.value)
    assert "x.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda file: file.write_bytes(file.read_bytes()[:-9]),
            r"x: y\.npy: it is empty, .* as long as its array; numpy",
        ),
        (lambda file: (file.unlink(), file.mkdir()), r"x/y\.npy cannot be read \(Is a directory\)"),
    ],
)
def test_a_damaged_file_of_a_folder_is_named(tmp_path, damage, said):
    path = tmp_path / "x"
    path.mkdir()
    for name, values in vectors().items():
        np.save(path / f"{name}.npy", values)
    damage(path / "y.npy")
    with pytest.raises(DataError, match=said):
        load_source(DataConfig("features", data=str(path)))


def test_a_single_array_is_not_enough(tmp_path):
    np.save(tmp_path / "X.npy", np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"^\S+X\.npy holds one array: name its folder"):
        load_source(DataConfig("features", data=str(tmp_path / "X.npy")))


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_missing_and_damaged_files_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz"):
        load_source(DataConfig("features", data=str(tmp_path / "x.npz")))


def test_classes_are_taken_in_the_order_in_which_they_are_named():
    whole = load_source(DataConfig("digits"))
    some = whole.only(("7", "1"))
    assert some.classes == ("7", "1")
    rows = np.isin(whole.train_labels, (1, 7))
    np.testing.assert_array_equal(some.train_images, whole.train_images[rows])
    np.testing.assert_array_equal(some.train_labels, (whole.train_labels[rows] == 1).astype(int))
    with pytest.raises(DataError, match="digits has no class 'ten'"):
        whole.only(("1", "ten"))


def test_a_linear_classifier_learns_vectors_and_resumes_exactly(tmp_path):
    options = {"dataset": "features", "data": saved(tmp_path / "x", vectors()), "network": "linear", "resnet": 0}
    options |= {
        "width": None,
        "val_size": 9,
        "alpha": ["auto", 0.3],
        "distillation_steps": 1,
        "max_epochs": 8,
        "lr": 0.05,
    }
    results = distill.run(config(tmp_path / "whole", **options))
    assert results[0].test_acc > 0.8
    with killed_at("training_state.pt", 8 + 3):
        distill.run(config(tmp_path / "cut", **options))
    distill.run(config(tmp_path / "cut", **options))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    model = distill.load_model(tmp_path / "whole" / "seed_1" / "step_0")
    logits = model(torch.from_numpy(vectors()["X_test"])[:, :, None, None])
    assert (logits.argmax(1).numpy() == vectors()["y_test"]).mean() == results[0].test_acc


@pytest.mark.parametrize(
    ("name", "widths", "biases"),
    [("linear", [5, 3], 1), ("linear-no-bias", [5, 3], 0), ("mlp", [5, 256, 3], 2), ("mlp-8-4", [5, 8, 4, 3], 3)],
)
def test_networks_for_vectors(name, widths, biases):
    from distill.config import ModelConfig
    from distill.training.models import build

    layers = [m for m in build(ModelConfig(network=name), 5, 3).modules() if isinstance(m, nn.Linear)]
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == widths
    assert sum(layer.bias is not None for layer in layers) == biases
