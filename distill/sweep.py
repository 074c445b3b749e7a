"""Many chains: every seed's teacher once, then every alpha's students, one after the other or side by side."""

import io
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import engine
from .chain import Chains
from .checkpoints import default_network, load_weights
from .config import CUSTOM_DATA, CUSTOM_MODEL, Config, ConfigError, UserError
from .data import Dataset, Source, Split, load_source, make_dataset
from .models import Classifier
from .rundir import Result, RunDir, write


@dataclass(frozen=True)
class Lab:
    """A configuration with what it needs to run: its device, its images, and how its networks are made."""

    config: Config
    source: Source
    device: torch.device
    network: Callable[[], nn.Module] | None  # None: the one that the configuration names

    def dataset(self, seed: int) -> Dataset:
        """One seed's splits. Raises ConfigError where there are fewer training images than a batch."""
        data, batch = self.config.data, self.config.train.batch_size
        dataset = make_dataset(self.source, data, seed)
        if self.config.train.fast_dev_run:  # two batches of everything
            parts = {name: getattr(dataset, name) for name in ("train", "val", "test")}
            dataset = replace(dataset, **{name: part and _spread(part, 2 * batch) for name, part in parts.items()})
        if len(dataset.train) < batch:
            raise ConfigError(
                f"{len(dataset.train)} training images are fewer than a batch of {batch}: lower --batch-size"
            )
        return dataset

    def chains(self, seed: int, rundir: RunDir, finished: Callable[[Result], None], show) -> Chains:
        """The chains of one seed, its data put on the device and its corrupted labels on record."""
        data = self.dataset(seed)
        labels = rundir.path / f"seed_{seed}" / "labels.npz"
        if self.config.data.label_noise and not labels.exists():
            write(labels, _label_record(data))
        return Chains(self.config, seed, data, rundir, self.device, self.make_network(data), finished, show)

    def make_network(self, data: Dataset) -> Callable[[], nn.Module]:
        """The function that makes this run's networks."""
        return self.network or default_network(self.config.model, data.train.images.shape[1], len(data.classes))


def _spread(split: Split, n: int) -> Split:
    """At most ``n`` images of a split, evenly spaced: it may be sorted by class."""
    rows = np.linspace(0, len(split) - 1, min(n, len(split))).astype(np.int64)
    return Split(split.images[rows], split.labels[rows], split.true_labels[rows], split.index[rows])


def _label_record(data: Dataset) -> bytes:
    """index, given, true and corrupted, each (n,), of the training images, as the bytes of an .npz file."""
    train, file = data.train, io.BytesIO()
    corrupted = train.labels != train.true_labels
    np.savez(file, index=train.index, given=train.labels, true=train.true_labels, corrupted=corrupted)
    return file.getvalue()


def prepare(
    config: Config, source: Source | None = None, network: Callable[[], nn.Module] | None = None, progress: bool = False
) -> Lab:
    """Check the device, read the images, set torch up. Writes nothing. Raises ConfigError and DataError."""
    device = engine.pick_device(config.run.device)
    threads = config.run.threads
    if config.run.jobs > 1 and (source is not None or network is not None):
        raise ConfigError("jobs need a network and images that the configuration names; use jobs = 1")
    if threads is None and config.run.jobs > 1:
        threads = max(1, torch.get_num_threads() // config.run.jobs)
    engine.set_up(config.train, device, threads)
    if source is None:
        if config.data.dataset == CUSTOM_DATA:
            raise ConfigError("this run's images came from Python arrays: give them to run() as source")
        source = load_source(config.data, progress)
    else:
        config = replace(config, data=replace(config.data, dataset=CUSTOM_DATA))
    if network is not None:
        config = replace(config, model=replace(config.model, resnet=CUSTOM_MODEL, stem=None, width=None))
    elif config.model.resnet == CUSTOM_MODEL:
        raise ConfigError("this run's network came from Python: give it to run() as network")
    return Lab(config, source, device, network)


def describe(lab: Lab) -> str:
    """What is about to run, in a few lines."""
    config, data = lab.config, lab.dataset(lab.config.chain.seed[0])
    cuda = lab.device.type == "cuda"
    device = (
        torch.cuda.get_device_name(lab.device)
        if cuda
        else f"{platform.machine()}, {_count(torch.get_num_threads(), 'thread')}"
    )
    parts = {name: split for name in ("train", "val", "test") if (split := getattr(data, name)) is not None}
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in parts.items())
    noise = int((data.train.labels != data.train.true_labels).sum())
    c, h, w = data.train.images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        parameters = sum(p.numel() for p in lab.make_network(data)().parameters())
    name = "a network of your own" if lab.network else f"ResNet-{config.model.resnet}"
    chain, epochs = config.chain, config.train.epochs
    updates = engine.updates_per_epoch(len(data.train), config.train.batch_size)
    seeds = " ".join(map(str, chain.seed))
    alphas = " ".join(f"{a:g}" for a in chain.alpha)
    teacher = "teacher" if chain.teacher_ckpt is None else f"given teacher (step {chain.first_step})"
    return "\n".join(
        [
            f"device  {lab.device} ({device}), torch {torch.__version__}, {config.train.precision}",
            f"data    {data.name}: {sizes} images of {c}x{h}x{w}, {len(data.classes)} classes"
            + (f", {noise:,} training labels corrupted" if noise else ""),
            f"model   {name}, {parameters:,} parameters",
            f"chains  seed {seeds}, alpha {alphas}: {teacher} + {_count(chain.distillation_steps, 'student')} each, "
            f"{_count(count_models(config), 'model')} of {_count(epochs, 'epoch')} of {_count(updates, 'update')}",
            f"output  {config.output}",
        ]
    )


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def count_models(config: Config) -> int:
    """Models that a run trains: a teacher a seed, unless it is given, and the students of every arm."""
    chain = config.chain
    return len(chain.seed) * ((chain.teacher_ckpt is None) + len(chain.alpha) * chain.distillation_steps)


