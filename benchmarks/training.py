"""Images per second of training: the engine against the obvious program, and what each of its ingredients gives.

    python -m benchmarks.training            # ResNet-18/34/50, batches of 16 and 128, teacher and student
    python -m benchmarks.training --quick    # ResNet-18, student alone, fewer rounds

All variants of a row run in one process, in turn, round after round, after a warm-up; ratios are taken within a round.
Leave the machine alone meanwhile: with another process on the cores, OpenMP's waiting threads make timings worthless.
Results go to benchmarks/results/training-<machine>.json and into the table that is printed.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.obvious import Images, Obvious, loader
from distill import augment, engine, models
from distill.config import ModelConfig, TrainConfig
from distill.data import Split
from distill.objective import Objective, add_regulariser, one_hot

IMAGES, CLASSES, ALPHA = 4096, 10, 0.6
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Variant:
    """The obvious program with some of the engine's ingredients in place of its own."""

    name: str
    in_memory: bool = False  # augmented uint8 chunks in memory, not a DataLoader of PIL images
    teacher_once: bool = False  # the teacher's pass over a whole chunk (needs in_memory)
    fused: bool = False  # fused Adam
    analytic: bool = False  # the regulariser's gradient by hand, in foreach calls
    engine: bool = False  # everything: engine.Fit itself
    precision: str = "fp32"


VARIANTS = (
    Variant("obvious program"),
    Variant("in-memory batches alone", in_memory=True),
    Variant("... and the teacher once a chunk", in_memory=True, teacher_once=True),
    Variant("fused Adam alone", fused=True),
    Variant("analytic regulariser alone", analytic=True),
    Variant("engine, fp32", engine=True),
    Variant("engine, bf16", engine=True, precision="bf16"),
)


