"""convolutions.py: products equal torch's convolution for every shape, memory layout and precision."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from distill.training import convolutions
from distill.training.convolutions import ProductConv2d
from distill.training.models import use_product_convolutions

LAYOUTS = [torch.contiguous_format, torch.channels_last]
RESNETS = [  # kernel, stride, height and width: the convolutions of ResNets on maps of one and of four pixels
    *((3, 1, 1), (3, 2, 2), (3, 2, 1), (1, 1, 1), (1, 2, 2), (7, 2, 2), (7, 2, 1)),
    *((3, 1, 2), (3, 2, 4), (3, 2, 3), (1, 1, 2), (1, 2, 4), (7, 2, 4), (1, 1, 5)),
]


def pair(kernel, stride, padding, bias=False, dtype=torch.float64, layout=torch.channels_last) -> tuple:
    """nn.Conv2d and ProductConv2d with the same weights."""
    torch.manual_seed(0)
    whole = nn.Conv2d(3, 5, kernel, stride, padding, bias=bias).to(dtype)
    ours = ProductConv2d(3, 5, kernel, stride, padding, bias=bias).to(dtype)
    ours.load_state_dict(whole.state_dict())
    return whole, ours.to(memory_format=layout)


def outcome(convolution: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of a weighted sum of it for images, weights and bias."""
    images = images.clone().requires_grad_()
    out = convolution(images)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    (out * weights).sum().backward()
    return [out.detach(), images.grad, *(p.grad for p in convolution.parameters())]


def assert_same(whole, ours, images, **tolerance) -> None:
    for got, exact in zip(outcome(ours, images), outcome(whole, images), strict=True):
        torch.testing.assert_close(got, exact, **tolerance)


@pytest.fixture
def whole_convolutions(monkeypatch):
    """The list of calls of nn.Conv2d's own forward."""
    asked, forward = [], nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: (asked.append(tuple(x.shape)), forward(self, x))[1])
    return asked


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "size"), RESNETS)
def test_products_equal_the_convolution(kernel, stride, size, bias, layout):
    whole, ours = pair(kernel, stride, kernel // 2, bias, layout=layout)
    images = torch.randn(4, 3, size, size, dtype=torch.float64).contiguous(memory_format=layout)
    assert_same(whole, ours, images, rtol=1e-12, atol=1e-13)
    for p in ours.parameters():  # fused optimisers go by memory; an axis of one entry may have any stride
        held, found = ([t.stride(axis) for axis in range(t.ndim) if t.shape[axis] > 1] for t in (p, p.grad))
        assert held == found


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    n=st.integers(1, 3),
)
def test_products_equal_the_convolution_for_any_shape(kernel, stride, padding, size, n):
    """Also for large outputs, and for windows that overlap only padding."""
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, kernel, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(convolutions.MOST_PIXELS, "cpu", 10**6)
        whole, ours = pair(kernel, stride, padding, bias=True)
        images = torch.randn(n, 3, *size, dtype=torch.float64)
        assert_same(whole, ours, images, rtol=1e-11, atol=1e-12)


class Multiplications(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.addmm_.default, torch.ops.aten.mm.default, torch.ops.aten.convolution.default):
            (n, k), m = args[-2].shape[-2:], args[-1].shape[-1]
            self.count += n * k * m
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "pairs"),
    [(3, 1, 1, 1), (3, 2, 2, 4), (1, 2, 2, 1), (7, 2, 2, 4), (3, 1, 2, 16), (3, 2, 4, 25), (3, 1, 8, 22**2)],
)
def test_nothing_is_multiplied_by_padding(kernel, stride, size, pairs, monkeypatch):
    """``pairs`` of an input and an output pixel are counted by hand; each takes in * out multiplications per pass."""
    monkeypatch.setitem(convolutions.MOST_PIXELS, "cpu", 64)
    _, ours = pair(kernel, stride, kernel // 2)
    images = torch.zeros(4, 3, size, size, dtype=torch.float64, requires_grad=True)
    with Multiplications() as made:
        out = ours(images)
    assert made.count == 4 * 3 * 5 * pairs
    with Multiplications() as made:
        out.sum().backward()
    assert made.count == 2 * 4 * 3 * 5 * pairs


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "ours"), [(3, 1, 2, True), (3, 1, 3, False), (3, 2, 5, False), (1, 1, 9, True)]
)
def test_larger_outputs_use_torchs_convolution(whole_convolutions, kernel, stride, size, ours):
    ProductConv2d(3, 5, kernel, stride, kernel // 2)(torch.zeros(2, 3, size, size))
    assert bool(whole_convolutions) != ours


def test_other_devices_and_the_compiler_use_torchs_convolution(whole_convolutions, monkeypatch):
    with torch.device("meta"):
        ProductConv2d(3, 5, 3, padding=1)(torch.zeros(2, 3, 1, 1))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ProductConv2d(3, 5, 3, padding=1)(torch.zeros(2, 3, 1, 1))
    assert len(whole_convolutions) == 2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "size"), RESNETS)
