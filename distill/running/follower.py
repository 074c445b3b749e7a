"""A follower: any rank but 0. It does its part of what rank 0 sends (``training/ranks.py``); it reads no run directory.

The names of a ``Follower``'s methods are those of the messages.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.arms import Fixed
from distill.chains.session import Session
from distill.config import Config
from distill.errors import DataError
from distill.running.experiment import Experiment, memory_errors, prepare
from distill.training.augment import Plan
from distill.training.device import pick_device
from distill.training.fit import NotFiniteLossError, Trainer
from distill.training.listener import Listener
from distill.training.models import Classifier
from distill.training.predict import predict_all
from distill.training.ranks import Ranks, joined


@contextmanager
def joined_or_following(config: Config) -> Iterator[bool]:
    """Connect the ranks. Rank 0 gets True and leads in the block. The others follow until it ends, then get False."""
    with joined(pick_device(config.run.device)) as ranks:
        if ranks.rank > 0:
            follower = Follower(ranks)
            with memory_errors(config):
                while message := ranks.receive():
                    getattr(follower, message[0])(*message[1:])
        yield ranks.rank == 0


class Follower:
    """What one follower has: the session of rank 0, and its model in training."""

    experiment: Experiment | None = None
    current: Session
    training: Trainer
    teacher: Classifier | None
    evaluated: Classifier  # takes the parameters of each model that is evaluated

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def session(self, config: Config, seed: int, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        """Read the images of a seed, which must be those of rank 0. Raises DataError."""
        if self.experiment is not None and self.experiment.config.data == config.data:
            self.experiment = replace(self.experiment, config=config)
            self.experiment.set_up()
        else:
            with redirect_stderr(io.StringIO()):  # rank 0 has reported on the images
                self.experiment = prepare(config)
        data = self.experiment.dataset(seed)
        if not (np.array_equal(data.mean, mean) and np.array_equal(data.std, std)):
            raise DataError(f"rank {self.ranks.rank} finds other images in {config.data.data_dir} than rank 0")
        network = self.experiment.network_factory(data)
        self.current = Session(config, seed, data, self.experiment.device, network)
        self.evaluated = self._frozen()

    def trainer(self, state: dict[str, Any], teacher: dict[str, torch.Tensor] | None) -> None:
        """Take over a model in training and its teacher. The average of its parameters is kept by rank 0 alone."""
        train = replace(self.current.config.train, ema=None)
        self.training = Trainer(self.current.new_model(0), train, self.current.device, self.ranks)
        self.training.load_state_dict(state)
        self.teacher = None
        if teacher is not None:
            self.teacher = self._frozen()
            self.teacher.load_state_dict(teacher)

    def train_epoch(self, plan: Plan, target: Fixed, seed: int) -> None:
        """Train one epoch; torch draws other numbers on every rank, as it does for every image of one rank."""
        torch.manual_seed(seed + self.ranks.rank)
        session = self.current
        with suppress(NotFiniteLossError):  # rank 0 raises it too, and reports it
            self.training.epoch(session.train, plan, len(session.data.classes), self.teacher, target, Listener())

    def predict(self, images: str) -> None:
        """Predict this rank's part of a split with a model of rank 0."""
        self.ranks.copy(self.evaluated)
        predict_all(self.evaluated, getattr(self.current, images), self.current.config.train, self.ranks)

    def _frozen(self) -> Any:
        return self.current.place(self.current.new_model(0)).requires_grad_(False).eval()
