"""Descriptions of a run, its cost and its remaining cost, as text."""

import platform

import torch

from distill.arms import arm_name
from distill.config import Config
from distill.environment import torchrun_rank
from distill.pages.tables import filled, format_count
from distill.running.cost import Cost, Done
from distill.running.experiment import Experiment, count_models, job_count
from distill.running.jobs import independent_chains
from distill.running.progress import format_duration
from distill.running.trial import BURSTS
from distill.training.models import forked_rng
from distill.training.optim import updates_per_epoch

SCATTER_WARNING = 1.5  # warn above this ratio of the slowest burst to the fastest


def describe(experiment: Experiment) -> str:
    """An experiment in five lines, long ones continued: device, data, model, chains, output."""
    config = experiment.config
    data = experiment.dataset(config.chain.seed[0])
    splits = {"train": data.train, "val": data.val, "test": data.test}
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items() if split is not None)
    noise = int((data.train.labels != data.train.true_labels).sum())
    corrupted = (
        f", {noise:,} training labels corrupted ({data.noise_kind}, {noise / len(data.train):.1%})" if noise else ""
    )
    c, h, w = data.train.images.shape[1:]
    with forked_rng():
        parameters = sum(p.numel() for p in experiment.network_factory(data)().parameters())
    updates = updates_per_epoch(len(data.train), config.train.batch_size)
    device = f"{_ranks()}{experiment.device} ({_hardware(experiment)})"
    if config.run.executor == "slurm":
        device = "that of each SLURM job"
    lines = [
        f"device  {device}, torch {torch.__version__}, {config.train.precision}",
        f"data    {data.name}: {sizes} images of {c}x{h}x{w}, {len(data.classes)} classes{corrupted}",
        f"model   {config.model.name}, {parameters:,} parameters",
        f"chains  {_grid(config)}, {format_model_count(config)} of {format_count(config.train.epochs, 'epoch')} of "
        f"{format_count(updates, 'update')}",
    ]
    return "\n".join([*(filled(line, indent=8) for line in lines), f"output  {config.output}"])


def _ranks() -> str:
    """``4 ranks, each on a device like ``, under torchrun."""
    size = torchrun_rank()[1]
    return f"{size} ranks, each on a device like " if size > 1 else ""


def _hardware(experiment: Experiment) -> str:
    if experiment.device.type == "cuda":
        return torch.cuda.get_device_name(experiment.device)
    jobs = job_count(experiment.config)
    threads = format_count(torch.get_num_threads(), "thread")
    return f"{platform.machine()}, {threads}" if jobs == 1 else f"{platform.machine()}, {jobs} jobs of {threads}"


def _grid(config: Config) -> str:
    """``seed 1 2, alpha 0 0.5: teacher + 3 students each``."""
    chain = config.chain
    teacher = "teacher" if chain.teacher_ckpt is None else f"given teacher (step {chain.first_step})"
    seeds = " ".join(map(str, chain.seed))
    if not chain.arms:
        return f"seed {seeds}: {teacher} alone"
    names = " ".join(str(arm_name(arm)) for arm in chain.arms)
    what = "alpha" if chain.target == ("soft",) else "targets"
    return f"seed {seeds}, {what} {names}: {teacher} + {format_count(chain.distillation_steps, 'student')} each"


def format_cost(cost: Cost) -> str:
    """A cost in six lines, and a line for each note."""
    config = cost.config
    chains = independent_chains(config)
    jobs = min(job_count(config), chains)
    schedule = "one after the other" if jobs == 1 else f"{jobs} jobs, if they do not slow one another down"
    busy = ": is this machine doing something else?" if cost.scatter > SCATTER_WARNING else ""
    return "\n".join(
        [
            f"update  {format_milliseconds(cost.teacher)} of a teacher, {format_milliseconds(cost.student)} of a "
            f"student with its teacher's pass, batches of {config.train.batch_size}",
            f"models  {format_duration(cost.model(False))} for a teacher, {format_duration(cost.model(True))} for a "
            f"student: {config.train.epochs} x {cost.updates:,} updates, evaluation and checkpoints included",
            f"chain   {format_duration(cost.chain)}",
            f"grid    {format_duration(cost.grid)}: {format_count(chains, 'chain')}, {format_model_count(config)}, "
            f"{schedule}",
            f"from {BURSTS} short bursts each after a warm-up, the slowest {cost.scatter:.2f} times the fastest{busy}",
            "excludes reading data, graph capture, compilation, and waiting for a busy disk",
            *(f"note    {text}" for text in cost.notes),
        ]
    )


def format_remaining(cost: Cost, done: Done) -> str:
    """The remaining cost of a partly finished run, as one line."""
    finished = sum(share == 1 for share in done.values())
    in_progress = len(done) - finished
    left = format_duration(cost.left(done))
    return f"left    {left}: {finished} models finished in {cost.config.output}, {in_progress} in progress"


def format_model_count(config: Config) -> str:
    """``12 models``, or ``at most 12 models`` if an alpha is estimated."""
    models = format_count(count_models(config), "model")
    return f"at most {models}" if config.chain.estimates_alpha else models


def format_milliseconds(seconds: float) -> str:
    """``3.42 ms`` or ``1,410 ms``."""
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"
