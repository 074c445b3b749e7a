"""Images per second of training: the engine against the obvious program, and what each of its ingredients gives.

    python -m benchmarks.training               # ResNet-18/34/50, batches of 16 and 128, teacher and student
    python -m benchmarks.training --resnet 50   # one depth; the others' rows stay as they are in the file
    python -m benchmarks.training --quick       # ResNet-18's student alone, without the single ingredients; no file

All takes some half an hour on two cores. Every variant of a row is a process of its own (variants.py), warmed up; they
train in turn, one at a time, round after round, and ratios are taken within a round. Leave the machine alone meanwhile:
with another process on the cores, OpenMP's waiting threads make timings worthless. Results go to
benchmarks/results/training-<machine>.json, and tables are printed. The obvious program's loss is checked against ours
on the same batches first.
"""

import itertools
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.obvious import Obvious
from benchmarks.options import DEPTHS, Parser, positive
from benchmarks.options import device as device_option
from benchmarks.variants import (
    ALPHA,
    CLASSES,
    ENGINE,
    INGREDIENTS,
    LR,
    MEAN,
    OBVIOUS,
    REG_COEF,
    STD,
    Job,
    Process,
    Variant,
    network,
)
from distill.config import TrainConfig
from distill.training import engine, models
from distill.training.objective import Objective, add_regulariser, one_hot

RESULTS = Path(__file__).parent / "results"
MACHINE = ("device", "cores", "threads", "python", "torch", "torchvision")  # which tell results apart
BURST_SECONDS = 1.5  # about; a burst has at least 4 updates


def check_same_losses(device: torch.device) -> float:
    """The largest relative difference between the obvious program's loss and ours, over four batches of 16 images."""
    rng, worst = np.random.default_rng(0), 0.0
    plain, teacher = (network(18, seed).to(device) for seed in (0, 1))
    program = Obvious(plain, teacher, ALPHA, LR, REG_COEF, device)
    ours, guide = (models.Classifier(network(18, seed), np.float32(MEAN), np.float32(STD)) for seed in (0, 1))
    for model in (ours, guide):
        models.take_products(model.network)
        engine.place(model, TrainConfig(), device)
    for _ in range(4):
        images = torch.from_numpy(rng.integers(0, 256, (16, 3, 32, 32), np.uint8)).to(device)
        labels = torch.from_numpy(rng.integers(0, CLASSES, 16)).to(device)
        normalised = (images.float() / 255 - ours.mean) / ours.std
        theirs = program.loss(plain(normalised), labels, teacher(normalised))
        truth, soft = one_hot(labels, CLASSES), engine.soft_targets(guide, images, TrainConfig())
        on_truth, on_soft = Objective("mse", 1.0, ALPHA).terms(ours.train()(images), truth, soft)
        reg = add_regulariser([p.detach() for p in ours.parameters()], "norm", REG_COEF)
        loss = (ALPHA * on_truth + (1 - ALPHA) * on_soft).mean() + reg
        worst = max(worst, abs(loss.item() / theirs.item() - 1))
    return worst


