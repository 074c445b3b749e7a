"""cuda_graph.py: replayed updates equal eager ones bit for bit, and a capture changes nothing.

On a CPU, with a stand-in for ``Recording`` that does at each replay what was recorded; tests/gpu has the real one.
"""

import copy

import pytest
import torch
from graph_tools import (
    BATCH,
    CLASSES,
    SETTINGS,
    assert_same_bits,
    captured,
    check_no_trace,
    everything,
    fit_of,
    pool_of,
    reloaded,
    train_on,
)
from tiny import StandIn, config, contents, killed_at, source
from torch import nn

import distill
from distill.config import ModelConfig
from distill.training import cuda_graph as graph
from distill.training.batches import ImageStore
from distill.training.fit import EpochSums
from distill.training.listener import Listener, Notes
from distill.training.models import Classifier, build
from distill.training.optim import learning_rate


@pytest.mark.parametrize(("options", "alpha"), SETTINGS, ids=str)
@pytest.mark.parametrize("n", [22, 41])  # chunks of 8 8 6 and 8 8 8 8 8 (1 left out); 5 or 10 whole batches an epoch
def test_replayed_updates_equal_eager_updates(stand_in, options, alpha, n):
    replayed, eager = fit_of(**options), fit_of(**options, graph=False)
    assert train_on(replayed, n, range(3), alpha) == train_on(eager, n, range(3), alpha)
    assert_same_bits(everything(replayed), everything(eager))
    assert [made.replays for made in stand_in.made] == [3 * (n // BATCH)]


@pytest.mark.parametrize(("options", "alpha"), SETTINGS, ids=str)
def test_replayed_updates_equal_a_training_without_graphs(stand_in, monkeypatch, options, alpha):
    """Learning rates are float32 on a device and float64 otherwise, so they are equal up to rounding."""
    replayed = fit_of(**options)
    figures = train_on(replayed, 22, range(1), alpha)
    monkeypatch.undo()
    plain = fit_of(**options)
    assert train_on(plain, 22, range(1), alpha)[0]["loss"] == pytest.approx(figures[0]["loss"], rel=1e-6)
    for name, value in everything(plain).items():
        torch.testing.assert_close(everything(replayed)[name], value, rtol=1e-4, atol=1e-5)


def test_a_chunk_of_one_batch_can_be_captured(stand_in, monkeypatch):
    """Warm-up repeats the first batch, because there may be no other."""
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 8 * 8 * BATCH)
    replayed, eager = fit_of(), fit_of(graph=False)
    train_on(replayed, 10, range(2))
    train_on(eager, 10, range(2))
    assert_same_bits(everything(replayed), everything(eager))
    assert stand_in.made[0].replays == 4


def test_a_short_first_chunk_is_captured_for_longer_ones(stand_in):
    fit, eager = fit_of(), fit_of(graph=False)
    for n in (4, 22):
        assert train_on(fit, n, [0]) == train_on(eager, n, [0])
    assert_same_bits(everything(fit), everything(eager))
    assert [made.replays for made in stand_in.made] == [1 + 5]


def test_the_listener_counts_every_replayed_image(stand_in):
    class Counter(Listener):
        images = 0

        def advance(self, images):
            self.images += images

    listener = Counter()
    train_on(fit_of(), 22, range(1), listener=listener)
    assert listener.images == 22


def test_on_a_cpu_nothing_is_captured(monkeypatch):
    """Without a CUDA device nothing is captured, and the learning rate is a number."""
    monkeypatch.setattr(graph, "CapturedUpdates", None)
    fit = fit_of()
    train_on(fit, 22, range(1))
    assert type(fit.optimizer.param_groups[0]["lr"]) is float


def test_eager_layers_hold_the_lock_and_replays_do_not(stand_in, monkeypatch):
    alone, forward = [], Classifier.forward

    def seen(self, x):
        alone.append(graph.GRAPHS.lock._is_owned())
        return forward(self, x)

    monkeypatch.setattr(Classifier, "forward", seen)
    fit = fit_of()
    train_on(fit, 8, [0])
    assert alone == [True, *[True] * graph.WARM_UP, False, False]  # the teacher; the warm-up; the stand-in's replays
    alone.clear()
    train_on(fit, 7, [1, 2])
    assert alone == [True, False, True, *[False] * 3]  # the teacher, a replay, the last three images; and once more


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_capture_does_not_change_model_optimiser_and_generators(stand_in, optimizer, epochs):
    fit = fit_of(optimizer=optimizer, graph=False)
    train_on(fit, 22, range(epochs))
    check_no_trace(fit)


def test_warm_up_changes_the_model(stand_in):
    """Otherwise the tests of restoring the state would test nothing."""
    fit, seen = fit_of(), []
    stand_in.capture = lambda self, work: seen.append(everything(fit))
    try:
        before = everything(fit)
        captured(fit)
    finally:
        stand_in.capture = lambda self, work: setattr(self, "work", work)
    assert not torch.equal(seen[0]["network.conv1.weight"], before["network.conv1.weight"])
    assert seen[0]["network.bn1.num_batches_tracked"] == graph.WARM_UP
    assert seen[0]["0 step"] == graph.WARM_UP


def fails_in(monkeypatch, method: str) -> None:
    def failing(self, work):
        work()
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(StandIn, method, failing)


@pytest.mark.parametrize("method", ["warm_up", "capture"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("epochs_before", [0, 1])
def test_a_failed_capture_is_noted_once_and_changes_nothing(stand_in, monkeypatch, method, optimizer, epochs_before):
    eager = fit_of(optimizer=optimizer, graph=False)
    train_on(eager, 22, range(epochs_before))
    fit, listener = fit_of(optimizer=optimizer), Notes()
    fit.load_state_dict(copy.deepcopy(eager.state_dict()))
    fails_in(monkeypatch, method)
    rest = range(epochs_before, epochs_before + 2)
    assert train_on(fit, 22, rest, listener=listener) == train_on(eager, 22, rest)
    assert_same_bits(everything(fit), everything(eager))
    assert listener.notes == [
        "CUDA graph capture failed (operation not permitted when stream is capturing); using eager updates"
    ]
    assert len(stand_in.made) == 1


def test_an_incomplete_optimiser_state_is_deleted(stand_in, monkeypatch):
    """Adam counts a step before it allocates its moments, and would not allocate them the next time."""

    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def warm_up(self, work):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "zeros_like", no_memory)
            work()

    monkeypatch.setattr(StandIn, "warm_up", warm_up)
    fit, eager, listener = fit_of(), fit_of(graph=False), Notes()
    assert train_on(fit, 22, [0], listener=listener) == train_on(eager, 22, [0])
    assert_same_bits(everything(fit), everything(eager))
    assert listener.notes == ["CUDA graph capture failed (CUDA out of memory); using eager updates"]


def test_after_a_failed_capture_no_other_is_tried(stand_in, monkeypatch):
    def failing(self, work):
        try:
            raise ValueError("not while capturing")
        finally:
            raise RuntimeError("the capture was invalidated")

    monkeypatch.setattr(StandIn, "capture", failing)
    fits, listener = [fit_of(), fit_of(), fit_of(graph=False)], Notes()
    for fit in fits:
        train_on(fit, 22, range(1), listener=listener)
    assert (
        listener.notes == ["CUDA graph capture failed (not while capturing); using eager updates"] * 2
    )  # a person sees it once
    assert len(stand_in.made) == 1
    assert_same_bits(everything(fits[0]), everything(fits[2]))
    assert_same_bits(everything(fits[1]), everything(fits[2]))


def test_after_running_out_of_memory_other_models_are_captured(stand_in, monkeypatch):
    """Only this model trains eagerly: trying too many jobs must not disable graphs for the run."""

    def short_of_memory(self, work):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("invalidated")  # as a capture's end has it

    with monkeypatch.context() as patch:
        patch.setattr(StandIn, "capture", short_of_memory)
        fit, listener = fit_of(), Notes()
        train_on(fit, 8, [0], listener=listener)
    assert listener.notes == ["CUDA graph capture failed (CUDA out of memory); using eager updates"]
    assert fit.captured is None
    train_on(other := fit_of(), 8, [0])
    assert other.captured is not None


def test_after_a_failed_warm_up_other_models_are_captured(stand_in, monkeypatch):
    with monkeypatch.context() as patch:
        fails_in(patch, "warm_up")
        train_on(fit_of(), 22, range(1))
    train_on(fit_of(), 22, range(1))
    assert stand_in.made[1].replays == 5


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, CLASSES))


