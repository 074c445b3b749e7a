"""An experiment: a configuration with its device, its images and the function that makes its networks."""

import io
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import NoneType

import numpy as np
import torch
from torch import nn

from distill.arms import Fixed, trainings
from distill.chains.chain import Chain
from distill.chains.checkpoints import load_parameters, network_factory
from distill.chains.session import Session
from distill.config import CUSTOM_DATA, CUSTOM_MODEL, Config
from distill.data.folders import require_outside
from distill.data.load import load_source
from distill.data.source import Source
from distill.data.splits import Dataset, Split, make_dataset
from distill.environment import available_cores, ranks_here, torchrun_rank
from distill.errors import ConfigError, TrainingError, one_line
from distill.files import write_atomically
from distill.options import require, require_type
from distill.records import DamagedRecordError, digest_of_parts
from distill.store.events import require_tensorboard
from distill.store.results import read_record
from distill.store.rundir import RunDir, is_finished
from distill.study import with_held
from distill.training.device import pick_device, set_up, torch_defaults
from distill.training.listener import Listener
from distill.training.models import Classifier, forked_rng

CUDA_JOBS = 16  # torch reuses 32 streams per device in turn, and a job may take two


@dataclass(frozen=True)
class Experiment:
    """A configuration with what it needs to run."""

    config: Config
    source: Source
    device: torch.device
    make_network: Callable[[], nn.Module] | None  # None: the configuration names the network

    def set_up(self) -> None:
        """Set torch's switches in this process. Raises ConfigError for a precision that the device lacks."""
        threads = self.config.run.threads
        workers = max(worker_count(self.config), ranks_here())
        if threads is None and workers > 1:
            threads = max(1, available_cores() // workers)
        train = self.config.train
        if self.config.run.executor == "slurm":  # this process may lack the precision of the jobs
            train = replace(train, precision="fp32")
        set_up(train, self.device, threads)

    def dataset(self, seed: int) -> Dataset:
        """One seed's splits. Raises ConfigError if there are fewer training images than a batch."""
        batch = self.config.train.batch_size
        dataset = make_dataset(self.source, self.config.data, seed)
        if self.config.train.fast_dev_run:  # two batches of everything
            dataset = replace(
                dataset,
                train=_spread(dataset.train, 2 * batch),
                val=None if dataset.val is None else _spread(dataset.val, 2 * batch),
                test=_spread(dataset.test, 2 * batch),
            )
        for target in {target for arm in self.config.chain.arms for target in arm if isinstance(target, Fixed)}:
            if len(dataset.classes) < target.fewest_classes:
                raise ConfigError(
                    f"target {target.name} needs {target.fewest_classes} classes, and the data have fewer"
                )
        if len(dataset.train) < batch:
            raise ConfigError(
                f"{len(dataset.train)} training images are fewer than a batch of {batch}: lower --batch-size"
            )
        return dataset

    def chain(self, seed: int, rundir: RunDir, listener: Listener) -> Chain:
        """The chains of one seed, with its images on the device. Writes its labels.npz if labels are corrupted.

        Raises ConfigError if models of this seed were trained on other labels than the file records.
        """
        data = self.dataset(seed)
        self._record_labels(rundir, seed, data)
        session = Session(self.config, seed, data, self.device, self.network_factory(data))
        return Chain(session, rundir, listener)

    def _record_labels(self, rundir: RunDir, seed: int, data: Dataset) -> None:
        """Write labels.npz, or verify it. One of an earlier command that trained no model of this seed is replaced."""
        file = rundir.labels(seed)
        begun = any(file.parent.glob("**/*.pt"))
        if data.noise_kind is None:
            if file.exists() and not begun:
                file.unlink()
            return
        content = _label_record(data)
        digest = digest_of_parts(io.BytesIO(content))
        self._check_labels(rundir, seed, digest)
        if file.exists() and not (file.is_file() and _has_arrays(file, digest)):
            if begun:
                raise ConfigError(
                    f"{file} does not hold the labels that this run trains on: it is damaged or exchanged; delete it, "
                    "and it is written again"
                )
            file.unlink()
        if not file.exists():
            rundir.make_folder(file.parent)
            write_atomically(file, content)

    def _check_labels(self, rundir: RunDir, seed: int, digest: str) -> None:
        """Raise ConfigError if a finished model of a seed was trained on other labels than those with this SHA-256."""
        confusion = self.config.data.confusion
        changed = "the noise of the data" if confusion is None else f"the model of --confusion {confusion}"
        for model in rundir.models(self.config):
            if model.seed != seed or not is_finished(model.folder):
                continue
            if read_record(model.folder).get("labels_sha256") not in (None, digest):
                raise ConfigError(
                    f"{model.folder} was trained on other labels than this run would use now: {changed} has changed; "
                    "restore it, or choose another --output"
                )

    def check_network(self, data: Dataset) -> None:
        """Raise ConfigError if the network does not turn images of this size into logits."""
        images = torch.from_numpy(np.array(data.train.images[:2]))
        expected = (len(images), len(data.classes))
        with forked_rng(), torch.no_grad():
            model = Classifier(self.network_factory(data)(), data.mean, data.std).eval()
            if self.make_network is not None:  # it may be on another device
                return
            try:
                shape = tuple(model(images).shape)
                reason = "" if shape == expected else f"it returns {shape}, not {expected}"
            except Exception as error:  # a network may raise anything
                reason = one_line(error)
        if reason and self.config.model.hidden is not None:
            reason = "it takes vectors, such as those that distill.features --of pixels writes, by --dataset features"
        if reason:
            size = "x".join(map(str, images.shape[1:]))
            raise ConfigError(f"{self.config.model.name} cannot classify images of {size} ({reason})")

    def check_teacher(self, data: Dataset) -> None:
        """Raise ConfigError if the given teacher does not fit this run. Called before anything is written.

        A teacher with a result.json must not have been trained on images that this run holds out.
        """
        assert self.config.chain.teacher_ckpt is not None
        file = Path(self.config.chain.teacher_ckpt)
        here = self.config.data
        with forked_rng(), torch.no_grad():
            model = Classifier(self.network_factory(data)(), data.mean, data.std)
            load_parameters(model, file)
            logits = model.eval()(torch.from_numpy(np.array(data.train.images[:2])))
        if not logits.isfinite().all():
            raise ConfigError(f"{file} cannot teach: its predictions for the first images are not finite")
        held_out_by_seed = self.source.test_labels is None or here.val_size > 0
        if held_out_by_seed and is_finished(file.parent):
            record = read_record(file.parent)
            if self.config.chain.estimates_alpha and record["step"] != 0:
                raise ConfigError(f"{file} is of step {record['step']}: alpha auto needs the teacher of step 0")
            there = record.get("configuration", {})
            if there.get("data.dataset") != here.dataset:
                raise ConfigError(f"{file} was trained on {there.get('data.dataset')}, not on {here.dataset}")
            if there.get("data.val_size") != here.val_size or self.config.chain.seed != (record["seed"],):
                raise ConfigError(
                    f"{file} was trained on images that this run holds out: give its --seed {record['seed']} "
                    f"and --val-size {there.get('data.val_size')}"
                )

    def network_factory(self, data: Dataset) -> Callable[[], nn.Module]:
        """The function that makes this run's networks. It raises ConfigError for one that cannot be trained."""
        make_network = self.make_network
        if make_network is None:
            make_network = network_factory(self.config.model, data.train.images.shape[1], len(data.classes))
        return partial(_new_network, make_network, self.config.model.name)


def _new_network(make_network: Callable[[], nn.Module], name: str) -> nn.Module:
    network = make_network()
    require_type(name, network, nn.Module, "a torch.nn.Module")
    require(any(p.requires_grad for p in network.parameters()), f"{name} has no parameters to train")
    return network


def _spread(split: Split, n: int) -> Split:
    """At most ``n`` images of a split, evenly spaced: it may be sorted by class."""
    rows = np.linspace(0, len(split) - 1, min(n, len(split))).astype(np.int64)
    return split.take(rows)


def _label_record(data: Dataset) -> bytes:
    """index, given, true and corrupted, each (n,), of the training images, as the bytes of an .npz file."""
    train = data.train
    file = io.BytesIO()
    corrupted = train.labels != train.true_labels
    np.savez(file, index=train.index, given=train.labels, true=train.true_labels, corrupted=corrupted)
    return file.getvalue()


def _has_arrays(file: Path, digest: str) -> bool:
    """Whether an .npz file holds the arrays with this SHA-256."""
    try:
        return digest_of_parts(file) == digest
    except DamagedRecordError:
        return False


def prepare(
    config: Config, source: Source | None = None, network: Callable[[], nn.Module] | None = None, progress: bool = False
) -> Experiment:
    """Check the device, read the images, set torch up. Writes nothing. Raises ConfigError and DataError."""
    require_type("source", source, (Source, NoneType), "what distill.from_arrays returns")
    require_type("network", network, (Callable, NoneType), "a function that makes a network")  # type: ignore[arg-type]
    if config.run.tensorboard:
        require_tensorboard()
    device = pick_device(device_names(config)[0])
    jobs = job_count(config)
    if device.type == "cuda" and jobs > CUDA_JOBS:
        raise ConfigError(f"--jobs {jobs}: at most {CUDA_JOBS} on a CUDA device")
    if jobs > 1 and (source is not None or network is not None):
        raise ConfigError(
            "jobs > 1 needs a network and images that workers can find: name your functions as package.module:function "
            "(network, dataset), or use jobs = 1"
        )
    if source is None:
        if config.data.dataset == "imagefolder":
            require_outside(config.data, config.output)
        if config.data.dataset == CUSTOM_DATA:
            raise ConfigError("this run's images came from Python arrays: give them to run() as source")
        source = load_source(config.data, progress)
    else:
        config = replace(config, data=replace(config.data, dataset=CUSTOM_DATA, data=None))
        source = source.only(config.data.classes)
    source.check_fingerprint(config.data.data_sha256)
    if network is not None:
        config = replace(config, model=replace(config.model, resnet=CUSTOM_MODEL, stem=None, width=None, network=None))
    elif config.model.is_python:
        raise ConfigError("this run's network came from Python: give it to run() as network")
    config = with_held(config)
    experiment = Experiment(config, source, device, network)
    experiment.set_up()
    return experiment


@contextmanager
def caller_unaffected(config: Config) -> Iterator[None]:
    """Be independent of the caller's settings of torch, leave them as they are, and name errors of memory."""
    with torch_defaults(), memory_errors(config):
        yield


@contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Turn an error of memory into a TrainingError of one line; torch's allocators and libraries raise many kinds."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        signs = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
            raise
        raise TrainingError(
            f"out of memory on --device {config.run.device} at batch size {config.train.batch_size}: "
            "lower --batch-size (or --jobs, or take a smaller network)"
        ) from None


def device_names(config: Config) -> list[str]:
    """The devices of a run; the CPU if jobs of a cluster train. Raises ConfigError for a missing one."""
    if config.run.executor == "slurm":
        return ["cpu"]
    devices = config.run.devices
    if devices is None:
        return [config.run.device]
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    numbers = range(seen) if devices == "all" else list(dict.fromkeys(map(int, devices.split(","))))
    if not numbers or max(numbers) >= seen:
        raise ConfigError(f"--devices {devices}: {f'only {seen} CUDA devices' if seen else 'no CUDA device'} here")
    return [f"cuda:{number}" for number in numbers]


def worker_count(config: Config) -> int:
    """The number of chains that are trained at the same time: so many jobs for each device."""
    return job_count(config) * len(device_names(config))


def job_count(config: Config) -> int:
    """The number of jobs. ``prepare_with_jobs`` makes "auto" a number."""
    jobs = config.run.jobs
    assert isinstance(jobs, int)
    return jobs


def count_models(config: Config) -> int:
    """The models that a run trains, at most: a teacher per seed, unless it is given, and every student once.

    A student whose alpha is estimated counts twice, for its probe, although the probe sometimes becomes the student.
    """
    chain = config.chain
    teachers = 1 if chain.teacher_ckpt is None else 0
    return len(chain.seed) * (teachers + trainings(chain.arms))


def count_finished(config: Config) -> int:
    """The models of ``count_models`` that are finished."""
    given = config.chain.teacher_ckpt is not None
    models = RunDir(config.output).models(config)
    return sum(is_finished(model.folder) for model in models if not (given and model.arm is None))


def versions(device: torch.device) -> dict[str, str | int]:
    """Versions and hardware, for environment.json."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "ranks": torchrun_rank()[1],
    }
