"""Several ranks on this machine without torchrun, and what they compute: ``python tests/ranks_tools.py FILE``."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from training_tools import CLASSES, CPU, SHOW, a_teacher, classifier, plan_of, pool_of

from distill.arms import Fixed
from distill.config import TrainConfig
from distill.training.fit import NotFiniteLossError, Trainer
from distill.training.predict import predict_all
from distill.training.ranks import ALONE, Ranks, joined
from distill.training.sync_batchnorm import synchronise

ROOT = Path(__file__).parents[1]


def environment_of(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a rank."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    return {name: str(value) for name, value in values.items()}


def start_ranks(size: int, *words: str, **options) -> list[subprocess.Popen]:
    """Start ``python words`` as so many ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=os.environ | environment_of(rank, size, port) | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        for rank in range(size)
    ]


# Options, alpha (None: no teacher), images. 30 images in batches of 8 leave a last batch of 6, three for each of two
# ranks; 31 leave 7, three and four; 18 leave 2, which both ranks compute; 17 leave one, which is left out.
TRAININGS = [
    ({"loss": "mse"}, None, 30),
    ({"loss": "ce", "reg": "l2", "clip_grad": 0.3}, 0.4, 31),
    ({"loss": "gce:q=0.7", "reg": "none", "label_smoothing": 0.1}, None, 18),
    ({"loss": "kl", "temperature": 3.0, "clip_grad": 0.05, "lr_schedule": "cosine"}, 0.3, 17),
    ({"loss": "mse", "ema": 0.9, "optimizer": "adamw", "weight_decay": 0.1}, 0.0, 31),
    ({"loss": "ce", "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.01}, 0.6, 18),
]


def train_config(options: dict, sync: bool) -> TrainConfig:
    """The options of a training, with a regulariser that is large enough to be seen."""
    return TrainConfig(
        **{"batch_size": 8, "lr": 1e-3, "reg_coef": 1e-2, "max_epochs": 2, **options}, sync_batchnorm=sync
    )


def training(ranks: Ranks, options: dict, alpha: float | None, n: int, sync: bool = True) -> dict:
    """Two epochs in float64: parameters, the kept model, the metrics, and its predictions."""
    train = train_config(options, sync)
    trainer = Trainer(classifier().double(), train, CPU, ranks)
    teacher = None if alpha is None else a_teacher().double()
    for epoch in range(2):
        metrics = trainer.epoch(pool_of(n), plan_of(n, epoch), CLASSES, teacher, Fixed(alpha or 0.0), SHOW)
    logits = predict_all(trainer.kept, pool_of(n), train, ranks)
    return {
        "model": trainer.model.state_dict(),
        "kept": trainer.kept.state_dict(),
        "metrics": metrics,
        "logits": logits,
    }


NORMS = [
    (nn.BatchNorm2d(3), (7, 3, 4, 5)),
    (nn.BatchNorm1d(3, affine=False, momentum=None), (7, 3)),
    (nn.BatchNorm3d(3, track_running_stats=False), (7, 3, 2, 2, 2)),
]


def normalised(ranks: Ranks, norm: nn.Module, shape: tuple[int, ...], first: int, end: int) -> dict:
    """The outputs and gradients of some images of a batch, and the running statistics."""
    synchronise(norm.double().train(), ranks)
    random = torch.Generator().manual_seed(1)
    images, weights = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    part = (2 + 3 * images[first:end]).requires_grad_()
    out = norm(part)
    (out * weights[first:end]).sum().backward()
    grads = [p.grad.clone() for p in norm.parameters()]
    ranks.add_up(grads)
    rows = (ranks.join(t, shape[0]) for t in (out.detach(), part.grad))
    return {"rows": list(rows), "grads": grads, "buffers": dict(norm.named_buffers())}


class Bad(nn.Module):
    """A classifier whose logits are not finite for the images of one rank at its third update."""

    def __init__(self, bad: bool) -> None:
        super().__init__()
        self.model = classifier()
        self.left = 3 if bad else 1000

    def forward(self, images):
        self.left -= 1
        return self.model(images) / (self.left != 0)


def not_finite(ranks: Ranks) -> str:
    """The error of an epoch with images that only rank 1 finds not to be finite."""
    trainer = Trainer(Bad(ranks.rank == 1).double(), train_config({}, False), CPU, ranks)
    try:
        trainer.epoch(pool_of(40), plan_of(40), CLASSES, None, Fixed(1.0), SHOW)
    except NotFiniteLossError as error:
        return str(error)
    return "no error"


def everything(ranks: Ranks) -> dict:
    """What this rank computes, alone or with others."""
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign] # the training's casts to float32
    first, end = ranks.part(7)
    mixed = [
        torch.full((3, 2), ranks.rank + 0.5),
        torch.tensor([True, False, ranks.rank == 0]),
        torch.tensor(ranks.rank),
    ]
    holder = torch.nn.Module()
    for i, tensor in enumerate(mixed):
        holder.register_buffer(str(i), tensor)
    ranks.copy(holder)
    few = ranks.join(torch.arange(1)[:, None], 1)
    return {
        "trainings": [training(ranks, *setting) for setting in TRAININGS],
        "unsynchronised": training(
            ranks, {"optimizer": "sgd", "lr": 0.1, "reg": "none", "momentum": 0.0}, None, 8, False
        ),
        "norms": [normalised(ranks, norm, shape, first, end) for norm, shape in NORMS],
        "copied": mixed,
        "few": few,
        "not_finite": not_finite(ranks),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined(CPU) as these:
        torch.save(everything(these), f"{sys.argv[1]}.{these.rank}")
    assert these is not ALONE
