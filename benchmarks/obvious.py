"""The obvious program: what one would write in an afternoon, and what ``training.py`` measures the engine against.

A Dataset of PIL images with torchvision's transforms, a DataLoader with worker processes, the teacher's forward pass in
every batch, torch.optim.Adam as it comes, the norm regulariser as a Python loop through autograd, and ``.item()`` for
the figures of every batch. Nothing in it is slow on purpose, and it computes the paper's losses.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Images(Dataset):
    """uint8 images (n, c, h, w) as a data set of augmented, normalised float tensors and labels."""

    def __init__(self, images, labels, mean, std):
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels
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
    """A training loop on normalised images; ``teacher`` (or None) takes the same."""

    def __init__(self, network: nn.Module, teacher: nn.Module | None, alpha: float, lr: float, reg_coef: float, device):
        self.network = network.to(device).train()
        self.teacher = teacher and teacher.to(device).eval().requires_grad_(False)
        self.alpha, self.reg_coef, self.device = alpha, reg_coef, device
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
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        with torch.no_grad():
            teacher_logits = None if self.teacher is None else self.teacher(images)
        logits = self.network(images)
        loss = self.loss(logits, labels, teacher_logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), (logits.argmax(1) == labels).float().mean().item()

    def train(self, batches: Iterator) -> int:
        """Train on every batch; returns the number of images."""
        images = 0
        for batch in batches:
            self.update(*batch)
            images += len(batch[1])
        return images
