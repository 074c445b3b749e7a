"""Images per second of training: the engine against the obvious program, and the gain of each ingredient.

    python -m benchmarks.training               # ResNet-18/34/50, batches of 16 and 128, teacher and student
    python -m benchmarks.training --resnet 50   # one depth; other depths' rows stay in the file
    python -m benchmarks.training --quick       # ResNet-18's student alone, without the single ingredients; no file

It takes about half an hour on two cores. Every variant of a row runs in its own process (variants.py), warmed up;
they train in turn, one at a time, round after round, and ratios are taken within a round. Leave the machine alone
meanwhile: with another process on the cores, OpenMP's waiting threads make timings worthless. Tables are printed, and
results written to benchmarks/results/training-<machine>.json. First the obvious program's loss is compared with ours on
the same batches.
"""

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.common import ALPHA, CLASSES, LR, REG_COEF, RESULTS, plain_classifier, plain_network
from benchmarks.obvious import Obvious
from benchmarks.options import DEPTHS, Parser, positive
from benchmarks.options import device as device_option
from benchmarks.variants import ENGINE, INGREDIENTS, OBVIOUS, Process, Variant, Workload
from distill.config import TrainConfig
from distill.training import models
from distill.training.device import place, set_up
from distill.training.objective import Objective, one_hot
from distill.training.optim import add_regulariser
from distill.training.predict import soft_targets

MACHINE = ("device", "cores", "threads", "python", "torch", "torchvision")  # results of other values are replaced
BURST_SECONDS = 1.5  # about; a burst has at least 4 updates
RATIO = "{ratio:.2f} ({ratio_min:.2f} to {ratio_max:.2f})"
RATE = "{images_per_second:.0f} ({of_matmul_rate:.0%})"


def check_same_losses(device: torch.device) -> float:
    """The largest relative difference between the obvious program's loss and ours, over four batches of 16 images."""
    rng = np.random.default_rng(0)
    worst = 0.0
    plain, teacher = (plain_network(18, seed).to(device) for seed in (0, 1))
    program = Obvious(plain, teacher, ALPHA, LR, REG_COEF, device)
    ours, our_teacher = (plain_classifier(18, seed) for seed in (0, 1))
    for model in (ours, our_teacher):
        models.use_product_convolutions(model.network)
        place(model, TrainConfig(), device)
    for _ in range(4):
        images = torch.from_numpy(rng.integers(0, 256, (16, 3, 32, 32), np.uint8)).to(device)
        labels = torch.from_numpy(rng.integers(0, CLASSES, 16)).to(device)
        normalised = (images.float() / 255 - ours.mean) / ours.std
        theirs = program.loss(plain(normalised), labels, teacher(normalised))
        truth, soft = one_hot(labels, CLASSES), soft_targets(our_teacher, images, TrainConfig())
        on_truth, on_soft = Objective("mse", 1.0, ALPHA).terms(ours.train()(images), truth, soft)
        reg = add_regulariser([p.detach() for p in ours.parameters()], "norm", REG_COEF)
        loss = (ALPHA * on_truth + (1 - ALPHA) * on_soft).mean() + reg
        worst = max(worst, abs(loss.item() / theirs.item() - 1))
    return worst


def flops(work: Workload) -> int:
    """Floating-point operations per image of torchvision's network: forward, backward, and the teacher's forward.

    They include the products with padding, some of which the engine leaves out.
    """
    network = plain_network(work.resnet, 0)
    images = torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
        if work.student:
            with torch.no_grad():
                network.eval()(images)
    return counter.get_total_flops() // 2


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a matrix product: the best of ten, n = 2048 on a CPU, 8192 on a GPU."""
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)


def measure(work: Workload, variants: tuple[Variant, ...], rounds: int, machine: dict) -> list[dict]:
    """A row per variant, the obvious program's first: images/s and the ratio to the obvious program."""
    processes = {variant: Process(work, variant) for variant in variants}
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
    try:
        for _ in range(rounds):
            for variant, process in processes.items():
                times[variant.name].append(process.seconds())
    finally:
        for process in processes.values():
            process.end()
    operations = flops(work)
    where = {"resnet": work.resnet, "batch": work.batch, "step": common.step_name(work.student)}
    rows = []
    for variant, row in zip(variants, common.rates(times, work.images, OBVIOUS.name), strict=True):
        of_matmul_rate = row["images_per_second"] * operations / machine["matmul_flops_per_second"][variant.precision]
        rows.append(where | row | {"of_matmul_rate": of_matmul_rate})
    return rows


