"""The blended target and the loss on it.

A student is fitted to the target ``alpha * given labels + (1 - alpha) * teacher``. For most losses, the loss on this
target differs from ``alpha * loss(given) + (1 - alpha) * loss(teacher)`` by a term without the logits, so the gradients
are equal (Borup & Andersen 2021, arXiv 2102.13088, section 3).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses import LossFunction, loss_function, parse


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (n,) int64 as float32 (n, classes)."""
    return F.one_hot(labels, classes).float()


def smoothed(given: Tensor, share: float) -> Tensor:
    """``(1 - share) * given + share / classes``, for labels (n, classes) as one-hot rows."""
    return given if share == 0 else (1 - share) * given + share / given.shape[1]


def blend(given: Tensor, soft: Tensor | None, alpha: float) -> Tensor:
    """``alpha * given + (1 - alpha) * soft``, both (n, classes) probabilities; ``given`` alone without a teacher."""
    return given if soft is None else alpha * given + (1 - alpha) * soft


@dataclass(frozen=True)
class Objective:
    """The loss per image. ``soft``, the teacher's part of the target, is its softmax at ``temperature`` T.

    At T = 1, a loss that is linear in its target is computed on the blended target. Otherwise it is a weighted sum of
    two losses, and the one against the teacher is T^2 * loss(logits / T, soft) (Hinton et al. 2015, arXiv 1503.02531).
    """

    loss: str  # as ``distill.losses.parse`` reads it
    temperature: float
    alpha: float  # weight of the given labels

    @cached_property
    def function(self) -> LossFunction:
        """The loss with its options filled in."""
        return loss_function(self.loss)

    @cached_property
    def blends(self) -> bool:
        """Whether one loss on the blended target has the gradient of the two weighted losses."""
        return self.temperature == 1 and parse(self.loss)[0].linear_in_target

    def __call__(self, logits: Tensor, given: Tensor, soft: Tensor | None) -> Tensor:
        """(n,) loss to be minimised, for logits, given and soft (n, classes) float32."""
        if soft is None or self.blends:
            return self.function(logits, blend(given, soft, self.alpha))
        on_given, on_soft = self.terms(logits, given, soft)
        return self.alpha * on_given + (1 - self.alpha) * on_soft

    def terms(self, logits: Tensor, given: Tensor, soft: Tensor | None) -> tuple[Tensor, Tensor]:
        """(n,), (n,): the losses against the given labels and the teacher, before weighting; 0 without a teacher."""
        on_given = self.function(logits, given)
        if soft is None:
            return on_given, torch.zeros_like(on_given)
        t = self.temperature
        return on_given, t**2 * self.function(logits / t, soft)
