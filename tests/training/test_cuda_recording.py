"""cuda_graph.Recording and the guard, by the calls that they make to torch.cuda."""

import gc
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from graph_tools import (
    CUDA,
)

from distill.training import cuda_graph as graph


class FakeCuda:
    """A fake torch.cuda that logs its calls. With ``fails``, ending a capture raises an error."""

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
def test_a_recording_uses_its_own_stream_and_restores_the_current_one(monkeypatch, in_a_thread, name, home, fails):
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


def test_a_failed_capture_is_cleaned_up_in_an_old_torch(monkeypatch):
    fake = FakeCuda(monkeypatch, in_a_thread=True, fails=True, old=True)
    with pytest.raises(RuntimeError, match="invalidated"):
        graph.Recording(CUDA).capture(lambda: None)
    assert fake.log == [
        "capture on own, thread_local, in (0, 7)",
        "no more memory for (0, 7) on 1",
        "(0, 7) on 1 released",
        "capture on own, thread_local, in None",  # which sets the generator right
    ]


def test_a_graph_is_not_freed_during_a_capture(monkeypatch):
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


def test_the_guard_holds_the_lock_for_new_shapes_only(stand_in, monkeypatch):
    """Afterwards cuDNN has chosen its algorithm for this shape in this thread."""

    def alone(n: int, how: str = "eval", captures: bool = True) -> bool:
        with graph.GRAPHS.guard(captures, torch.zeros(n, 3), how):
            return graph.GRAPHS.lock._is_owned()

    assert [alone(8), alone(8), alone(7), alone(8, "update"), alone(7)] == [True, False, True, True, False]
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(alone, 8).result()
    assert not alone(9, captures=False)
    with pytest.raises(ZeroDivisionError), graph.GRAPHS.guard(True, torch.zeros(6, 3)):
        raise ZeroDivisionError
    assert alone(6)  # cuDNN may not have chosen
    monkeypatch.setattr(graph.GRAPHS, "failure", "once")  # none will capture
    assert not alone(9)
    monkeypatch.setattr(graph.GRAPHS, "failure", None)
    monkeypatch.setattr(graph.GraphCapture, "can_capture", staticmethod(lambda device: False))
    assert not alone(9)


def test_state_is_restored_after_a_failed_warm_up_has_ended(monkeypatch):
    fake = FakeCuda(monkeypatch, in_a_thread=False)
    with pytest.raises(ZeroDivisionError):
        graph.Recording(CUDA).warm_up(lambda: 1 / 0)
    assert fake.log == ["side waits for default", "default waits for side"]
    assert fake.now is fake.default