def test_a_network_with_dropout_is_not_captured_and_draws_the_same_numbers(stand_in):
    models = []
    for captures in (True, False):
        torch.manual_seed(5)
        fit, listener = fit_of(network=with_dropout, graph=captures), Notes()
        train_on(fit, 22, range(2), listener=listener)
        models.append(everything(fit))
        assert (
            listener.notes
            == ["CUDA graph capture failed (the network draws random numbers); using eager updates"] * captures
        )
    assert_same_bits(*models)


def test_a_network_with_dropout_0_is_captured(stand_in):
    fit = fit_of(network=lambda: nn.Sequential(nn.Dropout(0.0), nn.Flatten(), nn.Linear(192, CLASSES)))
    train_on(fit, 22, range(1))
    assert fit.captured is not None


def test_a_graph_is_used_only_for_the_captured_shapes_and_alpha(stand_in):
    """Another alpha, no teacher or a larger chunk: these updates are eager and correct."""
    fit, eager = fit_of(), fit_of(graph=False)
    for n, alpha in ((8, 0.4), (22, 0.4), (22, 0.9), (22, None), (22, 0.4)):
        assert train_on(fit, n, [0], alpha) == train_on(eager, n, [0], alpha)
    assert_same_bits(everything(fit), everything(eager))
    assert [made.replays for made in stand_in.made] == [2 + 5 + 5]


