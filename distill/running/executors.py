"""Executors, which train a run's tasks: in the calling thread, in processes or, on a CUDA device, in threads.

Threads share one CUDA context and one copy of each seed's images. Each has its own stream, on which its models' graphs
are captured and replayed. The threads have not run on a device yet: they are tested on a CPU.
"""

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch

from distill.arms import students
from distill.chains.chain import Chain
from distill.config import Config
from distill.errors import ConfigError, TrainingError
from distill.files import remove_leftovers
from distill.program import Signals
from distill.running.experiment import Experiment, device_names, job_count, worker_count
from distill.running.unit import ClaimedError, open_run, train_arms
from distill.store import claims
from distill.store.results import Result
from distill.store.rundir import RunDir, is_finished
from distill.store.tasks import Task
from distill.training.device import pick_device
from distill.training.fit import EpochSums
from distill.training.listener import Listener

NOT_TRAINED = (ClaimedError, claims.ClaimLostError, TrainingError)  # errors that concern one task only


class Executor:
    """Trains tasks. Its ``with`` block waits at its end for running tasks, or stops them after an error."""

    size = 1  # tasks at the same time
    reports = True  # whether it reports their progress to the listener; otherwise it is read from the run directory

    def submit(self, task: Task) -> Future[Any]:
        """Start training a task, if less than ``size`` are running; the future is done when the task is."""
        raise NotImplementedError

    def keep(self, groups: set[tuple[Path, int]]) -> None:
        """Free the memory of all groups of tasks but these; the others are done."""

    def check(self) -> None:
        """Raise Stopped if a signal has arrived."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Clean up."""


def make_executor(
    configs: Sequence[Config], experiment: Callable[[Config], Experiment], listener: Listener
) -> Executor:
    """The executor for the number of jobs and the device of some runs, in which they agree.

    ``experiment`` returns the experiment of a configuration. Processes do not call it: they open the run directory.
    """
    if worker_count(configs[0]) == 1:
        return Serial(experiment, listener)
    if _threads_can_share(configs) and uses_threads(pick_device(configs[0].run.device)):
        return Threads({config.output: experiment(config) for config in configs}, listener)
    return Processes(configs[0])


def _threads_can_share(configs: Sequence[Config]) -> bool:
    """Whether all runs are for one device and the same switches of torch, which concern the whole process."""
    return configs[0].run.devices is None and len({(c.train.precision, c.train.deterministic) for c in configs}) == 1


def uses_threads(device: torch.device) -> bool:
    """Whether jobs are threads: only on a GPU, because on a CPU they would wait for Python's interpreter lock."""
    return device.type == "cuda"


class ConcurrentExecutor(Executor):
    """An executor of tasks that run beside the calling thread.

    Ctrl-C, SIGTERM and SIGHUP wait for the next ``check``: raised in the middle of a pool's code, they could leave one
    of its locks taken for ever, or a half-started process behind.
    """

    def stop(self) -> None:
        """Stop the running tasks after an error."""
        raise NotImplementedError

    def close(self) -> None:
        """Wait until nothing runs any more."""
        raise NotImplementedError

    def check(self) -> None:
        self.signals.check()

    def __enter__(self) -> Self:
        self.signals = Signals().__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.stop()
        self.close()
        self.signals.__exit__()
        if self.signals.received:
            signal.raise_signal(self.signals.received[0])  # the caller's handler decides what to raise


class Serial(Executor):
    """``submit`` trains the task at once, in the calling thread, and returns when it is finished.

    The images of one seed stay in device memory.
    """

    def __init__(self, experiment: Callable[[Config], Experiment], listener: Listener):
        self.experiment = experiment
        self.listener = listener
        self.group: tuple[Path, int] | None = None
        self.chain: Chain | None = None

    def submit(self, task: Task) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            if self.chain is None or self.group != task.group:
                self.chain = None  # frees the last seed's images first
                experiment = self.experiment(task.config)
                experiment.set_up()
                run = RunDir(task.run)
                self.chain = experiment.chain(task.unit.seed, run, self.listener)
                self.group = task.group
            future.set_result(train_arms(self.chain, task.unit.arms))
        except NOT_TRAINED as error:
            error.__context__ = None  # its frames hold tensors
            future.set_exception(error.with_traceback(None))
        return future


