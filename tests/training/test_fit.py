"""fit.py against a plain training loop written here, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2 import functional as tv
from training_tools import (
    CLASSES,
    CPU,
    SHOW,
    a_teacher,
    classifier,
    named,
    plan_of,
    pool_of,
    split_of,
)

from distill.arms import Fixed
from distill.config import TrainConfig
from distill.training import augment
from distill.training.batches import make_image_store
from distill.training.fit import Trainer


def plain_epochs(student, teacher, split, train, alpha, epochs, dtype):
    """A simple version of the paper's training loop. Returns the last epoch's metrics and the last gradients.

    One image at a time is augmented, one batch at a time is shown to the teacher; the two losses are kept apart and
    the regulariser is a Python sum of norms; gradients by autograd, updates by torch.optim as it comes.
    """
    student, teacher = student.to(dtype), teacher and teacher.to(dtype)
    options = {"lr": train.lr, "weight_decay": train.weight_decay}
    if train.optimizer == "sgd":
        optimizer = torch.optim.SGD(student.parameters(), momentum=train.momentum, **options)
    else:
        optimizer = getattr(torch.optim, {"adam": "Adam", "adamw": "AdamW"}[train.optimizer])(
            student.parameters(), foreach=False, **options
        )
    pair = {
        "mse": lambda logits, p: F.mse_loss(logits.softmax(1), p),
        "ce": lambda logits, p: F.cross_entropy(logits, p),
        "kl": lambda logits, p: F.kl_div(logits.log_softmax(1), p, reduction="batchmean"),
    }[train.loss]
    for epoch in range(epochs):
        plan, figures, seen = plan_of(len(split), epoch), dict.fromkeys(("truth_loss", "teacher_loss", "acc"), 0.0), 0
        regs = []
        for start in range(0, len(split), train.batch_size):
            here = plan[start : start + train.batch_size]
            if len(here) == 1:
                continue
            images = []
            for i, top, left, flip in zip(here.order, here.top, here.left, here.flip, strict=True):
                image = tv.pad(torch.from_numpy(split.images[i]), [plan.pad] * 4)[:, top : top + 8, left : left + 8]
                images.append(tv.horizontal_flip(image) if flip else image)
            x = torch.stack(images).to(dtype) / 255
            labels = torch.from_numpy(split.labels)[here.order]
            student.train()
            logits = student(x)
            on_truth = pair(logits, F.one_hot(labels, CLASSES).to(dtype))
            loss, on_soft = on_truth, torch.zeros(())
            if teacher is not None:
                with torch.no_grad():
                    soft = (teacher.eval()(x) / train.temperature).softmax(1)
                on_soft = train.temperature**2 * pair(logits / train.temperature, soft)
                loss = alpha * on_truth + (1 - alpha) * on_soft
            reg = torch.zeros(())
            if train.reg != "none":
                power = {"norm": 1, "l2": 2}[train.reg]
                reg = train.reg_coef * sum(torch.norm(p) ** power for p in student.parameters())
            optimizer.zero_grad()
            (loss + reg).backward()
            optimizer.step()
            figures["truth_loss"] += on_truth.item() * len(x)
            figures["teacher_loss"] += on_soft.item() * len(x)
            figures["acc"] += (logits.argmax(1) == labels).sum().item()
            regs.append(reg.item())
            seen += len(x)
    figures = {name: total / seen for name, total in figures.items()} | {"reg": sum(regs) / len(regs)}
    figures["loss"] = figures["truth_loss"] + figures["reg"]
    if teacher is None:
        figures["teacher_loss"] = None
    else:
        figures["loss"] = alpha * figures["truth_loss"] + (1 - alpha) * figures["teacher_loss"] + figures["reg"]
    return student, figures, [p.grad for p in student.parameters()]


def ours(student, teacher, split, train, alpha, epochs):
    fit, pool = Trainer(student, train, CPU), make_image_store(split, CPU)
    for epoch in range(epochs):
        figures = fit.epoch(pool, plan_of(len(split), epoch), CLASSES, teacher, Fixed(alpha), SHOW)
    return fit.model, figures, [p.grad for p in fit.parameters]


def relative_distance(ours: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """The largest ||ours - exact|| / ||exact|| over tensors."""
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in zip(ours, exact, strict=True))


def both_moves(model: nn.Module, exact: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """How far training moved each parameter tensor, from weights that both started from."""
    start = dict(classifier().named_parameters())
    return tuple([p.double() - start[name] for name, p in m.named_parameters()] for m in (model, exact))


PAPER = {"batch_size": 4, "reg_coef": 1e-2}  # the paper's but for a regulariser large enough to be seen


SETTINGS = [
    ({}, 0.35),
    ({}, 0.0),
    ({}, 1.0),
    ({}, None),  # the teacher's own training
    ({"loss": "ce", "reg": "l2"}, 0.6),
    ({"loss": "kl", "reg": "none"}, 0.6),
    ({"loss": "kl", "temperature": 3.0}, 0.3),
    ({"loss": "ce", "temperature": 0.5}, 0.3),
    ({"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, 0.35),
    ({"optimizer": "adamw", "weight_decay": 0.1}, 0.35),
]


def assert_figures(figures: dict, exact: dict, rel: float) -> None:
    assert figures.keys() == exact.keys()
    for name, value in exact.items():
        assert figures[name] == (value if value is None else pytest.approx(value, rel=rel)), name


@pytest.mark.parametrize(("options", "alpha"), SETTINGS, ids=named)
def test_one_update_equals_a_plain_loop_in_float64(options, alpha):
    train, split = TrainConfig(**{**PAPER, **options}), split_of(4)
    teacher = None if alpha is None else a_teacher()
    model, figures, grads = ours(classifier(), teacher, split, train, alpha or 0.0, epochs=1)
    exact, exact_figures, exact_grads = plain_epochs(
        classifier(), copy.deepcopy(teacher), split, train, alpha, epochs=1, dtype=torch.float64
    )
    assert relative_distance(grads, exact_grads) < 1e-4
    assert_figures(figures, exact_figures, rel=2e-6)
    assert relative_distance(*both_moves(model, exact)) < 2e-3
    for name, buffer in exact.named_buffers():
        torch.testing.assert_close(model.get_buffer(name).double(), buffer.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("options", "alpha"), SETTINGS, ids=named)
def test_two_epochs_equal_a_plain_loop(options, alpha, small_chunks):
    """Six updates an epoch in three chunks, the last of two images."""
    train, split = TrainConfig(**{**PAPER, **options}), split_of(22)
    teacher = None if alpha is None else a_teacher()
    model, figures, _ = ours(classifier(), teacher, split, train, alpha or 0.0, epochs=2)
    exact, exact_figures, _ = plain_epochs(
        classifier(), copy.deepcopy(teacher), split, train, alpha, epochs=2, dtype=torch.float64
    )
    assert_figures(figures, exact_figures, rel=1e-4)
    assert relative_distance(*both_moves(model, exact)) < 1e-2
    for name, buffer in exact.named_buffers():
        torch.testing.assert_close(model.get_buffer(name).double(), buffer.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"reg": "l2"}, {"reg": "none"}, {"weight_decay": 0.1}, {"optimizer": "adamw"}], ids=named
)
def test_an_update_from_a_state_with_moments_equals_a_plain_loop(options):
    """The second update, made again in float64 from the weights and moments after the first."""
    train, split, teacher = TrainConfig(**{**PAPER, **options}), split_of(8), a_teacher()
    fit, pool = Trainer(classifier(), train, CPU), make_image_store(split, CPU)
    fit.epoch(pool, plan_of(8)[:4], CLASSES, teacher, Fixed(0.35), SHOW)
    exact = copy.deepcopy(fit.model).double()
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
    optimizer = adam(exact.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    optimizer.load_state_dict(copy.deepcopy(fit.optimizer.state_dict()))
    optimizer.param_groups[0]["fused"] = False
    for held in optimizer.state.values():
        held.update({name: held[name].double() for name in ("exp_avg", "exp_avg_sq")})
    before = [p.detach().clone() for p in exact.parameters()]
    second = plan_of(8)[4:]
    fit.epoch(pool, second, CLASSES, teacher, Fixed(0.35), SHOW)
    images = augment.apply(pool.images[second.order], second).double() / 255
    truth = F.one_hot(pool.labels[second.order], CLASSES).double()
    with torch.no_grad():
        soft = copy.deepcopy(teacher).double()(images).softmax(1)
    loss = F.mse_loss(exact.train()(images).softmax(1), 0.35 * truth + 0.65 * soft)
    power = {"norm": 1, "l2": 2, "none": 0}[train.reg]
    optimizer.zero_grad()
    (loss + train.reg_coef * sum(torch.norm(p) ** power for p in exact.parameters())).backward()
    optimizer.step()
    for p, q, start in zip(fit.parameters, exact.parameters(), before, strict=True):
        held, reference = fit.optimizer.state[p], optimizer.state[q]
        assert relative_distance([held["exp_avg"]], [reference["exp_avg"]]) < 1e-4
        assert relative_distance([held["exp_avg_sq"]], [reference["exp_avg_sq"]]) < 1e-4
        assert relative_distance([p.detach().double() - start], [q.detach() - start]) < 2e-3


def test_the_papers_loss_is_logged():
    """Written out on one batch: alpha MSE(truth) + (1 - alpha) MSE(teacher) + 1e-4 times the sum of the norms."""
    split, plan, alpha = split_of(16), plan_of(16), 0.6
    student, teacher = classifier(), a_teacher()
    x = augment.apply(torch.from_numpy(split.images)[plan.order], plan)
    p = F.softmax(copy.deepcopy(student).train()(x), dim=1)
    truth = F.one_hot(torch.from_numpy(split.labels)[plan.order], CLASSES).float()
    paper = alpha * F.mse_loss(p, truth) + (1 - alpha) * F.mse_loss(p, F.softmax(teacher(x), dim=1))
    paper = paper + 1e-4 * sum(torch.norm(w) for w in student.parameters())
    figures = Trainer(student, TrainConfig(), CPU).epoch(
        make_image_store(split, CPU), plan, 4, teacher, Fixed(alpha), SHOW
    )
    assert figures["loss"] == pytest.approx(paper.item(), rel=1e-6)


def test_training_learns():
    fit, pool = Trainer(classifier(), TrainConfig(lr=1e-2, loss="ce"), CPU), pool_of(64)
    accuracies = [fit.epoch(pool, plan_of(64, epoch), CLASSES, None, Fixed(1.0), SHOW)["acc"] for epoch in range(8)]
    assert accuracies[-1] > accuracies[0] + 0.2
