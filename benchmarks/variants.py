"""The programs that ``training.py`` times: the obvious program with none, one or all of the engine's ingredients.

Each variant runs in a process of its own, as a user would start it, so that the settings of torch, OpenMP and the C
library that one variant makes do not reach another. The process trains one burst for each line on its standard input,
and answers with the seconds it took.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.common import ALPHA, CLASSES, LR, MEAN, REG_COEF, STD, plain_network, random_split
from benchmarks.obvious import Images, Obvious, loader
from distill.arms import Fixed
from distill.config import TrainConfig
from distill.data.splits import Split
from distill.environment import SETTINGS, available_cores
from distill.training import augment, models, optim
from distill.training.batches import chunk_size, chunks, make_image_store
from distill.training.device import autocast, place, set_up
from distill.training.fit import Trainer
from distill.training.listener import Notes
from distill.training.predict import predict

Burst = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """The obvious program with some of the engine's ingredients in place of its own."""

    name: str
    in_memory: bool = False  # augmented uint8 chunks in memory, not a DataLoader of PIL images
    teacher_once: bool = False  # the teacher's pass over a whole chunk (needs in_memory)
    fused: bool = False  # fused Adam
    folded: bool = False  # the regulariser folded into it (needs fused)
    channels_last: bool = False  # channels-last weights, and so channels-last maps
    products: bool = False  # convolutions that leave out products with padding
    keeps_memory: bool = False  # glibc keeps freed buffers
    engine: bool = False  # everything: Trainer itself
    precision: str = "fp32"


OBVIOUS = Variant("obvious program")
INGREDIENTS = (
    Variant("in-memory batches alone", in_memory=True),
    Variant("... and the teacher once a chunk", in_memory=True, teacher_once=True),
    Variant("fused Adam alone", fused=True),
    Variant("... and the regulariser folded into it", fused=True, folded=True),
    Variant("channels last alone", channels_last=True),
    Variant("... and products without padding", channels_last=True, products=True),
    Variant("freed memory kept, alone", keeps_memory=True),
    Variant("bf16 autocast alone", precision="bf16"),
)
ENGINE = (Variant("engine, fp32", engine=True), Variant("engine, bf16", engine=True, precision="bf16"))


@dataclass(frozen=True)
class Workload:
    """What a burst trains: a network, a batch size, teacher or student, and the number of updates."""

    resnet: int
    batch: int
    student: bool
    updates: int
    device: str
    threads: int | None = None  # of the engine; None: torch's choice

    @property
    def images(self) -> int:
        return self.updates * self.batch


class Process:
    """A variant in a process of its own, warmed up by one burst."""

    def __init__(self, work: Workload, variant: Variant):
        # The engine's settings may be in this process's environment; only the engine is to have them.
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        if variant.engine:
            environment |= SETTINGS
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.variants", json.dumps([asdict(work), asdict(variant)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.seconds()

    def begin(self) -> None:
        """Start a burst."""
        self.process.stdin.write("burst\n")
        self.process.stdin.flush()

    def wait(self) -> float:
        """Wait for the end of the burst; returns its seconds."""
        return float(self.process.stdout.readline())

    def seconds(self) -> float:
        """Train one burst; returns its seconds."""
        self.begin()
        return self.wait()

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


def make_burst(work: Workload, variant: Variant) -> Burst:
    """A function that trains one burst of this variant, with everything set up that does not belong to a burst."""
    device = torch.device(work.device)
    train = TrainConfig(batch_size=work.batch, precision=variant.precision, lr=LR, reg_coef=REG_COEF)
    torch.backends.cudnn.allow_tf32 = False  # "fp32" is float32 in every variant
    if variant.engine or variant.keeps_memory:
        set_up(train, device, work.threads)
    split = random_split(work.images)
    networks = [_network(work.resnet, seed, variant, train, device) for seed in range(2 if work.student else 1)]
    student = networks[0]
    teacher = networks[1].eval().requires_grad_(False).to(device) if work.student else None
    if variant.engine:
        return _engine_burst(student, teacher, split, train, device, variant.name)
    program = _obvious_program(student, teacher, variant, device)
    if variant.in_memory:
        return _in_memory_burst(program, split, train, device, variant.teacher_once)
    batches = loader(Images(split.images, split.labels, MEAN, STD), work.batch, min(4, available_cores()))
    return lambda: program.train(batches)


def _network(resnet: int, seed: int, variant: Variant, train: TrainConfig, device: torch.device) -> nn.Module:
    """The network with the variant's ingredients; it takes uint8 images if the variant's batches are in memory."""
    network = plain_network(resnet, seed)
    if variant.engine or variant.products:
        models.use_product_convolutions(network)
    if variant.channels_last:
        network.to(memory_format=torch.channels_last)
    if variant.precision == "bf16" and not variant.engine:
        network.forward = _in_float32(autocast(train, device)(network.forward))
    if variant.engine or variant.in_memory:
        return models.Classifier(network, MEAN, STD)
    return network


def _in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Convert autocast's bfloat16 logits: losses are float32 in every variant."""
    return lambda images: forward(images).float()


def _plan(images: int):
    """The augmentation of one epoch over so many images."""
    return augment.plan(0, 0, 0, images, 32, True, True)


def _engine_burst(
    student: nn.Module, teacher: nn.Module | None, split: Split, train: TrainConfig, device: torch.device, name: str
) -> Burst:
    """An epoch of the engine."""
    store = make_image_store(split, device)
    plan = _plan(len(split.labels))
    if teacher is not None:
        teacher = place(teacher, train, device)
    fit = Trainer(student, train, device)
    listener = Notes()

    def burst() -> None:
        fit.epoch(store, plan, CLASSES, teacher, Fixed(ALPHA), listener)
        if listener.notes:  # a slow path must not pass for the engine
            raise SystemExit(f"{name}: {listener.notes[0]}")

    return burst


def _obvious_program(student: nn.Module, teacher: nn.Module | None, variant: Variant, device: torch.device) -> Obvious:
    """The obvious program with the variant's optimiser."""
    program = Obvious(student, teacher, ALPHA, LR, REG_COEF, device)
    parameters = list(program.network.parameters())
    if variant.fused:
        program.optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
    if variant.folded:
        optimizer = program.optimizer

        def step() -> None:
            optim.update(optimizer, parameters, "norm", REG_COEF)

        program.reg_coef = 0.0
        program.optimizer = SimpleNamespace(zero_grad=optimizer.zero_grad, step=step)
    return program


def _in_memory_burst(
    program: Obvious, split: Split, train: TrainConfig, device: torch.device, teacher_once: bool
) -> Burst:
    """The obvious program on the engine's batches; its teacher may predict a chunk of batches at once."""
    store = make_image_store(split, device)
    plan = _plan(len(split.labels))
    teacher = program.teacher

    def burst() -> None:
        for images, labels in chunks(store, plan, chunk_size(store, train.batch_size)):
            if teacher_once and teacher is not None:
                logits = iter(predict(teacher, images, train).split(train.batch_size))
                program.teacher = lambda _, logits=logits: next(logits)
            batches = zip(images.split(train.batch_size), labels.split(train.batch_size), strict=True)
            program.train(batches)

    return burst


def main() -> None:
    """Train a burst for each line of standard input, until it ends."""
    work, variant = json.loads(sys.argv[1])
    burst = make_burst(Workload(**work), Variant(**variant))
    for _ in itertools.takewhile(bool, iter(sys.stdin.readline, None)):
        started = time.perf_counter()
        burst()
        if work["device"].startswith("cuda"):
            torch.cuda.synchronize()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
