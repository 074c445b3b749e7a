"""Chains side by side: every chain of a grid is a task for one of a few processes."""

import io
import multiprocessing
import os
import queue
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, suppress

from .config import Arm, Config, UserError
from .engine import Silent
from .lab import Lab, prepare
from .rundir import Result, RunDir


def side_by_side(lab: Lab, show) -> None:
    """Teachers, then arms, as tasks for ``jobs`` processes. An arm is ready once its seed's teacher is.

    Arms whose first students are the same are one task: they may share more.
    """
    chain = lab.config.chain
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA or torch's threads
    messages, over, others = context.Queue(), threading.Event(), set(multiprocessing.active_children())

    def listen() -> None:
        while not (over.is_set() and messages.empty()):
            with suppress(queue.Empty):
                method, *arguments = messages.get(timeout=0.2)
                with suppress(OSError, UserError):  # results.csv is written again at the end, where an error is told of
                    getattr(show, method)(*arguments)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    workers = ProcessPoolExecutor(lab.config.run.jobs, context, _start_worker, (lab.config, messages))
    try:
        with _out_of_ctrl_c():
            tasks = {workers.submit(_work, seed, ()): seed for seed in chain.seed}
        while tasks:
            for task in wait(tasks, return_when=FIRST_COMPLETED).done:
                seed, arms = tasks.pop(task), task.result()
                if not arms:
                    with _out_of_ctrl_c():
                        tasks |= {workers.submit(_work, seed, arms): seed for arms in _apart(chain.arms)}
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
        listener.join()


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


class _Messenger(Silent):
    """Progress in a worker process, told to its parent."""

    def __init__(self, messages):
        self.put = messages.put

    def note(self, text: str) -> None:
        self.put(("note", text))

    def end_epoch(self, name: str, row: dict) -> None:
        self.put(("end_epoch", name, row))

    def end_model(self, result: Result) -> None:
        self.put(("end_model", result))


_worker: tuple[Lab, _Messenger]  # a worker process's own


def _start_worker(config: Config, messages) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with redirect_stderr(io.StringIO()):  # the parent has said all there is to say of the images
        lab = prepare(config)  # read again: the images are too much to pass on while processes start
    _worker = lab, _Messenger(messages)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # a parent that was killed must not leave a second writer in the run directory


def _apart(arms: tuple[Arm, ...]) -> list[tuple[Arm, ...]]:
    """The arms in groups that share no student: those whose first weights are equal stay together."""
    groups: dict[float | str | None, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm[0] if arm else None, []).append(arm)
    return [tuple(group) for group in groups.values()]


def _work(seed: int, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
    """Train one seed's teacher, and then the students of these arms (none: the teacher alone); returns ``arms``."""
    lab, show = _worker
    chains = lab.chains(seed, RunDir(lab.config.output), show)
    for arm in arms or ((),):
        chains.run(arm)
    return arms
