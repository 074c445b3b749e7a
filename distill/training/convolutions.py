"""Convolutions as matrix products, for outputs of a few pixels: there they are faster than torch's own.

With the ImageNet stem, 32x32 images are 2x2 pixels in the third stage and one pixel in the last: five ninths and eight
ninths of a 3x3 kernel's products have a factor 0 there. With channels last in memory, an output pixel is a sum over the
kernel's rows that meet the image, and each term a matrix product of views, so that nothing is copied to leave the
padding out. All is exact to rounding; the gradient of weights that meet nothing is 0, as in the whole convolution.

In bf16, torch's own convolution sometimes gives NaN weight gradients for maps of one pixel on processors with AMX
(compare uxlfoundation/oneDNN#5717). These products have not. Runs that can meet the fault are those in bf16 on a CPU
with ``--compile``, which uses torch's convolution, or with a custom network's nn.Conv2d. They do not pass silently: a
NaN gradient makes parameters NaN, and ``fit.Trainer.epoch`` raises NotFiniteLossError.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The most pixels of an output made of products. On CUDA, not measured, more would mean more kernels to launch.
PIXELS = {"cpu": 4, "cuda": 1}


class ProductConv2d(nn.Conv2d):
    """A plain convolution (see ``suits``) that computes small outputs as products, and others as nn.Conv2d does.

    Parameters, their names and the state are nn.Conv2d's.
    """

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> "ProductConv2d":
        """A ProductConv2d that shares the parameters of a plain convolution. Draws no random numbers."""
        bias = conv.bias is not None
        geometry: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding")}
        # On the meta device, which draws no initial weights.
        made = cls(conv.in_channels, conv.out_channels, bias=bias, device="meta", **geometry)
        made.weight = conv.weight
        made.bias = conv.bias
        return made.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:  # (n, in, h, w) -> (n, out, h', w')
        device = x.device.type
        limit = PIXELS.get(device, 0)
        if not limit or x.ndim != 4 or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(x)
        if isinstance(self.padding, str):
            return super().forward(x)
        if device == "cpu" and self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0):
            return _first(F.linear(_last(x), self.weight.flatten(1), self.bias))
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        elif x.dtype != self.weight.dtype:
            return super().forward(x)  # which says so
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        h, w = ((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in sides)
        if h < 1 or w < 1 or h * w > limit:
            return super().forward(x)
        out = _first(_Products.apply(x, self.weight, (h, w), self.stride, self.padding))
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]


def suits(module: nn.Module) -> bool:
    """Whether a module is a plain convolution: undilated, ungrouped, padded with zeros."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    return module.groups == 1 and module.dilation == (1, 1)


class _Products(torch.autograd.Function):
    """The products (n, h', w', out), in the images' precision; the weights' gradient is summed in the weights' own."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, size: tuple, stride: tuple, pad: tuple) -> Tensor:
        images = _last(x)
        kernels = _kernels(x, weight, size)
        out = images.new_zeros(len(x), *size, len(weight))
        for i, j, row, columns, krow, kcolumns in terms(x.shape[2:], weight.shape[2:], stride, pad):
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
            return _last(F.conv2d(x, weight.to(x.dtype), None, stride, pad))

        return torch.func.vmap(whole, in_dims[:2])(x, weight), 0

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        size, stride, pad = ctx.geometry
        if torch.is_grad_enabled():  # for a second derivative: torch's own gradient can be differentiated
            mask = (*ctx.needs_input_grad[:2], False)
            rest = (stride, pad, (1, 1), False, (0, 0), 1)
            on_images, on_kernels, _ = torch.ops.aten.convolution_backward(
                _first(grads), x, weight.to(x.dtype), None, *rest, mask
            )
            return on_images, None if on_kernels is None else on_kernels.to(weight.dtype), None, None, None
        images = _last(x)
        grads = grads.contiguous()
        on_images = None
        on_kernels = None
        products = terms(x.shape[2:], weight.shape[2:], stride, pad)
        if ctx.needs_input_grad[0]:
            on_images = torch.zeros_like(images)
            kernels = _kernels(x, weight, size)
            for i, j, row, columns, krow, kcolumns in products:
                part = kernels[:, krow, kcolumns].flatten(1).to(grads.dtype)
                on_images[:, row, columns].flatten(1).addmm_(grads[:, i, j], part)
            on_images = _first(on_images)
        if ctx.needs_input_grad[1]:
            n, c, kh, kw = weight.shape
            on_kernels = weight.new_zeros(n, kh, kw, c)
            images = images.to(weight.dtype)
            grads = grads.to(weight.dtype)
            for i, j, row, columns, krow, kcolumns in products:
                pixels = images[:, row, columns].flatten(1)
                on_kernels[:, krow, kcolumns].flatten(1).addmm_(grads[:, i, j].t(), pixels)
            on_kernels = _first(on_kernels)
        return on_images, on_kernels, None, None, None


def _kernels(x: Tensor, weight: Tensor, size: tuple) -> Tensor:
    """The weights as (out, kh, kw, in). For an output of one pixel, each term copies and converts only its part."""
    return weight.permute(0, 2, 3, 1) if size == (1, 1) else _last(weight).to(x.dtype)


@lru_cache
def terms(size: tuple, kernel: tuple, stride: tuple, pad: tuple) -> tuple[tuple[int, int, int, slice, int, slice], ...]:
    """The products of a convolution: output row and column, input row and columns, kernel row and columns."""
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


def _last(t: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h, w, c), contiguous: a view of a tensor with channels last, else a copy."""
    return t.permute(0, 2, 3, 1).contiguous()


def _first(t: Tensor) -> Tensor:
    """(n, h, w, c) -> (n, c, h, w), a view."""
    return t.permute(0, 3, 1, 2)
