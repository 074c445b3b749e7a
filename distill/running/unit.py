"""One unit of work: a seed's teacher, or the students of some arms of the grid, trained from a run directory."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from os import PathLike
from pathlib import Path

from torch import nn

from distill.arms import TEACHER, Arm, arm_name, disjoint_groups
from distill.chains.chain import Chain
from distill.config import Config
from distill.data.source import Source
from distill.errors import ConfigError, TrainingError, UserError
from distill.options import require_type
from distill.running.experiment import Experiment, caller_unaffected, memory_errors, prepare
from distill.store import claims
from distill.store.results import Result
from distill.store.rundir import RunDir, is_finished
from distill.store.tasks import Unit, claim_name, tasks
from distill.training.listener import Listener, check_listener

MOST_DEATHS = 3  # of processes, one after the other, that trained a unit in the jobs of one array


class ClaimedError(UserError):
    """A unit that another process trains."""


def units(run_directory: str | PathLike[str]) -> list[Unit]:
    """All units of a run: first every seed's teacher, then the students, which need the teacher of their seed."""
    require_type("run_directory", run_directory, (str, PathLike), "a path")
    found = [task.unit for task in tasks(RunDir(Path(run_directory)).config())]
    return sorted(found, key=lambda unit: bool(unit.arms))


def train_unit(
    run_directory: str | PathLike[str],
    seed: int,
    arms: Sequence[str] = (),
    listener: Listener | None = None,
    source: Source | None = None,
    network: Callable[[], nn.Module] | None = None,
) -> list[Result]:
    """Train one unit of a run: the teacher of ``seed`` or, if ``arms`` are given, the students of these arms.

    Any process on any machine that sees the run directory and the data may call this; ``create_run`` makes the
    directory, ``units`` lists its units. ``arms`` are named as their folders are, such as ``0.6`` or ``auto``. Students
    need the finished teacher of their seed. Models that are finished are kept, interrupted ones are resumed.
    ``source`` and ``network`` are those given to ``create_run``, if any.

    Returns the results of the unit's models. Raises UserError with a one-line message, also if another process is
    training the unit. When all units are done, ``run`` with the same configuration trains nothing and completes the
    directory.
    """
    require_type("run_directory", run_directory, (str, PathLike), "a path")
    require_type("arms", arms, (list, tuple), "a list of names, such as ['0.6']")
    check_listener(listener)
    path = Path(run_directory)
    rundir = RunDir(path)
    config = rundir.config()
    if seed not in config.chain.seed:
        raise ConfigError(f"{path} has no seed {seed}; it has {' '.join(map(str, config.chain.seed))}")
    known = [str(arm_name(arm)) for arm in config.chain.arms]
    for arm in arms:
        if arm not in known:
            raise ConfigError(f"{path} has no arm {arm}; it has {' '.join(known)}")
    if arms and not is_finished(rundir.model(seed, None, config.chain.first_step)):
        raise ConfigError(f"the teacher of seed {seed} in {path} is not finished: train it first")
    with caller_unaffected(config):
        experiment = open_run(config, source, network)
        results = train_arms(experiment.chain(seed, rundir, listener or Listener()), arms)
        rundir.write_results()
        return results


def train_arms(chain: Chain, arms: Sequence[str]) -> list[Result]:
    """Train the students of some arms of a seed, or its teacher if there are none. Returns each model's result once.

    Raises ClaimedError if another process trains one of them, ClaimLostError if one has taken this process for dead,
    and, when the other arms are done, TrainingError for those that failed.
    """
    by_name = {arm_name(arm): arm for arm in chain.session.config.chain.arms}
    chosen = [by_name[name] for name in arms]
    groups = disjoint_groups(chosen) or [(TEACHER,)]
    return list(dict.fromkeys(result for group in groups for result in _train_group(chain, group)))


def _train_group(chain: Chain, group: tuple[Arm, ...]) -> list[Result]:
    """Train arms that share students, as far as they can be trained, while holding their claim."""
    run = chain.rundir
    seed = chain.session.seed
    first = chain.first_step
    name = claim_name(seed, group[0])
    results = []
    errors = []
    with claims.claim(run.path, name) as owner:
        if owner is None:
            raise ClaimedError(f"{name} in {run.path} is being trained by {claims.holder(run.path, name) or 'another'}")
        if owner.deaths >= MOST_DEATHS:
            errors.append(f"{owner.deaths} processes in turn ended unexpectedly while they trained it")
            group = ()
        for arm in group:
            _list_files(run.model(seed, None, first) if arm == TEACHER else run.arm(seed, str(arm_name(arm))))
            try:
                with memory_errors(chain.session.config):
                    results += chain.run(arm)
            except TrainingError as error:
                errors.append(str(error))
        if errors:
            claims.write_failure(run.path, name, "; ".join(errors))
            raise TrainingError("; ".join(errors))
        claims.remove_failure(run.path, name)
    return results


def _list_files(folder: Path) -> None:
    """List a folder and those in it: a network file system then sees what other hosts have finished meanwhile."""
    for _ in os.walk(folder):
        pass


def open_run(
    config: Config, source: Source | None = None, network: Callable[[], nn.Module] | None = None
) -> Experiment:
    """The experiment of a run; the images stay in memory for the next call on the same run.

    Raises ConfigError if the images are not those it began with.
    """
    config = replace(config, run=replace(config.run, executor="local"))  # this process trains
    if source is None and network is None:
        experiment = _prepared(config)
        experiment.set_up()  # another run may have changed torch's switches since
    else:
        experiment = prepare(config, source, network)
    RunDir(config.output).check_data(experiment.source.fingerprint)
    return experiment


@lru_cache(maxsize=1)
def _prepared(config: Config) -> Experiment:
    return prepare(config)
