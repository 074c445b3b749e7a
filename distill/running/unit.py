"""One unit of work: a seed's teacher, or the students of some arms of the grid, trained from a run directory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path

from torch import nn

from distill.arms import TEACHER, arm_name, disjoint_groups
from distill.chains.chain import Chain
from distill.config import Config
from distill.data.source import Source
from distill.errors import ConfigError
from distill.running.experiment import Experiment, caller_unaffected, prepare
from distill.store.results import Result
from distill.store.rundir import RunDir
from distill.training.listener import Listener


@dataclass(frozen=True)
class Unit:
    """A part of a run that one call trains. No model is trained by two units."""

    seed: int
    arms: tuple[str, ...] = ()  # as in folder names; empty: the seed's teacher


def student_units(config: Config, seed: int) -> list[Unit]:
    """The units of a seed's students. Arms that share students are in one unit."""
    return [Unit(seed, tuple(str(arm_name(arm)) for arm in group)) for group in disjoint_groups(config.chain.arms)]


def units(run_directory: str | PathLike[str]) -> list[Unit]:
    """All units of a run: first every seed's teacher, then the students, which need the teacher of their seed."""
    config = RunDir(Path(run_directory)).config()
    teachers = [Unit(seed) for seed in config.chain.seed]
    return teachers + [unit for seed in config.chain.seed for unit in student_units(config, seed)]


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

    Returns the results of the unit's models. Raises UserError with a one-line message.

    This function takes no lock: the lock on the directory only keeps a second ``run`` out. The caller must ensure that
    no two processes train the same unit, or units whose arms begin alike, and that no ``run`` works in the directory.
    When all units are done, ``run`` with the same configuration trains nothing and completes the directory.
    """
    path = Path(run_directory)
    rundir = RunDir(path)
    config = rundir.config()
    if seed not in config.chain.seed:
        raise ConfigError(f"{path} has no seed {seed}; it has {' '.join(map(str, config.chain.seed))}")
    known = [str(arm_name(arm)) for arm in config.chain.arms]
    for arm in arms:
        if arm not in known:
            raise ConfigError(f"{path} has no arm {arm}; it has {' '.join(known)}")
    if arms and not (rundir.model(seed, None, config.chain.first_step) / "result.json").exists():
        raise ConfigError(f"the teacher of seed {seed} in {path} is not finished: train it first")
    with caller_unaffected(config):
        experiment = open_run(path, source, network)
        return train_arms(experiment.chain(seed, rundir, listener or Listener()), arms)


def train_arms(chain: Chain, arms: Sequence[str]) -> list[Result]:
    """Train the students of some arms of a seed, or its teacher if there are none. Returns each model's result once."""
    by_name = {arm_name(arm): arm for arm in chain.session.config.chain.arms}
    chosen = [by_name[name] for name in arms] or [TEACHER]
    return list(dict.fromkeys(result for arm in chosen for result in chain.run(arm)))


def open_run(
    run_directory: Path, source: Source | None = None, network: Callable[[], nn.Module] | None = None
) -> Experiment:
    """The experiment of a run directory; the images stay in memory for the next call on the same run.

    Raises ConfigError if the directory holds no run, or if the images are not those it began with.
    """
    config = RunDir(run_directory).config()
    if source is None and network is None:
        experiment = _prepared(config)
        experiment.set_up()  # another run may have changed torch's switches since
    else:
        experiment = prepare(config, source, network)
    RunDir(run_directory).check_data(experiment.source.fingerprint)
    return experiment


@lru_cache(maxsize=1)
def _prepared(config: Config) -> Experiment:
    return prepare(config)
