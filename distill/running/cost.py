"""What a run will cost here, from short bursts of its own training, and how many jobs pay. Writes no run."""

import io
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import wait
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distill.arms import Arm, Estimated, arm_name, disjoint_groups, students
from distill.chains.student import epochs_on_disk
from distill.config import Config, TrainConfig
from distill.data.source import Source
from distill.data.splits import Dataset
from distill.environment import available_cores
from distill.errors import ConfigError
from distill.randomness import ONE_AT_A_TIME
from distill.running.executors import job_threads
from distill.running.experiment import Experiment, format_model_count, prepare
from distill.store.rundir import RunDir
from distill.training import augment, models
from distill.training.batches import make_image_store
from distill.training.device import place
from distill.training.fit import NotFiniteLossError, Trainer
from distill.training.listener import Notes
from distill.training.optim import updates_per_epoch
from distill.training.predict import predict_all

WARM_UP = 3  # updates before a burst
BURST_SECONDS = 1.0  # a timed burst takes about so long, and three updates at least
BURSTS = 3  # of a teacher and of a student, in turn
MUCH = 1.5  # the slowest burst over the fastest, from which on a person is warned
EVALUATED = 256  # images of a timed evaluation
JOBS = (1, 2, 4, 8)  # that are tried on a CUDA device
WORTH = 1.05  # more jobs are taken where they bring this many times the images a second
MEMORY_SHARE = 0.8  # of the free device memory that jobs may be expected to take


class Trial:
    """A data set on the device, and bursts of training on it; ``network()`` makes a new network."""

    def __init__(
        self,
        data: Dataset,
        network: Callable[[], nn.Module],
        train: TrainConfig,
        device: torch.device,
        augmented: bool = True,
    ):
        self.data, self.network, self.train, self.device = data, network, train, device
        self.pool = make_image_store(data.train, device)
        self.teacher = place(self._model(), train, device).requires_grad_(False).eval()
        n, width = len(self.pool), data.train.images.shape[-1]
        self.plan = augment.plan(0, 0, 0, n, width, augmented, data.flip)
        self.updates = updates_per_epoch(n, train.batch_size)
        self.listener = Notes()

    def _model(self) -> nn.Module:
        with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
            return models.Classifier(self.network(), self.data.mean, self.data.std)

    def fit(self) -> Trainer:
        """A new model in training."""
        return Trainer(self._model(), self.train, self.device)

    def burst(self, fit: Trainer, taught: bool, updates: int) -> float:
        """Seconds of so many updates (at most an epoch of them), with a teacher's pass or without."""
        updates, fit.epochs = min(updates, self.updates), 0
        plan, teacher = self.plan[: updates * self.train.batch_size], self.teacher if taught else None
        started = time.perf_counter()
        try:
            fit.epoch(self.pool, plan, len(self.data.classes), teacher, 0.5, self.listener)  # waits at its end
        except NotFiniteLossError as error:
            raise ConfigError(f"{error}; try a smaller --lr") from None
        return time.perf_counter() - started

    def warmed_up(self, taught: bool) -> tuple[Trainer, int]:
        """A model in training that has gone through a burst, and the updates of a burst."""
        fit = self.fit()
        self.burst(fit, taught, WARM_UP)
        once = self.burst(fit, taught, WARM_UP) / min(WARM_UP, self.updates)
        updates = min(max(WARM_UP, round(BURST_SECONDS / once)), self.updates)
        self.burst(fit, taught, updates)  # on CUDA a teacher's pass of another size is searched for anew
        return fit, updates

    def updates_of_both(self) -> list[tuple[float, float]]:
        """Seconds of an update of a teacher and of a student, after a warm-up, in turn: a pair a burst."""
        both = [(taught, *self.warmed_up(taught)) for taught in (False, True)]
        return [tuple(self.burst(fit, taught, n) / n for taught, fit, n in both) for _ in range(BURSTS)]

    def evaluation(self) -> float:
        """Seconds of evaluating one image."""
        some = min(EVALUATED, len(self.data.test))
        pool = make_image_store(self.data.test.take(np.arange(some)), self.device)
        predict_all(self.teacher, pool, self.train)
        started = time.perf_counter()
        predict_all(self.teacher, pool, self.train)  # waits at its end
        return (time.perf_counter() - started) / some

    def checkpoint(self) -> float:
        """Seconds of one training state, written to memory: the disk is not asked."""
        fit = self.fit()
        self.burst(fit, False, 1)
        started = time.perf_counter()
        torch.save(fit.state_dict(), io.BytesIO())
        return time.perf_counter() - started


def trial_of(lab: Experiment) -> Trial:
    """A trial of a run's own training, on its first seed's images."""
    data, config = lab.dataset(lab.config.chain.seed[0]), lab.config
    return Trial(data, lab.make_network(data), config.train, lab.device, config.data.augment)


