"""fit.py: the teacher's part, precision, resuming, layouts, and what goes wrong."""

import copy
import io
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_tools import (
    CLASSES,
    CPU,
    SHOW,
    Spy,
    a_teacher,
    assert_same_bits,
    classifier,
    plan_of,
    pool_of,
    split_of,
    trained,
)

from distill.arms import Fixed
from distill.config import TrainConfig
from distill.losses import LOSSES, Loss, loss_function
from distill.training import augment
from distill.training.batches import make_image_store
from distill.training.device import place, set_up
from distill.training.fit import NotFiniteLossError, Trainer
from distill.training.listener import Listener
from distill.training.models import Classifier
from distill.training.objective import Objective
from distill.training.optim import updates_per_epoch
from distill.training.predict import predict, predict_all


@dataclass(frozen=True)
class ArgMax:
    """A kind of target that takes the teacher's most probable class alone."""

    alpha: float

    def teacher_target(self, soft: torch.Tensor) -> torch.Tensor:
        return F.one_hot(soft.argmax(1), soft.shape[1]).float()


@pytest.mark.parametrize("options", [{}, {"loss": "kl", "temperature": 3.0}])
def test_the_target_class_computes_the_teachers_part(options):
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


def test_a_loss_that_is_not_linear_is_logged(monkeypatch):
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


def test_training_a_student_does_not_change_its_teacher(small_chunks):
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


def test_the_teacher_is_not_in_the_students_state():
    fit = Trainer(classifier(), TrainConfig(batch_size=4), CPU)
    names = list(fit.model.state_dict())
    fit.epoch(pool_of(8), plan_of(8), CLASSES, a_teacher(), Fixed(0.3), SHOW)
    assert list(fit.state_dict()["model"]) == names
    assert len(fit.parameters) == len(list(classifier().parameters()))


def test_the_same_training_twice_gives_the_same_bits(small_chunks):
    assert_same_bits(trained(pool_of(30), a_teacher()), trained(pool_of(30), a_teacher()))


@pytest.mark.parametrize(("n", "batches"), [(16, 4), (17, 4), (18, 5), (19, 5), (20, 5)])
def test_a_last_batch_of_one_image_is_left_out(n, batches, small_chunks):
    student = Spy(classifier())
    fit = Trainer(student, TrainConfig(batch_size=4), CPU)
    figures = fit.epoch(pool_of(n), plan_of(n), CLASSES, None, Fixed(1.0), SHOW)
    sizes = [len(images) for images in student.shown]
    assert len(sizes) == batches == updates_per_epoch(n, 4)
    assert sum(sizes) == (16 if n == 17 else n)
    assert figures["acc"] * sum(sizes) == pytest.approx(round(figures["acc"] * sum(sizes)), abs=1e-9)


def test_the_listener_counts_every_image(small_chunks):
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


class BadAt(nn.Module):
    """A model whose logits are set to ``value`` in one training update."""

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
    """It makes parameters NaN. The next update's loss shows this, or the parameters' norms after the last update."""
    fit = Trainer(NanGradient(update), TrainConfig(batch_size=4, optimizer=optimizer), CPU)
    with pytest.raises(NotFiniteLossError, match=f"^{said}$"):
        fit.epoch(pool_of(22), plan_of(22), CLASSES, None, Fixed(1.0), SHOW)


def test_in_bf16_the_advice_suggests_fp32():
    assert NotFiniteLossError(1, TrainConfig()).advice == "try a smaller --lr"
    assert "--precision fp32" in NotFiniteLossError(1, TrainConfig(precision="bf16")).advice


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_resumed_training_gives_the_same_bits(optimizer):
    """The state goes through a file, as in a run, into a model with other weights."""
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


def test_a_deterministic_epoch_works(switches):
    """Training has no operation without a deterministic implementation."""
    set_up(TrainConfig(deterministic=True), CPU, None)
    trained(pool_of(16), a_teacher(), deterministic=True)


def test_channels_last_trains_the_same_model(monkeypatch, small_chunks):
    """Weights, moments, images and the teacher's pass are channels last; only the order of sums differs."""
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


def test_a_custom_network_keeps_its_memory_layout():
    """Flattening with ``view``, which is common, needs contiguous feature maps."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, CLASSES)

        def forward(self, x):
            return self.head(self.convolution(x).view(len(x), -1))

    fit = Trainer(Classifier(Own(), torch.zeros(3), torch.ones(3)), TrainConfig(batch_size=4), CPU)
    fit.epoch(pool_of(8), plan_of(8), CLASSES, a_teacher(), Fixed(0.5), SHOW)
    assert fit.model.network.convolution.weight.is_contiguous()


def test_compiling_trains_the_same_weights(monkeypatch, small_chunks):
    """With a backend that compiles nothing; the test is that training uses it."""
    compiled, plain = [], trained(pool_of(22), a_teacher())

    def compile(model, **options):
        compiled.append(options)
        return lambda images: model(images)

    monkeypatch.setattr(torch, "compile", compile)
    assert_same_bits(trained(pool_of(22), a_teacher(), compile=True), plain)
    assert len(compiled) == 1
