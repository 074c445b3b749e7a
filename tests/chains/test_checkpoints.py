"""Models on disk and from Python."""

import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import config, contents, killed_at, rows, source
from torch import nn

import distill
from distill import metrics
from distill.chains import checkpoints, model_training
from distill.errors import UserError
from distill.training import models
from distill.training.fit import Trainer

TEACHER = "seed_1/step_0"
STUDENT = "seed_1/alpha_0.3/step_1"


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def test_a_loaded_model_gives_the_logits_that_were_scored(finished):
    for result in rows(finished / "results.csv"):
        arm = "" if result["alpha"] == "" else "alpha_0.3/"
        model = distill.load_model(finished / f"seed_1/{arm}step_{result['step']}" / "model.pt")
        logits = model(torch.from_numpy(source().test_images))
        labels = torch.from_numpy(source().test_labels)
        for name, metric in {"acc": metrics.accuracy, "nll": metrics.nll, "brier": metrics.brier}.items():
            assert str(metric(logits, labels)) == result[f"test_{name}"]


def test_a_loaded_model_knows_its_classes_and_its_normalisation(finished):
    model = distill.load_model(finished / TEACHER)
    pixels = source().train_images / 255
    assert model.classes == ("ant", "bee", "cat")
    assert not model.training
    np.testing.assert_allclose(model.mean.squeeze(), pixels.mean(), rtol=1e-6)
    np.testing.assert_allclose(model.std.squeeze(), pixels.std(), rtol=1e-6)


def test_a_loaded_model_takes_uint8_and_float_images(finished):
    model, images = distill.load_model(finished / TEACHER), torch.from_numpy(source().test_images)
    assert torch.equal(model(images), model(images.float() / 255))


def test_a_loaded_model_predicts_images_of_any_kind(finished, tmp_path):
    model = distill.load_model(finished / TEACHER)
    images = source().test_images
    predicted = model.predict(images)
    with torch.inference_mode():
        probabilities = model(torch.from_numpy(images)).double().softmax(1)
    np.testing.assert_allclose(predicted.probabilities, probabilities, atol=1e-6)
    assert predicted.classes == [model.classes[i] for i in probabilities.argmax(1)]
    file = tmp_path / "large and in colour.png"
    Image.fromarray(images[0, 0]).convert("RGB").resize((24, 24), Image.Resampling.NEAREST).save(file)
    assert model.size == (8, 8)
    assert model.predict(file).probabilities.shape == (1, 3)


@pytest.mark.parametrize(
    ("record", "size"),
    [
        ({"size": [4, 6]}, (4, 6)),
        ({"configuration": {"data.dataset": "cifar10"}}, (32, 32)),
        ({"configuration": {"data.dataset": "imagefolder", "data.image_size": 64}}, (64, 64)),
        ({"configuration": {"data.dataset": "imagefolder", "data.image_size": None}}, None),
        ({}, None),
    ],
)
def test_the_size_of_a_models_images(record, size):
    assert checkpoints._image_size(record) == size


class Own(nn.Module):
    """A network that draws random numbers while it is trained."""

    def __init__(self):
        super().__init__()
        self.hidden, self.drop, self.out = nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.drop(self.hidden(x.flatten(1)).relu()))


def test_a_custom_network_on_arrays_is_trained_and_loaded(tmp_path):
    results = distill.run(config(tmp_path), source=source(), network=Own)
    assert [(r.seed, r.alpha, r.step) for r in results] == [(1, None, 0), (1, 0.3, 1), (1, 0.3, 2)]
    assert [str(r.test_nll) for r in results] == [row["test_nll"] for row in rows(tmp_path / "results.csv")]
    model = distill.load_model(tmp_path / STUDENT, network=Own)
    logits = model(torch.from_numpy(source().test_images))
    assert metrics.nll(logits, torch.from_numpy(source().test_labels)) == results[1].test_nll


def test_loading_a_custom_network_needs_its_function(tmp_path):
    distill.run(config(tmp_path, distillation_steps=0), source=source(), network=Own)
    with pytest.raises(UserError, match="network"):
        distill.load_model(tmp_path / TEACHER)


def test_a_folder_that_does_not_exist_is_named(finished):
    folder = (finished / STUDENT).with_name("step_9")
    with pytest.raises(UserError, match=f"{folder} does not exist; {folder.parent} has step_1, step_2"):
        distill.load_model(folder)


