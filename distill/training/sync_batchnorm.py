"""Batch normalisation over a batch that several ranks share, on any device.

torch.nn.SyncBatchNorm refuses images on the CPU, so nothing of it could be tested there. Means and variances of the
whole batch come from those of the shares (Chan et al. 1979), in one exchange of 2 C + 1 numbers for C channels; the
backward pass needs one sum of 2 C numbers.
"""

from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from distill.training.ranks import Ranks, connected

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronise(model: nn.Module, ranks: Ranks) -> None:
    """Make the model's batch normalisations use the statistics of whole batches while it trains on several ranks."""
    if ranks.size == 1:
        return

    def forward(self: Any, x: Tensor) -> Tensor:
        if not (self.training and ranks.splits):
            return type(self).forward(self, x)
        out, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps, ranks)
        _track(self, mean, var, count)
        return out

    for module in model.modules():
        if isinstance(module, NORMS):
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]


@torch.no_grad()
def _track(norm: Any, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Move the running statistics as torch does, the variance by its unbiased estimate."""
    if norm.running_mean is None:
        return
    norm.num_batches_tracked += 1
    share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_((var * count / (count - 1)).to(norm.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with the mean, the variance and the count over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        exact = x.double() if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(exact, axes, correction=0)
        mine = torch.cat([mean, var, mean.new_full((1,), x.numel() / x.shape[1])])
        parts = [torch.empty_like(mine) for _ in range(ranks.size)]
        with connected():
            dist.all_gather(parts, mine)
        every = torch.stack(parts)
        means, variances = every[:, :-1].chunk(2, 1)
        counts = every[:, -1:]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.axes = axes
        ctx.ranks = ranks
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.ndim - 2)]
        grad = grads[0].to(mean.dtype)
        normalised = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        grad_bias = grad.sum(ctx.axes)
        grad_weight = (grad * normalised).sum(ctx.axes)
        sums = torch.stack([grad_bias, grad_weight])
        ctx.ranks.add_up([sums])
        on_mean, on_scale = (sums / count).view(2, *shape).unbind()
        rate = scale if weight is None else scale * weight
        grad_x = (grad - on_mean - normalised * on_scale) * rate.view(shape)
        if weight is None:
            return grad_x.to(x.dtype), None, None, None, None
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None