def suited(work: Workload) -> tuple[Variant, ...]:
    """The ingredients that apply: a first model has no teacher, and glibc does not manage a GPU's memory."""
    found = INGREDIENTS
    if not work.student:
        found = tuple(variant for variant in found if not variant.teacher_once)
    if work.device != "cpu":
        found = tuple(variant for variant in found if not variant.keeps_memory)
    return found


def updates_for(resnet: int, batch: int, student: bool, device: str) -> int:
    """The number of updates in a burst of about BURST_SECONDS of the obvious program."""
    updates = 4
    for _ in range(2):  # most of a short burst is its start: the worker processes' first images
        process = Process(Workload(resnet, batch, student, updates, device), OBVIOUS)
        updates = max(4, round(BURST_SECONDS / process.seconds() * updates))
        process.end()
    return updates


def describe_machine(device: torch.device) -> dict:
    """Hardware and versions, for the record, and the largest difference between the two programs' losses."""
    here = common.machine()
    cpu = here.pop("cpu")
    return here | {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "matmul_flops_per_second": {
            "fp32": matmul_rate(device, torch.float32),
            "bf16": matmul_rate(device, torch.bfloat16),
        },
        "largest_loss_difference": check_same_losses(device),
    }


def tables(results: list[dict]) -> str:
    """The results as Markdown: for students and for teachers, ratios, and images/s with their share of the machine."""
    texts = []
    for step in sorted({row["step"] for row in results}):
        rows = [row for row in results if row["step"] == step]
        texts.append(f"{step}: ratio to the obvious program, median (range)\n\n{table(rows, RATIO)}")
        texts.append(f"{step}: images/s (of the matrix-product rate)\n\n{table(rows, RATE)}")
    return "\n\n".join(texts)


def table(results: list[dict], cell: str) -> str:
    """A Markdown table with a row per variant and a column per network and batch size; ``cell`` formats a result."""
    cells = {(row["variant"], row["resnet"], row["batch"]): cell.format(**row) for row in results}
    columns = list(dict.fromkeys((resnet, batch) for _, resnet, batch in cells))
    head = ["variant", *(f"ResNet-{resnet}, {batch}" for resnet, batch in columns)]
    variants = dict.fromkeys(variant for variant, *_ in cells)
    return common.markdown(
        head, [[variant, *(cells.get((variant, *column), "") for column in columns)] for variant in variants]
    )


def write(file: Path, machine: dict, results: list[dict]) -> None:
    """Write the results; keep the file's results for other depths if the machine and versions are the same."""
    held = json.loads(file.read_text()) if file.exists() else {"machine": {}, "results": []}
    depths = {row["resnet"] for row in results}
    others = []
    if all(held["machine"].get(name) == machine.get(name) for name in MACHINE):
        others = [row for row in held["results"] if row["resnet"] not in depths]
    rows = sorted(others + results, key=lambda row: row["resnet"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine, "results": rows}, indent=1) + "\n")


def main() -> None:
    """Measure, print the tables, write the JSON file."""
    parser = Parser("training", __doc__)
    parser.add_argument(
        "--device", type=device_option, default="auto", help="auto, cpu, cuda, cuda:<i> [default: auto]"
    )
    parser.add_argument("--quick", action="store_true", help="only the student of obvious program and engine; no file")
    parser.add_argument("--resnet", type=int, choices=DEPTHS, nargs="+", help="depths [default: 18 34 50; quick: 18]")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds [default: 3]")
    parser.add_argument("--output", type=Path, help="JSON file [default: benchmarks/results/training-<machine>.json]")
    options = parser.parse_args()
    device = options.device
    set_up(TrainConfig(), device, None)  # losses are compared in float32, on CUDA too
    machine = describe_machine(device)
    results: list[dict] = []
    kind = f"cpu-{os.cpu_count()}cores" if device.type == "cpu" else machine["device"].replace(" ", "-")
    depths = options.resnet or ([18] if options.quick else [18, 34, 50])
    steps = (True,) if options.quick else (False, True)
    for resnet, batch, student in itertools.product(depths, (16, 128), steps):
        work = Workload(resnet, batch, student, updates_for(resnet, batch, student, str(device)), str(device))
        ingredients = () if options.quick else suited(work)
        results += measure(work, (OBVIOUS, *ingredients, *ENGINE), options.rounds, machine)
        print("ResNet-{resnet}, batch {batch}, {step}, {variant}: {ratio:.2f}".format(**results[-1]), flush=True)
        if not options.quick:
            write(options.output or RESULTS / f"training-{kind}.json", machine, results)
    print(json.dumps(machine, indent=1), tables(results), sep="\n\n")


if __name__ == "__main__":
    main()
