"""Executors, which train a run's units: in the calling thread, in processes or, on a CUDA device, in threads.

Threads share one CUDA context and one copy of each seed's images. Each has its own stream, on which its models' graphs
are captured and replayed. The threads have not run on a device yet: they are tested on a CPU.
"""

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Self

import torch

from distill.arms import students
from distill.chains.chain import Chain
from distill.config import Config
from distill.errors import UserError
from distill.files import remove_leftovers
from distill.program import Signals
from distill.running.experiment import Experiment, job_count
from distill.running.unit import Unit, open_run, student_units, train_arms, train_unit
from distill.running.watch import RunWatcher
from distill.store.results import Result
from distill.store.rundir import RunDir
from distill.training.fit import EpochSums
from distill.training.listener import Listener

POLL_SECONDS = 0.2  # between two readings of the run directory


class Executor:
    """Trains units. Its ``with`` block waits at its end for running units, or stops them after an error."""

    def submit(self, unit: Unit) -> Future[Any]:
        """Start training a unit; the future is done when the unit is."""
        raise NotImplementedError

    def report(self) -> None:
        """Report to the listener what the units do not report themselves."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Clean up."""


def make_executor(experiment: Experiment, listener: Listener) -> Executor:
    """The executor for an experiment's number of jobs and its device."""
    if job_count(experiment.config) == 1:
        return Serial(experiment, listener)
    if uses_threads(experiment.device):
        return Threads(experiment, listener)
    return Processes(experiment.config, listener)


def uses_threads(device: torch.device) -> bool:
    """Whether jobs are threads: only on a GPU, because on a CPU they would wait for Python's interpreter lock."""
    return device.type == "cuda"


def train_units(config: Config, executor: Executor, teachers_only: bool = False) -> None:
    """Train all units of a run: submit every seed's teacher and, when one is finished, the units of its students."""
    running: dict[Future[Any], Unit] = {}

    def proceed(timeout: float) -> None:
        for future in wait(running, timeout, FIRST_COMPLETED).done:
            unit = running.pop(future)
            future.result()  # re-raises the unit's error
            if not unit.arms and not teachers_only:
                running.update({executor.submit(each): each for each in student_units(config, unit.seed)})

    for seed in config.chain.seed:
        teacher = Unit(seed)
        running[executor.submit(teacher)] = teacher
        proceed(timeout=0)  # the serial executor has finished it; its students are next, while its images are in memory
    while running:
        proceed(POLL_SECONDS)
        executor.report()


class ConcurrentExecutor(Executor):
    """An executor of units that run beside the calling thread.

    Ctrl-C and SIGTERM wait for the next ``report``: raised in the middle of a pool's code, they could leave one of its
    locks taken for ever, or a half-started process behind.
    """

    pool: ThreadPoolExecutor | ProcessPoolExecutor

    def stop(self) -> None:
        """Stop the running units after an error."""
        raise NotImplementedError

    def report(self) -> None:
        self.signals.check()

    def __enter__(self) -> Self:
        self.signals = Signals().__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.stop()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.signals.__exit__()
        if self.signals.received:
            signal.raise_signal(self.signals.received[0])  # the caller's handler decides what to raise


class Serial(Executor):
    """``submit`` trains the unit at once, in the calling thread, and returns when it is finished.

    The images of one seed stay in device memory.
    """

    def __init__(self, experiment: Experiment, listener: Listener):
        self.experiment = experiment
        self.listener = listener
        self.chain: Chain | None = None

    def submit(self, unit: Unit) -> Future[Any]:
        if self.chain is None or self.chain.session.seed != unit.seed:
            self.chain = None  # frees the last seed's images first
            self.chain = self.experiment.chain(unit.seed, RunDir(self.experiment.config.output), self.listener)
        future: Future[Any] = Future()
        future.set_result(train_arms(self.chain, unit.arms))
        return future