def flops(job: Job) -> int:
    """Floating-point operations an image of torchvision's network: forward and backward, and the teacher's forward.

    The products with padding are among them, though the engine leaves some of them out.
    """
    made, images = network(job.resnet, 0), torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        made(images).sum().backward()
        if job.student:
            with torch.no_grad():
                made.eval()(images)
    return counter.get_total_flops() // 2


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product, n = 2048 on a CPU and 8192 elsewhere: the best of ten."""
    n, seconds = 2048 if device.type == "cpu" else 8192, []
    a = torch.randn(n, n, device=device).to(dtype)
    for _ in range(10):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)


def measure(job: Job, variants: tuple[Variant, ...], rounds: int, machine: dict) -> list[dict]:
    """The variants of a row, the obvious program first, interleaved: images/s and its ratio to the obvious program."""
    processes, rows = [Process(job, variant) for variant in variants], []
    try:
        seconds = [[process.seconds() for process in processes] for _ in range(rounds)]  # (rounds, variants)
    finally:
        for process in processes:
            process.end()
    for variant, times in zip(variants, zip(*seconds, strict=True), strict=True):
        ratios = [first / t for (first, *_), t in zip(seconds, times, strict=True)]
        rate = job.images / statistics.median(times)
        rows.append(
            {"resnet": job.resnet, "batch": job.batch, "step": "student" if job.student else "teacher"}
            | {"variant": variant.name, "images_per_second": rate, "ratio": statistics.median(ratios)}
            | {"ratio_min": min(ratios), "ratio_max": max(ratios)}
            | {"of_matmul_rate": rate * flops(job) / machine["matmul_flops_per_second"][variant.precision]}
        )
    return rows


def suited(job: Job) -> tuple[Variant, ...]:
    """The ingredients that a job has a use for: a first model has no teacher, and a GPU's memory is not glibc's."""
    on_cpu = job.device == "cpu"
    return tuple(v for v in INGREDIENTS if (job.student or not v.teacher_once) and (on_cpu or not v.keeps_memory))


def updates_for(resnet: int, batch: int, student: bool, device: str) -> int:
    """Updates in a burst of about BURST_SECONDS of the obvious program."""
    updates = 4
    for _ in range(2):  # of a short burst its beginning is the most: the worker processes' first images
        process = Process(Job(resnet, batch, student, updates, device), OBVIOUS)
        updates = max(4, round(BURST_SECONDS / process.seconds() * updates))
        process.end()
    return updates


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
        "matmul_flops_per_second": {
            "fp32": matmul_rate(device, torch.float32),
            "bf16": matmul_rate(device, torch.bfloat16),
        },
        "largest_loss_difference": check_same_losses(device),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def tables(results: list[dict]) -> str:
    """The results as Markdown: for students and for teachers, ratios, and images/s with their share of the machine."""
    return "\n\n".join(
        f"{step}: {what}\n\n{table([row for row in results if row['step'] == step], cell)}"
        for step in sorted({row["step"] for row in results})
        for what, cell in {
            "ratio to the obvious program, median (range)": "{ratio:.2f} ({ratio_min:.2f} to {ratio_max:.2f})",
            "images/s (of the matrix-product rate)": "{images_per_second:.0f} ({of_matmul_rate:.0%})",
        }.items()
    )


def table(results: list[dict], cell: str) -> str:
    """A line a variant, a column a network and batch size."""
    cells = {(row["variant"], row["resnet"], row["batch"]): cell.format(**row) for row in results}
    columns = dict.fromkeys((resnet, batch) for _, resnet, batch in cells)
    lines = ["| variant |" + "".join(f" ResNet-{resnet}, {batch} |" for resnet, batch in columns)]
    lines.append("|---|" + "---|" * len(columns))
    for variant in dict.fromkeys(variant for variant, *_ in cells):
        lines.append(f"| {variant} |" + "".join(f" {cells.get((variant, *column), '')} |" for column in columns))
    return "\n".join(lines)


def write(file: Path, machine: dict, results: list[dict]) -> None:
    """Write the results, beside those of other depths that the file holds from the same machine and versions."""
    depths, held = {row["resnet"] for row in results}, json.loads(file.read_text()) if file.exists() else {}
    same = held and all(held["machine"].get(name) == machine.get(name) for name in MACHINE)
    others = [row for row in held["results"] if row["resnet"] not in depths] if same else []
    rows = sorted(others + results, key=lambda row: row["resnet"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine, "results": rows}, indent=1) + "\n")


def main() -> None:
    """Measure, print the table, write the JSON file."""
    parser = Parser("training", __doc__)
    parser.add_argument(
        "--device", type=device_option, default="auto", help="auto, cpu, cuda, cuda:<i> [default: auto]"
    )
    parser.add_argument("--quick", action="store_true", help="student alone, obvious program and engine; no file")
    parser.add_argument("--resnet", type=int, choices=DEPTHS, nargs="+", help="depths [default: 18 34 50; quick: 18]")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds [default: 3]")
    parser.add_argument("--output", type=Path, help="JSON file [default: benchmarks/results/training-<machine>.json]")
    options = parser.parse_args()
    device = options.device
    engine.set_up(TrainConfig(), device, None)  # losses are compared in float32, on CUDA too
    machine, results = describe_machine(device), []
    kind = f"cpu-{os.cpu_count()}cores" if device.type == "cpu" else machine["device"].replace(" ", "-")
    depths, steps = ([18], (True,)) if options.quick else ([18, 34, 50], (False, True))
    for resnet, batch, student in itertools.product(options.resnet or depths, (16, 128), steps):
        job = Job(resnet, batch, student, updates_for(resnet, batch, student, str(device)), str(device))
        results += measure(job, (OBVIOUS, *(() if options.quick else suited(job)), *ENGINE), options.rounds, machine)
        print("ResNet-{resnet}, batch {batch}, {step}, {variant}: {ratio:.2f}".format(**results[-1]), flush=True)
        if not options.quick:
            write(options.output or RESULTS / f"training-{kind}.json", machine, results)
    print(json.dumps(machine, indent=1), tables(results), sep="\n\n")


if __name__ == "__main__":
    main()
