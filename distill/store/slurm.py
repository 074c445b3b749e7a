"""The queue of SLURM, by ``squeue``, which needs no accounting. Imports no torch."""

import hashlib
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

KEEP = 5.0  # seconds for which an answer of squeue is used again
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")


class Job(NamedTuple):
    """A job in the queue; each element of an array is one."""

    number: str
    array: str  # the number of the array, or of the job itself
    state: str  # such as RUNNING
    where: str  # the nodes on which it runs, or in parentheses why it waits
    name: str


_last: tuple[float, list[Job] | None] = (-KEEP, None)


def queue() -> list[Job] | None:
    """This user's jobs in the queue; None if there is no SLURM here or it does not answer."""
    global _last
    if time.monotonic() - _last[0] >= KEEP:
        _last = (time.monotonic(), _ask())
    return _last[1]


def _ask() -> list[Job] | None:
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--me", "--noheader", "--array", "--format=%A|%F|%T|%R|%j"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return [Job(*line.split("|", 4)) for line in answer.splitlines() if line.count("|") >= 4]


def job_name(path: Path) -> str:
    """The name of the jobs of a run or study directory, which no other directory has."""
    path = path.resolve()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def jobs_of(path: Path) -> list[Job] | None:
    """The jobs in the queue that train a run or study; a setting is trained by those of its study. See ``queue``."""
    jobs = queue()
    names = (job_name(path), job_name(path.resolve().parent))
    return None if jobs is None else [job for job in jobs if job.name in names]


def has_left_queue(number: str) -> bool:
    """Whether SLURM answers, and this job is not in its queue or waits there to be started again."""
    jobs = queue()
    return jobs is not None and not any(job.number == number and job.state not in WAITING for job in jobs)