def test_bf16_is_as_accurate_as_torch(kernel, stride, size, bias):
    """Under autocast, both against float64: outputs and gradients are bf16's, weights' gradients float32's.

    torch's own error is a yardstick only if it is finite: oneDNN's AMX kernels sometimes give NaN weight gradients for
    maps of one pixel (compare uxlfoundation/oneDNN#5717). Twice bf16's rounding unit, 2^-7, bounds ours in any case.
    """
    exact, _ = pair(kernel, stride, kernel // 2, bias)
    images = torch.randn(64, 3, size, size).contiguous(memory_format=torch.channels_last)
    expected, errors = outcome(exact, images.double()), []
    for convolution in pair(kernel, stride, kernel // 2, bias, dtype=torch.float32):
        with torch.autocast("cpu", torch.bfloat16):
            found = outcome(convolution, images)
        assert [t.dtype for t in found] == [torch.bfloat16, *[torch.float32] * (2 + bias)]
        errors.append([((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)])
    for theirs, ours in zip(*errors, strict=True):
        assert ours <= 2**-6
        if math.isfinite(theirs):
            assert ours <= 1.5 * theirs + 1e-3


def test_only_required_gradients_are_computed():
    _, ours = pair(3, 1, 1)
    ours.requires_grad_(False)
    images = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    ours(images).sum().backward()
    assert images.grad is not None
    assert ours.weight.grad is None
    ours.requires_grad_(True)
    ours(images.detach()).sum().backward()
    assert ours.weight.grad is not None


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 1), (3, 1, 2), (3, 2, 2), (1, 1, 3)])
def test_second_derivatives_equal_torchs(kernel, stride, size):
    whole, ours = pair(kernel, stride, kernel // 2, bias=True)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    penalties = []
    for convolution in (whole, ours):
        x = images.clone().requires_grad_()
        gradients = torch.autograd.grad(convolution(x).pow(3).sum(), (x, convolution.weight), create_graph=True)
        sum(g.square().sum() for g in gradients).backward()
        penalties.append([x.grad, convolution.weight.grad])
    for got, exact in zip(*penalties[::-1], strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(("kernel", "size"), [(3, 1), (3, 2), (1, 3)])
def test_other_uses_of_a_convolution_work(kernel, size):
    whole, ours = pair(kernel, 1, kernel // 2)
    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    exact = whole(x)
    torch.testing.assert_close(nn.functional.relu(ours(x), inplace=True), exact.relu())
    torch.testing.assert_close(ours(x[0]), exact[0])  # without a batch
    torch.testing.assert_close(torch.jit.trace(ours, x)(x), exact)

    def loss(weights, x, convolution):
        return torch.func.functional_call(convolution, weights, (x[None],)).pow(2).sum()

    by_image = [
        torch.func.vmap(torch.func.grad(lambda weights, x, c=c: loss(weights, x, c)), (None, 0))(
            {name: p.detach() for name, p in c.named_parameters()}, x
        )["weight"]
        for c in (whole, ours)
    ]
    torch.testing.assert_close(*by_image)
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        ours(x.float())


@pytest.mark.parametrize("options", [{"dilation": 2}, {"groups": 3}, {"padding_mode": "circular"}, {"padding": "same"}])
def test_other_convolutions_are_not_replaced(options):
    network = nn.Sequential(nn.Conv2d(3, 6, 3, **options), nn.Conv2d(6, 6, 1))
    use_product_convolutions(network)
    assert [type(module) for module in network] == [nn.Conv2d, ProductConv2d]


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "stride", "size"), RESNETS)
def test_on_a_gpu_products_equal_the_convolution(kernel, stride, size, layout):
    whole, ours = (each.cuda() for each in pair(kernel, stride, kernel // 2, layout=layout))
    images = torch.randn(4, 3, size, size, dtype=torch.float64, device="cuda").contiguous(memory_format=layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(convolutions.MOST_PIXELS, "cuda", 4)
        assert_same(whole, ours, images, rtol=1e-10, atol=1e-11)
