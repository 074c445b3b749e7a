"""Small data, networks and trainings for the tests of distill/training."""

import numpy as np
import torch
from torch import nn

from distill.arms import Fixed
from distill.config import TrainConfig
from distill.data.splits import Split
from distill.training import augment
from distill.training.batches import ImageStore, make_image_store
from distill.training.fit import Trainer
from distill.training.listener import Listener, Notes
from distill.training.models import CifarResNet, Classifier

CPU = torch.device("cpu")


CLASSES = 4


SHOW = Listener()


def split_of(n: int, size: int = 8) -> Split:
    rng = np.random.default_rng(n)
    labels = rng.integers(0, CLASSES, n)
    images = (rng.integers(0, 150, (n, 3, size, size)) + 25 * labels[:, None, None, None]).astype(np.uint8)
    return Split(images, labels, labels, np.arange(n))


def pool_of(n: int, size: int = 8) -> ImageStore:
    return make_image_store(split_of(n, size), CPU)


def plan_of(n: int, epoch: int = 0, size: int = 8) -> augment.Plan:
    return augment.plan(1, 1, epoch, n, size, augment=True, flip=True)


def classifier(seed: int = 0) -> Classifier:
    """A ResNet-8 of width 2, with batch statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(CifarResNet(8, 2, 3, CLASSES), torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.2, 0.3, 0.2]))
        model(torch.rand(32, 3, 8, 8))
        return model


def a_teacher() -> Classifier:
    return classifier(seed=9).requires_grad_(False).eval()


def named(value) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else f"alpha={value}"


class Spy(nn.Module):
    """A classifier that keeps what it was shown, and in which mode."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.shown, self.modes = model, [], []

    def forward(self, images):
        self.shown.append(images.clone())
        self.modes.append(self.model.training)
        return self.model(images)


def trained(pool: ImageStore, teacher=None, **options) -> dict[str, torch.Tensor]:
    fit = Trainer(classifier(), TrainConfig(batch_size=4, lr=1e-2, **options), pool.device)
    fit.epoch(pool, plan_of(len(pool)), CLASSES, teacher, Fixed(0.5), listener := Notes())
    assert not listener.notes
    return {name: value.cpu() for name, value in fit.model.state_dict().items()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())
