"""Predictions of a trained network: logits of a whole split, and a teacher's soft targets for a chunk."""

import torch
from torch import Tensor, nn

from distill.config import TrainConfig
from distill.training.batches import ImageStore, chunk_size
from distill.training.cuda_graph import GRAPHS
from distill.training.device import autocast
from distill.training.ranks import ALONE, Ranks

PASS_PIXELS = 2**18  # of one forward pass: 256 images of CIFAR, which fit most devices


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, train: TrainConfig) -> Tensor:
    """Logits (m, classes) float32 of one chunk of images, in eval mode."""
    model.eval()
    parts = images.split(max(1, PASS_PIXELS // (images.shape[2] * images.shape[3])))
    with GRAPHS.guard(train.graph, images, "eval", train.precision), autocast(train, images.device):
        return torch.cat([model(part).float() for part in parts])


def predict_all(model: nn.Module, pool: ImageStore, train: TrainConfig, ranks: Ranks = ALONE) -> Tensor:
    """Logits (n, classes) float32 on the CPU for a whole split, in its order and not augmented.

    Each rank computes a part of them; all must call this with the same model and images.
    """
    first, end = ranks.part(len(pool))
    size = chunk_size(pool, train.batch_size)
    starts = range(first, end, size)
    parts = (pool.gather(slice(i, min(i + size, end))).to(pool.device, non_blocking=True) for i in starts)
    logits = torch.cat([predict(model, part, train) for part in parts])
    return ranks.join(logits, len(pool)).cpu()  # waits for the device


def soft_targets(teacher: nn.Module | None, images: Tensor, train: TrainConfig) -> Tensor | None:
    """The teacher's probabilities (m, classes) float32 at the temperature, for exactly these images."""
    return None if teacher is None else (predict(teacher, images, train) / train.temperature).softmax(1)
