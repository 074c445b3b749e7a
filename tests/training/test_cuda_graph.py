"""graph.py: replayed updates are the eager ones, bit for bit, and a capture leaves no trace.

On a CPU with a stand-in for `graph.Recording` that does at each replay what was recorded; the tests marked ``gpu`` do
the same with the real one.
"""

import copy
import gc
import inspect
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import StandIn, config, contents, killed_at, source
from torch import nn

import distill
from distill.arms import Fixed
from distill.config import ModelConfig, TrainConfig
from distill.data.splits import Split
from distill.training import augment
from distill.training import cuda_graph as graph
from distill.training.batches import Batch, ImageStore, make_image_store
from distill.training.device import set_up
from distill.training.fit import EpochSums, Trainer
from distill.training.listener import Listener, Notes
from distill.training.models import CifarResNet, Classifier, build
from distill.training.objective import Objective
from distill.training.optim import learning_rate

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CLASSES, BATCH = 4, 4
SHOW = Listener()


@pytest.fixture
def deterministic():
    """A GPU that repeats its bits."""
    train = TrainConfig(deterministic=True)
    set_up(train, CUDA, None)
    yield
    torch.use_deterministic_algorithms(False)


def pool_of(n: int, device=CPU, resident: bool | None = None) -> ImageStore:
    rng = np.random.default_rng(n)
    labels = rng.integers(0, CLASSES, n)
    images = (rng.integers(0, 150, (n, 3, 8, 8)) + 25 * labels[:, None, None, None]).astype(np.uint8)
    return make_image_store(Split(images, labels, labels, np.arange(n)), device, resident)


def classifier(seed: int = 0, network=None) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network() if network else CifarResNet(8, 2, 3, CLASSES)
        return Classifier(network, torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.2, 0.3, 0.2]))


def fit_of(device=CPU, network=None, **options) -> Trainer:
    options = {"batch_size": BATCH, "lr": 0.01, "max_epochs": 3, "reg_coef": 1e-2} | options
    return Trainer(classifier(network=network), TrainConfig(**options), device)


def train_on(fit: Trainer, n: int, epochs, alpha: float | None = 0.4, pool=None, listener=SHOW) -> list[dict]:
    """Epochs over n images; with a teacher unless alpha is None."""
    pool = pool or pool_of(n, fit.device)
    teacher = None if alpha is None else classifier(seed=9).to(fit.device).requires_grad_(False).eval()
    plans = [augment.plan(1, 1, epoch, n, 8, augment=True, flip=True) for epoch in epochs]
    return [fit.epoch(pool, plan, CLASSES, teacher, Fixed(1.0 if alpha is None else alpha), listener) for plan in plans]


def everything(fit: Trainer) -> dict[str, torch.Tensor]:
    """Weights, buffers and optimiser state, copied to the CPU."""
    model = {name: t.detach().cpu().clone() for name, t in fit.model.state_dict().items()}
    states = fit.optimizer.state_dict()["state"].items()
    return model | {f"{i} {name}": t.cpu().clone() for i, state in states for name, t in state.items() if t is not None}