@pytest.mark.parametrize("key", [None, "state_dict"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.module.", "module._orig_mod.", "net.", "network.", "model.network."]
)
def test_parameters_are_read_with_the_names_of_a_wrapped_network_and_without_counters(tmp_path, prefix, key):
    wrapped = "network" in prefix
    there = models.Classifier(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.ones(1), torch.ones(1))
    here = models.Classifier(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.zeros(1), torch.zeros(1))
    state = (there if wrapped else there.network).state_dict()
    kept = {name: value for name, value in state.items() if "num_batches" not in name}
    outer = prefix.removesuffix("network.")
    named = {outer + name: value for name, value in kept.items()}
    torch.save({key: named, "epoch": 3} if key else named, tmp_path / "pretrained.pt")
    checkpoints.load_parameters(here, tmp_path / "pretrained.pt")
    for name, value in there.network.state_dict().items():
        assert torch.equal(value, here.network.state_dict()[name])


class Attack:
    def __reduce__(self):
        return print, ("the code has run",)


@pytest.mark.parametrize(
    "content",
    [
        {"weight": Attack(), "bias": torch.ones(3)},
        {"weight": torch.ones(3, 2), 1: torch.ones(3)},
        {"weight": torch.ones(3, 2), "bias": torch.ones(3, device="meta")},
        {"weight": torch.ones(3, 2), "bias": torch.ones(3).to_sparse()},
        {"weight": torch.ones(3, 2), "bias": torch.ones(3, dtype=torch.complex64)},
        {"weight": torch.ones(3, 2), "bias": torch.ones(3, dtype=torch.int8)},
        {"weight": torch.ones(1).expand(10**6, 10**6), "bias": torch.ones(3)},
        [torch.ones(3)],
    ],
    ids=range(8),
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_other_parameters_is_refused_in_one_line(tmp_path, capfd, content, zipped):
    file = tmp_path / "pretrained.pt"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    model = models.Classifier(nn.Linear(2, 3), torch.zeros(1), torch.zeros(1))
    with pytest.raises(UserError) as caught, warnings.catch_warnings(action="error"):
        checkpoints.load_parameters(model, file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("zipped", [True, False])
def test_parameters_torn_or_altered_are_refused_or_of_the_right_shape(tmp_path, zipped):
    file = tmp_path / "pretrained.pt"
    model = models.Classifier(nn.Linear(2, 3), torch.zeros(1), torch.zeros(1))
    torch.save(model.network.state_dict(), file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(content), size=60):
        altered = bytearray(content)
        altered[at] ^= 1 << int(rng.integers(8))
        for damaged in (content[:at], bytes(altered)):
            file.write_bytes(damaged)
            try:
                checkpoints.load_parameters(model, file)
            except UserError as error:
                assert str(file) in str(error)  # noqa: PT017 - a bit of a number that has no checksum raises nothing


def test_dropout_resumes_exactly(tmp_path):
    distill.run(config(tmp_path / "whole"), source=source(), network=Own)
    with killed_at(model_training.STATE, 3):
        distill.run(config(tmp_path / "parts"), source=source(), network=Own)
    torch.rand(5)  # whatever else the process drew
    distill.run(config(tmp_path / "parts"), source=source(), network=Own)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_resume_refuses_other_images(tmp_path, finished):
    with pytest.raises(UserError, match="other images"):
        distill.run(config(finished, distillation_steps=3), source=source(seed=1))


@pytest.mark.parametrize(("updates", "where"), [(8, "step 0, epoch 2"), (13, "alpha 0.3, step 1, epoch 1")])
def test_a_loss_that_is_not_finite_names_step_epoch_and_update(tmp_path, monkeypatch, updates, where):
    seen, update = [], Trainer.update

    def bad_at_last(self, *args):
        logits, reg = update(self, *args)
        seen.append(None)
        return (logits * math.nan if len(seen) >= updates else logits), reg

    monkeypatch.setattr(Trainer, "update", bad_at_last)
    with pytest.raises(UserError, match=rf"seed 1, {where}: the loss is not finite at update 3\b"):  # of 5 an epoch
        distill.run(config(tmp_path), source=source())


def test_a_learning_rate_that_is_too_large_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not finite.*smaller --lr"):
        distill.run(config(tmp_path, lr=1e38, optimizer="sgd"), source=source())
    assert not list(tmp_path.rglob("model.pt"))
