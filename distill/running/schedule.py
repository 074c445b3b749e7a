"""The order of tasks: which is next, which wait for a teacher or for another process, which failed."""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from distill.errors import TrainingError
from distill.running.executors import Executor
from distill.running.unit import ClaimedError
from distill.running.watch import RunWatcher
from distill.store import claims
from distill.store.rundir import RunDir
from distill.store.tasks import Task
from distill.training.listener import Listener

POLL_SECONDS = 0.2  # between two readings of the run directory
WORKER_DIED = (
    "a worker process ended unexpectedly: killed, perhaps for lack of memory (try fewer --jobs); or, from Python, the "
    'call is not under `if __name__ == "__main__":`'
)


class Failed(NamedTuple):
    """A task that could not be trained, and its last error."""

    task: Task
    message: str

    def __str__(self) -> str:
        seed = f"seed {self.task.unit.seed}, "
        if self.message.startswith(seed):  # it names the model itself
            return str(self.task).rpartition(seed)[0] + self.message
        return f"{self.task}: {self.message}"


class FailedError(TrainingError):
    """Some tasks could not be trained; all that do not need them are finished."""

    def __init__(self, failures: Sequence[Failed]) -> None:
        self.failures = failures
        others = f" ({len(failures) - 1} more failed)" if len(failures) > 1 else ""
        super().__init__(f"{failures[0].message}{others}")


class Schedule:
    """The tasks that are left. Other processes may work in the same run directories.

    With ``verify``, tasks that are finished at the beginning are submitted too, which verifies their files.
    """

    def __init__(self, tasks: Sequence[Task], teachers_first: bool, verify: bool) -> None:
        self.teachers_first = teachers_first
        self.left: dict[Any, list[Task]] = {}  # in groups that need the same images
        for task in sorted(tasks, key=lambda task: teachers_first and bool(task.unit.arms)):
            self._group(task).append(task)
        self.last: Any = None  # the group of the last task
        self.to_verify = {(task.run, task.claim) for task in tasks if verify and task.is_finished}
        self.began = {run: claims.begin(run) for run in {task.run for task in tasks}}
        self.failures: list[Failed] = []
        self.waits_for_teacher = False

    def _group(self, task: Task) -> list[Task]:
        """The tasks that are left of a task's group, a teacher before its students."""
        return self.left.setdefault((self.teachers_first and bool(task.unit.arms), task.group), [])

    def next(self) -> Task | None:
        """A task to be trained now, which is no longer left; None if there is none at the moment."""
        self.waits_for_teacher = False
        for group in sorted(self.left, key=lambda group: group != self.last):
            for task in list(self.left[group]):
                if self._is_done(task):
                    self._remove(group, task)
                elif not task.can_start:
                    self.waits_for_teacher = True
                    break  # the others of the group have the same teacher
                elif claims.holder(task.run, task.claim) is None:
                    self._remove(group, task)
                    self.last = group
                    return task
        return None

    def sweep(self) -> None:
        """Drop the tasks that other processes have finished, that failed or that lack a teacher."""
        for group, tasks in list(self.left.items()):
            for task in list(tasks):
                if self._is_done(task):
                    self._remove(group, task)

    def _is_done(self, task: Task) -> bool:
        """Whether another process has finished the task or failed, or its teacher cannot be trained."""
        if any(failed.task.group == task.group and not failed.task.unit.arms for failed in self.failures):
            return True
        if (task.run, task.claim) in self.to_verify:
            return False
        if task.is_finished:
            return True
        failure = claims.read_failure(task.run, task.claim)
        if failure is not None and failure.is_new(self.began[task.run]):
            self.failures.append(Failed(task, failure.message))
            return True
        return False

    def _remove(self, group: Any, task: Task) -> None:
        self.left[group].remove(task)
        if not self.left[group]:
            del self.left[group]

    def settle(self, task: Task, error: BaseException | None) -> None:
        """Note how the training of a task ended. Raises an error that does not concern this task alone."""
        if isinstance(error, BrokenProcessPool):
            claims.write_failure(task.run, task.claim, WORKER_DIED)
            self.failures.append(Failed(task, WORKER_DIED))
        elif isinstance(error, TrainingError):
            self.failures.append(Failed(task, str(error)))
        elif isinstance(error, ClaimedError | claims.ClaimLostError):
            self._group(task).insert(0, task)  # a teacher before the students that wait for it
        elif error is not None:
            raise error


def train_tasks(
    tasks: Sequence[Task], executor: Executor, listener: Listener, stay: bool = True, verify: bool = True
) -> list[Failed]:
    """Train all tasks that no other process trains; returns those that failed.

    With ``stay`` it waits until the others are finished too, otherwise only while a teacher is being trained.
    """
    schedule = Schedule(tasks, teachers_first=executor.size > 1 or not stay, verify=verify)
    configs = {task.run: task.config for task in tasks}
    watchers = [RunWatcher(config, listener) for config in configs.values()]
    running: dict[Future[Any], Task] = {}
    while True:
        started = time.monotonic()
        while len(running) < executor.size:
            task = schedule.next()
            if task is None:
                break
            if executor.reports:
                for watcher in watchers:
                    watcher.leave_out(task.models)
            if len(configs) > 1:
                listener.note(f"setting {task.run.name.replace('_', ' ').replace(',', ', ')}")  # once for each
            running[executor.submit(task)] = task
        if running:
            for future in wait(running, POLL_SECONDS, FIRST_COMPLETED).done:
                schedule.settle(running.pop(future), future.exception())
        elif schedule.left and (stay or schedule.waits_for_teacher):
            for run in configs:
                RunDir(run).check_is_there()
            listener.note("other processes train what is left: waiting for them")
            time.sleep(min(5.0, max(POLL_SECONDS, 20 * (time.monotonic() - started))))  # a large run is slow to read
        else:
            for watcher in watchers:
                watcher.report_new()
            return schedule.failures
        busy = {task.group for task in running.values()} | {group for _, group in schedule.left}
        executor.keep(busy)
        executor.check()
        for watcher in watchers:
            watcher.report_new(at_once=False)
