"""engine.py against a plain training loop, and its promises: same draws same bits, whatever the chunk or the memory."""

import copy
import io
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2 import functional as tv

from distill.arms import Fixed
from distill.config import TrainConfig
from distill.data.splits import Split
from distill.errors import ConfigError
from distill.losses import LOSSES, Loss, loss_function
from distill.training import augment
from distill.training.batches import CHUNK_PIXELS, ImageStore, _copy_stream, chunk_size, chunks, make_image_store
from distill.training.device import channels_last, pick_device, place, set_up
from distill.training.fit import NotFiniteLossError, Trainer
from distill.training.listener import Listener, Notes
from distill.training.models import CifarResNet, Classifier
from distill.training.objective import Objective
from distill.training.optim import learning_rate, updates_per_epoch
from distill.training.predict import predict, predict_all, soft_targets

CPU = torch.device("cpu")
CLASSES = 4
SHOW = Listener()


def split_of(n: int, size: int = 8) -> Split:
    rng = np.random.default_rng(n)
    labels = rng.integers(0, CLASSES, n)
    images = (rng.integers(0, 150, (n, 3, size, size)) + 25 * labels[:, None, None, None]).astype(np.uint8)
    return Split(images, labels, labels, np.arange(n))


def pool_of(n: int, size: int = 8) -> ImageStore:
    return make_image_store(split_of(n, size), CPU)


def plan_of(n: int, epoch: int = 0, size: int = 8) -> augment.Plan:
    return augment.plan(1, 1, epoch, n, size, augment=True, flip=True)


def classifier(seed: int = 0) -> Classifier:
    """A ResNet-8 of width 2, with batch statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(CifarResNet(8, 2, 3, CLASSES), torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.2, 0.3, 0.2]))
        model(torch.rand(32, 3, 8, 8))
        return model


def a_teacher() -> Classifier:
    return classifier(seed=9).requires_grad_(False).eval()


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of eight images of 8x8 (two batches of four), so that a small epoch has several."""
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 8 * 8 * 8)


# ---------------------------------------------------------------------------------------- training, by a second route


def plain_epochs(student, teacher, split, train, alpha, epochs, dtype):
    """The paper's training loop as one would first write it. Returns the last epoch's figures and last gradients.

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


def named(value) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else f"alpha={value}"


@pytest.mark.parametrize(("options", "alpha"), SETTINGS, ids=named)
def test_one_update_is_that_of_a_plain_loop_in_float64(options, alpha):
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
def test_two_epochs_are_those_of_a_plain_loop(options, alpha, small_chunks):
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
def test_an_update_from_a_state_with_moments_is_that_of_a_plain_loop(options):
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


def test_the_papers_loss_is_the_number_that_is_logged():
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


@dataclass(frozen=True)
class ArgMax:
    """A kind of target that takes the teacher's most probable class alone."""

    alpha: float

    def teacher_target(self, soft: torch.Tensor) -> torch.Tensor:
        return F.one_hot(soft.argmax(1), soft.shape[1]).float()


@pytest.mark.parametrize("options", [{}, {"loss": "kl", "temperature": 3.0}])
def test_a_kind_of_target_decides_the_teachers_part(options):
    """The logged losses of one update are those against the teacher's most probable class."""
    split, plan, train = split_of(16), plan_of(16), TrainConfig(**options, reg="none")
    student, teacher = classifier(), a_teacher()
    x = augment.apply(torch.from_numpy(split.images)[plan.order], plan)
    logits = copy.deepcopy(student).train()(x)
    target = F.one_hot(teacher(x).argmax(1), CLASSES).float()
    t = train.temperature
    expected = t**2 * loss_function(train.loss)(logits / t, target).mean().item()
    figures = Trainer(student, train, CPU).epoch(make_image_store(split, CPU), plan, 4, teacher, ArgMax(0.3), SHOW)
    assert figures["teacher_loss"] == pytest.approx(expected, rel=1e-5)
    assert figures["loss"] == pytest.approx(0.3 * figures["truth_loss"] + 0.7 * expected, rel=1e-5)


