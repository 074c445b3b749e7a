"""A session: everything that the models of one seed share. No model changes it."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.arms import Fixed
from distill.chains.checkpoints import check_hash, load_parameters
from distill.config import Config
from distill.data.splits import Dataset
from distill.losses import loss_function
from distill.randomness import torch_seed
from distill.training import augment
from distill.training.batches import ImageStore, make_image_store
from distill.training.device import place
from distill.training.fit import Trainer
from distill.training.listener import Listener
from distill.training.models import Classifier, forked_rng
from distill.training.objective import one_hot
from distill.training.predict import predict_all
from distill.training.ranks import current


class Session:
    """Configuration, images on the device, and how networks are made and scored, for one seed.

    On several ranks rank 0 has one, and makes each follower have an equal one: see ``running/follower.py``.
    ``make_network()`` returns a new network from normalised images (n, c, h, w) float32 to logits (n, classes).
    """

    def __init__(
        self,
        config: Config,
        seed: int,
        data: Dataset,
        device: torch.device,
        make_network: Callable[[], nn.Module],
    ) -> None:
        self.config = config
        self.seed = seed
        self.data = data
        self.device = device
        self.make_network = make_network
        self.ranks = current()
        self.train = make_image_store(data.train, device)
        self.val = None if data.val is None else make_image_store(data.val, device)
        self.test = make_image_store(data.test, device)

    @property
    def selects_best(self) -> bool:
        """Whether the epoch that is best on the held-out images is kept, instead of the last."""
        return self.config.chain.teacher_select == "best"

    def new_model(self, step: int) -> Classifier:
        """A model on the CPU with initial parameters drawn from (seed, step)."""
        with forked_rng():
            torch.manual_seed(torch_seed(self.seed, "init", step))
            return Classifier(self.make_network(), self.data.mean, self.data.std)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory layout that trains fastest there."""
        return place(model, self.config.train, self.device)

    def load(self, file: Path, sha256: str, step: int) -> nn.Module:
        """A finished model, frozen and in eval mode. Raises ConfigError if the file changed or disappeared."""
        check_hash(file, sha256)
        model = self.new_model(step)
        load_parameters(model, file)
        return self.place(model).requires_grad_(False).eval()

    def train_epoch(
        self, trainer: Trainer, plan: augment.Plan, teacher: nn.Module | None, target: Fixed, listener: Listener
    ) -> dict[str, float | None]:
        """``Trainer.epoch`` on the training images, on all ranks."""
        self._lead()
        self.ranks.give(
            "trainer", trainer, lambda: (trainer.state_dict(), None if teacher is None else teacher.state_dict())
        )
        with self.ranks.work("train_epoch", plan, target, torch.initial_seed()):
            return trainer.epoch(self.train, plan, len(self.data.classes), teacher, target, listener)

    def _lead(self) -> None:
        """Make the other ranks work on this session."""
        self.ranks.give("session", self, lambda: (self.config, self.seed, self.data.mean, self.data.std))

    def predict(self, model: nn.Module, images: ImageStore) -> Tensor:
        """Logits (n, classes) float32 on the CPU, for all images in order and without augmentation."""
        name = next((name for name in ("val", "test") if getattr(self, name) is images), "train")
        self._lead()
        with self.ranks.work("predict", name):
            self.ranks.copy(model)
            return predict_all(model, images, self.config.train, self.ranks)

    def score(self, model: nn.Module, images: ImageStore) -> tuple[float, Tensor]:
        """The mean loss against the true labels, and the logits (n, classes)."""
        logits = self.predict(model, images)
        truth = one_hot(images.labels.cpu(), logits.shape[1])
        loss = loss_function(self.config.train.loss)(logits.double(), truth).mean().item()
        return loss, logits
