"""The optimiser, its learning rate, and its step with the regulariser's gradient.

On a CPU the regulariser is folded into Adam's step as a weight decay per tensor, which saves one pass over memory. The
gradient of coef * ||p|| is (coef / ||p||) * p, and that of coef * ||p||^2 is 2 * coef * p; Adam adds the same to the
gradient for a weight decay of that size. Adam's fused kernel takes one weight decay per call, so it is called once per
tensor, which costs microseconds. The kernel, ``torch._fused_adam_``, is private: tests/training/test_optim.py compares
it with public functions.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from distill.config import TrainConfig

NORM_FLOOR = torch.finfo(torch.float32).tiny ** 0.5  # of a smaller tensor the squares underflow, and the norm is 0


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """torch.optim's Adam, AdamW or SGD over the model's trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay, "fused": True}
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=train.momentum or 0.0, nesterov=train.nesterov, **options)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    return torch.optim.Adam(parameters, **options)


def learning_rate(train: TrainConfig, update: int, updates_per_epoch: int) -> float:
    """The learning rate of one update, counted from 0 over the whole training.

    It rises linearly to ``lr`` over warmup_epochs; then it is constant, or ``cosine`` lowers it to 0. ``onecycle`` is
    that of Smith & Topin (2019) with torch's constants: from lr/25 up to lr in 30 % of the updates, then down to
    lr/250,000, each along a cosine. It does not change the momentum.
    """

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    total = train.epochs * updates_per_epoch
    if train.lr_schedule == "onecycle":
        peak = max(0.3 * total - 1, 1e-9)
        if update <= peak:
            return cosine(train.lr / 25, train.lr, update / peak)
        return cosine(train.lr, train.lr / 25e4, (update - peak) / max(total - 1 - peak, 1e-9))
    warmup = min(train.warmup_epochs, train.epochs - 1) * updates_per_epoch
    if update < warmup:
        return train.lr * (update + 1) / warmup
    if train.lr_schedule == "cosine":
        return cosine(train.lr, 0.0, (update - warmup) / (total - warmup))
    return train.lr


def updates_per_epoch(n: int, batch_size: int) -> int:
    """Updates in an epoch of ``n`` images. A last batch of one image is left out: it has no variance."""
    updates = n // batch_size
    if n % batch_size > 1:
        updates += 1
    return updates


def add_regulariser(parameters: list[Tensor], reg: str, coef: float) -> Tensor:
    """Add the regulariser's gradient to ``p.grad`` of every parameter, and return its value, a float32 scalar.

    norm: coef * sum ||p||, with gradient coef * p / ||p|| (0 at p = 0, as in torch.norm). l2: coef * sum ||p||^2.
    Not by autograd, which takes hundreds of small operations per update for a norm per tensor.
    """
    if reg == "none" or coef == 0:
        return torch.zeros((), device=parameters[0].device)
    values = [p.detach() for p in parameters]
    grads = [_gradient(p) for p in parameters]
    norms = torch._foreach_norm(values)
    if reg == "l2":
        torch._foreach_add_(grads, values, alpha=2 * coef)
        return coef * torch.stack(norms).square().sum()
    torch._foreach_addcdiv_(grads, values, torch._foreach_clamp_min(norms, NORM_FLOOR), value=coef)
    return coef * torch.stack(norms).sum()


def _gradient(p: Tensor) -> Tensor:
    """``p.grad``, set to zeros if the loss does not depend on ``p``."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


def update(optimizer: torch.optim.Optimizer, parameters: list[Tensor], reg: str, coef: float) -> Tensor:
    """One optimiser step with the loss's and the regulariser's gradients.

    Returns the regulariser's value before the step, a float32 scalar. Up to rounding this is ``add_regulariser`` and
    ``optimizer.step()``, but if the regulariser is folded into the step, ``p.grad`` does not include it.
    """
    if not can_fold(optimizer, parameters, reg, coef):
        value = add_regulariser(parameters, reg, coef)
        optimizer.step()
        return value
    group = optimizer.param_groups[0]
    held = [optimizer.state[p] for p in parameters]
    beta1, beta2 = group["betas"]
    with torch.no_grad():
        norms = torch.stack(torch._foreach_norm(parameters))
        decays = 2 * coef * torch.ones_like(norms) if reg == "l2" else coef / norms.clamp_min(NORM_FLOOR)
        torch._foreach_add_([state["step"] for state in held], 1)
        for p, state, decay in zip(parameters, held, decays.tolist(), strict=True):
            torch._fused_adam_(
                [p], [_gradient(p)], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
                lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"] + decay, eps=group["eps"],
                amsgrad=False, maximize=False,
            )  # fmt: skip
        return coef * (norms.square() if reg == "l2" else norms).sum()


def can_fold(optimizer: torch.optim.Optimizer, parameters: list[Tensor], reg: str, coef: float) -> bool:
    """Whether the regulariser can be folded into the next step: only Adam's (not AdamW's) on a CPU.

    The first step is never folded, because the optimiser creates its moments in it.
    """
    regularised = reg != "none" and coef > 0 and all(p.device.type == "cpu" for p in parameters)
    return regularised and type(optimizer) is torch.optim.Adam and len(optimizer.state) == len(parameters)
