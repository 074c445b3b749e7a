"""What ``training.py`` times: the obvious program with none, one or all of the engine's ingredients.

Each variant is a process of its own, as a person would start it: what one of them asks of torch, OpenMP or the C
library reaches no other. It is told over its standard input to train a burst, and answers with the seconds it took.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from types import SimpleNamespace

from distill.environment import SETTINGS

CLASSES, ALPHA, LR, REG_COEF = 10, 0.6, 1e-4, 1e-4
MEAN, STD = (0.5,) * 3, (0.25,) * 3


@dataclass(frozen=True)
class Variant:
    """The obvious program with some of the engine's ingredients in place of its own."""

    name: str
    in_memory: bool = False  # augmented uint8 chunks in memory, not a DataLoader of PIL images
    teacher_once: bool = False  # the teacher's pass over a whole chunk (needs in_memory)
    fused: bool = False  # fused Adam
    folded: bool = False  # ... and the regulariser folded into it
    channels_last: bool = False  # in the weights, and so in every map
    products: bool = False  # ... and convolutions that leave out what multiplies padding
    keeps_memory: bool = False  # glibc told to keep freed buffers
    engine: bool = False  # everything: engine.Fit itself
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
class Job:
    """A network, a batch size, a kind of step, and how many updates a burst has."""

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
    """A variant in a process of its own, warmed up."""

    def __init__(self, job: Job, variant: Variant):
        environment = SETTINGS | os.environ if variant.engine else dict(os.environ)
        arguments = [json.dumps([asdict(job), asdict(variant)])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.variants", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.seconds()

    def begin(self) -> None:
        """Have it train a burst."""
        self.process.stdin.write("burst\n")
        self.process.stdin.flush()

    def wait(self) -> float:
        """The seconds that the burst took, when it is done."""
        return float(self.process.stdout.readline())

    def seconds(self) -> float:
        """Train one burst, and how long it took."""
        self.begin()
        return self.wait()

    def end(self) -> None:
        self.process.communicate()


def network(resnet: int, seed: int):
    """torchvision's network with a new head, as anybody makes it, or one of the 6n+2 family."""
    import torch
    from torchvision.models import get_model

    from distill.config import CIFAR_RESNETS, ModelConfig
    from distill.training.models import build

    torch.manual_seed(seed)
    if resnet in CIFAR_RESNETS:
        return build(ModelConfig(resnet=resnet), 3, CLASSES)
    made = get_model(f"resnet{resnet}")
    made.fc = torch.nn.Linear(made.fc.in_features, CLASSES)
    return made


def in_float32(forward):
    """Autocast answers in bfloat16; losses are float32 in every variant."""
    return lambda images: forward(images).float()


def make_burst(job: Job, variant: Variant):
    """A function that trains a burst of this variant, set up and ready to go."""
    import numpy as np
    import torch

    from benchmarks.obvious import Images, Obvious, loader
    from distill.config import TrainConfig
    from distill.data.splits import Split
    from distill.training import augment, decay, engine, models
    from distill.training.listener import Notes

    device, mean, std = torch.device(job.device), np.float32(MEAN), np.float32(STD)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (job.images, 3, 32, 32), np.uint8), rng.integers(0, CLASSES, job.images)
    plan = augment.plan(0, 0, 0, job.images, 32, True, True)
    train = TrainConfig(batch_size=job.batch, precision=variant.precision, lr=LR, reg_coef=REG_COEF)
    networks = [network(job.resnet, seed) for seed in range(1 + job.student)]
    torch.backends.cudnn.allow_tf32 = False  # "fp32" is float32 in every variant
    if variant.engine or variant.keeps_memory:
        engine.set_up(train, device, job.threads)
    for made in networks:
        if variant.engine or variant.products:
            models.take_products(made)
        if variant.channels_last:
            made.to(memory_format=torch.channels_last)
        if variant.precision == "bf16" and not variant.engine:
            made.forward = in_float32(engine.autocast(train, device)(made.forward))
    if variant.engine or variant.in_memory:
        networks = [models.Classifier(made, mean, std) for made in networks]
        pool = engine.make_image_store(Split(images, labels, labels, np.arange(job.images)), device)
    student, teacher = networks[0], networks[1].eval().requires_grad_(False).to(device) if job.student else None
    if variant.engine:
        teacher = teacher and engine.place(teacher, train, device)
        fit, listener = engine.Fit(student, train, device), Notes()

        def epoch() -> None:
            fit.epoch(pool, plan, CLASSES, teacher, ALPHA, listener)
            if listener.notes:  # a slow path must not pass for the engine
                raise SystemExit(f"{variant.name}: {listener.notes[0]}")

        return epoch
    program = Obvious(student, teacher, ALPHA, LR, REG_COEF, device)
    parameters = list(program.network.parameters())
    if variant.fused:
        program.optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
    if variant.folded:
        optimizer, program.reg_coef = program.optimizer, 0.0
        step = lambda: decay.step(optimizer, parameters, "norm", REG_COEF)  # noqa: E731
        program.optimizer = SimpleNamespace(zero_grad=optimizer.zero_grad, step=step)
    if not variant.in_memory:
        batches = loader(Images(images, labels, mean, std), job.batch, min(4, os.cpu_count() or 1))
        return lambda: program.train(batches)

    def in_memory():
        for images, labels in engine.chunks(pool, plan, engine.chunk_size(pool, job.batch)):
            if variant.teacher_once and teacher is not None:
                logits = iter(engine.predict(teacher, images, train).split(job.batch))
                program.teacher = lambda _: next(logits)  # noqa: B023 - called before the next chunk
            program.train(zip(images.split(job.batch), labels.split(job.batch), strict=True))

    return in_memory


def main() -> None:
    """Serve bursts until standard input ends."""
    job, variant = json.loads(sys.argv[1])
    burst = make_burst(Job(**job), Variant(**variant))
    for _ in itertools.takewhile(bool, iter(sys.stdin.readline, None)):
        started = time.perf_counter()
        burst()
        if job["device"].startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
