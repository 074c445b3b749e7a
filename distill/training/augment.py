"""Augmentation: random crops after zero padding, random horizontal flips, and cutout.

Equals torchvision's RandomCrop(32, padding=4) and RandomHorizontalFlip(), for a whole batch at once. An epoch's draws
depend on (seed, step, epoch) alone and are made on the CPU. Pixels stay uint8, so every device gives the same images.
"""

from dataclasses import dataclass, field, replace

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
    cutout: int = 0  # pixels, the side of the black square; 0: none
    centre: Tensor = field(default_factory=lambda: torch.zeros((0, 0)))  # (n, 2) shares of height and width, or (n, 0)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice | Tensor) -> "Plan":
        return replace(self, **{name: getattr(self, name)[part] for name in TENSORS})

    def to(self, device: torch.device) -> "Plan":
        """The same plan with its tensors on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})


TENSORS = ("order", "top", "left", "flip", "centre")


def plan(seed: int, step: int, epoch: int, n: int, size: int, augment: bool, flip: bool, cutout: int = 0) -> Plan:
    """The draws for one epoch over ``n`` images, ``size`` pixels wide. The padding is size // 8 (4 for CIFAR)."""
    rng = generator(seed, "epoch", step, epoch)
    pad = size // 8 if augment else 0
    order = rng.permutation(n)
    top, left = rng.integers(0, 2 * pad + 1, size=(2, n))
    flips = rng.random(n) < (0.5 if augment and flip else 0.0)
    centre = rng.random((n, 2 if cutout else 0))
    as_tensor = torch.from_numpy
    draws = as_tensor(order), as_tensor(top), as_tensor(left), as_tensor(flips)
    return Plan(*draws, pad, augment, cutout, as_tensor(centre))


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
    cropped = padded[image, channel, rows[:, None, :, None], cols[:, None, None, :]]
    if plan.cutout:
        cropped[_square(plan, h, w)[:, None].expand_as(cropped)] = 0
    return cropped


def _square(plan: Plan, height: int, width: int) -> Tensor:
    """(b, h, w) bool: a square of ``cutout`` pixels a side around the centre, as far as it is in the image."""
    inside = []
    for length, share in ((height, plan.centre[:, 0]), (width, plan.centre[:, 1])):
        first = (share * length).long()[:, None] - plan.cutout // 2
        at = torch.arange(length, device=share.device)
        inside.append((at >= first) & (at < first + plan.cutout))
    return inside[0][:, :, None] & inside[1][:, None, :]