@dataclass(frozen=True)
class Cost:
    """What was measured, in seconds, and what follows for a configuration."""

    config: Config
    updates: int  # of an epoch
    train: int  # images
    held_out: int  # images
    test: int  # images
    teacher: float  # an update without a teacher, the median of its bursts
    student: float  # an update with a teacher's pass, likewise
    evaluation: float  # of one image
    checkpoint: float  # after an epoch
    scatter: float = 1.0  # the slowest burst over the fastest, of teacher or student
    notes: tuple[str, ...] = ()  # what training said of itself

    def model(self, taught: bool) -> float:
        """Seconds of one model: its epochs, an evaluation and a checkpoint after each, the evaluation at its end."""
        update = self.student if taught else self.teacher
        epoch = self.updates * update + self.held_out * self.evaluation + self.checkpoint
        return self.config.train.epochs * epoch + (self.train + self.held_out + self.test) * self.evaluation

    def training(self, prefix: Arm) -> float:
        """Seconds of one model of the grid; no weights: a seed's teacher, unless it is given.

        At alpha = 1 the teacher is not asked; where alpha is estimated there is a probe, and at most one training more.
        """
        if not prefix:
            return self.model(taught=False) if self.config.chain.teacher_ckpt is None else 0.0
        target = prefix[-1]
        return target.trainings * self.model(taught=target.uses_teacher)

    def seconds(self, seed: int, arms: Iterable[Arm], done: Mapping[tuple[int, Arm], float]) -> float:
        """Seconds of a seed's teacher and of some arms' students, those that they share once, less what is done."""
        models = {(), *students(arms)}
        return sum((1 - done.get((seed, prefix), 0.0)) * self.training(prefix) for prefix in models)

    @property
    def chain(self) -> float:
        """Seconds of the longest chain."""
        return max(self.seconds(0, [arm], {}) for arm in self.config.chain.arms or [()])

    @property
    def grid(self) -> float:
        """Seconds of all chains, were the jobs not to slow one another down."""
        return self.left({})

    def left(self, done: Mapping[tuple[int, Arm], float]) -> float:
        """Seconds of the grid less what is done: of a seed's model, which share."""
        seeds, arms = self.config.chain.seed, self.config.chain.arms
        alone = sum(self.seconds(seed, arms, done) for seed in seeds)
        longest = max(self.seconds(seed, group, done) for seed in seeds for group in disjoint_groups(arms) or [()])
        return max(alone / self.config.run.jobs, longest)


def measure(lab: Experiment) -> Cost:
    """Time the bursts of a run's own training, with its jobs' number of threads, one job alone."""
    trial = trial_of(lab)
    bursts = list(zip(*trial.updates_of_both(), strict=True))
    teacher, student = map(statistics.median, bursts)
    return Cost(
        lab.config,
        trial.updates,
        train=len(trial.data.train),
        held_out=0 if trial.data.val is None else len(trial.data.val),
        test=len(trial.data.test),
        teacher=teacher,
        student=student,
        evaluation=trial.evaluation(),
        checkpoint=trial.checkpoint(),
        scatter=max(max(times) / min(times) for times in bursts),
        notes=tuple(dict.fromkeys(trial.listener.notes)),
    )


def tell(cost: Cost) -> str:
    """The cost in a few lines."""
    config, chains, models = cost.config, independent_chains(cost.config), format_model_count(cost.config)
    jobs = min(config.run.jobs, chains)
    together = "one after the other" if jobs == 1 else f"{jobs} jobs, were they not to slow one another down"
    return "\n".join(
        [
            f"update  {milliseconds(cost.teacher)} of a teacher, {milliseconds(cost.student)} of a student "
            f"with its teacher's pass, batches of {config.train.batch_size}",
            f"models  {duration(cost.model(False))} for a teacher, {duration(cost.model(True))} for a student: "
            f"{config.train.epochs} x {cost.updates:,} updates, evaluation and checkpoints included",
            f"chain   {duration(cost.chain)}",
            f"grid    {duration(cost.grid)}: {chains} chain{'s' * (chains > 1)}, {models}, {together}",
            f"from {BURSTS} short bursts each after a warm-up, the slowest {cost.scatter:.2f} times the fastest"
            + (": is this machine doing something else?" if cost.scatter > MUCH else ""),
            "reading data, capture and compilation, and a busy disk come on top",
            *(f"note    {text}" for text in cost.notes),
        ]
    )


def format_remaining(cost: Cost, done: Mapping[tuple[int, Arm], float]) -> str:
    """What is left of a run that some of is done of, in a line."""
    finished = sum(share == 1 for share in done.values())
    begun = len(done) - finished
    return f"left    {duration(cost.left(done))}: {finished} models finished in {cost.config.output}, {begun} begun"


