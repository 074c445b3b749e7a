"""What a run works with: its device, its images, and how its networks are made."""

import io
import platform
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distill.arms import arm_name, trainings
from distill.chains.chain import Chain
from distill.chains.checkpoints import load_parameters, network_factory
from distill.chains.session import Session
from distill.config import CUSTOM_DATA, CUSTOM_MODEL, Config
from distill.data.load import load_source
from distill.data.source import Source
from distill.data.splits import Dataset, Split, make_dataset
from distill.environment import available_cores
from distill.errors import ConfigError, UserError
from distill.files import write_atomically
from distill.store.results import read_record
from distill.store.rundir import RunDir
from distill.training.device import pick_device, set_up
from distill.training.models import Classifier
from distill.training.optim import updates_per_epoch

CUDA_JOBS = 16  # torch has 32 streams a device and gives them out in turn, and a job may take two


@dataclass(frozen=True)
class Experiment:
    """A configuration with what it needs to run: its device, its images, and how its networks are made."""

    config: Config
    source: Source
    device: torch.device
    network: Callable[[], nn.Module] | None  # None: the one that the configuration names

    def set_up(self) -> None:
        """Set torch's switches in this process. Raises ConfigError for a precision that the device lacks."""
        threads, jobs = self.config.run.threads, self.config.run.jobs
        if threads is None and jobs > 1:
            threads = max(1, available_cores() // jobs)
        set_up(self.config.train, self.device, threads)

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

    def chains(self, seed: int, rundir: RunDir, listener) -> Chain:
        """The chains of one seed, its data put on the device and its corrupted labels on record."""
        data = self.dataset(seed)
        labels = rundir.path / f"seed_{seed}" / "labels.npz"
        if self.config.data.label_noise and not labels.exists():
            write_atomically(labels, _label_record(data))
        session = Session(self.config, seed, data, self.device, self.make_network(data))
        return Chain(session, rundir, listener)

    def check_teacher(self, data: Dataset) -> None:
        """Look at the given teacher before anything is written. Raises ConfigError where it cannot teach here.

        Where its result.json tells how it was trained, it must not have seen images that a seed of this run holds out.
        """
        file, here = Path(self.config.chain.teacher_ckpt), self.config.data
        with torch.random.fork_rng(devices=[]):
            load_parameters(Classifier(self.make_network(data)(), data.mean, data.std), file)
        drawn = self.source.test_labels is None or here.val_size > 0  # by the seed: which images are held out
        if drawn and (file.parent / "result.json").exists():
            record = read_record(file.parent)
            if self.config.chain.estimates_alpha and record["step"] != 0:
                raise ConfigError(f"{file} is of step {record['step']}: alpha auto needs the teacher of step 0")
            there = record.get("configuration", {})
            other = there.get("data.dataset") != here.dataset or there.get("data.val_size") != here.val_size
            if other or self.config.chain.seed != (record["seed"],):
                raise ConfigError(
                    f"{file} was trained on images that this run holds out: give its --seed {record['seed']}, "
                    f"--dataset {there.get('data.dataset')} and --val-size {there.get('data.val_size')}"
                )

    def make_network(self, data: Dataset) -> Callable[[], nn.Module]:
        """The function that makes this run's networks."""
        return self.network or network_factory(self.config.model, data.train.images.shape[1], len(data.classes))


def _spread(split: Split, n: int) -> Split:
    """At most ``n`` images of a split, evenly spaced: it may be sorted by class."""
    rows = np.linspace(0, len(split) - 1, min(n, len(split))).astype(np.int64)
    return split.take(rows)


def _label_record(data: Dataset) -> bytes:
    """index, given, true and corrupted, each (n,), of the training images, as the bytes of an .npz file."""
    train, file = data.train, io.BytesIO()
    corrupted = train.labels != train.true_labels
    np.savez(file, index=train.index, given=train.labels, true=train.true_labels, corrupted=corrupted)
    return file.getvalue()


def prepare(
    config: Config, source: Source | None = None, network: Callable[[], nn.Module] | None = None, progress: bool = False
) -> Experiment:
    """Check the device, read the images, set torch up. Writes nothing. Raises ConfigError and DataError."""
    device = pick_device(config.run.device)
    if device.type == "cuda" and config.run.jobs > CUDA_JOBS:
        raise ConfigError(f"--jobs {config.run.jobs}: at most {CUDA_JOBS} on a CUDA device")
    if config.run.jobs > 1 and (source is not None or network is not None):
        raise ConfigError("jobs need a network and images that the configuration names; use jobs = 1")
    if source is None:
        if config.data.dataset == CUSTOM_DATA:
            raise ConfigError("this run's images came from Python arrays: give them to run() as source")
        source = load_source(config.data, progress)
    else:
        config = replace(config, data=replace(config.data, dataset=CUSTOM_DATA))
    if network is not None:
        config = replace(config, model=replace(config.model, resnet=CUSTOM_MODEL, stem=None, width=None, network=None))
    elif config.model.is_python:
        raise ConfigError("this run's network came from Python: give it to run() as network")
    lab = Experiment(config, source, device, network)
    lab.set_up()
    return lab


@contextmanager
def memory_errors(config: Config):
    """Make an error of memory a UserError of one line; torch's allocators and libraries raise it in many kinds."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        signs = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
            raise
        raise UserError(
            f"out of memory on --device {config.run.device} at batch size {config.train.batch_size}: "
            "lower --batch-size (or --jobs, or take a smaller network)"
        ) from None


def describe(lab: Experiment) -> str:
    """What is about to run, in a few lines."""
    config, data = lab.config, lab.dataset(lab.config.chain.seed[0])
    cuda = lab.device.type == "cuda"
    jobs = f"{config.run.jobs} jobs of " if config.run.jobs > 1 else ""
    device = (
        torch.cuda.get_device_name(lab.device)
        if cuda
        else f"{platform.machine()}, {jobs}{_count(torch.get_num_threads(), 'thread')}"
    )
    parts = {name: split for name in ("train", "val", "test") if (split := getattr(data, name)) is not None}
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in parts.items())
    noise = int((data.train.labels != data.train.true_labels).sum())
    c, h, w = data.train.images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        parameters = sum(p.numel() for p in lab.make_network(data)().parameters())
    name = config.model.name
    chain, epochs = config.chain, config.train.epochs
    updates = updates_per_epoch(len(data.train), config.train.batch_size)
    seeds = " ".join(map(str, chain.seed))
    alphas = ", alpha " + " ".join(map(arm_name, chain.arms)) if chain.arms else ""
    students = f" + {_count(chain.distillation_steps, 'student')} each" if chain.arms else " alone"
    teacher = "teacher" if chain.teacher_ckpt is None else f"given teacher (step {chain.first_step})"
    return "\n".join(
        [
            f"device  {lab.device} ({device}), torch {torch.__version__}, {config.train.precision}",
            f"data    {data.name}: {sizes} images of {c}x{h}x{w}, {len(data.classes)} classes"
            + (f", {noise:,} training labels corrupted" if noise else ""),
            f"model   {name}, {parameters:,} parameters",
            f"chains  seed {seeds}{alphas}: {teacher}{students}, "
            f"{format_model_count(config)} of {_count(epochs, 'epoch')} of {_count(updates, 'update')}",
            f"output  {config.output}",
        ]
    )


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def count_models(config: Config) -> int:
    """Models that a run trains: a teacher a seed, unless it is given, and every student once.

    Where alpha is estimated a probe is trained first, and sometimes taken: then it is the only one.
    """
    chain = config.chain
    return len(chain.seed) * ((chain.teacher_ckpt is None) + trainings(chain.arms))


def format_model_count(config: Config) -> str:
    """``at most 12 models``, or ``12 models`` where no alpha is estimated."""
    return f"{'at most ' if config.chain.estimates_alpha else ''}{_count(count_models(config), 'model')}"


def versions(device: torch.device) -> dict[str, str | int]:
    """Versions and hardware, for the record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
    }
