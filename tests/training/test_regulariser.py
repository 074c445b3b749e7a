"""optim.add_regulariser against autograd in float64."""

import pytest
import torch

from distill.training.optim import add_regulariser


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def parameters(seed: int = 0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = [(4, 3, 3, 3), (4,), (2, 4), (1,)]
    return [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]


def with_zero_gradients(values: list[torch.Tensor]) -> list[torch.Tensor]:
    for p in values:
        p.grad = torch.zeros_like(p)
    return values


BY_AUTOGRAD = {
    "norm": lambda values: sum(torch.norm(p) for p in values),  # as the paper's program computes it
    "l2": lambda values: sum(p.square().sum() for p in values),
}


@pytest.mark.parametrize("reg", sorted(BY_AUTOGRAD))
@pytest.mark.parametrize("coef", [1e-4, 0.3])
def test_a_regulariser_and_its_gradient_equal_autograd(reg, coef):
    values = with_zero_gradients(parameters())
    exact = [p.detach().double().requires_grad_() for p in values]
    expected = coef * BY_AUTOGRAD[reg](exact)
    expected.backward()
    value = add_regulariser(values, reg, coef)
    close(value.double(), expected.detach(), rtol=1e-6)
    assert value.shape == ()
    assert not value.requires_grad
    for p, q in zip(values, exact, strict=True):
        close(p.grad.double(), q.grad, rtol=1e-6, atol=1e-9)


def test_a_regulariser_adds_to_the_losses_gradient():
    values = parameters()
    for p in values:
        p.grad = torch.full_like(p, 2.0)
    add_regulariser(values, "l2", 0.5)
    for p in values:
        close(p.grad, 2.0 + p.detach())


def test_a_regulariser_does_not_change_the_parameters():
    values = with_zero_gradients(parameters())
    before = [p.detach().clone() for p in values]
    add_regulariser(values, "norm", 0.5)
    assert all(torch.equal(p, q) for p, q in zip(values, before, strict=True))


@pytest.mark.parametrize("reg", ["norm", "l2"])
def test_parameters_that_are_all_zero_have_no_regulariser_and_no_gradient(reg):
    """As in torch.norm, the subgradient at 0 is 0; the bias of a batch normalisation starts there."""
    values = with_zero_gradients([torch.zeros(3, 2, requires_grad=True), torch.zeros(4, requires_grad=True)])
    assert add_regulariser(values, reg, 0.1).item() == 0
    assert all((p.grad == 0).all() for p in values)
    theirs = torch.zeros(4, requires_grad=True)
    torch.norm(theirs).backward()
    assert (theirs.grad == 0).all()


@pytest.mark.parametrize("size", [1e-18, 1e-6, 1.0, 1e6])
def test_the_gradient_of_a_norm_has_length_coef_at_any_size(size):
    (p,) = with_zero_gradients([torch.full((4,), size, requires_grad=True)])
    add_regulariser([p], "norm", 0.1)
    assert p.grad.norm().item() == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e-22])
def test_the_gradient_of_a_norm_stays_bounded_where_the_norm_underflows(size):
    (p,) = with_zero_gradients([torch.full((4,), size, requires_grad=True)])
    add_regulariser([p], "norm", 0.1)
    assert p.grad.norm().item() <= 0.1


@pytest.mark.parametrize(("reg", "coef"), [("none", 0.1), ("norm", 0.0), ("l2", 0.0)])
def test_without_a_regulariser_nothing_is_added(reg, coef):
    values = with_zero_gradients(parameters())
    assert add_regulariser(values, reg, coef).item() == 0
    assert all((p.grad == 0).all() for p in values)


@pytest.mark.parametrize("reg", sorted(BY_AUTOGRAD))
def test_an_unused_parameter_is_regularised(reg):
    """A custom network may have one; autograd of the norm would also regularise it."""
    values = parameters()
    exact = [p.detach().clone().requires_grad_() for p in values]
    (0.1 * BY_AUTOGRAD[reg](exact)).backward()
    add_regulariser(values, reg, 0.1)
    for p, q in zip(values, exact, strict=True):
        close(p.grad, q.grad, rtol=1e-5, atol=1e-8)
