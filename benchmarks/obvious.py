"""The obvious program: what one would write in an afternoon, and what ``training.py`` measures the engine against.

A Dataset of PIL images with torchvision's transforms, a DataLoader with worker processes, the teacher's forward pass in
every batch, torch.optim.Adam with its defaults, the norm regulariser as a Python loop through autograd, and ``.item()``
for the metrics of every batch. Nothing in it is slow on purpose, and it computes the paper's losses.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Images(Dataset):
    """A data set of augmented, normalised float tensors and labels, from uint8 images (n, c, h, w)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: np.ndarray, std: np.ndarray):
        self.images = images.transpose(0, 2, 3, 1)
        self.labels = labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[-1], padding=images.shape[-1] // 8),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean.tolist(), std.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def loader(data: Images, batch: int, workers: int) -> DataLoader:
    """A shuffling DataLoader with worker processes that live as long as it does."""
    pinned = torch.cuda.is_available()
    return DataLoader(data, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0, pin_memory=pinned)


class Obvious:
    """A training loop; ``network`` and ``teacher`` (None for the first model) take the same images."""

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module | None,
        alpha: float,
        lr: float,
        reg_coef: float,
        device: torch.device,
    ):
        self.network = network.to(device).train()
        self.teacher = None if teacher is None else teacher.to(device).eval().requires_grad_(False)
        self.alpha = alpha
        self.reg_coef = reg_coef
        self.device = device
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """The paper's loss: squared errors of the softmax against labels and teacher, and the norm regulariser."""
        truth = F.one_hot(labels, logits.shape[1]).float()
        loss = F.mse_loss(logits.softmax(1), truth)
        if teacher_logits is not None:
            loss = self.alpha * loss
            loss = loss + (1 - self.alpha) * F.mse_loss(logits.softmax(1), teacher_logits.softmax(1))
        if self.reg_coef:
            loss = loss + self.reg_coef * sum(torch.norm(p) for p in self.network.parameters() if p.requires_grad)
        return loss

    def update(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """One step on one batch; returns its loss and accuracy."""
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with torch.no_grad():
            teacher_logits = None if self.teacher is None else self.teacher(images)
        logits = self.network(images)
        loss = self.loss(logits, labels, teacher_logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), (logits.argmax(1) == labels).float().mean().item()

    def train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
        """Train on every batch; returns the number of images."""
        images = 0
        for batch, labels in batches:
            self.update(batch, labels)
            images += len(labels)
        return images
