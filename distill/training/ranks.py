"""The ranks: the processes that train one model together, started by torchrun.

Rank 0 leads. It alone runs the program: it reads and writes the run directory and talks to the user. The other ranks
follow (``running/follower.py``): they wait for a message, which names the work and holds what it needs, and do their
part of it. Without torchrun there is one rank, and nothing here changes or delays anything.

Every rank computes its share of each batch. The gradients of the shares are added up, each weighted by its images, so
that an update equals that of one process up to rounding; the ranks then make the same update.
"""

import io
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill.environment import torchrun_rank
from distill.errors import ConfigError, UserError, one_line
from distill.program import STOPPING, complain
from distill.training.augment import Plan

PATIENCE = timedelta(days=30)  # followers wait while rank 0 does other work; a dead rank is noticed at once
SILENCE = 10.0  # seconds in which the ranks usually find each other
WAIT = 600.0  # seconds after them in which they must
GRACE = 5.0  # seconds after a signal in which rank 0 may end by itself


class RankLostError(UserError):
    """A rank that has ended, so that the others cannot continue."""

    def __init__(self, why: str = "another rank was killed, or failed and printed its own error") -> None:
        super().__init__(
            f"rank {torchrun_rank()[0]} lost the others: {why}; "
            "run the same command to resume from the last finished epoch"
        )


@dataclass(frozen=True)
class Share:
    """One rank's part of some batches of the same size."""

    plan: Plan  # of its images
    size: int  # its images of each batch
    batch: int  # images of each whole batch
    copies: int = 1  # the ranks that compute the same images

    @property
    def weight(self) -> float:
        """The weight of this rank's mean loss in the batch's."""
        return self.size / (self.batch * self.copies)


