"""Convolutions as matrix products that skip the padding, which is faster than torch for outputs of a few pixels.

With the ImageNet stem a 32x32 image has 2x2 pixels in the third stage and one in the last. There 5/9 and 8/9 of the
multiplications of a 3x3 kernel are with padding. Here an output pixel is a sum over the kernel's rows that overlap the
image. With channels last in memory each term is a matrix product of views, so nothing is copied. The result is exact to
rounding. Weights that overlap only padding get the gradient 0, as in the full convolution.

On processors with AMX torch's own bf16 convolution sometimes gives NaN weight gradients for maps of one pixel (compare
uxlfoundation/oneDNN#5717); these products never did. A bf16 run on a CPU still uses torch's convolution with
``--compile`` or in a custom network. There a NaN gradient makes parameters NaN, and ``fit.Trainer.epoch`` raises
NotFiniteLossError.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Larger outputs are left to torch. The value for CUDA is not measured; more pixels mean more kernels to launch.
MOST_PIXELS = {"cpu": 4, "cuda": 1}


class ProductConv2d(nn.Conv2d):
    """A plain convolution (see ``is_plain``) that computes small outputs as products and leaves others to nn.Conv2d.

    Its parameters and state dictionary are those of nn.Conv2d.
    """

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> "ProductConv2d":
        """A ProductConv2d with the same parameter tensors as ``conv``, a plain convolution. Draws no random numbers."""
        bias = conv.bias is not None
        geometry: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding")}
        # The meta device draws no initial weights.
        made = cls(conv.in_channels, conv.out_channels, bias=bias, device="meta", **geometry)
        made.weight = conv.weight
        made.bias = conv.bias
        return made.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:  # (n, in, h, w) -> (n, out, h', w')
        device = x.device.type
        limit = MOST_PIXELS.get(device, 0)
        if not limit or x.ndim != 4 or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(x)
        if isinstance(self.padding, str):
            return super().forward(x)
        if device == "cpu" and self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0):
            return _channels_first(F.linear(_channels_last(x), self.weight.flatten(1), self.bias))
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        elif x.dtype != self.weight.dtype:
            return super().forward(x)  # raises torch's error for mixed dtypes
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        h, w = ((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in sides)
        if h < 1 or w < 1 or h * w > limit:
            return super().forward(x)
        out = _channels_first(_Products.apply(x, self.weight, (h, w), self.stride, self.padding))
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a plain convolution: undilated, ungrouped, padded with zeros."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    return module.groups == 1 and module.dilation == (1, 1)


class _Products(torch.autograd.Function):
    """The convolution (n, h', w', out) in the images' dtype. The weights' gradient is summed in the weights' dtype."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, size: tuple, stride: tuple, pad: tuple) -> Tensor:
        images = _channels_last(x)
        kernels = _kernels(x, weight, size)
        out = images.new_zeros(len(x), *size, len(weight))
        for i, j, row, columns, krow, kcolumns in product_terms(x.shape[2:], weight.shape[2:], stride, pad):
            part = kernels[:, krow, kcolumns].flatten(1).to(x.dtype)
            out[:, i, j].addmm_(images[:, row, columns].flatten(1), part.t())
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = inputs[2:]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, x: Tensor, weight: Tensor, size: tuple, stride: tuple, pad: tuple
    ) -> tuple[Tensor, int]:
        def whole(x: Tensor, weight: Tensor) -> Tensor:
            return _channels_last(F.conv2d(x, weight.to(x.dtype), None, stride, pad))

        return torch.func.vmap(whole, in_dims[:2])(x, weight), 0

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        size, stride, pad = ctx.geometry
        if torch.is_grad_enabled():  # for second derivatives, torch's own gradient, which can be differentiated
            mask = (*ctx.needs_input_grad[:2], False)
            rest = (stride, pad, (1, 1), False, (0, 0), 1)
            grad_images, grad_weight, _ = torch.ops.aten.convolution_backward(
                _channels_first(grads), x, weight.to(x.dtype), None, *rest, mask
            )
            return grad_images, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None
        images = _channels_last(x)
        grads = grads.contiguous()
        grad_images = None
        grad_weight = None
        products = product_terms(x.shape[2:], weight.shape[2:], stride, pad)
        if ctx.needs_input_grad[0]:
            grad_images = torch.zeros_like(images)
            kernels = _kernels(x, weight, size)
            for i, j, row, columns, krow, kcolumns in products:
                part = kernels[:, krow, kcolumns].flatten(1).to(grads.dtype)
                grad_images[:, row, columns].flatten(1).addmm_(grads[:, i, j], part)
            grad_images = _channels_first(grad_images)
        if ctx.needs_input_grad[1]:
            n, c, kh, kw = weight.shape
            grad_weight = weight.new_zeros(n, kh, kw, c)
            images = images.to(weight.dtype)
            grads = grads.to(weight.dtype)
            for i, j, row, columns, krow, kcolumns in products:
                pixels = images[:, row, columns].flatten(1)
                grad_weight[:, krow, kcolumns].flatten(1).addmm_(grads[:, i, j].t(), pixels)
            grad_weight = _channels_first(grad_weight)
        return grad_images, grad_weight, None, None, None


def _kernels(x: Tensor, weight: Tensor, size: tuple) -> Tensor:
    """The weights as (out, kh, kw, in): for an output of one pixel a view, because each term converts only its part."""
    return weight.permute(0, 2, 3, 1) if size == (1, 1) else _channels_last(weight).to(x.dtype)


Term = tuple[int, int, int, slice, int, slice]


@lru_cache
def product_terms(size: tuple, kernel: tuple, stride: tuple, pad: tuple) -> tuple[Term, ...]:
    """The terms of a convolution: output row and column, input row and columns, kernel row and columns of each."""
    h, w = size
    kh, kw = kernel
    found = []
    for i, top in enumerate(range(-pad[0], h + pad[0] - kh + 1, stride[0])):
        for j, left in enumerate(range(-pad[1], w + pad[1] - kw + 1, stride[1])):
            first = max(left, 0)
            last = min(left + kw, w)
            for row in range(max(top, 0), min(top + kh, h)) if first < last else ():
                found.append((i, j, row, slice(first, last), row - top, slice(first - left, last - left)))
    return tuple(found)


def _channels_last(t: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h, w, c), contiguous: a view of a tensor with channels last, else a copy."""
    return t.permute(0, 2, 3, 1).contiguous()


def _channels_first(t: Tensor) -> Tensor:
    """(n, h, w, c) -> (n, c, h, w), a view."""
    return t.permute(0, 3, 1, 2)
