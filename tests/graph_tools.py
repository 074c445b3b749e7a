"""Small trainings for the tests of captured updates, and what they leave."""

import io

import numpy as np
import torch

from distill.arms import Fixed
from distill.config import TrainConfig
from distill.data.splits import Split
from distill.training import augment
from distill.training import cuda_graph as graph
from distill.training.batches import Batch, ImageStore, make_image_store
from distill.training.fit import Trainer
from distill.training.listener import Listener
from distill.training.models import CifarResNet, Classifier
from distill.training.objective import Objective

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


CLASSES, BATCH = 4, 4


SHOW = Listener()


def pool_of(n: int, device=CPU, resident: bool | None = None) -> ImageStore:
    rng = np.random.default_rng(n)
    labels = rng.integers(0, CLASSES, n)
    images = (rng.integers(0, 150, (n, 3, 8, 8)) + 25 * labels[:, None, None, None]).astype(np.uint8)
    return make_image_store(Split(images, labels, labels, np.arange(n)), device, resident)


def classifier(seed: int = 0, network=None) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network() if network else CifarResNet(8, 2, 3, CLASSES)
        return Classifier(network, torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.2, 0.3, 0.2]))


def fit_of(device=CPU, network=None, **options) -> Trainer:
    options = {"batch_size": BATCH, "lr": 0.01, "max_epochs": 3, "reg_coef": 1e-2} | options
    return Trainer(classifier(network=network), TrainConfig(**options), device)


def train_on(fit: Trainer, n: int, epochs, alpha: float | None = 0.4, pool=None, listener=SHOW) -> list[dict]:
    """Epochs over n images; with a teacher unless alpha is None."""
    pool = pool or pool_of(n, fit.device)
    teacher = None if alpha is None else classifier(seed=9).to(fit.device).requires_grad_(False).eval()
    plans = [augment.plan(1, 1, epoch, n, 8, augment=True, flip=True) for epoch in epochs]
    return [fit.epoch(pool, plan, CLASSES, teacher, Fixed(1.0 if alpha is None else alpha), listener) for plan in plans]


def everything(fit: Trainer) -> dict[str, torch.Tensor]:
    """Weights, buffers and optimiser state, copied to the CPU."""
    model = {name: t.detach().cpu().clone() for name, t in fit.model.state_dict().items()}
    states = fit.optimizer.state_dict()["state"].items()
    return model | {f"{i} {name}": t.cpu().clone() for i, state in states for name, t in state.items() if t is not None}


def assert_same_bits(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


SETTINGS = [
    ({}, 0.4),
    ({}, None),
    ({"loss": "kl", "temperature": 3.0}, 0.3),
    ({"loss": "ce", "reg": "l2", "lr_schedule": "onecycle"}, 0.4),
    ({"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.01, "lr_schedule": "cosine", "warmup_epochs": 1}, 0.4),
    ({"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "reg": "none"}, 0.4),
    ({"optimizer": "adamw", "weight_decay": 0.1, "lr_schedule": "cosine"}, 0.4),
]


def captured(fit: Trainer) -> graph.CapturedUpdates:
    """The graph that this model's first chunk would be captured with; nothing has been replayed yet."""
    pool = pool_of(8, fit.device)
    truth = torch.eye(CLASSES, device=fit.device)[pool.labels]

    def update(batch, rate):
        return fit.update(batch, Objective("mse", 1.0, 1.0), rate + 0.1)

    fit.model.train()
    return graph.GRAPHS.record(update, fit.model, fit.optimizer, Batch(pool.images, truth, None), BATCH, 2)


def check_no_trace(fit: Trainer) -> None:
    before, tensors = everything(fit), {**dict(fit.model.named_parameters()), **dict(fit.model.named_buffers())}
    moments = [(t, t.data_ptr()) for state in fit.optimizer.state.values() for t in state.values() if t is not None]
    places, draws = {name: t.data_ptr() for name, t in tensors.items()}, graph._rng_states(fit.device)
    captured(fit)
    after = everything(fit)
    for name in after.keys() - before.keys():  # what the optimiser made meanwhile
        assert not after[name].any(), name
    assert_same_bits({name: after[name] for name in before}, before)
    assert {name: t.data_ptr() for name, t in tensors.items()} == places
    assert all(t.data_ptr() == place for t, place in moments)
    assert all(torch.equal(a, b) for a, b in zip(draws, graph._rng_states(fit.device), strict=True))


def reloaded(fit: Trainer) -> dict:
    file = io.BytesIO()
    torch.save(fit.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")