def test_a_chunk_larger_than_the_buffers_is_trained_eagerly(stand_in, monkeypatch):
    fit, eager = fit_of(), fit_of(graph=False)
    for pixels in (8 * 8 * 8, 8 * 8 * 16):
        monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", pixels)
        assert train_on(fit, 24, [0]) == train_on(eager, 24, [0])  # chunks of 8 8 8, then 16 8
    assert_same_bits(everything(fit), everything(eager))
    assert stand_in.made[0].replays == 6 + 2


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_training_with_graphs_gives_the_same_bits(stand_in, optimizer):
    options = {"optimizer": optimizer, "lr_schedule": "cosine"}
    whole, stopped, resumed = (fit_of(**options) for _ in range(3))
    figures = train_on(whole, 22, range(3))
    train_on(stopped, 22, range(1))
    resumed.load_state_dict(reloaded(stopped))
    assert train_on(resumed, 22, range(1, 3)) == figures[1:]
    assert_same_bits(everything(resumed), everything(whole))


@pytest.mark.parametrize("there", [True, False], ids=["from a graph", "to a graph"])
def test_a_training_moves_between_devices(stand_in, monkeypatch, there):
    """Another device can read its file, and the learning rates continue correctly."""
    first, second = fit_of(lr_schedule="cosine"), fit_of(lr_schedule="cosine")
    monkeypatch.setattr(graph.GraphCapture, "can_capture", staticmethod(lambda device: there))
    first = fit_of(lr_schedule="cosine")
    train_on(first, 22, range(1))
    state = reloaded(first)
    assert type(state["optimizer"]["param_groups"][0]["lr"]) is float
    monkeypatch.setattr(graph.GraphCapture, "can_capture", staticmethod(lambda device: not there))
    second = fit_of(lr_schedule="cosine")
    second.load_state_dict(state)
    train_on(second, 22, range(1, 3))
    train_on(first, 22, range(1, 3))
    assert first.lr == second.lr
    for name, value in everything(first).items():
        torch.testing.assert_close(everything(second)[name], value, rtol=1e-3, atol=1e-4)


def test_loaded_moments_get_the_memory_layout_of_their_parameters():
    fit, other = fit_of(), fit_of()
    train_on(fit, 8, range(1))
    other.model.to(memory_format=torch.contiguous_format)
    other.load_state_dict(reloaded(fit))
    for p in other.parameters:
        assert other.optimizer.state[p]["exp_avg"].stride() == p.stride()
    assert_same_bits(everything(fit), everything(other))


def test_a_chain_with_graphs_resumes_after_any_epoch_to_the_same_bits(stand_in, tmp_path):
    options = {"label_noise": 0.25, "lr_schedule": "cosine"}
    distill.run(config(tmp_path / "eager", **options, graph=False), source=source())
    distill.run(config(tmp_path / "whole", **options), source=source())
    assert stand_in.made
    whole = contents(tmp_path / "whole")
    assert whole == contents(tmp_path / "eager")
    for occurrence in range(1, 7):
        run = tmp_path / str(occurrence)
        with killed_at("training_state.pt", occurrence):
            distill.run(config(run, **options), source=source())
        distill.run(config(run, **options), source=source())
        assert contents(run) == whole


def test_metrics_csv_has_the_learning_rate_of_the_last_update(stand_in, tmp_path):
    distill.run(config(tmp_path, lr_schedule="cosine", distillation_steps=0), source=source())
    rows = (tmp_path / "seed_1/step_0/metrics.csv").read_text().splitlines()[1:]
    train = config(tmp_path, lr_schedule="cosine").train
    assert [float(row.split(",")[1]) for row in rows] == [learning_rate(train, u, 5) for u in (4, 9)]


class TheEnd(Exception):
    """An epoch has reached the point where it reads its metrics."""


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("options", [{}, {"loss": "kl", "temperature": 2.0}, {"loss": "ce", "reg": "l2"}], ids=str)
def test_an_epoch_does_not_wait_for_the_device_before_its_end(stand_in, monkeypatch, graphs, options):
    """On the meta device, where reading a value, which would wait for the device, is an error."""
    meta, listener = torch.device("meta"), Notes()

    def optimizer(model, train):  # torch's own have no fused kernels there
        made = torch.optim.SGD(model.parameters(), lr=0.1)
        made.step = lambda: None
        return made

    def read(self):
        raise TheEnd

    monkeypatch.setattr("distill.training.fit.make_optimizer", optimizer)
    monkeypatch.setattr(EpochSums, "read", read)
    fit = fit_of(meta, network=lambda: build(ModelConfig(resnet=18), 3, CLASSES), graph=graphs, **options)
    pool = ImageStore(*(t.to(meta) for t in (pool_of(22).images, pool_of(22).labels)), meta)
    with pytest.raises(TheEnd):
        train_on(fit, 22, range(1), pool=pool, listener=listener)
    assert not listener.notes
    assert [made.replays for made in stand_in.made] == [5] * graphs
