"""Chain side by side: every chain of a grid is a task for one of a few processes or, on a CUDA device, threads.

Threads share one copy of each seed's images and one CUDA context; each has a stream of its own, on which its models'
graphs are captured and replayed. This has not run on a device yet: it is tested with threads on a CPU.
"""

import gc
import io
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, suppress

import torch

from distill.arms import Arm, arm_name, disjoint_groups, students
from distill.chains.chain import Chain
from distill.config import Config
from distill.errors import UserError
from distill.running.experiment import Experiment, prepare
from distill.store.results import Result
from distill.store.rundir import RunDir
from distill.training.fit import EpochSums
from distill.training.listener import Listener


def side_by_side(lab: Experiment, listener) -> None:
    """Teachers, then arms, as tasks for ``jobs`` processes or threads. An arm is ready once its seed's teacher is.

    Arms whose first students are the same are one task: they may share more.
    """
    (_in_threads if uses_threads(lab.device) else _in_processes)(lab, listener)


def uses_threads(device: torch.device) -> bool:
    """Threads where the device does the work; processes on a CPU, where Python's own work would hold threads up."""
    return device.type == "cuda"


def _work_off(lab: Experiment, submit: Callable[[int, tuple[Arm, ...]], Future]) -> None:
    """Submit a task for each seed's teacher (no arms), and one for each group of its arms when it is done."""
    chain = lab.config.chain
    tasks = {submit(seed, ()): seed for seed in chain.seed}
    while tasks:
        for task in wait(tasks, return_when=FIRST_COMPLETED).done:
            seed, finished = tasks.pop(task), task.result()
            if not finished:
                tasks |= {submit(seed, arms): seed for arms in disjoint_groups(chain.arms)}


def _in_processes(lab: Experiment, listener) -> None:
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA or torch's threads
    messages, over, others = context.Queue(), threading.Event(), set(multiprocessing.active_children())

    def listen() -> None:
        while not (over.is_set() and messages.empty()):
            with suppress(queue.Empty):
                method, *arguments = messages.get(timeout=0.2)
                with suppress(OSError, UserError):  # results.csv is written again at the end, where an error is told of
                    getattr(listener, method)(*arguments)

    def submit(seed: int, arms: tuple[Arm, ...]) -> Future:
        with _out_of_ctrl_c():
            return workers.submit(_work, seed, arms)

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    workers = ProcessPoolExecutor(lab.config.run.jobs, context, _start_worker, (lab.config, messages))
    try:
        _work_off(lab, submit)
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended at once: killed, perhaps for lack of memory (the same command goes on, maybe with "
            'fewer --jobs), or, from Python, for want of an `if __name__ == "__main__":` around the call'
        ) from None
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # each model's last finished epoch is on disk
        raise
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
        over.set()
        reader.join()


def _in_threads(lab: Experiment, listener) -> None:
    rundir, listener, seeds = RunDir(lab.config.output), _Locked(listener), {}
    groups_left = dict.fromkeys(lab.config.chain.seed, len(disjoint_groups(lab.config.chain.arms)))

    def work(seed: int, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        if not arms:
            seeds[seed] = lab.chains(seed, rundir, listener)
            _share_teacher(seeds[seed])
        for arm in arms:
            seeds[seed].run(arm)
        with listener.lock:
            groups_left[seed] -= bool(arms)
            if not groups_left[seed]:
                del seeds[seed]
                gc.collect()  # a teacher and its chains refer to each other: their images would stay
        return arms

    workers = job_threads(lab.device, lab.config.run.jobs)
    try:
        _work_off(lab, lambda seed, arms: workers.submit(work, seed, arms))
    except BaseException:
        listener.over.set()  # every thread ends with its chunk; each model's last finished epoch is on disk
        raise
    finally:
        workers.shutdown(wait=True, cancel_futures=True)


def job_threads(device: torch.device, jobs: int) -> ThreadPoolExecutor:
    """So many threads, each with a CUDA stream of its own; torch keeps the current device and stream by thread."""

    def own_stream() -> None:
        if device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(device))

    return ThreadPoolExecutor(jobs, initializer=own_stream)


def _share_teacher(chains: Chain) -> None:
    """Train a seed's teacher and have it on the device before several streams ask for it at once."""
    teacher, chain = chains.teacher, chains.session.config.chain
    folders = (
        chains.rundir.model(chains.session.seed, arm_name(prefix), chain.first_step + len(prefix))
        for prefix in students(chain.arms)
    )
    if not all((folder / "result.json").exists() for folder in folders):
        teacher.test_logits  # noqa: B018 - reads the model; ends with a copy to the host


class _Over(Exception):
    """The run is being stopped."""


class _Locked(Listener):
    """Progress in threads, told one at a time; ends a thread at its chunk's end once ``over`` is set."""

    def __init__(self, listener):
        self.listener, self.lock, self.over = listener, threading.Lock(), threading.Event()

    def note(self, text: str) -> None:
        with self.lock:
            self.listener.note(text)

    def end_chunk(self, sums: EpochSums) -> None:
        if self.over.is_set():
            raise _Over

    def end_epoch(self, name: str, row: dict) -> None:
        with self.lock:
            self.listener.end_epoch(name, row)

    def end_model(self, result: Result) -> None:
        with self.lock:
            self.listener.end_model(result)


@contextmanager
def _out_of_ctrl_c():
    """Processes started here never see Ctrl-C, which a terminal sends to all: their parent tells them when to end."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Messenger(Listener):
    """Progress in a worker process, told to its parent."""

    def __init__(self, messages):
        self.put = messages.put

    def note(self, text: str) -> None:
        self.put(("note", text))

    def end_epoch(self, name: str, row: dict) -> None:
        self.put(("end_epoch", name, row))

    def end_model(self, result: Result) -> None:
        self.put(("end_model", result))


_worker: tuple[Experiment, _Messenger]  # a worker process's own


def _start_worker(config: Config, messages) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with redirect_stderr(io.StringIO()):  # the parent has said all there is to say of the images
        lab = prepare(config)  # read again: the images are too much to pass on while processes start
    _worker = lab, _Messenger(messages)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # a parent that was killed must not leave a second writer in the run directory


def _work(seed: int, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
    """Train one seed's teacher, and then the students of these arms (none: the teacher alone); returns ``arms``."""
    lab, listener = _worker
    chains = lab.chains(seed, RunDir(lab.config.output), listener)
    for arm in arms or ((),):
        chains.run(arm)
    return arms