class Threads(ConcurrentExecutor):
    """Trains units in threads that share each seed's images and teacher."""

    def __init__(self, experiment: Experiment, listener: Listener):
        config = experiment.config
        self.experiment = experiment
        self.listener = _SynchronisedListener(listener)
        self.chains: dict[int, Chain] = {}
        self.units_left = {seed: len(student_units(config, seed)) for seed in config.chain.seed}
        self.pool = job_threads(experiment.device, job_count(config))

    def submit(self, unit: Unit) -> Future[Any]:
        return self.pool.submit(self._train, unit)

    def _train(self, unit: Unit) -> None:
        seed = unit.seed
        if unit.arms:
            train_arms(self.chains[seed], unit.arms)
        else:
            self.chains[seed] = self.experiment.chain(seed, RunDir(self.experiment.config.output), self.listener)
            _share_teacher(self.chains[seed])
        with self.listener.lock:
            if unit.arms:
                self.units_left[seed] -= 1
            if self.units_left[seed] == 0:
                del self.chains[seed]  # frees its images

    def stop(self) -> None:
        self.listener.stop.set()  # threads end after their chunk; each model's last finished epoch is on disk


def job_threads(device: torch.device, jobs: int) -> ThreadPoolExecutor:
    """A pool of threads. On a CUDA device each has its own stream, which torch keeps as the thread's current one."""

    def own_stream() -> None:
        if device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(device))

    return ThreadPoolExecutor(jobs, initializer=own_stream)


def _share_teacher(chain: Chain) -> None:
    """Train a seed's teacher and put it on the device before several streams need it at once."""
    teacher = chain.teacher
    config = chain.session.config.chain
    folders = (
        chain.rundir.model(chain.session.seed, each.arm, config.first_step + each.position)
        for each in students(config.arms)
    )
    if not all((folder / "result.json").exists() for folder in folders):
        teacher.test_logits  # noqa: B018 - reads the model; ends with a copy to the host


class _Stopped(Exception):
    """The run is being stopped."""


class _SynchronisedListener(Listener):
    """Forwards events from several threads, one at a time. Once ``stop`` is set, a thread ends after its chunk."""

    def __init__(self, listener: Listener):
        self.listener = listener
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def note(self, text: str) -> None:
        with self.lock:
            self.listener.note(text)

    def end_chunk(self, sums: EpochSums) -> None:
        if self.stop.is_set():
            raise _Stopped

    def end_epoch(self, name: str, row: dict[str, Any]) -> None:
        with self.lock:
            self.listener.end_epoch(name, row)

    def end_model(self, result: Result) -> None:
        with self.lock:
            self.listener.end_model(result)


class Processes(ConcurrentExecutor):
    """Trains units in processes, which read everything from the run directory. Their progress is read from it too."""

    def __init__(self, config: Config, listener: Listener):
        self.path = config.output
        self.watcher = RunWatcher(config, listener)
        self.others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")  # a forked process cannot use torch's threads
        self.pool = ProcessPoolExecutor(job_count(config), context, initializer=_start_worker)

    def submit(self, unit: Unit) -> Future[Any]:
        with _interrupts_blocked():
            return self.pool.submit(_train_quietly, self.path, unit)

    def report(self) -> None:
        super().report()
        self.watcher.report_new()

    def stop(self) -> None:
        workers = set(multiprocessing.active_children()) - self.others
        for process in workers:
            process.kill()  # each model's last finished epoch is on disk
        for process in workers:
            process.join()
        remove_leftovers(self.path)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process ended unexpectedly: killed, perhaps for lack of memory (run the same command to "
                "resume, maybe with fewer --jobs); or, from Python, the call is not under "
                '`if __name__ == "__main__":`'
            ) from None


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C, which a terminal sends to all processes, in workers that start here: their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the worker inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a parent that was killed must not leave a second writer in the run directory


def _train_quietly(path: Path, unit: Unit) -> None:
    """Train a unit in a worker process."""
    with redirect_stderr(io.StringIO()):  # the parent has already reported on the images
        open_run(path)
    train_unit(path, unit.seed, unit.arms)