def test_a_loss_that_is_not_linear_logs_what_it_minimises(monkeypatch):
    def one_minus_cosine(logits, target):
        return 1 - F.cosine_similarity(logits.softmax(1), target, dim=1)

    monkeypatch.setitem(LOSSES, "cosine", Loss(one_minus_cosine, "one minus the cosine", linear_in_target=False))
    minimised = []

    class Recorder(Objective):
        def __call__(self, *tensors):
            loss = super().__call__(*tensors)
            minimised.extend(loss.tolist())
            return loss

    monkeypatch.setattr("distill.training.fit.Objective", Recorder)
    train = TrainConfig(loss="cosine", reg="none", batch_size=4)
    figures = Trainer(classifier(), train, CPU).epoch(pool_of(8), plan_of(8), CLASSES, a_teacher(), Fixed(0.4), SHOW)
    assert len(minimised) == 8
    assert figures["loss"] == pytest.approx(sum(minimised) / 8, rel=1e-5)


def test_training_learns():
    fit, pool = Trainer(classifier(), TrainConfig(lr=1e-2, loss="ce"), CPU), pool_of(64)
    accuracies = [fit.epoch(pool, plan_of(64, epoch), CLASSES, None, Fixed(1.0), SHOW)["acc"] for epoch in range(8)]
    assert accuracies[-1] > accuracies[0] + 0.2


# -------------------------------------------------------------------------------------------------------- the teacher


