"""Many chains: every seed's teacher once, then every alpha's students, one after the other or side by side."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from . import engine
from .checkpoints import load_weights
from .config import Config, UserError
from .data import Source
from .lab import Lab, prepare, versions
from .models import Classifier
from .rundir import Result, RunDir
from .workers import side_by_side


def run(
    config: Config, source: Source | None = None, network: Callable[[], nn.Module] | None = None, show=None
) -> list[Result]:
    """Run every chain of a grid and return all results; what an earlier run of the same directory finished is kept.

    ``source`` (see ``from_arrays``) and ``network`` stand in for the data set and the ResNet of the configuration;
    ``network()`` makes a new network from normalised images (n, c, h, w) float32 to logits (n, classes).
    Raises UserError (ConfigError, DataError) with a one-line message.
    """
    with torch.random.fork_rng():  # the caller's own draws go on as if nothing had happened
        return run_lab(prepare(config, source, network), show or engine.Silent())


def run_lab(lab: Lab, show) -> list[Result]:
    """``run``, with everything in place."""
    config, rundir = lab.config, RunDir(lab.config.output)
    for seed in config.chain.seed:
        data = lab.dataset(seed)  # refused now rather than after hours of other seeds
    if config.chain.teacher_ckpt is not None and not all(
        (rundir.model(seed, None, config.chain.first_step) / "result.json").exists() for seed in config.chain.seed
    ):
        with torch.random.fork_rng(devices=[]):
            load_weights(Classifier(lab.make_network(data)(), data.mean, data.std), Path(config.chain.teacher_ckpt))

    with rundir.lock():
        rundir.open(config, lab.source.fingerprint)
        rundir.write_environment(**versions(lab.device))
        show = _Recorder(rundir, show)
        show.begin(sum(result.epochs > 0 for result in rundir.results()))
        try:
            if config.run.jobs > 1:
                side_by_side(lab, show)
            else:
                for seed in config.chain.seed:
                    chains = lab.chains(seed, rundir, show)
                    for alpha in config.chain.alpha:
                        chains.run(alpha)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            batch = config.train.batch_size
            raise UserError(f"out of memory on {lab.device} at batch size {batch}: lower --batch-size") from None
        rundir.write_finished()
        return rundir.write_results()


class _Recorder:
    """``show``, with results.csv written anew before a finished model is told of."""

    def __init__(self, rundir: RunDir, show):
        self._rundir, self._show = rundir, show

    def __getattr__(self, name: str):
        return getattr(self._show, name)

    def end_model(self, result: Result) -> None:
        self._rundir.write_results()
        self._show.end_model(result)


def _out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator raises a plain RuntimeError
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "not enough memory" in str(error) or "can't allocate memory" in str(error)
