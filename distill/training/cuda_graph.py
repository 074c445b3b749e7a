"""The training update captured as a CUDA graph, which is replayed for each batch.

An update of a ResNet launches hundreds of small kernels. At batch size 16 the launches take longer than the kernels; a
graph launches all of them at once. A graph reads and writes fixed memory. Therefore a chunk's batches are copied into
buffers, a counter on the device selects the next batch, and logits and regularisers are written into buffers too.
Parameters and optimiser state are changed in place.

``GRAPHS``, the only GraphCapture, is the interface: ``guard`` wraps layers that run eagerly, ``record`` captures a
model's update.

This has not run on a device yet. On a CPU the tests replace ``Recording``; run those marked ``gpu`` on a device first.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache

import torch
from torch import Tensor, nn

from distill.randomness import RNG_LOCK
from distill.training.batches import Batch

WARM_UP = 3  # updates before a capture, in which libraries choose algorithms and allocate workspaces
Update = Callable[[Batch, Tensor], tuple[Tensor, Tensor]]  # (batch, learning rate) to (logits, regulariser)


class NoGraphError(Exception):
    """The reason why these updates cannot be captured."""


class GraphCapture:
    """The process-wide state of graph capture: one capture at a time, and none after one has failed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.capturing = False
        self.discarded: list[object] = []  # graphs to free when nothing is being captured
        self.reset()

    def reset(self) -> None:
        """Forget failed captures and the shapes that have run before."""
        # Reason of the first failed capture; torch cannot capture again in this process after one.
        self.failure: str | None = None
        self._per_thread = threading.local()

    @staticmethod
    def can_capture(device: torch.device) -> bool:
        """Whether updates on this device can be captured at all."""
        return device.type == "cuda"

    @contextmanager
    def guard(self, captures: bool, images: Tensor, *how: str) -> Iterator[None]:
        """Run layers eagerly within this context if the process also captures graphs (``captures``).

        For a new shape cuDNN may synchronise the device, which would abort another thread's capture; the context then
        holds the lock. cuDNN caches per thread: a shape that this thread has run in the same way (``how``) needs none.
        """
        if not (captures and self.can_capture(images.device)) or self.failure is not None:
            yield
            return
        seen = self._per_thread.__dict__.setdefault("seen", set())
        key = (images.device, images.shape, *how)
        with nullcontext() if key in seen else self.lock:
            yield
        seen.add(key)

    def record(
        self,
        update: Update,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        chunk: Batch,
        batch_size: int,
        batches: int,
    ) -> "CapturedUpdates":
        """Capture a model's update with the shapes of ``chunk``, which holds at least one batch.

        ``update(batch, rate)`` makes one update, with the learning rate ``rate`` as a float32 scalar on the device, and
        returns its logits (b, classes) and its regulariser (). Later chunks may hold up to ``batches`` batches.

        Raises NoGraphError, and any error of the update. The model, its optimiser and torch's generators do not change.
        """
        if self.failure is not None:
            raise NoGraphError(self.failure)
        captured = CapturedUpdates(chunk, batch_size, batches)
        captured.load(chunk, torch.zeros(batches, device=chunk.given.device))
        for group in optimizer.param_groups:
            if "capturable" in group:  # required by Adam in a capture; its fused kernel is the same either way
                group["capturable"] = True

        def first_batch() -> None:
            captured.next.zero_()
            captured.step(update)

        with RNG_LOCK, self.lock, state_restored(model, optimizer, chunk.given.device) as drew_random_numbers:
            captured.recording.warm_up(first_batch)
            if drew_random_numbers():
                raise NoGraphError("the network draws random numbers")
            optimizer.zero_grad()  # so that the captured backward pass allocates gradients in the graph's memory
            try:
                captured.recording.capture(lambda: captured.step(update))
            except Exception as error:
                raise NoGraphError(self._failed(error)) from error
        return captured

    def _failed(self, error: Exception) -> str:
        """The reason of a failed capture. Disables further captures, unless memory ran out."""
        first = error.__context__ or error  # ending a failed capture raises another error
        reason = str(first) or repr(first)
        if not isinstance(first, torch.OutOfMemoryError):  # with fewer jobs there may be enough
            self.failure = reason
        return reason


GRAPHS = GraphCapture()


class Recording:
    """A torch.cuda.CUDAGraph: device work that is captured once and replayed."""

    def __init__(self, device: torch.device) -> None:
        # cuBLAS has a workspace per stream, so graphs that run concurrently must be captured on different streams. Each
        # thread has its own stream, except the main thread: its default stream cannot be captured.
        current = torch.cuda.current_stream(device)
        self.stream = _side_stream(device) if current == torch.cuda.default_stream(device) else current
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work a few times, on the stream that will be captured."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                for _ in range(WARM_UP):
                    work()
        finally:  # after a failure, restoring the state must not overtake this work
            current.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> None:
        """Capture the work: its Python runs once more, its kernels do not. Waits for the device."""
        device = self.stream.device
        current = torch.cuda.current_stream(device)
        pool = torch.cuda.graph_pool_handle()
        with GRAPHS.lock:
            GRAPHS.discarded.clear()
            GRAPHS.capturing = True
            collects = gc.isenabled()
            gc.disable()  # garbage collection may unload a compiled network, which aborts a capture
            try:
                # The mode thread_local permits other threads to allocate memory meanwhile.
                with torch.cuda.graph(self.graph, pool, self.stream, "thread_local"):
                    work()
            except BaseException:
                _clean_up(self.stream, pool)
                raise
            finally:
                GRAPHS.capturing = False
                torch.cuda.set_stream(current)  # if ending the capture failed, its own stream is still current
                if collects:
                    gc.enable()

    def replay(self) -> None:
        """Repeat the captured work on the current stream, without waiting for it."""
        self.graph.replay()

    def __del__(self) -> None:
        GRAPHS.discarded.append(self.__dict__.pop("graph", None))
        # Free the graph only under the lock: freeing one aborts another thread's capture and changes torch's generator.
        # Do not wait for the lock: if this runs in a backward pass, the lock's owner may be waiting for that pass.
        if GRAPHS.lock.acquire(blocking=False):
            try:
                if not GRAPHS.capturing:
                    GRAPHS.discarded.clear()
            finally:
                GRAPHS.lock.release()


