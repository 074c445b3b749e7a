"""objective.py against the paper's loss written out, and against autograd in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import losses
from distill.losses import LOSSES, loss_function
from distill.training.objective import Objective, blend, one_hot

cases = settings(max_examples=25, deadline=None, derandomize=True)


alphas = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


linear_losses = st.sampled_from(sorted(name for name, loss in LOSSES.items() if loss.linear_in_target))


draws = st.integers(0, 2**32 - 1)


def problem(seed: int, n: int = 6, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with requires_grad, labels, and a teacher's logits: (n, classes), (n,), (n, classes), float64."""
    rng = torch.Generator().manual_seed(seed)
    logits, teacher = (3 * torch.randn(n, classes, generator=rng, dtype=torch.float64) for _ in range(2))
    return logits.requires_grad_(), torch.randint(0, classes, (n,), generator=rng), teacher


def gradient(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_one_hot_is_one_at_the_label():
    assert one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(torch.tensor([2, 0]), 3).dtype == torch.float32


@cases
@given(draws, st.floats(0, 1))
def test_a_blend_of_probabilities_is_a_probability(seed, alpha):
    _, labels, teacher = problem(seed)
    target = blend(one_hot(labels, 5).double(), teacher.softmax(1), alpha)
    close(target.sum(1), torch.ones(6, dtype=torch.float64))
    assert (target >= 0).all()


def test_a_blend_at_alpha_0_and_1():
    _, labels, teacher = problem(0)
    truth, soft = one_hot(labels, 5).double(), teacher.softmax(1)
    assert torch.equal(blend(truth, soft, 1.0), truth)
    assert torch.equal(blend(truth, soft, 0.0), soft)
    assert blend(truth, None, 0.3) is truth


@cases
@given(draws, alphas)
def test_the_papers_loss(seed, alpha):
    """alpha * MSE(softmax, one-hot) + (1 - alpha) * MSE(softmax, softmax of the teacher), up to a constant."""
    logits, labels, teacher = problem(seed)
    truth, soft = F.one_hot(labels, 5).double(), F.softmax(teacher, dim=1)
    p = F.softmax(logits, dim=1)
    paper = alpha * F.mse_loss(p, truth) + (1 - alpha) * F.mse_loss(p, soft)
    objective = Objective("mse", 1.0, alpha)
    close(gradient(objective(logits, truth, soft).mean(), logits), gradient(paper, logits))
    on_truth, on_soft = objective.terms(logits, truth, soft)
    close(alpha * on_truth.mean() + (1 - alpha) * on_soft.mean(), paper)  # what is logged is the paper's, exactly


@cases
@given(linear_losses, draws, alphas)
def test_blending_targets_or_losses_gives_the_same_gradient(loss, seed, alpha):
    logits, labels, teacher = problem(seed)
    truth, soft = one_hot(labels, 5).double(), teacher.softmax(1)
    of_blend = loss_function(loss)(logits, alpha * truth + (1 - alpha) * soft)
    of_terms = alpha * loss_function(loss)(logits, truth) + (1 - alpha) * loss_function(loss)(logits, soft)
    close(gradient(of_blend.sum(), logits), gradient(of_terms.sum(), logits))
    close(Objective(loss, 1.0, alpha)(logits, truth, soft), of_blend)


@cases
@given(linear_losses, draws, alphas)
def test_blending_targets_or_losses_differs_by_a_constant(loss, seed, alpha):
    logits, labels, teacher = problem(seed)
    truth, soft = one_hot(labels, 5).double(), teacher.softmax(1)
    objective = Objective(loss, 1.0, alpha)

    def difference(logits):
        on_truth, on_soft = objective.terms(logits, truth, soft)
        return objective(logits, truth, soft) - alpha * on_truth - (1 - alpha) * on_soft

    close(difference(logits), difference(torch.zeros_like(logits)))


def test_the_constant_of_the_squared_error():
    """(p - t)^2 averaged over two targets exceeds that on their mean by their variance, alpha (1 - alpha) (t - s)^2."""
    logits, labels, teacher = problem(3)
    truth, soft, alpha = one_hot(labels, 5).double(), teacher.softmax(1), 0.35
    objective = Objective("mse", 1.0, alpha)
    on_truth, on_soft = objective.terms(logits, truth, soft)
    constant = alpha * (1 - alpha) * (truth - soft).square().mean(1)
    close(alpha * on_truth + (1 - alpha) * on_soft - objective(logits, truth, soft), constant)


@cases
@given(st.sampled_from(["ce", "kl"]), draws, alphas, st.floats(0.5, 20))
def test_a_temperature_scales_teacher_and_student_in_the_distillation_term(loss, seed, alpha, t):
    """Hinton et al. (2015): the soft term is T^2 times the divergence of both softmaxes at T."""
    logits, labels, teacher = problem(seed)
    truth, soft = one_hot(labels, 5).double(), (teacher / t).softmax(1)
    student = (logits / t).log_softmax(1)
    term = F.kl_div(student, soft, reduction="none").sum(1)
    if loss == "ce":
        term = F.cross_entropy(logits / t, soft, reduction="none")
    expected = alpha * F.cross_entropy(logits, labels, reduction="none") + (1 - alpha) * t**2 * term
    actual = Objective(loss, t, alpha)(logits, truth, soft)
    close(actual, expected)
    close(gradient(actual.sum(), logits), gradient(expected.sum(), logits))


def test_temperature_does_not_change_the_loss_without_a_teacher():
    logits, labels, _ = problem(4)
    truth = one_hot(labels, 5).double()
    close(Objective("kl", 4.0, 0.3)(logits, truth, None), F.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_without_a_teacher_alpha_has_no_effect(loss):
    logits, labels, _ = problem(5)
    truth = one_hot(labels, 5).double()
    assert torch.equal(Objective(loss, 1.0, 0.0)(logits, truth, None), loss_function(loss)(logits, truth))


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_alpha_0_and_1_only_one_target_counts(loss, alpha):
    logits, labels, teacher = problem(6)
    truth, soft = one_hot(labels, 5).double(), teacher.softmax(1)
    expected = loss_function(loss)(logits, truth if alpha == 1 else soft)
    assert torch.equal(Objective(loss, 1.0, alpha)(logits, truth, soft), expected)


@pytest.fixture
def spherical(monkeypatch):
    """A loss that is not linear in its target: one minus the cosine of the angle to it."""

    def one_minus_cosine(logits, target):
        return 1 - F.cosine_similarity(logits.softmax(1), target, dim=1)

    loss = losses.Loss(one_minus_cosine, "one minus the cosine", linear_in_target=False)
    monkeypatch.setitem(LOSSES, "spherical", loss)
    return one_minus_cosine


@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
def test_a_loss_that_is_not_linear_keeps_two_terms(spherical, alpha):
    logits, labels, teacher = problem(7)
    truth, soft = one_hot(labels, 5).double(), teacher.softmax(1)
    expected = alpha * spherical(logits, truth) + (1 - alpha) * spherical(logits, soft)
    objective = Objective("spherical", 1.0, alpha)
    actual = objective(logits, truth, soft)
    close(actual, expected)
    close(gradient(actual.sum(), logits), gradient(expected.sum(), logits))
    if 0 < alpha < 1:
        of_blend = spherical(logits, alpha * truth + (1 - alpha) * soft)
        assert not torch.allclose(gradient(actual.sum(), logits), gradient(of_blend.sum(), logits), rtol=1e-2)
