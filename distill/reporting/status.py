"""The state of a run at this moment, as a tree: what is finished, running, failed and waiting. Imports no torch."""

from itertools import groupby
from pathlib import Path

from distill.arms import arm_title
from distill.config import Config
from distill.store import claims, slurm
from distill.store.rundir import STATE, RunDir, is_finished, read_metrics
from distill.store.tasks import Task, tasks
from distill.study import run_folders

States = dict[Path, tuple[str, str]]  # the state, of ``STATES``, and details of models that are not finished, by folder
MOST_NAMES = 8  # of arms that are named; of more, the first and the number
STATES = ("running", "failed", "interrupted", "waiting")  # of models that are not finished
MARKS = {"running": "▶ ", "failed": "✗ ", "interrupted": "◼ "}  # of states that need attention


def status(path: Path) -> str:
    """The trees of a run, or of the runs of a study, and their jobs in the queue of SLURM. Raises ConfigError."""
    trees = "\n\n".join(map(_tree, run_folders(path))) or f"{path}: no run of this study is begun yet"
    jobs = slurm.jobs_of(path) or ()
    return "\n".join([trees, *(f"job {job.number}    {job.name}: {job.state} {job.where}" for job in jobs)])


def _tree(run: Path) -> str:
    """The tree of a run: a line for each group of neighbouring units with the same state and details."""
    config = RunDir(run).config()
    owners = claims.holders(run)
    lines = []
    finished = 0
    total = 0
    for seed, of_seed in groupby(tasks(config), key=lambda task: task.unit.seed):
        states = [(*_state(task, config, owners), task) for task in of_seed]
        for state, _, task in states:
            total += len(task.models)
            finished += len(task.models) if state == "finished" else sum(map(is_finished, task.models))
        lines += [f"seed {seed}", *_lines(states)]
    return "\n".join([f"{run}: {finished} of {total} models finished", *lines])


def _lines(states: list[tuple[str, str, Task]]) -> list[str]:
    """A line for each group of neighbouring units of a seed that share a state and details."""
    lines = []
    for (state, detail), group in groupby(states, key=lambda each: each[:2]):
        names = [_name(task) for _, _, task in group]
        text = ", ".join(names if len(names) <= MOST_NAMES else [*names[:3], f"... ({len(names)} in all)"])
        lines.append(f"  {state:<12}{text}{detail}")
    return lines


def _name(task: Task) -> str:
    return " and ".join(arm_title(arm) for arm in task.unit.arms) or "teacher"


def _state(task: Task, config: Config, owners: dict[str, claims.Owner]) -> tuple[str, str]:
    """The state of a unit, and its details as text."""
    unfinished = [folder for folder in task.models if not is_finished(folder)]
    if not unfinished:
        return "finished", ""
    where = f": {unfinished[0].name.replace('_', ' ')}, {_epoch(unfinished[0], config)}"
    owner = owners.get(task.claim)
    if owner is not None:
        return "running", f"{where}; {owner}, since {owner.since}"
    failure = claims.read_failure(task.run, task.claim)
    if failure is not None:
        return "failed", f": {failure.message}"
    if len(unfinished) < len(task.models) or any((unfinished[0] / name).exists() for name in (STATE, "probe")):
        return "interrupted", where
    return "waiting", ""


def model_states(config: Config) -> States:
    """The states of the models that are not finished; in a unit, those after the first of them wait."""
    owners = claims.holders(config.output)
    states: States = {}
    for task in tasks(config):
        state, detail = _state(task, config, owners)
        for folder in task.models:
            if not is_finished(folder):
                states[folder] = state, detail
                state, detail = "waiting", ""
    return states


def _epoch(folder: Path, config: Config) -> str:
    """The epoch that a model in training is in."""
    probe = folder / "probe"
    if probe.exists() and not is_finished(probe):
        return f"probe, {_epoch(probe, config)}"
    epochs = config.train.epochs
    return f"epoch {min(len(read_metrics(folder)) + 1, epochs)} of {epochs}"
