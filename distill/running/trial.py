"""Timed bursts of a run's training, of one model or of several at the same time. Writes no files."""

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Self

import numpy as np
import torch
from torch import nn

from distill.arms import Fixed
from distill.config import TrainConfig
from distill.data.splits import Dataset
from distill.errors import ConfigError
from distill.running.executors import job_threads
from distill.running.experiment import Experiment
from distill.training import augment
from distill.training.batches import make_image_store
from distill.training.device import place
from distill.training.fit import NotFiniteLossError, Trainer
from distill.training.listener import Notes
from distill.training.models import Classifier, forked_rng
from distill.training.optim import updates_per_epoch
from distill.training.predict import predict_all

WARM_UP = 3  # updates before a burst
BURST_SECONDS = 1.0  # approximate length of a timed burst, which has at least three updates
BURSTS = 3  # each of a teacher and of a student, alternating
EVALUATED = 256  # images of a timed evaluation


class Trial:
    """Timed bursts of training on one data set on the device; ``make_network()`` makes a new network."""

    def __init__(
        self,
        data: Dataset,
        make_network: Callable[[], nn.Module],
        train: TrainConfig,
        device: torch.device,
        augmented: bool = True,
    ):
        self.data = data
        self.make_network = make_network
        self.train = train
        self.device = device
        self.images = make_image_store(data.train, device)
        self.teacher = place(self._model(), train, device).requires_grad_(False).eval()
        n = len(self.images)
        self.plan = augment.plan(0, 0, 0, n, data.train.images.shape[-1], augmented, data.flip)
        self.updates = updates_per_epoch(n, train.batch_size)
        self.listener = Notes()

    def _model(self) -> Classifier:
        with forked_rng():
            return Classifier(self.make_network(), self.data.mean, self.data.std)

    def new_trainer(self) -> Trainer:
        """A new model in training."""
        return Trainer(self._model(), self.train, self.device)

    def burst(self, trainer: Trainer, with_teacher: bool, updates: int) -> float:
        """Seconds of ``updates`` updates, at most one epoch, with or without a teacher's forward pass."""
        updates = min(updates, self.updates)
        trainer.epochs = 0
        plan = self.plan[: updates * self.train.batch_size]
        teacher = self.teacher if with_teacher else None
        started = time.perf_counter()
        try:
            trainer.epoch(
                self.images, plan, len(self.data.classes), teacher, Fixed(0.5), self.listener
            )  # waits at its end
        except NotFiniteLossError as error:
            raise ConfigError(f"{error}; {error.advice}") from None
        return time.perf_counter() - started

    def warmed_up(self, with_teacher: bool) -> tuple[Trainer, int]:
        """A model in training after its warm-up, and the number of updates for its timed bursts."""
        trainer = self.new_trainer()
        self.burst(trainer, with_teacher, WARM_UP)
        update = self.burst(trainer, with_teacher, WARM_UP) / min(WARM_UP, self.updates)
        updates = min(max(WARM_UP, round(BURST_SECONDS / update)), self.updates)
        self.burst(trainer, with_teacher, updates)  # CUDA chooses algorithms per size of a pass
        return trainer, updates

    def update_seconds(self) -> list[tuple[float, float]]:
        """Seconds per update of a teacher and of a student, one pair per burst; the two alternate after a warm-up."""
        teacher, teacher_updates = self.warmed_up(with_teacher=False)
        student, student_updates = self.warmed_up(with_teacher=True)
        pairs = []
        for _ in range(BURSTS):
            teacher_seconds = self.burst(teacher, False, teacher_updates)
            student_seconds = self.burst(student, True, student_updates)
            pairs.append((teacher_seconds / teacher_updates, student_seconds / student_updates))
        return pairs

    def evaluation(self) -> float:
        """Seconds of evaluating one image."""
        n = min(EVALUATED, len(self.data.test))
        images = make_image_store(self.data.test.take(np.arange(n)), self.device)
        predict_all(self.teacher, images, self.train)
        started = time.perf_counter()
        predict_all(self.teacher, images, self.train)  # waits at its end
        return (time.perf_counter() - started) / n

    def checkpoint(self) -> float:
        """Seconds of writing one training state to memory; the disk is not measured."""
        trainer = self.new_trainer()
        self.burst(trainer, False, 1)
        started = time.perf_counter()
        torch.save(trainer.state_dict(), io.BytesIO())
        return time.perf_counter() - started


def trial_of(experiment: Experiment) -> Trial:
    """A trial of an experiment's training, on its first seed's images."""
    config = experiment.config
    data = experiment.dataset(config.chain.seed[0])
    return Trial(data, experiment.network_factory(data), config.train, experiment.device, config.data.augment)


class ConcurrentTrial:
    """Several students of a trial trained at the same time, each in a thread with its own stream, like CUDA jobs.

    The threads are reused, because cuDNN remembers its choice of algorithms per thread. Every student trains for the
    same number of updates, whatever the number of students.
    """

    def __init__(self, trial: Trial, most: int):
        self.trial = trial
        self.threads = job_threads(trial.device, most)
        self.updates: int | None = None  # of a student's burst

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.threads.shutdown()

    def images_per_second(self, jobs: int) -> float:
        """Images per second of ``jobs`` students in total."""
        if self.updates is None:
            if self.trial.device.type == "cuda":
                torch.cuda.synchronize(self.trial.device)  # the teacher was copied on another stream
            self.updates = self.threads.submit(lambda: self.trial.warmed_up(with_teacher=True)[1]).result()
        ready = threading.Barrier(jobs)
        tasks: list[Future[tuple[float, float]]] = []
        try:
            for _ in range(jobs):
                tasks.append(self.threads.submit(self._work, ready, self.updates))
            wait(tasks)
        except BaseException:
            ready.abort()
            raise
        for error in (task.exception() for task in tasks):
            if error is not None and not isinstance(error, threading.BrokenBarrierError):
                raise error
        begun, ended = zip(*(task.result() for task in tasks), strict=True)
        return jobs * self.updates * self.trial.train.batch_size / (max(ended) - min(begun))

    def _work(self, ready: threading.Barrier, updates: int) -> tuple[float, float]:
        """The times at which a burst begins and ends, after one burst that is not timed."""
        try:
            trainer = self.trial.new_trainer()
            self.trial.burst(trainer, True, WARM_UP)  # captures its graph
            ready.wait()
            self.trial.burst(trainer, True, updates)
            ready.wait()
            started = time.perf_counter()
            self.trial.burst(trainer, True, updates)
            return started, time.perf_counter()
        except BaseException:
            ready.abort()  # otherwise the others would wait for ever
            raise