def _clean_up(stream: torch.cuda.Stream, pool: tuple[int, int]) -> None:
    """End a failed capture in torch before 2.12, which otherwise behaves as if it were still capturing.

    It would not free the capture's memory and memory that two streams have used, and could draw no random numbers on
    the device. Later versions clean up themselves, and the first call raises an error, which is ignored.
    """
    with suppress(Exception):
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
        torch._C._cuda_releasePool(stream.device.index, pool)
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
            torch.zeros(1, device=stream.device)  # a successful capture resets the generator


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class CapturedUpdates:
    """The captured updates of one model, with the buffers that they read and write. Made by ``GraphCapture.record``."""

    def __init__(self, chunk: Batch, batch_size: int, batches: int) -> None:
        def buffer(t: Tensor) -> Tensor:
            return torch.zeros((batches, batch_size, *t.shape[1:]), dtype=t.dtype, device=t.device)

        self.batch_size = batch_size
        self.chunk = Batch(
            buffer(chunk.images), buffer(chunk.given), None if chunk.soft is None else buffer(chunk.soft)
        )
        device = chunk.given.device
        self.rates, self.regs = torch.zeros((2, batches), device=device)
        self.logits = torch.zeros_like(self.chunk.given)
        self.next = torch.zeros(1, dtype=torch.int64, device=device)  # the index of the next batch
        self.recording = Recording(device)

    def fits(self, chunk: Batch) -> bool:
        """Whether a chunk has the captured shapes and fits into the buffers."""
        if (chunk.soft is None) != (self.chunk.soft is None):
            return False
        shapes = chunk.images.shape[1:], chunk.given.shape[1:]
        captured = self.chunk.images.shape[2:], self.chunk.given.shape[2:]
        return shapes == captured and len(chunk) // self.batch_size <= len(self.chunk)

    def run(self, chunk: Batch, rates: Tensor, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        """Train on the n whole batches of a chunk that fits, with learning rates (n or more,) float32.

        Returns the logits (n * batch, classes) and regularisers (n,), which the next call overwrites.
        """
        n = len(chunk) // self.batch_size
        self.load(chunk, rates)
        for _ in range(n):
            self.recording.replay()
            advance(self.batch_size)
        return self.logits[:n].flatten(0, 1), self.regs[:n]

    def load(self, chunk: Batch, rates: Tensor) -> None:
        """Copy a chunk's whole batches and their learning rates into the buffers."""
        n = len(chunk) // self.batch_size
        pairs = [(self.chunk.images, chunk.images), (self.chunk.given, chunk.given)]
        if self.chunk.soft is not None and chunk.soft is not None:
            pairs.append((self.chunk.soft, chunk.soft))
        for held, value in pairs:
            held[:n].copy_(value[: n * self.batch_size].unflatten(0, (n, self.batch_size)))
        self.rates[:n].copy_(rates[:n])
        self.next.zero_()

    def step(self, update: Update) -> None:
        """The work to capture: take the next batch, train on it, store its results, and count it."""

        def take(t: Tensor) -> Tensor:
            return t.index_select(0, self.next).squeeze(0)

        soft = None if self.chunk.soft is None else take(self.chunk.soft)
        batch = Batch(take(self.chunk.images), take(self.chunk.given), soft)
        logits, reg = update(batch, take(self.rates))
        # The index is on the device, and unlike index_put torch.where is deterministic.
        here = torch.arange(len(self.regs), device=self.regs.device) == self.next
        torch.where(here[:, None, None], logits, self.logits, out=self.logits)
        torch.where(here, reg, self.regs, out=self.regs)
        self.next += 1


@contextmanager
def state_restored(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> Iterator[Callable[[], bool]]:
    """Restore parameters, buffers, optimiser state and torch's generators when the block ends, in place.

    Optimiser state that the block creates is set to zeros, its initial value; after an error it is deleted, since it
    may be incomplete. Yields a function that tells whether random numbers were drawn.
    """
    state = _state(model, optimizer)  # keeps these tensors alive, so that no new one gets the same id
    before = {id(t): t.detach().clone() for t in state}
    before_draws = _rng_states(device)
    held = set(optimizer.state)
    try:
        yield lambda: any(not torch.equal(a, b) for a, b in zip(before_draws, _rng_states(device), strict=True))
    except BaseException:
        for parameter in set(optimizer.state) - held:
            del optimizer.state[parameter]
        raise
    finally:
        with torch.no_grad():
            for tensor in _state(model, optimizer):
                if id(tensor) in before:
                    tensor.copy_(before[id(tensor)])
                else:
                    tensor.zero_()
        torch.set_rng_state(before_draws[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(before_draws[1], device)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    made = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*model.parameters(), *model.buffers(), *made]


def _rng_states(device: torch.device) -> list[Tensor]:
    """The states of torch's generators, on the CPU. Does not wait for the device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
