"""The number of jobs for ``--jobs auto``."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from distill.arms import disjoint_groups
from distill.config import Config
from distill.data.source import Source
from distill.environment import available_cores
from distill.options import require_type
from distill.running.experiment import Experiment, prepare
from distill.running.trial import ConcurrentTrial, Trial, trial_of

JOBS = (1, 2, 4, 8)  # tried on a CUDA device
MIN_SPEEDUP = 1.05  # the least gain in images per second for which the jobs are doubled
MEMORY_SHARE = 0.8  # of the free device memory that jobs may be expected to take


def prepare_with_jobs(
    config: Config,
    source: Source | None = None,
    network: Callable[[], nn.Module] | None = None,
    progress: bool = False,
) -> Experiment:
    """``prepare``, with ``jobs`` "auto" made a number: 1 for a network or images from Python, else ``find_jobs``.

    Raises ConfigError and DataError.
    """
    require_type("config", config, Config, "a distill.Config")
    if config.run.jobs != "auto":
        return prepare(config, source, network, progress)
    experiment = prepare(_with_jobs(config, 1), source, network, progress)
    if source is not None or network is not None:
        return experiment
    experiment = replace(experiment, config=_with_jobs(experiment.config, find_jobs(experiment)))
    experiment.set_up()  # the cores are shared among the jobs
    return experiment


def _with_jobs(config: Config, jobs: int) -> Config:
    return replace(config, run=replace(config.run, jobs=jobs))


def independent_chains(config: Config) -> int:
    """The number of chains that can be trained at the same time, once their teachers are finished."""
    return len(config.chain.seed) * max(1, len(disjoint_groups(config.chain.arms)))


def find_jobs(experiment: Experiment) -> int:
    """The fastest number of jobs: one per core on a CPU, measured on a CUDA device. At most one per chain."""
    chains = independent_chains(experiment.config)
    if experiment.device.type == "cpu":
        return min(available_cores(), chains)
    if experiment.device.type != "cuda" or chains == 1:
        return 1
    return fastest_jobs(trial_of(experiment), chains)


def fastest_jobs(trial: Trial, most: int) -> int:
    """The number of jobs whose doubling gains less than MIN_SPEEDUP in images per second, or exceeds memory."""
    best = 1
    best_rate = 0.0
    before = torch.cuda.memory_reserved(trial.device)  # memory that a graph keeps does not count as allocated
    torch.cuda.reset_peak_memory_stats(trial.device)
    with ConcurrentTrial(trial, max(JOBS)) as concurrent:
        for jobs in JOBS:
            if jobs > most or (jobs > 1 and not _fits(trial.device, jobs, best, before)):
                break
            try:
                rate = concurrent.images_per_second(jobs)
            except torch.OutOfMemoryError:
                break
            if rate < MIN_SPEEDUP * best_rate or trial.listener.notes:
                break
            best = jobs
            best_rate = rate
    return best


def _fits(device: torch.device, jobs: int, measured: int, before: int) -> bool:
    """Whether ``jobs`` jobs fit into memory, if ``measured`` jobs have reserved memory beyond ``before`` bytes."""
    free = torch.cuda.mem_get_info(device)[0]
    room = MEMORY_SHARE * (free + torch.cuda.memory_reserved(device) - before)
    each = (torch.cuda.max_memory_reserved(device) - before) / measured
    return jobs * each <= room
