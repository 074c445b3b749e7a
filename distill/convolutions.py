"""Convolutions as matrix products, where these are faster: of single pixels, and of maps that are mostly padding.

With the ImageNet stem, 32x32 images are 2x2 pixels in the third stage and one pixel in the last: five ninths and eight
ninths of a 3x3 kernel's products have a factor 0 there. With channels last in memory, an output pixel is a sum over the
kernel's rows that meet the image, and each term a matrix product of views, so that nothing is copied to leave the
padding out. All is exact to rounding; the gradient of weights that meet nothing is 0, as in the whole convolution.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS = {
    "cpu": 4
}  # of an output made of products, at most; elsewhere 1: four are more kernels to launch, not measured


class ProductConv2d(nn.Conv2d):
    """A convolution, undilated and ungrouped; its names and state are nn.Conv2d's."""

    def forward(self, x: Tensor) -> Tensor:  # (n, in, h, w) -> (n, out, h', w')
        if torch.compiler.is_compiling():  # the compiler has its own ways
            return super().forward(x)
        device = x.device.type
        if device == "cpu" and self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0):
            return _first(F.linear(_last(x), self.weight.flatten(1), self.bias))
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        h, w = ((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in sides)
        if not 0 < h * w <= PIXELS.get(device, 0):
            return super().forward(x)
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        out = _Products.apply(x, self.weight, (h, w), terms(x.shape[2:], self.kernel_size, self.stride, self.padding))
        return out if self.bias is None else out + self.bias[:, None, None]


class _Products(torch.autograd.Function):
    """The products, in the images' precision; the weights' gradient is summed in the weights' own."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, size: tuple, terms: list) -> Tensor:
        images, kernels = _last(x), _last(weight)
        if size != (1, 1):  # all of a kernel is needed; for one pixel the terms' parts alone are converted
            kernels = kernels.to(x.dtype)
        out = images.new_zeros(len(x), *size, len(weight))
        for i, j, row, columns, krow, kcolumns in terms:
            part = kernels[:, krow, kcolumns].flatten(1).to(x.dtype)
            out[:, i, j].addmm_(images[:, row, columns].flatten(1), part.t())
        ctx.save_for_backward(images, kernels)
        ctx.terms, ctx.weight_dtype = terms, weight.dtype
        return _first(out)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (images, kernels), grads = ctx.saved_tensors, _last(grad)
        on_images = on_kernels = None
        if ctx.needs_input_grad[0]:
            on_images = torch.zeros_like(images)
            for i, j, row, columns, krow, kcolumns in ctx.terms:
                part = kernels[:, krow, kcolumns].flatten(1).to(grads.dtype)
                on_images[:, row, columns].flatten(1).addmm_(grads[:, i, j], part)
            on_images = _first(on_images)
        if ctx.needs_input_grad[1]:
            on_kernels = torch.zeros_like(kernels, dtype=ctx.weight_dtype)
            images, grads = images.to(ctx.weight_dtype), grads.to(ctx.weight_dtype)
            for i, j, row, columns, krow, kcolumns in ctx.terms:
                pixels = images[:, row, columns].flatten(1)
                on_kernels[:, krow, kcolumns].flatten(1).addmm_(grads[:, i, j].t(), pixels)
            on_kernels = _first(on_kernels)
        return on_images, on_kernels, None, None


@lru_cache
def terms(size: tuple, kernel: tuple, stride: tuple, pad: tuple) -> list[tuple[int, int, int, slice, int, slice]]:
    """What a convolution multiplies: output row and column, input row and columns, kernel row and columns."""
    (h, w), (kh, kw), found = size, kernel, []
    for i, top in enumerate(range(-pad[0], h + pad[0] - kh + 1, stride[0])):
        for j, left in enumerate(range(-pad[1], w + pad[1] - kw + 1, stride[1])):
            first, last = max(left, 0), min(left + kw, w)
            for row in range(max(top, 0), min(top + kh, h)) if first < last else ():
                found.append((i, j, row, slice(first, last), row - top, slice(first - left, last - left)))
    return found


def _last(t: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h, w, c), contiguous: a view of a tensor with channels last, else a copy."""
    return t.permute(0, 2, 3, 1).contiguous()


def _first(t: Tensor) -> Tensor:
    """(n, h, w, c) -> (n, c, h, w), a view."""
    return t.permute(0, 3, 1, 2)