class Spy(nn.Module):
    """A classifier that keeps what it was shown, and in which mode."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.shown, self.modes = model, [], []

    def forward(self, images):
        self.shown.append(images.clone())
        self.modes.append(self.model.training)
        return self.model(images)


def test_the_teacher_is_left_as_it_was(small_chunks):
    teacher = a_teacher()
    before = copy.deepcopy(teacher.state_dict())
    Trainer(classifier(), TrainConfig(lr=0.1, batch_size=4), CPU).epoch(
        pool_of(24), plan_of(24), CLASSES, teacher, Fixed(0.3), SHOW
    )
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_teacher_is_in_eval_mode_and_the_student_in_training_mode(small_chunks):
    student, teacher = Spy(classifier()), Spy(a_teacher())
    teacher.train()  # whatever it was left in
    pool = pool_of(24)
    fit = Trainer(student, TrainConfig(batch_size=4), CPU)
    predict_all(student, pool, fit.train)  # a validation between epochs leaves eval mode behind
    student.modes.clear()
    fit.epoch(pool, plan_of(24), CLASSES, teacher, Fixed(0.3), SHOW)
    assert set(teacher.modes) == {False}
    assert set(student.modes) == {True}


def test_the_teacher_sees_exactly_the_students_images(small_chunks):
    student, teacher, pool, plan = Spy(classifier()), Spy(a_teacher()), pool_of(24), plan_of(24)
    Trainer(student, TrainConfig(batch_size=4), CPU).epoch(pool, plan, CLASSES, teacher, Fixed(0.3), SHOW)
    assert torch.equal(torch.cat(student.shown), torch.cat(teacher.shown))
    assert torch.equal(torch.cat(student.shown), augment.apply(pool.images[plan.order], plan))
    assert [len(images) for images in teacher.shown] == [8, 8, 8]  # in fewer, larger batches
    assert [len(images) for images in student.shown] == [4] * 6


def test_the_teacher_is_no_part_of_the_student():
    fit = Trainer(classifier(), TrainConfig(batch_size=4), CPU)
    names = list(fit.model.state_dict())
    fit.epoch(pool_of(8), plan_of(8), CLASSES, a_teacher(), Fixed(0.3), SHOW)
    assert list(fit.state_dict()["model"]) == names
    assert len(fit.parameters) == len(list(classifier().parameters()))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_of_a_large_batch_are_those_of_small_ones(temperature):
    teacher, images = a_teacher(), pool_of(64).images
    train = TrainConfig(loss="kl", temperature=temperature)
    parts = [(teacher(part) / temperature).softmax(1) for part in images.split(4)]
    soft = soft_targets(teacher, images, train)
    torch.testing.assert_close(soft, torch.cat(parts), rtol=1e-5, atol=1e-6)
    assert soft.dtype == torch.float32
    assert not soft.requires_grad


def test_without_a_teacher_there_are_no_soft_targets():
    assert soft_targets(None, pool_of(4).images, TrainConfig()) is None


# ------------------------------------------------------------------------------------------------------ learning rates


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
def test_warm_up_and_what_follows_are_torchs(schedule):
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


def test_a_development_run_leaves_the_warm_up_out():
    assert our_rates(2, lr=0.3, max_epochs=5, warmup_epochs=2, fast_dev_run=True) == [0.3, 0.3]


def test_every_update_has_its_own_rate(small_chunks):
    train = TrainConfig(lr=0.01, lr_schedule="cosine", max_epochs=2, batch_size=4, optimizer="sgd")
    fit, pool, used = Trainer(classifier(), train, CPU), pool_of(18), []
    step = fit.optimizer.step
    fit.optimizer.step = lambda: (used.append(fit.optimizer.param_groups[0]["lr"]), step())
    for epoch in range(2):
        fit.epoch(pool, plan_of(18, epoch), CLASSES, None, Fixed(1.0), SHOW)
    assert used == our_rates(5, lr=0.01, lr_schedule="cosine", max_epochs=2)


# --------------------------------------------------------------------------------------------------- chunks and batches


@pytest.mark.parametrize("size", [4, 8, 12, 100])
def test_chunks_hold_every_image_once_in_the_plans_order(size):
    pool, plan = pool_of(30), plan_of(30)
    images, labels = zip(*chunks(pool, plan, size), strict=True)
    assert [len(part) for part in images] == [min(size, 30 - i) for i in range(0, 30, size)]
    assert torch.equal(torch.cat(images), augment.apply(pool.images[plan.order], plan))
    assert torch.equal(torch.cat(labels), pool.labels[plan.order])


@pytest.mark.parametrize("batch", [2, 3, 16, 100, 2000])
@pytest.mark.parametrize("size", [8, 32, 224])
def test_a_chunk_is_a_whole_number_of_batches(batch, size):
    pool = SimpleNamespace(images=torch.empty(1, 3, size, size))
    chunk = chunk_size(pool, batch)
    assert chunk % batch == 0
    assert chunk == batch or chunk * size**2 <= CHUNK_PIXELS


def trained(pool: ImageStore, teacher=None, **options) -> dict[str, torch.Tensor]:
    fit = Trainer(classifier(), TrainConfig(batch_size=4, lr=1e-2, **options), pool.device)
    fit.epoch(pool, plan_of(len(pool)), CLASSES, teacher, Fixed(0.5), listener := Notes())
    assert not listener.notes
    return {name: value.cpu() for name, value in fit.model.state_dict().items()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_training_does_not_depend_on_the_chunks(monkeypatch):
    whole = trained(pool_of(30))
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 64 * 8)
    assert_same_bits(whole, trained(pool_of(30)))


def test_the_same_training_twice_gives_the_same_bits(small_chunks):
    assert_same_bits(trained(pool_of(30), a_teacher()), trained(pool_of(30), a_teacher()))


class OnHost:
    """Images on the host of a device that is elsewhere: what a data set too large for the device looks like."""

    device = torch.device("meta")

    def __init__(self, images: torch.Tensor):
        self.images, self.shape = images, images.shape

    def __getitem__(self, index):
        return self.images[index]


def test_images_that_are_streamed_train_the_same_model(monkeypatch, small_chunks):
    """The route of images that stay on the host, with stand-ins for CUDA's streams."""
    resident = trained(pool_of(30), a_teacher())
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *args: stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    pool = pool_of(30)
    streamed = ImageStore(OnHost(pool.images), pool.labels, CPU)
    assert_same_bits(resident, trained(streamed, a_teacher()))


@pytest.mark.parametrize(("n", "batches"), [(16, 4), (17, 4), (18, 5), (19, 5), (20, 5)])
def test_a_last_batch_of_one_image_is_left_out(n, batches, small_chunks):
    student = Spy(classifier())
    fit = Trainer(student, TrainConfig(batch_size=4), CPU)
    figures = fit.epoch(pool_of(n), plan_of(n), CLASSES, None, Fixed(1.0), SHOW)
    sizes = [len(images) for images in student.shown]
    assert len(sizes) == batches == updates_per_epoch(n, 4)
    assert sum(sizes) == (16 if n == 17 else n)
    assert figures["acc"] * sum(sizes) == pytest.approx(round(figures["acc"] * sum(sizes)), abs=1e-9)


def test_progress_is_told_of_every_image(small_chunks):
    class Counter(Listener):
        images, chunks = 0, 0

        def advance(self, images):
            self.images += images

        def end_chunk(self, sums):
            self.chunks += 1
            assert sums.images == self.images
            assert 0 <= sums.read()["acc"] <= 1

    listener = Counter()
    Trainer(classifier(), TrainConfig(batch_size=4), CPU).epoch(
        pool_of(22), plan_of(22), CLASSES, None, Fixed(1.0), listener
    )
    assert (listener.images, listener.chunks) == (22, 3)