class Threads(ConcurrentExecutor):
    """Trains tasks in threads that share each seed's images and teacher."""

    def __init__(self, experiments: dict[Path, Experiment], listener: Listener):
        first = next(iter(experiments.values()))
        self.experiments = experiments
        self.listener = _SynchronisedListener(listener)
        self.chains: dict[tuple[Path, int], Chain] = {}
        self.locks: defaultdict[tuple[Path, int], threading.Lock] = defaultdict(threading.Lock)
        self.size = job_count(first.config)
        self.pool = job_threads(first.device, self.size)

    def submit(self, task: Task) -> Future[Any]:
        return self.pool.submit(self._train, task, self.locks[task.group])

    def _train(self, task: Task, lock: threading.Lock) -> None:
        with lock:  # the teacher, and the images for it, are needed first
            if task.group not in self.chains:
                run = RunDir(task.run)
                chain = self.experiments[run.path].chain(task.unit.seed, run, self.listener)
                if not task.unit.arms:
                    train_arms(chain, ())
                _share_teacher(chain)
                self.chains[task.group] = chain
        if task.unit.arms:
            train_arms(self.chains[task.group], task.unit.arms)

    def keep(self, groups: set[tuple[Path, int]]) -> None:
        for group in self.chains.keys() - groups:
            del self.chains[group]

    def stop(self) -> None:
        self.listener.stop.set()  # threads end after their chunk; each model's last finished epoch is on disk

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


def job_threads(device: torch.device, jobs: int) -> ThreadPoolExecutor:
    """A pool of threads. On a CUDA device each has its own stream, which torch keeps as the thread's current one."""

    def own_stream() -> None:
        if device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(device))

    return ThreadPoolExecutor(jobs, initializer=own_stream)


def _share_teacher(chain: Chain) -> None:
    """Put a seed's teacher, which is finished, on the device before several streams need it at once."""
    teacher = chain.teacher
    config = chain.session.config.chain
    folders = (
        chain.rundir.model(chain.session.seed, each.arm, config.first_step + each.position)
        for each in students(config.arms)
    )
    if not all(map(is_finished, folders)):
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
    """Trains tasks in processes, which read everything from the run directory. Their progress is read from it too.

    Each process is a pool of its own: if one dies, the others continue. With ``--devices`` each process has a device.
    """

    reports = False

    def __init__(self, config: Config):
        _check_main()
        self.others = set(multiprocessing.active_children())
        self.idle = [(_make_pool(), device) for _ in range(job_count(config)) for device in device_names(config)]
        self.size = len(self.idle)
        self.busy: dict[Future[Any], tuple[ProcessPoolExecutor, str]] = {}
        self.runs: set[Path] = set()

    def submit(self, task: Task) -> Future[Any]:
        for future in [future for future in self.busy if future.done()]:
            pool, device = self.busy.pop(future)
            is_broken = isinstance(future.exception(), BrokenProcessPool)
            self.idle.append((_make_pool() if is_broken else pool, device))
        self.runs.add(task.run)
        pool, device = self.idle.pop(0)
        run = replace(task.config.run, device=device, devices=None)
        with _interrupts_blocked():
            future = pool.submit(_train, replace(task, config=replace(task.config, run=run)))
        self.busy[future] = pool, device
        return future

    def stop(self) -> None:
        workers = set(multiprocessing.active_children()) - self.others
        for process in workers:
            process.kill()  # each model's last finished epoch is on disk
        for process in workers:
            process.join()
        for run in self.runs:
            remove_leftovers(run)
            claims.remove_dead(run)

    def close(self) -> None:
        for pool, _ in [*self.idle, *self.busy.values()]:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_main() -> None:
    """Raise ConfigError if this process cannot have workers: they import the main program again."""
    if multiprocessing.current_process().daemon:
        raise ConfigError("this process is daemonic and cannot start worker processes: use jobs = 1")
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is not None and getattr(main, "__spec__", None) is None and not Path(file).exists():
        raise ConfigError(
            f"worker processes cannot import the main program, {file}: save it as a file, or use jobs = 1"
        )


def _make_pool() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a forked process cannot use torch's threads
    return ProcessPoolExecutor(1, context, initializer=_start_worker)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGHUP in workers that start here. A terminal sends them to all; the parent ends its workers."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})  # the worker inherits it
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
    os._exit(1)  # without its parent nobody would stop it


@lru_cache(maxsize=1)
def _serial() -> Serial:
    """The executor of a worker process, which keeps the images of its last task."""
    return Serial(_open_quietly, Listener())


def _open_quietly(config: Config) -> Experiment:
    with redirect_stderr(io.StringIO()):  # the parent has already reported on the images
        return open_run(config)


def _train(task: Task) -> None:
    """Train a task in a worker process."""
    _serial().submit(task).result()
