"""optim.py: the folded step against the regulariser's gradient and torch.optim's step, and learning rates."""

import copy

import pytest
import torch
from torch import Tensor
from training_tools import CLASSES, CPU, SHOW, classifier, plan_of, pool_of

from distill.arms import Fixed
from distill.config import TrainConfig
from distill.training import optim
from distill.training.fit import Trainer
from distill.training.optim import add_regulariser, learning_rate

SHAPES = ((4, 3, 3, 3), (7,), (5, 4), ())


def parameters(dtype: torch.dtype) -> list[Tensor]:
    """Random tensors of several shapes, and one of zeros, whose norm has no gradient."""
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in SHAPES]
    return [p.to(dtype).requires_grad_() for p in (*drawn, torch.zeros(6, dtype=torch.float64))]


def give_gradients(tensors: list[Tensor], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for p in tensors:
        p.grad = torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype)


def after_steps(make, dtype: torch.dtype, reg: str, coef: float, by_hand: bool, steps: int = 3):
    """The parameters, the optimiser and the regulariser's values after some steps."""
    tensors, values = parameters(dtype), []
    optimizer = make(tensors)
    for seed in range(steps):
        give_gradients(tensors, seed)
        if by_hand:
            values.append(add_regulariser(tensors, reg, coef))
            optimizer.step()
        else:
            values.append(optim.update(optimizer, tensors, reg, coef))
    return tensors, optimizer, values


def adam(**options):
    return lambda tensors: torch.optim.Adam(tensors, lr=0.01, fused=True, **options)


@pytest.mark.parametrize("make", [adam(), adam(weight_decay=0.3), adam(betas=(0.5, 0.9), eps=1e-3)])
@pytest.mark.parametrize(("reg", "coef"), [("norm", 0.2), ("l2", 0.2), ("norm", 0.0), ("none", 0.2)])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_folded_step_equals_regulariser_then_optimiser_step(make, reg, coef, dtype, rtol):
    ours, optimizer, values = after_steps(make, dtype, reg, coef, by_hand=False)
    exact, reference, exact_values = after_steps(make, torch.float64, reg, coef, by_hand=True)
    torch.testing.assert_close([p.double() for p in ours], exact, rtol=rtol, atol=rtol / 10)
    torch.testing.assert_close([v.double() for v in values], [v.double() for v in exact_values], rtol=rtol, atol=0)
    for p, q in zip(ours, exact, strict=True):
        for name, moment in reference.state[q].items():
            torch.testing.assert_close(
                optimizer.state[p][name].double(), moment.double(), rtol=10 * rtol, atol=rtol / 100
            )


def test_the_regulariser_changes_the_step():
    with_it, without = (
        after_steps(adam(), torch.float64, "norm", coef, by_hand=False)[0][0].detach() for coef in (0.2, 0.0)
    )
    assert (with_it - without).abs().max() > 1e-4  # ten times what the comparison lets pass


def test_only_adam_on_a_cpu_folds_after_its_first_step():
    tensors = parameters(torch.float32)
    optimizer = adam()(tensors)
    assert not optim.can_fold(optimizer, tensors, "norm", 0.1)
    give_gradients(tensors, 0)
    optim.update(optimizer, tensors, "norm", 0.1)
    assert optim.can_fold(optimizer, tensors, "norm", 0.1)
    assert not optim.can_fold(optimizer, tensors, "none", 0.1)
    assert not optim.can_fold(optimizer, tensors, "norm", 0.0)
    assert not optim.can_fold(optimizer, [t.to("meta") for t in tensors], "norm", 0.1)


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.AdamW(p, weight_decay=0.1, fused=True), lambda p: torch.optim.SGD(p, momentum=0.9)]
)
def test_other_optimisers_are_not_folded(make):
    ours, _, _ = after_steps(make, torch.float32, "norm", 0.2, by_hand=False)
    plain, _, _ = after_steps(make, torch.float32, "norm", 0.2, by_hand=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_an_unused_parameter_is_regularised():
    tensors = parameters(torch.float64)
    optimizer = adam()(tensors)
    for _ in range(2):
        give_gradients(tensors, 0)
        tensors[0].grad = None
        before = tensors[0].detach().norm()
        optim.update(optimizer, tensors, "norm", 0.2)
        assert tensors[0].detach().norm() < before
        assert tensors[0].grad.shape == tensors[0].shape


def test_the_optimisers_state_has_torchs_format():
    """The checkpoint has torch's format, so folded and plain steps can continue from each other."""
    _, ours, _ = after_steps(adam(), torch.float64, "norm", 0.2, by_hand=False)
    _, plain, _ = after_steps(adam(), torch.float64, "norm", 0.2, by_hand=True)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-10, atol=1e-12)
    tensors = parameters(torch.float64)
    resumed = adam()(tensors)
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert optim.can_fold(resumed, tensors, "norm", 0.2)


def torchs_rates(scheduler, updates: int) -> list[float]:
    rates = []
    for _ in range(updates):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def an_optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def our_rates(updates_per_epoch: int, **options) -> list[float]:
    train = TrainConfig(**options)
    return [learning_rate(train, u, updates_per_epoch) for u in range(train.epochs * updates_per_epoch)]


@pytest.mark.parametrize(("epochs", "updates"), [(1, 4), (1, 10), (3, 7), (75, 5)])
def test_onecycle_is_torchs(epochs, updates):
    total = epochs * updates
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        an_optimizer(0.3), max_lr=0.3, total_steps=total, cycle_momentum=False
    )
    # torch warns of a step after the last update
    theirs = [*torchs_rates(scheduler, total - 1), scheduler.get_last_lr()[0]]
    ours = our_rates(updates, lr=0.3, lr_schedule="onecycle", max_epochs=epochs)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_cosine_is_torchs():
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(an_optimizer(0.3), T_max=30)
    assert our_rates(6, lr=0.3, lr_schedule="cosine", max_epochs=5) == pytest.approx(torchs_rates(scheduler, 30))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up_and_schedule_are_torchs(schedule):
    optimizer = an_optimizer(0.3)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 12, total_iters=11)
    theirs = torchs_rates(warm_up, 12)
    after = an_optimizer(0.3)
    scheduler = (
        torch.optim.lr_scheduler.CosineAnnealingLR(after, T_max=18)
        if schedule == "cosine"
        else torch.optim.lr_scheduler.ConstantLR(after, factor=1.0)
    )
    theirs += torchs_rates(scheduler, 18)
    ours = our_rates(6, lr=0.3, lr_schedule=schedule, max_epochs=5, warmup_epochs=2)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_the_constant_rate_is_constant():
    assert our_rates(3, lr=0.3, max_epochs=2) == [0.3] * 6


def test_a_development_run_has_no_warm_up():
    assert our_rates(2, lr=0.3, max_epochs=5, warmup_epochs=2, fast_dev_run=True) == [0.3, 0.3]


def test_every_update_has_its_own_rate(small_chunks):
    train = TrainConfig(lr=0.01, lr_schedule="cosine", max_epochs=2, batch_size=4, optimizer="sgd")
    fit, pool, used = Trainer(classifier(), train, CPU), pool_of(18), []
    step = fit.optimizer.step
    fit.optimizer.step = lambda: (used.append(fit.optimizer.param_groups[0]["lr"]), step())
    for epoch in range(2):
        fit.epoch(pool, plan_of(18, epoch), CLASSES, None, Fixed(1.0), SHOW)
    assert used == our_rates(5, lr=0.01, lr_schedule="cosine", max_epochs=2)