# ---------------------------------------------------------------------------------------------------- what goes wrong


class BadAt(nn.Module):
    """A model whose logits are spoilt in one training update."""

    def __init__(self, update: int, value: float):
        super().__init__()
        self.model, self.update, self.value, self.calls = classifier(), update, value, 0

    def forward(self, images):
        self.calls += 1
        logits = self.model(images)
        return logits + (self.value if self.calls == self.update else 0.0)


@pytest.mark.parametrize("update", [1, 2, 3, 6])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_update(update, value, small_chunks):
    fit = Trainer(BadAt(update, value), TrainConfig(batch_size=4), CPU)
    with pytest.raises(NotFiniteLossError, match=f"the loss is not finite at update {update}$") as caught:
        fit.epoch(pool_of(22), plan_of(22), CLASSES, None, Fixed(1.0), SHOW)
    assert caught.value.update == update


class NanGradient(nn.Module):
    """A model of which one update's gradients are NaN, as torch's bf16 convolutions give them on some processors."""

    def __init__(self, update: int):
        super().__init__()
        self.model = classifier()
        self.update = update
        self.calls = 0
        self.model.network.conv1.weight.register_hook(self.spoil)

    def spoil(self, gradient):
        return gradient * math.nan if self.calls == self.update else gradient

    def forward(self, images):
        self.calls += 1
        return self.model(images)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    ("update", "said"),
    [
        (1, "the loss is not finite at update 2"),
        (5, "the loss is not finite at update 6"),
        (6, "a parameter is not finite after update 6"),
    ],
)
def test_a_nan_gradient_ends_the_epoch(optimizer, update, said, small_chunks):
    """It makes parameters NaN, which the next update's loss shows, or after the last update the parameters' norms."""
    fit = Trainer(NanGradient(update), TrainConfig(batch_size=4, optimizer=optimizer), CPU)
    with pytest.raises(NotFiniteLossError, match=f"^{said}$"):
        fit.epoch(pool_of(22), plan_of(22), CLASSES, None, Fixed(1.0), SHOW)


def test_in_bf16_the_advice_names_another_precision():
    assert NotFiniteLossError(1, TrainConfig()).advice == "try a smaller --lr"
    assert "--precision fp32" in NotFiniteLossError(1, TrainConfig(precision="bf16")).advice


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="--device cuda: no CUDA device here; try cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a driver too old for this build of torch
    with pytest.raises(ConfigError, match="no CUDA device here"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="--device cuda:2: only 2 CUDA devices here"):
        pick_device("cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device mps: there is no such device here"):
        pick_device("mps")


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(0, 0, "cpu"), (0, 1, "mps"), (1, 0, "cuda"), (1, 1, "cuda")])
def test_auto_takes_the_best_device_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert pick_device("auto").type == expected


def test_tf32_needs_cuda():
    with pytest.raises(ConfigError, match="--precision tf32 needs a CUDA device, not cpu"):
        set_up(TrainConfig(precision="tf32"), CPU, None)


# ---------------------------------------------------------------------------------------- predictions, stop and go on


def test_predictions_are_the_models_in_eval_mode_in_the_splits_order(small_chunks):
    model, pool = classifier(), pool_of(21)
    logits = predict_all(model.train(), pool, TrainConfig(batch_size=4))
    torch.testing.assert_close(logits, model.eval()(pool.images).detach(), rtol=1e-5, atol=1e-6)
    assert not logits.requires_grad


def test_predicting_leaves_the_batch_statistics_alone():
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    predict_all(model.train(), pool_of(21), TrainConfig())
    assert_same_bits(before, model.state_dict())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_stopping_and_going_on_gives_the_same_bits(optimizer):
    """Through a file, as a run does it, into a model with other weights."""
    train = TrainConfig(batch_size=4, lr=1e-2, optimizer=optimizer, lr_schedule="cosine", max_epochs=3)
    pool, whole = pool_of(22), Trainer(classifier(), train, CPU)
    figures = [whole.epoch(pool, plan_of(22, e), CLASSES, a_teacher(), Fixed(0.5), SHOW) for e in range(3)]
    stopped = Trainer(classifier(), train, CPU)
    stopped.epoch(pool, plan_of(22, 0), CLASSES, a_teacher(), Fixed(0.5), SHOW)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = Trainer(classifier(seed=5), train, CPU)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.epochs == 1
    rest = [resumed.epoch(pool, plan_of(22, e), CLASSES, a_teacher(), Fixed(0.5), SHOW) for e in (1, 2)]
    assert rest == figures[1:]
    assert_same_bits(whole.model.state_dict(), resumed.model.state_dict())


