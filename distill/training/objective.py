"""The blended target and the losses on it.

A student is fitted to ``alpha * truth + (1 - alpha) * teacher``. For the squared error of the softmax, and for cross
entropy, a loss on that one target and the weighted sum of the losses on its two parts differ by a constant, so their
gradients are equal (Borup & Andersen 2021, arXiv 2102.13088, section 3; kernel ridge regression has the same identity).
"""

from dataclasses import dataclass
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor

from distill.losses import LossFunction, loss_function, parse


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (n,) int64 as float32 (n, classes)."""
    return F.one_hot(labels, classes).float()


def blend(truth: Tensor, soft: Tensor | None, alpha: float) -> Tensor:
    """``alpha * truth + (1 - alpha) * soft``, both (n, classes) probabilities; the truth alone without a teacher."""
    return truth if soft is None else alpha * truth + (1 - alpha) * soft


@dataclass(frozen=True)
class Objective:
    """The loss of a chain, per image. ``soft`` is the teacher's softmax at ``temperature`` T.

    At T = 1 it is the loss on the blended target. At other T the distillation term is T^2 * loss(logits / T, soft)
    (Hinton et al. 2015, arXiv 1503.02531), which is not linear in one blended target, so the two terms stay apart; so
    they do for a loss that is not linear in its target.
    """

    loss: str  # as ``distill.losses.parse`` reads it
    temperature: float
    alpha: float

    @cached_property
    def function(self) -> LossFunction:
        return loss_function(self.loss)

    @cached_property
    def blends(self) -> bool:
        """Whether one loss on the blended target has the gradient of the two weighted losses."""
        return self.temperature == 1 and parse(self.loss)[0].linear_in_target

    def __call__(self, logits: Tensor, truth: Tensor, soft: Tensor | None) -> Tensor:
        """(n,) loss to be minimised, for logits, truth and soft (n, classes) float32."""
        if soft is None or self.blends:
            return self.function(logits, blend(truth, soft, self.alpha))
        on_truth, on_soft = self.terms(logits, truth, soft)
        return self.alpha * on_truth + (1 - self.alpha) * on_soft

    def terms(self, logits: Tensor, truth: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
        """(n,), (n,): the loss against the truth and against the teacher, before weighting."""
        t = self.temperature
        return self.function(logits, truth), t**2 * self.function(logits / t, soft)
