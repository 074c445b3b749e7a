"""Runs on a SLURM cluster: one array of jobs, each of which trains one task after the other until none is left.

A job is ``self_distiller.py --work DIR``, which anybody can start on any machine that sees the directory. Claims keep
the jobs from one another, and models resume from the last epoch on disk, so a job may end at any time and be started
again. docs/scale.md says more.
"""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from distill.config import RunConfig
from distill.errors import ConfigError, one_line
from distill.files import write_atomically
from distill.running.schedule import Failed, Schedule
from distill.running.watch import RunWatcher
from distill.store import claims, slurm
from distill.store.tasks import Task
from distill.training.listener import Listener

MOST_JOBS = 32  # of a run, unless --slurm-array-parallelism says otherwise
PATIENCE = 15.0  # seconds for which the queue may hold no job of a run that is not finished
BODY = """
cd {folder}
{setup}
# Train until nothing is left. Before the time limit, and if the process is killed, start again from the last epoch.
{program} --work {run} &
worker=$!
trap 'kill -TERM $worker' TERM
trap 'again=1; kill -TERM $worker' USR1
wait $worker
status=$?
while kill -0 $worker 2>/dev/null; do  # a signal ends "wait" before the process has ended
    wait $worker
    status=$?
done
if [ "$again" ] || {{ [ $status = 137 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 5 ]; }}; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
"""


def script(path: Path, run: RunConfig, jobs: int) -> str:
    """The batch script of a run directory."""
    path = path.resolve()
    options = {
        "job-name": slurm.job_name(path),
        "array": f"0-{jobs - 1}",
        "output": str(path / "slurm" / "job").replace("%", "%%") + "-%A_%a.log",
        "open-mode": "append",
        "requeue": None,
        "signal": "B:USR1@60",
        "partition": run.slurm_partition,
        "time": run.slurm_time,
        "gpus": run.slurm_gpus,
        "cpus-per-task": run.slurm_cpus,
        "mem": run.slurm_mem,
        "account": run.slurm_account,
        "qos": run.slurm_qos,
    }
    given = {name: value for name, value in options.items() if value is not None or name == "requeue"}
    given |= dict(option.split("=", 1) for option in run.slurm_option)
    lines = [
        f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(str(value))}") for name, value in given.items()
    ]
    program = Path(__file__).parents[2] / "self_distiller.py"
    words = [sys.executable, *([str(program)] if program.exists() else ["-m", "distill.cli"])]
    body = BODY.format(
        folder=shlex.quote(str(Path.cwd())),
        setup=run.slurm_setup or "",
        program=shlex.join(words),
        run=shlex.quote(str(path)),
    )
    return "\n".join(["#!/bin/bash", *lines, body])


def make_folder(path: Path) -> Path:
    """The folder of the logs of a run directory, without which SLURM starts no job."""
    folder = path / "slurm"
    folder.mkdir(exist_ok=True)
    return folder


def jobs_for(tasks: Sequence[Task], run: RunConfig) -> int:
    """The number of jobs for the tasks that are left."""
    left = sum(not task.is_finished for task in tasks)
    return max(1, min(left, run.slurm_array_parallelism or MOST_JOBS))


def check(path: Path, run: RunConfig) -> None:
    """Raise ConfigError if SLURM would reject the jobs, or if there is none."""
    _sbatch(script(path, run, 1), "--test-only")


def _sbatch(text: str, *words: str) -> str:
    """What ``sbatch`` answers to a script. Raises ConfigError with its message."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "--executor slurm needs sbatch, which is not here: use a login node of a SLURM cluster, or leave it out"
        )
    answer = subprocess.run(["sbatch", *words], input=text, capture_output=True, text=True)
    if answer.returncode != 0:
        raise ConfigError(f"SLURM rejects the jobs: {one_line(answer.stderr)}")
    return answer.stdout.strip()


def submit(path: Path, run: RunConfig, tasks: Sequence[Task]) -> str:
    """Submit the jobs of a run, unless they are in the queue; returns a line about them."""
    numbers = sorted({job.array for job in slurm.jobs_of(path) or ()})
    if numbers:
        return f"job {' '.join(numbers)} of this run is in the queue already"
    jobs = jobs_for(tasks, run)
    text = script(path, run, jobs)
    folder = make_folder(path)
    write_atomically(folder / "job.sh", text)
    number = _sbatch(text, "--parsable").partition(";")[0]
    return f"job {number}: {jobs} jobs submitted, logs in {folder}; stop them with scancel {number}"


def wait_for_jobs(path: Path, tasks: Sequence[Task], listener: Listener) -> list[Failed]:
    """Report progress until all tasks are finished or have failed; returns those that have not been finished."""
    schedule = Schedule(tasks, teachers_first=False, verify=False)
    watchers = [RunWatcher(config, listener) for config in {task.run: task.config for task in tasks}.values()]
    seen = time.monotonic()  # when the queue last held a job of this run
    while True:
        started = time.monotonic()
        for watcher in watchers:
            watcher.report_new()
        schedule.sweep()
        if not schedule.left:
            return schedule.failures
        jobs = slurm.jobs_of(path)
        if jobs is None or jobs:
            seen = started
        if started - seen > PATIENCE:
            reason = f"no job of the run is left in the queue; see the logs in {path / 'slurm'}"
            for task in [task for group in schedule.left.values() for task in group]:
                failure = claims.read_failure(task.run, task.claim)  # of before this process began
                schedule.failures.append(Failed(task, reason if failure is None else failure.message))
            return schedule.failures
        time.sleep(max(1.0, 20 * (time.monotonic() - started)))
