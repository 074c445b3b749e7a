"""Augmentation: random crops after zero padding, and random horizontal flips.

Equals torchvision's RandomCrop(32, padding=4) and RandomHorizontalFlip(), for a whole batch at once. An epoch's draws
depend on (seed, step, epoch) alone and are made on the CPU. Pixels stay uint8, so every device gives the same images.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.randomness import generator


@dataclass(frozen=True)
class Plan:
    """The draws of one epoch. Entry i of each tensor is for image ``order[i]``."""

    order: Tensor  # (n,) int64, a permutation
    top: Tensor  # (n,) int64 in [0, 2 * pad], first row of the crop in the padded image
    left: Tensor  # (n,) int64 in [0, 2 * pad]
    flip: Tensor  # (n,) bool
    pad: int  # pixels of zero padding on each side
    augments: bool  # if not, images are only put in order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> "Plan":
        return Plan(self.order[part], self.top[part], self.left[part], self.flip[part], self.pad, self.augments)

    def to(self, device: torch.device) -> "Plan":
        """The same plan with its tensors on a device."""
        order, top, left, flip = (t.to(device) for t in (self.order, self.top, self.left, self.flip))
        return Plan(order, top, left, flip, self.pad, self.augments)


def plan(seed: int, step: int, epoch: int, n: int, size: int, augment: bool, flip: bool) -> Plan:
    """The draws for one epoch over ``n`` images, ``size`` pixels wide. The padding is size // 8 (4 for CIFAR)."""
    rng = generator(seed, "epoch", step, epoch)
    pad = size // 8 if augment else 0
    order = rng.permutation(n)
    top, left = rng.integers(0, 2 * pad + 1, size=(2, n))
    flips = rng.random(n) < (0.5 if augment and flip else 0.0)
    as_tensor = torch.from_numpy
    return Plan(as_tensor(order), as_tensor(top), as_tensor(left), as_tensor(flips), pad, augment)


def apply(images: Tensor, plan: Plan) -> Tensor:
    """Crop and flip ``images`` (b, c, h, w) uint8, already in the plan's order, into new (b, c, h, w) uint8."""
    b, c, h, w = images.shape
    if not plan.augments:
        return images
    rows = plan.top[:, None] + torch.arange(h, device=images.device)  # (b, h)
    cols = torch.arange(w, device=images.device).expand(b, w)
    cols = plan.left[:, None] + torch.where(plan.flip[:, None], w - 1 - cols, cols)  # (b, w)
    padded = F.pad(images, (plan.pad,) * 4)  # (b, c, h + 2 pad, w + 2 pad)
    image = torch.arange(b, device=images.device)[:, None, None, None]
    channel = torch.arange(c, device=images.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], cols[:, None, None, :]]
