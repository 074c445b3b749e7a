"""Many chains: every seed's teacher once, then every alpha's students, one after the other or side by side."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from distill.config import PREVIEW, Config
from distill.data.source import Source
from distill.running.cost import prepare_with_jobs
from distill.running.executors import side_by_side
from distill.running.experiment import Experiment, memory_errors, versions
from distill.store.results import Result
from distill.store.rundir import RunDir
from distill.training.listener import Listener


def run(
    config: Config, source: Source | None = None, network: Callable[[], nn.Module] | None = None, listener=None
) -> list[Result]:
    """Run every chain of a grid and return all results; what an earlier run of the same directory finished is kept.

    ``source`` (see ``from_arrays``) and ``network`` stand in for the data set and the ResNet of the configuration;
    ``network()`` makes a new network from normalised images (n, c, h, w) float32 to logits (n, classes).
    Raises UserError (ConfigError, DataError) with a one-line message.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    # The caller's own draws go on as if nothing had happened, on CUDA too where it is in use.
    with torch.random.fork_rng(devices), memory_errors(config):
        return run_experiment(prepare_with_jobs(config, source, network), listener or Listener())


def run_experiment(lab: Experiment, listener, teachers_only: bool = False) -> list[Result]:
    """``run``, with everything in place. ``teachers_only`` trains no student (a preview)."""
    config, rundir = lab.config, RunDir(lab.config.output)
    for seed in config.chain.seed:
        data = lab.dataset(seed)  # refused now rather than after hours of other seeds
    if config.chain.teacher_ckpt is not None:
        lab.check_teacher(data)
    with rundir.lock():
        rundir.open(config, lab.source.fingerprint)
        if teachers_only:
            config = replace(config, chain=replace(config.chain, alpha=(PREVIEW,), alpha_schedule=()))
            lab = replace(lab, config=config)
        facts = versions(lab.device)
        for key in ("device", "threads"):
            if (before := rundir.environments()) and before[-1].get(key, facts[key]) != facts[key]:
                listener.note(f"{key} was {before[-1][key]}, is {facts[key]}: not the bits of an uninterrupted run")
        rundir.write_environment(**facts)
        listener.begin(sum(result.epochs > 0 or result.arm is not None for result in rundir.results()))
        if config.run.jobs > 1:
            side_by_side(lab, listener)
        else:
            for seed in config.chain.seed:
                chains = lab.chains(seed, rundir, listener)
                for arm in config.chain.arms or ((),):
                    chains.run(arm)
        rundir.write_finished()
        return rundir.write_results()
