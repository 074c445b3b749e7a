"""cuda_graph.py on a CUDA device."""

import pytest
import torch
from graph_tools import (
    BATCH,
    CLASSES,
    CPU,
    CUDA,
    SETTINGS,
    assert_same_bits,
    check_no_trace,
    everything,
    fit_of,
    pool_of,
    reloaded,
    train_on,
)
from tiny import config, contents, killed_at, source
from torch import nn

import distill
from distill.config import ModelConfig, TrainConfig
from distill.training.device import set_up
from distill.training.listener import Notes
from distill.training.models import build


@pytest.mark.gpu
@pytest.mark.parametrize(("options", "alpha"), SETTINGS, ids=str)
def test_on_a_gpu_replayed_updates_equal_eager_updates(deterministic, monkeypatch, options, alpha):
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 8 * 8 * 8)
    replayed, eager, listener = fit_of(CUDA, **options), fit_of(CUDA, **options, graph=False), Notes()
    for epoch in range(3):
        train_on(replayed, 22, [epoch], alpha, listener=listener)
        assert not listener.notes
        train_on(eager, 22, [epoch], alpha)
        for name, value in everything(eager).items():
            torch.testing.assert_close(everything(replayed)[name], value, rtol=1e-3, atol=1e-4)
    assert replayed.captured is not None


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # a compiler has much to say
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("compile", [False, True])
def test_on_a_gpu_a_single_replayed_update_equals_an_eager_update(deterministic, precision, compile):
    """From the same state: compares the changes of the weights, not only the weights."""
    options = {"precision": precision, "optimizer": "sgd", "lr": 0.1, "compile": compile}
    set_up(TrainConfig(deterministic=True, precision=precision), CUDA, None)
    start, fits, listener = everything(fit_of(CUDA)), [], Notes()
    for captures in (True, False):
        fits.append(fit_of(CUDA, **options, graph=captures))
        train_on(fits[-1], BATCH, [0], listener=listener)
    assert not listener.notes
    for name in start:
        moves = [everything(fit)[name].double() - start[name].double() for fit in fits]
        torch.testing.assert_close(*moves, rtol=1e-2 if precision == "bf16" else 1e-3, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("epochs", [0, 1])
def test_on_a_gpu_a_capture_does_not_change_the_model(deterministic, optimizer, epochs):
    fit = fit_of(CUDA, optimizer=optimizer, graph=False)
    train_on(fit, 22, range(epochs))
    check_no_trace(fit)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_on_a_gpu_a_network_that_cannot_be_captured_is_trained_eagerly(deterministic, resident):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(192, CLASSES)

        def forward(self, x):
            return self.fc(x.flatten(1)) * (1.0 if x.sum().item() > 0 else 0.5)

    models = []
    for captures in (True, False):
        fit, listener = fit_of(CUDA, network=Asks, graph=captures), Notes()
        train_on(fit, 22, range(2), pool=pool_of(22, CUDA, resident), listener=listener)
        models.append(everything(fit))
        assert len(listener.notes) == captures
    assert_same_bits(*models)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # in bf16 with channels last
def test_on_a_gpu_training_the_papers_network_twice_gives_the_same_bits(deterministic, precision):
    """No layer of it lacks a deterministic implementation."""
    models, listener = [], Notes()
    for _ in range(2):
        fit = fit_of(CUDA, network=lambda: build(ModelConfig(resnet=18), 3, CLASSES), precision=precision)
        train_on(fit, 22, range(1), listener=listener)
        models.append(everything(fit))
    assert not listener.notes
    assert_same_bits(*models)


@pytest.mark.gpu
def test_on_a_gpu_images_from_the_host_train_the_same_bits(deterministic, monkeypatch):
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 8 * 8 * 8)
    models = []
    for resident in (True, False):
        fit = fit_of(CUDA)
        train_on(fit, 41, range(2), pool=pool_of(41, CUDA, resident))
        assert fit.captured is not None
        models.append(everything(fit))
    assert_same_bits(*models)


@pytest.mark.gpu
def test_on_a_gpu_a_chain_with_graphs_resumes_to_the_same_bits(deterministic, tmp_path):
    options, listener = {"device": "cuda", "deterministic": True}, Notes()
    distill.run(config(tmp_path / "whole", **options), source=source(), listener=listener)
    assert not listener.notes
    with killed_at("training_state.pt", 3):
        distill.run(config(tmp_path / "parts", **options), source=source())
    distill.run(config(tmp_path / "parts", **options), source=source())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.gpu
def test_a_training_moves_from_gpu_to_cpu_and_back(deterministic):
    fits = [fit_of(CUDA), fit_of(CPU), fit_of(CUDA)]
    train_on(fits[0], 22, range(1))
    for epoch, before, after in ((1, fits[0], fits[1]), (2, fits[1], fits[2])):
        after.load_state_dict(reloaded(before))
        train_on(after, 22, [epoch])
    whole = fit_of(CUDA)
    train_on(whole, 22, range(3))
    assert whole.captured is not None
    for name, value in everything(whole).items():
        torch.testing.assert_close(everything(fits[2])[name], value, rtol=1e-2, atol=1e-3)