def run(
    config: Config, source: Source | None = None, network: Callable[[], nn.Module] | None = None, show=None
) -> list[Result]:
    """Run every chain of a grid and return all results; what an earlier run of the same directory finished is kept.

    ``source`` (see ``from_arrays``) and ``network`` stand in for the data set and the ResNet of the configuration;
    ``network()`` makes a new network from normalised images (n, c, h, w) float32 to logits (n, classes).
    Raises UserError (ConfigError, DataError) with a one-line message.
    """
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

    def finished(result: Result) -> None:
        rundir.write_results()
        show.end_model(result)

    with rundir.lock():
        rundir.open(config, lab.source.fingerprint)
        rundir.write_environment(**versions(lab.device))
        try:
            if config.run.jobs > 1:
                _side_by_side(lab, finished)
            else:
                for seed in config.chain.seed:
                    chains = lab.chains(seed, rundir, finished, show)
                    for alpha in config.chain.alpha:
                        chains.run(alpha)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            batch = config.train.batch_size
            raise UserError(f"out of memory on {lab.device} at batch size {batch}: lower --batch-size") from None
        rundir.write_finished()
        return rundir.write_results()


def _out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator raises a plain RuntimeError
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "not enough memory" in str(error) or "can't allocate memory" in str(error)


def versions(device: torch.device) -> dict[str, str | int]:
    """Versions and hardware, for the record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def _side_by_side(lab: Lab, finished: Callable[[Result], None]) -> None:
    """Teachers, then arms, as tasks for ``jobs`` processes. An arm is ready once its seed's teacher is."""
    chain = lab.config.chain
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA or torch's threads
    results = context.SimpleQueue()

    def listen() -> None:
        for result in iter(results.get, None):
            with suppress(OSError):  # results.csv is written once more at the end, where a full disk is told of
                finished(result)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    workers = ProcessPoolExecutor(lab.config.run.jobs, context, _start_worker, (lab.config, results))
    try:
        with _out_of_ctrl_c():
            tasks = {workers.submit(_work, seed, None): seed for seed in chain.seed}
        while tasks:
            for task in wait(tasks, return_when=FIRST_COMPLETED).done:
                seed, alpha = tasks.pop(task), task.result()
                if alpha is None:
                    with _out_of_ctrl_c():
                        tasks |= {workers.submit(_work, seed, alpha): seed for alpha in chain.alpha}
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory: the same command goes on, maybe with fewer --jobs"
        ) from None
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()  # each model's last finished epoch is on disk
        raise
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
        results.put(None)
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


_worker: tuple[Lab, Callable[[Result], None]]  # a worker process's own


def _start_worker(config: Config, results) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = prepare(config), results.put


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # a parent that was killed must not leave a second writer in the run directory


def _work(seed: int, alpha: float | None) -> float | None:
    """Train one seed's teacher (alpha None) or one arm's students; returns alpha."""
    lab, finished = _worker
    chains = lab.chains(seed, RunDir(lab.config.output), finished, engine.Silent())
    if alpha is None:
        chains.teacher  # noqa: B018 - trains it
    else:
        chains.run(alpha)
    return alpha