class Row:
    """One network, batch size and kind of step: its data, and a timed burst of any variant."""

    def __init__(self, resnet: int, batch: int, student: bool, device: torch.device, workers: int):
        self.resnet, self.batch, self.student, self.device = resnet, batch, student, device
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (IMAGES, 3, 32, 32), np.uint8)
        labels = rng.integers(0, CLASSES, IMAGES)
        self.mean, self.std = np.float32([0.5] * 3), np.float32([0.25] * 3)
        self.pool = engine.make_pool(Split(images, labels, labels, np.arange(IMAGES)), device)
        self.batches = self._forever(loader(Images(images, labels, self.mean, self.std), batch, workers))

    @staticmethod
    def _forever(batches):
        while True:
            yield from batches

    def network(self, seed: int) -> models.Classifier:
        torch.manual_seed(seed)
        return models.Classifier(models.build(ModelConfig(resnet=self.resnet), 3, CLASSES), self.mean, self.std)

    def burst(self, variant: Variant, updates: int):
        """A function that makes ``updates`` updates of a variant, set up and ready to go."""
        if variant.engine:
            return self._engine_burst(variant, updates)
        teacher = self.network(1) if self.student else None
        normalised = not variant.in_memory  # the DataLoader normalises, and the bare network takes what it gives
        program = Obvious(
            self.network(0).network if normalised else self.network(0),
            (teacher.network if normalised else teacher) if self.student else None,
            ALPHA, 1e-4, 1e-4, self.device,
        )  # fmt: skip
        parameters = list(program.network.parameters())
        if variant.fused:
            program.optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
        if variant.analytic:
            program.reg_coef = 0.0
            program.optimizer.register_step_pre_hook(lambda *_: add_regulariser(parameters, "norm", 1e-4) and None)
        if not variant.in_memory:
            return lambda: program.train(itertools.islice(self.batches, updates))
        return lambda: self._in_memory(program, updates, variant.teacher_once)

    def _in_memory(self, program: Obvious, updates: int, teacher_once: bool) -> None:
        size = engine.chunk_size(self.pool, self.batch)
        plan = augment.plan(0, 0, 0, IMAGES, 32, True, True)[: updates * self.batch]
        teacher = program.teacher
        for images, labels in engine.chunks(self.pool, plan, size):
            if teacher_once and teacher is not None:
                soft = engine.predict(teacher, images, TrainConfig())
                rows = iter(soft.split(self.batch))
                program.teacher = lambda _, rows=rows: next(rows)
            for part, given in zip(images.split(self.batch), labels.split(self.batch), strict=True):
                program.update(part, given)
        program.teacher = teacher

    def _engine_burst(self, variant: Variant, updates: int):
        train = TrainConfig(batch_size=self.batch, precision=variant.precision)
        engine.set_up(train, self.device, None)
        fit = engine.Fit(self.network(0), train, self.device)
        teacher = self.network(1).to(self.device).requires_grad_(False) if self.student else None
        plan = augment.plan(0, 0, 0, IMAGES, 32, True, True)[: updates * self.batch]
        return lambda: fit.epoch(self.pool, plan, CLASSES, teacher, ALPHA, engine.Silent())

    def flops(self) -> int:
        """Floating-point operations an image: forward and backward, and the teacher's forward."""
        network, images = self.network(0), torch.zeros(2, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            network(images).sum().backward()
            if self.student:
                with torch.no_grad():
                    network.eval()(images)
        return counter.get_total_flops() // 2


def check_same_losses(device: torch.device) -> float:
    """The largest relative difference between the obvious program's loss and ours on the same batches."""
    row, worst = Row(18, 16, True, device, 0), 0.0
    network, teacher = row.network(0).to(device), row.network(1).to(device).eval()
    program = Obvious(network, teacher, ALPHA, 1e-4, 1e-4, device)
    for images, labels in engine.chunks(row.pool, augment.plan(0, 0, 0, 64, 32, True, True), 16):
        truth, objective = one_hot(labels, CLASSES), Objective("mse", 1.0, ALPHA)
        logits, soft = network(images), engine.soft_targets(teacher, images, TrainConfig())
        terms = objective.terms(logits, truth, soft)
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        ours = (ALPHA * terms[0] + (1 - ALPHA) * terms[1]).mean() + add_regulariser(
            list(network.parameters()), "norm", 1e-4
        )
        theirs = program.loss(logits, labels, teacher(images))
        worst = max(worst, abs(ours.item() / theirs.item() - 1))
    return worst


def time_once(burst, device: torch.device) -> float:
    """Seconds of one burst, the device's work included."""
    started = time.perf_counter()
    burst()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations a second of a float32 matrix product, n = 2048: the best of ten."""
    a = torch.randn(2048, 2048, device=device)
    return 2 * 2048**3 / min(time_once(lambda: a @ a, device) for _ in range(10))


def measure(row: Row, rounds: int, updates: int) -> list[dict]:
    """Every variant of a row, interleaved over ``rounds`` rounds: images/s and its ratio to the obvious program."""
    bursts = {
        variant.name: row.burst(variant, updates) for variant in VARIANTS if row.student or not variant.teacher_once
    }
    for burst in bursts.values():
        burst()  # warm-up: workers started, memory in place, primitives chosen
    seconds = {name: [] for name in bursts}
    for _ in range(rounds):
        for name, burst in bursts.items():
            seconds[name].append(time_once(burst, row.device))
    images, flops, results = updates * row.batch, row.flops(), []
    for name, times in seconds.items():
        ratios = [base / t for base, t in zip(seconds["obvious program"], times, strict=True)]
        rate = images / statistics.median(times)
        results.append(
            {
                "resnet": row.resnet,
                "batch": row.batch,
                "step": "student" if row.student else "teacher",
                "variant": name,
                "images_per_second": rate,
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "flops_per_second": rate * flops,
            }
        )
    return results


def describe_machine(device: torch.device) -> dict:
    """Hardware and versions, for the record."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "matmul_flops_per_second": matmul_rate(device),
        "largest_loss_difference": check_same_losses(device),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def show(machine: dict, results: list[dict]) -> str:
    """The results as a Markdown table."""
    lines = ["| network | batch | step | variant | images/s | ratio, median (range) | of the matrix-product rate |"]
    lines.append("|---|---|---|---|---|---|---|")
    for r in results:
        share = r["flops_per_second"] / machine["matmul_flops_per_second"]
        lines.append(
            f"| ResNet-{r['resnet']} | {r['batch']} | {r['step']} | {r['variant']} | {r['images_per_second']:.1f} "
            f"| {r['ratio']:.2f} ({r['ratio_min']:.2f} to {r['ratio_max']:.2f}) | {share:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda [default: auto]")
    parser.add_argument("--quick", action="store_true", help="ResNet-18, student alone, three rounds")
    parser.add_argument("--resnet", type=int, nargs="+", default=[18, 34, 50], help="depths [default: 18 34 50]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds [default: 5]")
    options = parser.parse_args()
    device = engine.pick_device(options.device)
    engine.set_up(TrainConfig(), device, None)
    machine = describe_machine(device)
    depths, rounds = ([18], 3) if options.quick else (options.resnet, options.rounds)
    results = []
    for resnet, batch, student in itertools.product(depths, (16, 128), (True,) if options.quick else (False, True)):
        row = Row(resnet, batch, student, device, workers=min(4, os.cpu_count() or 1))
        results += measure(row, rounds, updates=max(4, 256 // batch) if device.type == "cpu" else 100)
        print(show(machine, results).splitlines()[-1], flush=True)
    kind = "cpu-" + str(os.cpu_count()) + "cores" if device.type == "cpu" else machine["device"].replace(" ", "-")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"training-{kind}.json").write_text(
        json.dumps({"machine": machine, "results": results}, indent=1) + "\n"
    )
    print(json.dumps(machine, indent=1), show(machine, results), sep="\n\n")


if __name__ == "__main__":
    main()