def done_in(config: Config) -> dict[tuple[int, Arm], float]:
    """Which share of its training lies finished in the run's directory, of every model of the grid that was begun.

    Raises ConfigError where a training state is damaged.
    """
    rundir, chain = RunDir(config.output), config.chain

    def share(folder: Path, estimated: bool) -> float:
        if (folder / "result.json").exists():
            return 1.0
        trained = epochs_on_disk(folder) / config.train.epochs
        return (trained + share(folder / "probe", estimated=False)) / 2 if estimated else trained

    found = {}
    for seed, prefix in itertools.product(chain.seed, {(), *students(chain.arms)}):
        folder = rundir.model(seed, arm_name(prefix), chain.first_step + len(prefix))
        found[seed, prefix] = share(folder, estimated=prefix != () and isinstance(prefix[-1], Estimated))
    return {model: part for model, part in found.items() if part}


def milliseconds(seconds: float) -> str:
    """``3.42 ms`` or ``1,410 ms``."""
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def independent_chains(config: Config) -> int:
    """Chain that can be trained at the same time, once their teachers are."""
    return len(config.chain.seed) * max(1, len(disjoint_groups(config.chain.arms)))


# -------------------------------------------------------------------------------------------------------- --jobs auto


def prepare_with_jobs(
    config: Config,
    source: Source | None = None,
    network: Callable[[], nn.Module] | None = None,
    progress: bool = False,
) -> Experiment:
    """``prepare``, and ``jobs`` auto made a number: 1 for a network or images of one's own, else ``best_jobs``."""
    if config.run.jobs != "auto":
        return prepare(config, source, network, progress)
    lab = prepare(with_jobs(config, 1), source, network, progress)
    if source is not None or network is not None:
        return lab
    lab = replace(lab, config=with_jobs(lab.config, best_jobs(lab)))
    lab.set_up()  # the cores are shared among the jobs
    return lab


def with_jobs(config: Config, jobs: int) -> Config:
    """The configuration with another number of jobs."""
    return replace(config, run=replace(config.run, jobs=jobs))


def best_jobs(lab: Experiment) -> int:
    """On a CPU a job for each core; on a CUDA device what a short probe finds. Never more than there are chains."""
    chains = independent_chains(lab.config)
    if lab.device.type == "cpu":
        return min(available_cores(), chains)
    if lab.device.type != "cuda" or chains == 1:
        return 1
    return probe(trial_of(lab), chains)


def probe(trial: Trial, most: int) -> int:
    """The jobs after which twice as many bring less than WORTH times the images a second, or find no memory."""
    best, best_rate = 1, 0.0
    before = torch.cuda.memory_reserved(trial.device)  # what a graph keeps for itself is no longer allocated
    torch.cuda.reset_peak_memory_stats(trial.device)
    with ConcurrentTrial(trial, max(JOBS)) as together:
        for jobs in JOBS:
            if jobs > most:
                break
            if jobs > 1:
                free = torch.cuda.mem_get_info(trial.device)[0]
                room = MEMORY_SHARE * (free + torch.cuda.memory_reserved(trial.device) - before)
                each = (torch.cuda.max_memory_reserved(trial.device) - before) / best
                if jobs * each > room:
                    break
            try:
                rate = together.images_per_second(jobs)
            except torch.OutOfMemoryError:
                break
            if rate < WORTH * best_rate or trial.listener.notes:
                break
            best, best_rate = jobs, rate
    return best


class ConcurrentTrial:
    """Students of a trial trained at the same time, in threads with a stream each, as jobs on a CUDA device are.

    The threads stay: cuDNN remembers by thread which algorithms it has found. All students train equally long, whatever
    their number.
    """

    def __init__(self, trial: Trial, most: int):
        self.trial, self.threads = trial, job_threads(trial.device, most)
        self.updates: int | None = None  # of a student's burst

    def __enter__(self) -> "ConcurrentTrial":
        return self

    def __exit__(self, *error) -> None:
        self.threads.shutdown()

    def images_per_second(self, jobs: int) -> float:
        """Of so many students, all together."""
        if self.updates is None:
            if self.trial.device.type == "cuda":
                torch.cuda.synchronize(self.trial.device)  # the teacher was put there on another stream
            self.updates = self.threads.submit(lambda: self.trial.warmed_up(taught=True)[1]).result()
        ready, tasks = threading.Barrier(jobs), []
        try:
            tasks.extend(self.threads.submit(self._work, ready) for _ in range(jobs))
            wait(tasks)
        except BaseException:
            ready.abort()
            raise
        for error in (task.exception() for task in tasks):
            if error is not None and not isinstance(error, threading.BrokenBarrierError):
                raise error
        begun, ended = zip(*(task.result() for task in tasks), strict=True)
        return jobs * self.updates * self.trial.train.batch_size / (max(ended) - min(begun))

    def _work(self, ready: threading.Barrier) -> tuple[float, float]:
        """When a burst began and ended, after one that nobody timed."""
        try:
            fit = self.trial.fit()
            self.trial.burst(fit, True, WARM_UP)  # its graph captured
            ready.wait()
            self.trial.burst(fit, True, self.updates)
            ready.wait()
            started = time.perf_counter()
            self.trial.burst(fit, True, self.updates)
            return started, time.perf_counter()
        except BaseException:
            ready.abort()  # or the others would wait for ever
            raise
