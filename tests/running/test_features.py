"""features.py: files of features from pixels and models, read by both halves of the program."""

import numpy as np
import pytest
import torch
import torchvision
from tiny import config

import distill
from distill import features
from distill.config import DataConfig
from distill.data.arrays import array_file
from distill.data.load import load_source
from distill.data.splits import make_dataset
from distill.kernel.study.data import read_npz
from distill.running import features as making
from distill.training.models import Classifier

DIGITS = ["--dataset", "digits", "--train-size", "60", "--test-size", "30", "--val-size", "20", "--seed", "3"]


def dataset():
    options = DataConfig("digits", train_size=60, test_size=30, val_size=20)
    return make_dataset(load_source(options), options, 3)


@pytest.mark.parametrize("name", ["f.npz", "folder"])
def test_pixels_without_constant_columns(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(making, "AT_ONCE", 7)
    assert features.main([str(tmp_path / "new" / name), "--of", "pixels", *DIGITS]) == 0
    assert "60 training and 30 test images" in capsys.readouterr().out
    found = array_file(tmp_path / "new" / name, vectors=True)
    data = dataset()
    pixels = data.train.images.reshape(60, -1) / np.float32(255)
    kept = pixels.max(0) > pixels.min(0)
    assert 40 < kept.sum() < 64
    np.testing.assert_allclose(found["X"], pixels[:, kept], rtol=1e-6)
    np.testing.assert_allclose(found["X_test"], data.test.images.reshape(30, -1)[:, kept] / 255, rtol=1e-6)
    np.testing.assert_array_equal(found["y_val"], data.val.labels)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == [name]
    assert read_npz(tmp_path / "new" / name).X_val.shape == (20, kept.sum())
    source = load_source(DataConfig("features", data=str(tmp_path / "new" / name)))
    assert source.classes == data.classes


def test_features_of_a_finished_model_give_its_logits(tmp_path):
    options = {"dataset": "digits", "train_size": 60, "test_size": 30, "val_size": 20, "seed": [3]}
    distill.run(config(tmp_path / "run", distillation_steps=0, max_epochs=2, **options))
    model = distill.load_model(tmp_path / "run" / "seed_3" / "step_0")
    folder = str(tmp_path / "run" / "seed_3" / "step_0")
    assert features.main([str(tmp_path / "f.npz"), "--of", folder, "--label-noise", "0.5", *DIGITS]) == 0
    found = array_file(tmp_path / "f.npz", vectors=True)
    assert (found["given"] != found["y"]).sum() == 30
    layer = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    train, test = (inputs_of(layer, model, split.images) for split in (dataset().train, dataset().test))
    kept = train.max(0) != train.min(0)
    np.testing.assert_allclose(found["X"], train[:, kept], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["X_test"], test[:, kept], rtol=1e-4, atol=1e-5)


def inputs_of(layer, model, images):
    """What reaches a layer when the model classifies the images."""
    found = []
    hook = layer.register_forward_hook(lambda _, inputs, output: found.append(inputs[0].numpy()))
    with torch.inference_mode():
        model(torch.from_numpy(np.array(images)))
    hook.remove()
    return found[0]


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("nothing", "--of must be pixels, torchvision:NAME or the folder of a finished model, not nothing"),
        ("module:function", "--of must be pixels"),
        ("torchvision:resnet18", "takes images of 3 channels, not 1"),
    ],
)
def test_what_gives_no_features_is_one_line(tmp_path, capsys, of, said):
    assert features.main([str(tmp_path / "f.npz"), "--of", of, *DIGITS]) == 2
    error = capsys.readouterr().err
    assert (said in error, error.count("\n")) == (True, 1)
    assert not list(tmp_path.iterdir())


def test_parameters_that_cannot_be_had_are_one_line(tmp_path, capsys, monkeypatch, tiny_imagefolder):
    def unreachable(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr("torchvision.models.get_model", unreachable)
    words = ["--of", "torchvision:resnet18", "--dataset", "imagefolder", "--data-dir", str(tiny_imagefolder)]
    assert features.main([str(tmp_path / "f.npz"), *words]) == 2
    error = capsys.readouterr().err
    assert ("resnet18 are not available (no connection)" in error, error.count("\n")) == (True, 1)


def test_parameters_from_a_file(tmp_path, tiny_imagefolder):
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    words = [
        "--dataset",
        "imagefolder",
        "--data-dir",
        str(tiny_imagefolder),
        "--weights",
        str(tmp_path / "resnet18.pth"),
    ]
    assert features.main([str(tmp_path / "f.npz"), "--of", "torchvision:resnet18", *words]) == 0
    options = DataConfig("imagefolder", data_dir=tiny_imagefolder)
    data = make_dataset(load_source(options), options, 1)
    model = Classifier(network, *making.IMAGENET).eval()
    train, test = (inputs_of(network.fc, model, split.images) for split in (data.train, data.test))
    kept = train.max(0) != train.min(0)
    found = array_file(tmp_path / "f.npz", vectors=True)
    np.testing.assert_allclose(found["X"], train[:, kept], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["X_test"], test[:, kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("of", "weights", "said"),
    [
        ("pixels", "w.pth", "--weights is for --of torchvision:NAME, not pixels"),
        ("torchvision:resnet18", "none.pth", "none.pth: no such file"),
        ("torchvision:resnet18", "w.pth", "w.pth is of another architecture: conv1.weight is nothing in the file"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path, capsys, tiny_imagefolder, of, weights, said):
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "w.pth")
    words = ["--dataset", "imagefolder", "--data-dir", str(tiny_imagefolder), "--weights", str(tmp_path / weights)]
    assert features.main([str(tmp_path / "f.npz"), "--of", of, *words]) == 2
    error = capsys.readouterr().err
    assert (said in error, error.count("\n")) == (True, 1)
    assert not (tmp_path / "f.npz").exists()


def test_a_file_that_exists_is_kept(tmp_path, capsys):
    (tmp_path / "f.npz").write_text("mine")
    assert features.main([str(tmp_path / "f.npz"), "--of", "pixels", *DIGITS]) == 2
    assert "exists: delete it" in capsys.readouterr().err
    assert (tmp_path / "f.npz").read_text() == "mine"
