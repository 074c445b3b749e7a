"""The training update as a CUDA graph: captured once for a batch's shape, then replayed batch after batch.

An update of a ResNet is some hundreds of small kernels, and at batch 16 launching them one by one takes longer than
running them. A graph launches all of them at once. Everything it reads and writes has to stay where it is, so a
chunk's batches lie in buffers, a counter on the device says which one is next, and logits and regulariser go into
buffers as long as the chunk. Weights and optimiser state keep their places too: they are only ever changed in place.

None of this has run on a device yet: the bookkeeping is tested on a CPU with a stand-in for `Recording`, and the tests
marked ``gpu`` are there to be run.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache

import torch
from torch import Tensor, nn

from distill.randomness import ONE_AT_A_TIME

WARM_UP = 3  # updates before a capture: libraries choose their algorithms and take their workspaces in them
_lock = threading.RLock()  # one capture in a process at a time; see ``alone``
_own = threading.local()
_underway = False  # a capture
_discarded: list = []  # graphs to be freed when none is
_failure: str | None = None  # why a capture failed in this process: what that leaves behind in torch bears no other


def possible(device: torch.device) -> bool:
    """Whether updates on this device can be graphs at all."""
    return device.type == "cuda"


@contextmanager
def alone(captures: bool, images: Tensor, *how) -> Iterator[None]:
    """To be held around layers that run otherwise than by a replay, in a run that captures its updates.

    Before cuDNN runs a new shape it may search for an algorithm and wait for the whole device, which would end a
    capture in another thread. It remembers by thread what it has found: what this one has run before, on images of this
    shape and in this way, runs freely.
    """
    if not (captures and possible(images.device)) or _failure is not None:
        yield
        return
    ran, this = _own.__dict__.setdefault("ran", set()), (images.device, images.shape, *how)
    with nullcontext() if this in ran else _lock:
        yield
    ran.add(this)


class NoGraph(Exception):
    """Why these updates cannot be a graph."""


class Recording:
    """Device work done once and replayed at will, as a torch.cuda.CUDAGraph."""

    def __init__(self, device: torch.device):
        # cuBLAS keeps a workspace for each stream: what may run at the same time must be captured on different ones.
        # A thread of its own has its own stream; the default stream cannot be captured.
        current = torch.cuda.current_stream(device)
        self.stream = _side_stream(device) if current == torch.cuda.default_stream(device) else current
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work a few times, on the stream that is to be captured."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                for _ in range(WARM_UP):
                    work()
        finally:  # what is put back after a failure must not overtake what was begun
            current.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> None:
        """Record the work; its Python runs once more, its kernels do not. Waits for the device."""
        global _underway
        device, mode = self.stream.device, "thread_local"  # others may allocate memory
        current, pool = torch.cuda.current_stream(device), torch.cuda.graph_pool_handle()
        with _lock:
            _discarded.clear()
            _underway, collects = True, gc.isenabled()
            gc.disable()  # what it finds may unload a compiled network, which ends a capture
            try:
                with torch.cuda.graph(self.graph, pool, self.stream, mode):
                    work()
            except BaseException:
                _tidy(self.stream, pool)
                raise
            finally:  # a capture that fails as it ends leaves its own stream the current one
                _underway = False
                torch.cuda.set_stream(current)
                if collects:
                    gc.enable()

    def replay(self) -> None:
        """Do the work again, on the current stream. Does not wait for it."""
        self.graph.replay()

    def __del__(self):
        _discarded.append(self.__dict__.pop("graph", None))
        # Freeing a graph ends a capture that is underway, and torch's generator, which knows the graph, has no lock.
        # Never waits: what is collected while a backward pass runs would wait for whoever waits for that pass.
        if _lock.acquire(blocking=False):
            try:
                if not _underway:
                    _discarded.clear()
            finally:
                _lock.release()


def _tidy(stream, pool) -> None:
    """After a failed capture: torch before 2.12 goes on believing that it captures.

    It would free no memory that two streams have used, nor the capture's own, and draw nothing on the device. Later
    versions have ended all that themselves, and refuse the first line.
    """
    with suppress(Exception):
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
        torch._C._cuda_releasePool(stream.device.index, pool)
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
            torch.zeros(1, device=stream.device)  # a capture that succeeds sets the generator right


@cache
def _side_stream(device: torch.device):
    return torch.cuda.Stream(device)


class Updates:
    """The updates of one model on batches of one shape, captured when it is made.

    ``update(images, truth, soft, rate)`` makes one update on a batch, ``rate`` a float32 scalar on the device, and
    returns its logits (b, classes) and its regulariser (). It is captured with the shapes of the given chunk: images
    (m, c, h, w), truth and soft (m, classes), soft None without a teacher, m >= batch; ``batches`` is the most that a
    chunk may hold. Raises whatever the updates raise, and NoGraph, always once a capture has failed in this process;
    either way the model, its optimiser and torch's generators are left as they were.
    """

    def __init__(
        self,
        update: Callable,
        model: nn.Module,
        optimizer,
        images: Tensor,
        truth: Tensor,
        soft: Tensor | None,
        batch: int,
        batches: int,
    ):
        if _failure is not None:
            raise NoGraph(_failure)
        n, self.batch = batches, batch
        self.chunk = tuple(
            t if t is None else torch.zeros((n, batch, *t.shape[1:]), dtype=t.dtype, device=t.device)
            for t in (images, truth, soft)
        )
        self.rates, self.regs = torch.zeros((2, n), device=truth.device)
        self.logits = torch.zeros_like(self.chunk[1])
        self.next = torch.zeros(1, dtype=torch.int64, device=truth.device)  # the batch whose turn it is
        self.recording = Recording(truth.device)
        self._fill(images, truth, soft, torch.zeros(n, device=truth.device))
        for group in optimizer.param_groups:
            if "capturable" in group:  # Adam asks for it in a capture; its fused kernel is the same either way
                group["capturable"] = True

        def first_batch() -> None:
            self.next.zero_()
            self._work(update)

        with ONE_AT_A_TIME, _lock, no_trace(model, optimizer, truth.device) as drew:
            self.recording.warm_up(first_batch)
            if drew():
                raise NoGraph("the network draws random numbers")
            optimizer.zero_grad()  # so that the captured backward pass makes gradients in the graph's own memory
            try:
                self.recording.capture(lambda: self._work(update))
            except Exception as error:
                raise _give_up(error) from error

    def fits(self, images: Tensor, truth: Tensor, soft: Tensor | None) -> bool:
        """Whether a chunk has the shapes that were captured, and no more batches."""
        return all(
            (held is None) == (given is None)
            and (given is None or (given.shape[1:] == held.shape[2:] and len(given) // self.batch <= len(held)))
            for held, given in zip(self.chunk, (images, truth, soft), strict=True)
        )

    def run(
        self, images: Tensor, truth: Tensor, soft: Tensor | None, rates: Tensor, advance: Callable[[int], None]
    ) -> tuple[Tensor, Tensor]:
        """Train on all whole batches of a chunk that fits, at the learning rates (at least a batch each, float32).

        Returns their logits (n * batch, classes) and regularisers (n,), which the next chunk will overwrite.
        """
        n = len(images) // self.batch
        self._fill(images, truth, soft, rates)
        for _ in range(n):
            self.recording.replay()
            advance(self.batch)
        return self.logits[:n].flatten(0, 1), self.regs[:n]

    def _fill(self, images: Tensor, truth: Tensor, soft: Tensor | None, rates: Tensor) -> None:
        n = len(images) // self.batch
        for held, given in zip(self.chunk, (images, truth, soft), strict=True):
            if held is not None:
                held[:n].copy_(given[: n * self.batch].unflatten(0, (n, self.batch)))
        self.rates[:n].copy_(rates[:n])
        self.next.zero_()

    def _work(self, update: Callable) -> None:
        """One update: take the next batch, train on it, put its results in their place, count."""
        batch = (t if t is None else t.index_select(0, self.next).squeeze(0) for t in self.chunk)
        logits, reg = update(*batch, self.rates.index_select(0, self.next).squeeze(0))
        # A choice, not a scatter: the place is known to the device alone, and choosing is deterministic.
        here = torch.arange(len(self.regs), device=self.regs.device) == self.next
        torch.where(here[:, None, None], logits, self.logits, out=self.logits)
        torch.where(here, reg, self.regs, out=self.regs)
        self.next += 1


def _give_up(error: Exception) -> NoGraph:
    """Let no other capture be tried in this process, for what went wrong first: unless that was a lack of memory."""
    global _failure
    first = error.__context__ or error  # ending a capture that has failed is an error of its own
    why = str(first) or repr(first)
    if not isinstance(first, torch.OutOfMemoryError):  # with fewer jobs there may be enough
        _failure = why
    return NoGraph(why)


@contextmanager
def no_trace(model: nn.Module, optimizer, device: torch.device) -> Iterator[Callable[[], bool]]:
    """What is done in here leaves weights, buffers, optimiser state and torch's generators as they were.

    Tensors stay where they are. State that the optimiser makes in here stays as zeros, which is how it begins, unless
    an error ends it: that may have been half made. Gives a function that tells whether random numbers have been drawn.
    """
    before = {id(t): (t, t.detach().clone()) for t in _state(model, optimizer)}
    draws, held = _generators(device), set(optimizer.state)
    try:
        yield lambda: any(not torch.equal(a, b) for a, b in zip(draws, _generators(device), strict=True))
    except BaseException:
        for parameter in set(optimizer.state) - held:
            del optimizer.state[parameter]
        raise
    finally:
        with torch.no_grad():
            for tensor in _state(model, optimizer):
                tensor.copy_(before[id(tensor)][1]) if id(tensor) in before else tensor.zero_()
        torch.set_rng_state(draws[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(draws[1], device)


def _state(model: nn.Module, optimizer) -> list[Tensor]:
    made = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*model.parameters(), *model.buffers(), *made]


def _generators(device: torch.device) -> list[Tensor]:
    """The states of torch's generators, on the CPU; the device is not asked."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]