def assert_same_bits(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


SETTINGS = [
    ({}, 0.4),
    ({}, None),
    ({"loss": "kl", "temperature": 3.0}, 0.3),
    ({"loss": "ce", "reg": "l2", "lr_schedule": "onecycle"}, 0.4),
    ({"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.01, "lr_schedule": "cosine", "warmup_epochs": 1}, 0.4),
    ({"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "reg": "none"}, 0.4),
    ({"optimizer": "adamw", "weight_decay": 0.1, "lr_schedule": "cosine"}, 0.4),
]


@pytest.mark.parametrize(("options", "alpha"), SETTINGS, ids=str)
@pytest.mark.parametrize("n", [22, 41])  # chunks of 8 8 6 and 8 8 8 8 8 (1 left out); 5 or 10 whole batches an epoch
def test_replayed_updates_are_the_eager_ones(stand_in, options, alpha, n):
    replayed, eager = fit_of(**options), fit_of(**options, graph=False)
    assert train_on(replayed, n, range(3), alpha) == train_on(eager, n, range(3), alpha)
    assert_same_bits(everything(replayed), everything(eager))
    assert [made.replays for made in stand_in.made] == [3 * (n // BATCH)]


@pytest.mark.parametrize(("options", "alpha"), SETTINGS, ids=str)
def test_replayed_updates_are_those_of_the_program_without_graphs(stand_in, monkeypatch, options, alpha):
    """Rates are float32 numbers on a device and float64 numbers elsewhere: equal but for their rounding."""
    replayed = fit_of(**options)
    figures = train_on(replayed, 22, range(1), alpha)
    monkeypatch.undo()
    plain = fit_of(**options)
    assert train_on(plain, 22, range(1), alpha)[0]["loss"] == pytest.approx(figures[0]["loss"], rel=1e-6)
    for name, value in everything(plain).items():
        torch.testing.assert_close(everything(replayed)[name], value, rtol=1e-4, atol=1e-5)


def test_a_chunk_may_be_a_single_batch(stand_in, monkeypatch):
    """Warm-up goes over the first batch again and again: there may be no other."""
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 8 * 8 * BATCH)
    replayed, eager = fit_of(), fit_of(graph=False)
    train_on(replayed, 10, range(2))
    train_on(eager, 10, range(2))
    assert_same_bits(everything(replayed), everything(eager))
    assert stand_in.made[0].replays == 4


def test_a_first_chunk_that_is_short_is_captured_for_long_ones(stand_in):
    fit, eager = fit_of(), fit_of(graph=False)
    for n in (4, 22):
        assert train_on(fit, n, [0]) == train_on(eager, n, [0])
    assert_same_bits(everything(fit), everything(eager))
    assert [made.replays for made in stand_in.made] == [1 + 5]


def test_progress_is_told_of_every_image_that_is_replayed(stand_in):
    class Counter(Listener):
        images = 0

        def advance(self, images):
            self.images += images

    listener = Counter()
    train_on(fit_of(), 22, range(1), listener=listener)
    assert listener.images == 22


def test_a_cpu_captures_nothing_and_its_rates_are_numbers(monkeypatch):
    """Without a CUDA device nothing is captured, and the learning rate is a number."""
    monkeypatch.setattr(graph, "CapturedUpdates", None)
    fit = fit_of()
    train_on(fit, 22, range(1))
    assert type(fit.optimizer.param_groups[0]["lr"]) is float


# ------------------------------------------------------------------------------ a Recording, by what it asks of torch


class FakeCuda:
    """The streams and graphs of torch.cuda, which keep what they are asked for; ``fails`` at the end of a capture."""

    def __init__(self, monkeypatch, in_a_thread: bool, fails: bool = False, old: bool = False):
        self.log, self.fails, self.old = [], fails, old
        self.default = self.stream("default")
        self.now = self.stream("own") if in_a_thread else self.default
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.log.append("replay"))
        self.Stream = lambda device: self.stream("side")
        graph._side_stream.cache_clear()
        self.graph_pool_handle = lambda: (0, 7)
        names = "current_stream", "default_stream", "set_stream", "graph", "graph_pool_handle", "CUDAGraph", "Stream"
        for name in names:
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocate_to_pool)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release_pool)

    def stream(self, name):
        def wait_stream(other):
            self.log.append(f"{name} waits for {other.name}")

        return SimpleNamespace(name=name, device=torch.device("cuda:1"), wait_stream=wait_stream)

    def current_stream(self, device):
        return self.now

    def default_stream(self, device):
        return self.default

    def set_stream(self, stream):
        self.now = stream

    @contextmanager
    def on(self, stream):
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    def end_allocate_to_pool(self, device: int, pool):
        self.log.append(f"no more memory for {pool} on {device}")
        if not self.old:
            raise RuntimeError("not recording")  # as torch has it when nothing was left to end

    def release_pool(self, device: int, pool):
        self.log.append(f"{pool} on {device} released")

    @contextmanager
    def graph(self, *arguments, **named):
        given = inspect.signature(REAL_GRAPH).bind(*arguments, **named).arguments
        stream = given["stream"]
        self.log.append(f"capture on {stream.name}, {given['capture_error_mode']}, in {given.get('pool')}")
        before, self.now = self.now, stream
        yield
        if self.fails:
            raise RuntimeError("invalidated")
        self.now = before


REAL_GRAPH = torch.cuda.graph


@pytest.mark.parametrize(("in_a_thread", "name", "home"), [(False, "side", "default"), (True, "own", "own")])
@pytest.mark.parametrize("fails", [False, True])
def test_a_recording_has_a_stream_and_leaves_the_current_one(monkeypatch, in_a_thread, name, home, fails):
    fake = FakeCuda(monkeypatch, in_a_thread, fails)
    recording = graph.Recording(CUDA)
    recording.warm_up(lambda: fake.log.append(f"work on {fake.now.name}"))
    assert fake.log == [f"{name} waits for {home}", *[f"work on {name}"] * graph.WARM_UP, f"{home} waits for {name}"]
    fake.log.clear()
    with pytest.raises(RuntimeError, match="invalidated") if fails else nullcontext():
        recording.capture(lambda: fake.log.append(f"work on {fake.now.name}"))
    assert fake.log == [
        f"capture on {name}, thread_local, in (0, 7)",
        f"work on {name}",
        *["no more memory for (0, 7) on 1"] * fails,
    ]
    assert fake.now.name == home
    recording.replay()
    assert fake.log[-1] == "replay"


@pytest.mark.parametrize("fails", [False, True])
def test_no_garbage_is_collected_in_a_capture(monkeypatch, fails):
    FakeCuda(monkeypatch, in_a_thread=True, fails=fails)
    collects = []
    with pytest.raises(RuntimeError, match="invalidated") if fails else nullcontext():
        graph.Recording(CUDA).capture(lambda: collects.append(gc.isenabled()))
    assert (collects, gc.isenabled()) == ([False], True)


def test_a_failed_capture_is_ended_for_an_old_torch(monkeypatch):
    fake = FakeCuda(monkeypatch, in_a_thread=True, fails=True, old=True)
    with pytest.raises(RuntimeError, match="invalidated"):
        graph.Recording(CUDA).capture(lambda: None)
    assert fake.log == [
        "capture on own, thread_local, in (0, 7)",
        "no more memory for (0, 7) on 1",
        "(0, 7) on 1 released",
        "capture on own, thread_local, in None",  # which sets the generator right
    ]


def test_a_graph_is_freed_neither_in_a_capture_nor_by_a_thread_that_would_wait(monkeypatch):
    FakeCuda(monkeypatch, in_a_thread=True)
    graph.GRAPHS.discarded.clear()
    kept, free = [graph.Recording(CUDA) for _ in range(3)], []

    def discard():
        kept.pop()
        free.append(not graph.GRAPHS.discarded)

    capturing = graph.Recording(CUDA)
    capturing.capture(discard)
    with graph.GRAPHS.lock:
        thread = threading.Thread(target=discard)
        thread.start()
        thread.join(timeout=10)
    discard()
    assert free == [False, False, True]


def test_layers_run_alone_once_where_another_thread_may_capture(stand_in, monkeypatch):
    """Of a shape, in a thread: cuDNN has searched by then."""

    def alone(n: int, how: str = "eval", captures: bool = True) -> bool:
        with graph.GRAPHS.guard(captures, torch.zeros(n, 3), how):
            return graph.GRAPHS.lock._is_owned()

    assert [alone(8), alone(8), alone(7), alone(8, "update"), alone(7)] == [True, False, True, True, False]
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(alone, 8).result()
    assert not alone(9, captures=False)
    with pytest.raises(ZeroDivisionError), graph.GRAPHS.guard(True, torch.zeros(6, 3)):
        raise ZeroDivisionError
    assert alone(6)  # it may not have searched
    monkeypatch.setattr(graph.GRAPHS, "failure", "once")  # none will capture
    assert not alone(9)
    monkeypatch.setattr(graph.GRAPHS, "failure", None)
    monkeypatch.setattr(graph.GraphCapture, "can_capture", staticmethod(lambda device: False))
    assert not alone(9)


def test_a_network_runs_alone_but_for_its_replays(stand_in, monkeypatch):
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


def test_what_is_put_back_after_a_failed_warm_up_waits_for_it(monkeypatch):
    fake = FakeCuda(monkeypatch, in_a_thread=False)
    with pytest.raises(ZeroDivisionError):
        graph.Recording(CUDA).warm_up(lambda: 1 / 0)
    assert fake.log == ["side waits for default", "default waits for side"]
    assert fake.now is fake.default


# ------------------------------------------------------------------------------------------------------------ no trace


def captured(fit: Trainer) -> graph.CapturedUpdates:
    """The graph that this model's first chunk would be captured with; nothing has been replayed yet."""
    pool = pool_of(8, fit.device)
    truth = torch.eye(CLASSES, device=fit.device)[pool.labels]

    def update(batch, rate):
        return fit.update(batch, Objective("mse", 1.0, 1.0), rate + 0.1)

    fit.model.train()
    return graph.GRAPHS.record(update, fit.model, fit.optimizer, Batch(pool.images, truth, None), BATCH, 2)


def check_no_trace(fit: Trainer) -> None:
    before, tensors = everything(fit), {**dict(fit.model.named_parameters()), **dict(fit.model.named_buffers())}
    moments = [(t, t.data_ptr()) for state in fit.optimizer.state.values() for t in state.values() if t is not None]
    places, draws = {name: t.data_ptr() for name, t in tensors.items()}, graph._generators(fit.device)
    captured(fit)
    after = everything(fit)
    for name in after.keys() - before.keys():  # what the optimiser made meanwhile
        assert not after[name].any(), name
    assert_same_bits({name: after[name] for name in before}, before)
    assert {name: t.data_ptr() for name, t in tensors.items()} == places
    assert all(t.data_ptr() == place for t, place in moments)
    assert all(torch.equal(a, b) for a, b in zip(draws, graph._generators(fit.device), strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_capture_leaves_no_trace(stand_in, optimizer, epochs):
    fit = fit_of(optimizer=optimizer, graph=False)
    train_on(fit, 22, range(epochs))
    check_no_trace(fit)


def test_warm_up_does_train(stand_in):
    """Else there would be nothing to put back, and nothing tested."""
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
def test_a_failed_capture_is_told_of_once_and_changes_nothing(stand_in, monkeypatch, method, optimizer, epochs_before):
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


def test_an_optimisers_state_that_was_half_made_is_made_anew(stand_in, monkeypatch):
    """Adam counts a step before it has the memory for its moments, and looks no further the next time."""

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


def test_once_a_capture_has_failed_no_other_is_tried_and_the_reason_is_the_first(stand_in, monkeypatch):
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


def test_after_a_lack_of_memory_others_may_capture(stand_in, monkeypatch):
    """It is this model's updates that go on one by one: a probe of many jobs must not end the graphs of the run."""

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


def test_a_network_that_draws_is_not_captured_and_draws_the_same(stand_in):
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


def test_a_network_whose_dropout_is_off_is_captured(stand_in):
    fit = fit_of(network=lambda: nn.Sequential(nn.Dropout(0.0), nn.Flatten(), nn.Linear(192, CLASSES)))
    train_on(fit, 22, range(1))
    assert fit.captured is not None


def test_what_was_captured_is_used_for_nothing_else(stand_in):
    """Another alpha, no teacher, more images than a chunk had: these go eagerly, and right."""
    fit, eager = fit_of(), fit_of(graph=False)
    for n, alpha in ((8, 0.4), (22, 0.4), (22, 0.9), (22, None), (22, 0.4)):
        assert train_on(fit, n, [0], alpha) == train_on(eager, n, [0], alpha)
    assert_same_bits(everything(fit), everything(eager))
    assert [made.replays for made in stand_in.made] == [2 + 5 + 5]


def test_a_larger_chunk_than_the_captured_one_goes_eagerly(stand_in, monkeypatch):
    fit, eager = fit_of(), fit_of(graph=False)
    for pixels in (8 * 8 * 8, 8 * 8 * 16):
        monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", pixels)
        assert train_on(fit, 24, [0]) == train_on(eager, 24, [0])  # chunks of 8 8 8, then 16 8
    assert_same_bits(everything(fit), everything(eager))
    assert stand_in.made[0].replays == 6 + 2


# ----------------------------------------------------------------------------------------------------- stop and go on


def reloaded(fit: Trainer) -> dict:
    file = io.BytesIO()
    torch.save(fit.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_stopping_and_going_on_gives_the_same_bits(stand_in, optimizer):
    options = {"optimizer": optimizer, "lr_schedule": "cosine"}
    whole, stopped, resumed = (fit_of(**options) for _ in range(3))
    figures = train_on(whole, 22, range(3))
    train_on(stopped, 22, range(1))
    resumed.load_state_dict(reloaded(stopped))
    assert train_on(resumed, 22, range(1, 3)) == figures[1:]
    assert_same_bits(everything(resumed), everything(whole))


@pytest.mark.parametrize("there", [True, False], ids=["from a graph", "to a graph"])
def test_a_training_moves_between_devices(stand_in, monkeypatch, there):
    """Its file holds nothing that another device could not read, and the rates go on as they should."""
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


def test_loaded_moments_lie_in_memory_as_their_weights_do():
    fit, other = fit_of(), fit_of()
    train_on(fit, 8, range(1))
    other.model.to(memory_format=torch.contiguous_format)
    other.load_state_dict(reloaded(fit))
    for p in other.parameters:
        assert other.optimizer.state[p]["exp_avg"].stride() == p.stride()
    assert_same_bits(everything(fit), everything(other))


def test_a_chain_under_graphs_goes_on_exactly_after_any_epoch(stand_in, tmp_path):
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


def test_the_rate_on_record_is_that_of_the_last_update(stand_in, tmp_path):
    distill.run(config(tmp_path, lr_schedule="cosine", distillation_steps=0), source=source())
    rows = (tmp_path / "seed_1/step_0/metrics.csv").read_text().splitlines()[1:]
    train = config(tmp_path, lr_schedule="cosine").train
    assert [float(row.split(",")[1]) for row in rows] == [learning_rate(train, u, 5) for u in (4, 9)]


# ----------------------------------------------------------------------------------------------------------- no waiting


class TheEnd(Exception):
    """An epoch has come to where it reads its figures."""


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("options", [{}, {"loss": "kl", "temperature": 2.0}, {"loss": "ce", "reg": "l2"}], ids=str)
def test_an_epoch_asks_nothing_of_the_device_before_its_end(stand_in, monkeypatch, graphs, options):
    """On the meta device, whose tensors have no values: whoever asked for one, and so waited, would get an error."""
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


# ------------------------------------------------------------------------------------------------------ the real thing


@pytest.mark.gpu
@pytest.mark.parametrize(("options", "alpha"), SETTINGS, ids=str)
def test_on_a_gpu_replayed_updates_are_the_eager_ones(deterministic, monkeypatch, options, alpha):
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
def test_on_a_gpu_a_single_replayed_update_is_the_eager_one(deterministic, precision, compile):
    """From the same state: the moves of the weights, not only the weights."""
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
def test_on_a_gpu_a_capture_leaves_no_trace(deterministic, optimizer, epochs):
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
def test_on_a_gpu_the_papers_network_repeats_itself_bit_for_bit(deterministic, precision):
    """No layer of it is one that torch refuses to repeat."""
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
def test_on_a_gpu_a_chain_under_graphs_goes_on_exactly(deterministic, tmp_path):
    options, listener = {"device": "cuda", "deterministic": True}, Notes()
    distill.run(config(tmp_path / "whole", **options), source=source(), listener=listener)
    assert not listener.notes
    with killed_at("training_state.pt", 3):
        distill.run(config(tmp_path / "parts", **options), source=source())
    distill.run(config(tmp_path / "parts", **options), source=source())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.gpu
def test_a_gpus_training_goes_on_on_a_cpu_and_back(deterministic):
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
