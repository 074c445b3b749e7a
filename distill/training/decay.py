"""An update's last part: the regulariser's gradient and the optimiser's step, on the CPU in one pass over memory.

The gradient of coef * ||p|| is (coef / ||p||) * p, and that of coef * ||p||^2 is 2 * coef * p: each is what Adam itself
adds to the gradient for a weight decay of that size. Its fused kernel takes one decay for all tensors of a call, so it
is called once a tensor; on a CPU a call costs microseconds, and the gradients need not be read and written once more.
"""

import torch
from torch import Tensor

from distill.training.objective import NORM_FLOOR, add_regulariser


def step(optimizer: torch.optim.Optimizer, parameters: list[Tensor], reg: str, coef: float) -> Tensor:
    """Update ``parameters`` by their gradients and the regulariser's; returns its value before, a float32 scalar.

    The same numbers as ``add_regulariser`` and ``optimizer.step()``, but for rounding; where the regulariser is folded
    in, its part is not in ``p.grad``. An optimiser's first step, which makes its moments, is always its own.
    """
    if not folds(optimizer, parameters, reg, coef):
        value = add_regulariser(parameters, reg, coef)
        optimizer.step()
        return value
    group, held = optimizer.param_groups[0], [optimizer.state[p] for p in parameters]
    beta1, beta2 = group["betas"]
    with torch.no_grad():
        norms = torch.stack(torch._foreach_norm(parameters))
        decays = 2 * coef * torch.ones_like(norms) if reg == "l2" else coef / norms.clamp_min(NORM_FLOOR)
        torch._foreach_add_([state["step"] for state in held], 1)
        for p, state, decay in zip(parameters, held, decays.tolist(), strict=True):
            if p.grad is None:  # the loss does not reach it
                p.grad = torch.zeros_like(p)
            torch._fused_adam_(
                [p], [p.grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
                lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"] + decay, eps=group["eps"],
                amsgrad=False, maximize=False,
            )  # fmt: skip
        return coef * (norms.square() if reg == "l2" else norms).sum()


def folds(optimizer: torch.optim.Optimizer, parameters: list[Tensor], reg: str, coef: float) -> bool:
    """Whether the next step can take the regulariser in: Adam's (not AdamW's) on a CPU, and not its first."""
    regularised = reg != "none" and coef > 0 and all(p.device.type == "cpu" for p in parameters)
    return regularised and type(optimizer) is torch.optim.Adam and len(optimizer.state) == len(parameters)
