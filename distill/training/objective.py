"""The blended target and the losses on it.

A student is fitted to ``alpha * truth + (1 - alpha) * teacher``. For the squared error of the softmax, and for cross
entropy, a loss on that one target and the weighted sum of the losses on its two parts differ by a constant, so their
gradients are equal (Borup & Andersen 2021, arXiv 2102.13088, section 3; kernel ridge regression has the same identity).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (n,) int64 as float32 (n, classes)."""
    return F.one_hot(labels, classes).float()


def blend(truth: Tensor, soft: Tensor | None, alpha: float) -> Tensor:
    """``alpha * truth + (1 - alpha) * soft``, both (n, classes) probabilities; the truth alone without a teacher."""
    return truth if soft is None else alpha * truth + (1 - alpha) * soft


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """(n,): mean over classes of (softmax(logits) - target)^2, as the paper's program has it."""
    return (logits.softmax(1) - target).square().mean(1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(n,): -sum target * log softmax(logits), natural logarithm."""
    return -(target * logits.log_softmax(1)).sum(1)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """(n,): KL(target || softmax(logits)) = cross entropy less the target's entropy."""
    return cross_entropy(logits, target) - torch.special.entr(target).sum(1)


LOSSES = {"mse": squared_error, "ce": cross_entropy, "kl": divergence}


class Objective:
    """The loss of a chain, per image. ``soft`` is the teacher's softmax at ``temperature`` T.

    At T = 1 it is the loss on the blended target. At other T (ce and kl only) the distillation term is
    T^2 * loss(logits / T, soft) (Hinton et al. 2015, arXiv 1503.02531), which is not linear in one blended target,
    so the two terms stay apart.
    """

    def __init__(self, loss: str, temperature: float, alpha: float):
        self.loss, self.temperature, self.alpha = LOSSES[loss], temperature, alpha

    def __call__(self, logits: Tensor, truth: Tensor, soft: Tensor | None) -> Tensor:
        """(n,) loss to be minimised, for logits, truth and soft (n, classes) float32."""
        if soft is None or self.temperature == 1:
            return self.loss(logits, blend(truth, soft, self.alpha))
        on_truth, on_soft = self.terms(logits, truth, soft)
        return self.alpha * on_truth + (1 - self.alpha) * on_soft

    def terms(self, logits: Tensor, truth: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
        """(n,), (n,): the loss against the truth and against the teacher, before weighting."""
        t = self.temperature
        return self.loss(logits, truth), t**2 * self.loss(logits / t, soft)


NORM_FLOOR = torch.finfo(torch.float32).tiny ** 0.5  # below it squares underflow, and with them the norm


def add_regulariser(parameters: list[Tensor], reg: str, coef: float) -> Tensor:
    """Add the regulariser's gradient to ``p.grad`` of every parameter, and return its value, a float32 scalar.

    norm: coef * sum ||p||, gradient coef * p / ||p|| (0 where p = 0, as torch.norm has it); l2: coef * sum ||p||^2.
    Worked out by hand because autograd through a norm per tensor costs hundreds of small operations an update.
    """
    if reg == "none" or coef == 0:
        return torch.zeros((), device=parameters[0].device)
    values = [p.detach() for p in parameters]
    for p in parameters:
        if p.grad is None:  # the loss does not reach it
            p.grad = torch.zeros_like(p)
    grads = [p.grad for p in parameters]
    norms = torch._foreach_norm(values)
    if reg == "l2":
        torch._foreach_add_(grads, values, alpha=2 * coef)
        return coef * torch.stack(norms).square().sum()
    torch._foreach_addcdiv_(grads, values, torch._foreach_clamp_min(norms, NORM_FLOOR), value=coef)
    return coef * torch.stack(norms).sum()