# -------------------------------------------------------------------------------------------------- precision, devices


def test_bf16_keeps_weights_and_losses_in_float32(monkeypatch):
    class Recorder(Objective):
        def __call__(self, *tensors):
            in_the_loss.extend(tensor.dtype for tensor in tensors)
            return super().__call__(*tensors)

    monkeypatch.setattr("distill.training.fit.Objective", Recorder)
    dtypes, in_the_loss = [], []
    model = classifier()
    model.network.fc.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    train, pool = TrainConfig(batch_size=4, precision="bf16"), pool_of(16)
    fit = Trainer(model, train, CPU)
    figures = fit.epoch(pool, plan_of(16), CLASSES, a_teacher(), Fixed(0.5), SHOW)
    assert set(dtypes) == {torch.bfloat16}
    assert set(in_the_loss) == {torch.float32}
    assert {p.dtype for p in fit.parameters} == {torch.float32}
    assert predict(model, pool.images, train).dtype == torch.float32
    exact = Trainer(classifier(), TrainConfig(batch_size=4), CPU).epoch(
        pool, plan_of(16), CLASSES, a_teacher(), Fixed(0.5), SHOW
    )
    assert figures["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert figures["loss"] != exact["loss"]


@pytest.fixture
def switches(monkeypatch):
    """torch's global switches, put back afterwards."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.benchmark, cudnn.allow_tf32, precision = before
    torch.set_float32_matmul_precision(precision)


def test_set_up_switches_determinism_on_and_off(switches):
    set_up(TrainConfig(deterministic=True), CPU, None)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    set_up(TrainConfig(), CPU, None)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # as torch begins


@pytest.mark.parametrize(("name", "chosen"), [("cuda", []), ("cuda:0", [0]), ("cuda:1", [1])])
def test_set_up_makes_a_numbered_gpu_the_current_one(monkeypatch, switches, name, chosen):
    """A bare cuda is whatever is current; torch.cuda.set_device refuses it."""
    numbers = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: numbers.append(device.index))
    set_up(TrainConfig(), torch.device(name), None)
    assert numbers == chosen


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_set_up_chooses_how_a_gpu_multiplies(switches, precision):
    set_up(TrainConfig(precision=precision), torch.device("cuda"), None)
    for switch in (torch.backends.cuda.matmul, torch.backends.cudnn):
        assert switch.allow_tf32 == (precision == "tf32")  # which torch does not tell where its switches disagree
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == (precision == "tf32")


def test_set_up_takes_the_number_of_threads(switches):
    before = torch.get_num_threads()
    try:
        set_up(TrainConfig(), CPU, 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_deterministic_epoch_goes_through(switches):
    """No operation of training is one that torch refuses to repeat."""
    set_up(TrainConfig(deterministic=True), CPU, None)
    trained(pool_of(16), a_teacher(), deterministic=True)


def test_copies_have_a_stream_for_each_thread_and_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: (device, object()))
    monkeypatch.setattr("distill.training.batches._own", threading.local())
    devices = [torch.device("cuda", i) for i in (0, 1)]
    here = [_copy_stream(device) for device in devices]
    assert [stream[0] for stream in here] == devices
    assert [_copy_stream(device) for device in devices] == here
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(_copy_stream, devices[0]).result()
    assert there[0] == devices[0]
    assert there != here[0]


def on_gpu(resident: bool | None = None) -> dict[str, torch.Tensor]:
    cuda = torch.device("cuda")
    train = TrainConfig(deterministic=True, optimizer="sgd")
    set_up(train, cuda, None)
    pool = make_image_store(split_of(30), cuda, resident)
    assert pool.images.is_cuda == (resident is not False)
    return trained(pool, a_teacher().to(cuda), deterministic=True, optimizer="sgd")


@pytest.mark.gpu
def test_a_gpu_trains_what_a_cpu_trains(switches, small_chunks):
    there, here = on_gpu(), trained(pool_of(30), a_teacher(), optimizer="sgd")
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_a_gpu_repeats_itself_bit_for_bit(switches, small_chunks):
    assert_same_bits(on_gpu(), on_gpu())


@pytest.mark.gpu
def test_a_gpu_trains_the_same_bits_from_images_on_the_host(switches, small_chunks):
    assert_same_bits(on_gpu(resident=True), on_gpu(resident=False))


@pytest.mark.gpu
def test_a_gpus_predictions_do_not_depend_on_where_the_images_are(switches, small_chunks):
    cuda, train = torch.device("cuda"), TrainConfig(batch_size=4)
    set_up(train, cuda, None)
    model = classifier().to(cuda)
    one, other = (predict_all(model, make_image_store(split_of(30), cuda, r), train) for r in (True, False))
    assert torch.equal(one, other)
    here = predict_all(classifier(), pool_of(30), train)
    torch.testing.assert_close(one, here, rtol=1e-4, atol=1e-4)


def test_the_bits_do_not_depend_on_the_memory_layout_of_one_channel():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint8)
    labels, index = np.arange(6) % 3, np.arange(6)
    as_stacked = np.lib.stride_tricks.as_strided(images, (6, 1, 8, 8), (64, 1, 8, 1))
    strides = {
        make_image_store(Split(layout, labels, labels, index), CPU).images.stride()
        for layout in (images[:, None], as_stacked)
    }
    assert strides == {(64, 64, 8, 1)}


# ------------------------------------------------------------------------------------------- memory layout, compiling


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "mps", "cuda", "cuda:1"])
def test_channels_come_last_on_a_cpu_and_where_tensor_cores_multiply(precision, device):
    last = channels_last(TrainConfig(precision=precision), torch.device(device))
    assert last == (device == "cpu" or (device.startswith("cuda") and precision != "fp32"))


def test_channels_last_training_is_the_same_training(monkeypatch, small_chunks):
    """In weights, moments, images and the teacher's pass; only the order of sums differs."""
    with monkeypatch.context() as patch:
        patch.setattr("distill.training.device.channels_last", lambda train, device: False)
        plain, teacher = trained(pool_of(22), a_teacher()), a_teacher()
    student = Spy(classifier())
    fit = Trainer(student, TrainConfig(batch_size=4, lr=1e-2), CPU)
    layouts = []
    for model in (student.model, teacher):
        model.network.blocks[2].bn2.register_forward_hook(lambda *args: layouts.append(args[2].stride()[1]))
    fit.epoch(pool_of(22), plan_of(22), CLASSES, place(teacher, fit.train, CPU), Fixed(0.5), SHOW)
    assert layouts == [1] * (6 + 3)  # updates, and the teacher's chunks
    weight = student.model.network.blocks[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert fit.optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    for name, value in student.model.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-4)


def test_a_model_may_be_placed_again(monkeypatch):
    model = place(classifier(), TrainConfig(), CPU)
    assert not model.network.blocks[0].conv1.weight.is_contiguous()
    monkeypatch.setattr("distill.training.device.channels_last", lambda train, device: False)
    assert place(model, TrainConfig(), CPU).network.blocks[0].conv1.weight.is_contiguous()


def test_a_network_of_ones_own_keeps_its_layout():
    """Flattening with ``view``, as many do, asks for contiguous maps."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, CLASSES)

        def forward(self, x):
            return self.head(self.convolution(x).view(len(x), -1))

    fit = Trainer(Classifier(Own(), torch.zeros(3), torch.ones(3)), TrainConfig(batch_size=4), CPU)
    fit.epoch(pool_of(8), plan_of(8), CLASSES, a_teacher(), Fixed(0.5), SHOW)
    assert fit.model.network.convolution.weight.is_contiguous()


def test_compiling_is_torchs_and_trains_the_same_weights(monkeypatch, small_chunks):
    """With a backend that compiles nothing: what is tested is that training goes through it."""
    compiled, plain = [], trained(pool_of(22), a_teacher())

    def compile(model, **options):
        compiled.append(options)
        return lambda images: model(images)

    monkeypatch.setattr(torch, "compile", compile)
    assert_same_bits(trained(pool_of(22), a_teacher(), compile=True), plain)
    assert len(compiled) == 1