class Ranks:
    """The ranks of this run, seen from one of them. Collective methods must be called on every rank."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.splits = size > 1  # whether the batch in work is split
        self.busy = False  # on rank 0: whether the followers are in the middle of some work
        self.why = ""  # on rank 0: the error that interrupted that work
        self.followed: dict[str, weakref.ref[Any]] = {}  # on rank 0: what the followers have, by its kind

    def shares(self, plan: Plan, batch_size: int) -> list[Share]:
        """This rank's part of an epoch: of its whole batches, and of the smaller last one.

        A last batch of fewer than two images per rank is computed by every rank: a part of it might have no variance.
        """
        if self.size == 1:
            return [Share(plan, batch_size, batch_size)]
        left = len(plan) % batch_size
        whole = len(plan) - left
        each = batch_size // self.size
        found = []
        if whole:
            batches = torch.arange(whole).view(-1, batch_size)
            mine = batches[:, each * self.rank : each * (self.rank + 1)].flatten()
            found.append(Share(plan[mine], each, batch_size))
        if left >= 2 * self.size:
            first, last = self.part(left)
            found.append(Share(plan[whole + first : whole + last], last - first, left))
        elif left:
            found.append(Share(plan[whole:], left, left, copies=self.size))
        return found

    def part(self, n: int) -> tuple[int, int]:
        """The range of ``n`` rows that this rank computes: its first row and its end; all rows if there are too few."""
        if n < self.size:
            return 0, n
        return n * self.rank // self.size, n * (self.rank + 1) // self.size

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks. Collective."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        with connected():
            dist.all_reduce(flat)
        for t, values in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(values.view_as(t))

    def least(self, value: Tensor) -> None:
        """Replace a tensor by its minimum over all ranks. Collective."""
        if self.size > 1:
            with connected():
                dist.all_reduce(value, dist.ReduceOp.MIN)

    @torch.no_grad()
    def copy(self, model: nn.Module) -> None:
        """Replace the parameters and buffers of a model by those of rank 0. Collective."""
        if self.size == 1:
            return
        tensors = list(model.state_dict().values())
        flat = torch.cat([t.detach().reshape(-1).view(torch.uint8) for t in tensors])
        with connected():
            dist.broadcast(flat, 0)
        for t, values in zip(tensors, flat.split([t.nbytes for t in tensors]), strict=True):
            t.copy_(values.clone().view(t.dtype).view(t.shape))  # a clone begins where any type may begin

    def join(self, rows: Tensor, n: int) -> Tensor:
        """All ``n`` rows, of which each rank gives its ``part``. Collective."""
        if self.size == 1 or n < self.size:
            return rows
        padded = rows.new_zeros(-(-n // self.size), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with connected():
            dist.all_gather(parts, padded)
        sizes = [n * (r + 1) // self.size - n * r // self.size for r in range(self.size)]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def give(self, kind: str, thing: Any, arguments: Callable[[], tuple[Any, ...]]) -> None:
        """On rank 0: send ``arguments()``, from which the followers make their ``thing``, unless they have it.

        A new session replaces everything that they have.
        """
        if self.size > 1 and self.followed.get(kind) != weakref.ref(thing):
            self.send(kind, *arguments())
            if kind == "session":
                self.followed.clear()
            self.followed[kind] = weakref.ref(thing)

    @contextmanager
    def work(self, name: str, *arguments: Any) -> Iterator[None]:
        """On rank 0: start the followers' part of some work; the block is rank 0's."""
        if self.size == 1:
            yield
            return
        self.send(name, *arguments)
        self.busy = True
        try:
            yield
        except ArithmeticError:  # a loss that is not finite: all ranks raise it at the end of the work
            self.busy = False
            raise
        except Exception as error:
            self.why = f"its own work failed ({one_line(error)})"
            raise
        self.busy = False

    def send(self, *message: Any) -> None:
        """On rank 0: send a message. Raises RankLostError, also if the followers have not finished their last work."""
        if self.busy:
            raise RankLostError(self.why)
        buffer = io.BytesIO()
        torch.save(message, buffer)
        with connected():
            dist.broadcast_object_list([buffer.getvalue()], 0, device=torch.device("cpu"))

    def receive(self) -> tuple[Any, ...]:
        """On a follower: the next message, which is empty at the end. Its tensors are on the CPU."""
        received: list[Any] = [None]
        with connected():
            dist.broadcast_object_list(received, 0, device=torch.device("cpu"))
        return torch.load(io.BytesIO(received[0]), map_location="cpu", weights_only=False)


ALONE = Ranks()
_current = ALONE


def current() -> Ranks:
    """The ranks that train together now."""
    return _current


@contextmanager
def connected() -> Iterator[None]:
    """Make a RankLostError of the error of a collective operation, of which torch raises several types."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        time.sleep(1)  # a signal that has ended another rank, such as Ctrl-C, comes here too, and is what to report
        raise RankLostError from None


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Connect this process with the other ranks, which must do the same; without torchrun, do nothing.

    At the end rank 0 lets the followers go, unless an error has left them in the middle of their work.
    """
    global _current
    rank, size = torchrun_rank()
    if size == 1:
        yield ALONE
        return
    _connect(device)
    if rank == 0:
        _end_after_signals()
    _current = Ranks(rank, size)
    try:
        yield _current
    finally:
        if rank == 0 and not _current.busy:
            with suppress(RankLostError):
                _current.send()
        _current = ALONE
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _connect(device: torch.device) -> None:
    """Wait for the other ranks, with a note if it takes long. Raises ConfigError if they do not come.

    torch waits in C++, where Python handles no signal; therefore it does so in a thread.
    """
    rank, size = torchrun_rank()
    errors = []

    def connect() -> None:
        try:
            with connected():
                dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        except Exception as error:
            errors.append(error)

    if device.type == "cuda":
        torch.cuda.set_device(device)
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(SILENCE)
    if thread.is_alive():
        complain(f"note: rank {rank} waits for the other ranks: WORLD_SIZE is {size}")
        thread.join(WAIT)
    if thread.is_alive():
        raise ConfigError(
            f"rank {rank} waited {WAIT / 60:g} minutes for the other ranks: WORLD_SIZE is {size}; start with torchrun, "
            "or unset TORCHELASTIC_RUN_ID, which says that torchrun started this process"
        )
    if errors:
        raise errors[0]


def _end_after_signals() -> None:
    """End this process if a signal has not ended it in time: it may wait for a rank that the signal has ended already.

    Python handles a signal only between operations, but notes it in a pipe at once.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)

    def watch() -> None:
        while (number := os.read(read, 1)[0]) not in STOPPING:
            pass
        time.sleep(GRACE)
        os.write(2, b"stopped; run the same command to resume from the last finished epoch\n")
        os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()
