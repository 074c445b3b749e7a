"""Training on a CUDA device: the graph against its own kernels, chains side by side, and a modern setting's ceiling.

    python -m benchmarks.training_gpu            # on an idle device
    python -m benchmarks.training_gpu --quick    # ResNet-18 alone, fewer rounds

Four questions, each answered within one process, variants in turn, round after round, after a warm-up:
1. the obvious program (in float32, and with torch's own defaults: TF32 in convolutions, cuDNN's first guess), and the
   engine with graphs and without, in each precision, with plain convolutions, and without the regulariser: images/s,
   teacher and student, batch 16 and 128;
2. an update of the engine against the device's own time for it: replays back to back, with no other work between them,
   and the teacher's pass over the same images;
3. images/s of 1, 2, 4 and 8 chains at once, all together (ResNet-50, batch 16, student);
4. ResNet-18, CIFAR stem, batch 512, bf16: the engine against the same updates on one batch that lies ready on the
   device, eager and as a graph, and the same teacher's pass: the ceiling of any program with this network, without data
   work.

Results go to benchmarks/results/training-cuda.json. Nothing of this has run on a device yet.
"""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.obvious import Images, Obvious, loader
from benchmarks.options import DEPTHS, Parser, cuda, positive
from benchmarks.variants import network as plain
from distill.config import ModelConfig, TrainConfig
from distill.data.splits import Dataset, Split
from distill.environment import set_environment
from distill.running.cost import ConcurrentTrial, Trial
from distill.running.experiment import versions
from distill.training import augment, engine, models
from distill.training import cuda_graph as graph
from distill.training.listener import Notes
from distill.training.objective import Objective, one_hot

IMAGES, CLASSES, ALPHA = 4096, 10, 0.6
BURST = 128  # updates, of IMAGES images at most
RESULTS = Path(__file__).parent / "results"
MEAN, STD = np.float32([0.5] * 3), np.float32([0.25] * 3)
JOBS = (1, 2, 4, 8)


def network(model: ModelConfig, seed: int) -> models.Classifier:
    """A network with initial weights drawn from the seed."""
    torch.manual_seed(seed)
    return models.Classifier(models.build(model, 3, CLASSES), MEAN, STD)


def network_of_plain(model: ModelConfig, seed: int) -> models.Classifier:
    """``network``, its convolutions torch's own."""
    return models.Classifier(plain(model.resnet, seed), MEAN, STD)


def updates_of(batch: int) -> int:
    """Of a burst."""
    return min(BURST, IMAGES // batch)


def random_split() -> Split:
    """IMAGES images of CIFAR's size."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, IMAGES)
    return Split(rng.integers(0, 256, (IMAGES, 3, 32, 32), np.uint8), labels, labels, np.arange(IMAGES))


class Job:
    """A fit of one network with its data and its teacher, and bursts of it; ``network(model, seed)`` makes both."""

    def __init__(self, model: ModelConfig, train: TrainConfig, student: bool, device: torch.device, network=network):
        self.model, self.train, self.device, self.listener = model, train, device, Notes()
        engine.set_up(train, device, None)
        self.pool = engine.make_image_store(random_split(), device)
        self.fit = engine.Fit(network(model, 0), train, device)
        self.teacher = engine.place(network(model, 1), train, device).requires_grad_(False).eval() if student else None
        self.objective = Objective(train.loss, train.temperature, ALPHA)

    def burst(self, updates: int) -> Callable[[], None]:
        """So many updates of the engine, as an epoch of a chain has them."""
        plan = augment.plan(0, 0, 0, IMAGES, 32, True, True)[: updates * self.train.batch_size]
        return lambda: self.fit.epoch(self.pool, plan, CLASSES, self.teacher, ALPHA, self.listener)

    def replays(self, updates: int) -> Callable[[], None]:
        """So many replays of the captured graph, back to back on one chunk; after a burst."""
        captured = self.fit.replayed[1]

        def replay() -> None:
            for i in range(updates):
                if i % len(captured.regs) == 0:
                    captured.next.zero_()
                captured.recording.replay()

        return replay

    def teaching(self, updates: int) -> Callable[[], object]:
        """The teacher's pass over the images of so many updates, if there is one."""
        images = self.pool.images[: updates * self.train.batch_size]
        return lambda: engine.soft_targets(self.teacher, images, self.train)

    def static(self, updates: int, captured: bool) -> Callable[[], None]:
        """So many updates on one batch that lies ready: forward, loss, backward, optimiser; and the teacher's pass."""
        teaching = self.teaching(updates)
        batch, fit = self.train.batch_size, engine.Fit(network(self.model, 0), self.train, self.device)
        images, labels = self.pool.images[:batch], self.pool.labels[:batch]
        truth, rate = one_hot(labels, CLASSES), torch.tensor(self.train.lr, device=self.device)
        soft = engine.soft_targets(self.teacher, images, self.train)
        fit.model.train()

        def update() -> None:
            fit.update(images, truth, soft, self.objective, rate)

        if captured:
            for group in fit.optimizer.param_groups:
                group["capturable"] = True
            recording = graph.Recording(self.pool.images.device)
            recording.warm_up(update)
            recording.capture(update)
            recording.kept = fit, images, truth, soft, rate  # a graph does not keep the memory that it works on
            update = recording.replay
        return lambda: [teaching(), *(update() for _ in range(updates))]


def seconds(burst: Callable[[], None], device: torch.device) -> float:
    """Of one burst, the device's work included."""
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    burst()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def device_seconds(burst: Callable[[], None], device: torch.device) -> float:
    """Of one burst by the device's own clock, between two events on its stream."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    before.record()
    burst()
    after.record()
    torch.cuda.synchronize(device)
    return before.elapsed_time(after) / 1e3


def interleaved(
    bursts: dict[str, Callable[[], None]], rounds: int, device: torch.device, clock: Callable = seconds
) -> dict[str, list[float]]:
    """Seconds of every burst, in turn, over so many rounds; each has run once before."""
    for burst in bursts.values():
        burst()
    times = {name: [] for name in bursts}
    for _ in range(rounds):
        for name, burst in bursts.items():
            times[name].append(clock(burst, device))
    return times


def summary(times: dict[str, list[float]], images: int, base: str) -> list[dict]:
    """Images/s and the ratio to ``base`` within a round: medians, with the ratio's range."""
    rows = []
    for name, taken in times.items():
        ratios = [b / t for b, t in zip(times[base], taken, strict=True)]
        rows.append(
            {
                "variant": name,
                "images_per_second": images / statistics.median(taken),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    return rows


def against_the_obvious(depths: list[int], rounds: int, device: torch.device) -> list[dict]:
    """Question 1."""
    results, split, workers = [], random_split(), min(8, os.cpu_count() or 1)
    for resnet, batch, student in itertools.product(depths, (16, 128), (False, True)):
        model, updates = ModelConfig(resnet=resnet), updates_of(batch)
        n = updates * batch  # a burst is an epoch of the obvious program's, whose workers begin with it
        batches = loader(Images(split.images[:n], split.labels[:n], MEAN, STD), batch, workers)
        teacher = plain(resnet, 1) if student else None
        obvious = Obvious(plain(resnet, 0), teacher, ALPHA, 1e-4, 1e-4, device)
        fp32 = TrainConfig(batch_size=batch)
        jobs = {
            "engine, fp32, without graphs": Job(model, replace(fp32, graph=False), student, device),
            "engine, fp32, plain convolutions": Job(model, fp32, student, device, network_of_plain),
            "engine, fp32, no regulariser": Job(model, replace(fp32, reg="none"), student, device),  # a kernel a tensor
            "engine, fp32": Job(model, fp32, student, device),
            "engine, tf32": Job(model, replace(fp32, precision="tf32"), student, device),
            "engine, bf16": Job(model, replace(fp32, precision="bf16"), student, device),
        }

        def as_it_comes(obvious=obvious, batches=batches) -> None:
            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False
            obvious.train(batches)

        bursts = {
            "obvious program": _set_up_and(jobs["engine, fp32"], lambda o=obvious, b=batches: o.train(b)),
            "obvious program, torch's defaults": as_it_comes,
        }
        bursts |= {name: _set_up_and(job, job.burst(updates)) for name, job in jobs.items()}
        times = interleaved(bursts, rounds, device)
        where = {"resnet": resnet, "batch": batch, "step": "student" if student else "teacher"}
        notes = {name: job.listener.notes for name, job in jobs.items()}
        for row in summary(times, updates * batch, "obvious program"):
            results.append(where | row | {"notes": notes.get(row["variant"], [])})
            say(results[-1])
    return results


def _set_up_and(job: Job, burst: Callable[[], None]) -> Callable[[], None]:
    """torch's switches are of the process: each variant sets its own before its burst."""

    def run() -> None:
        engine.set_up(job.train, job.device, None)
        burst()

    return run


def kernel_time(depths: list[int], rounds: int, device: torch.device) -> list[dict]:
    """Question 2: the engine's time for an update over those of the graph and of the teacher's pass."""
    results = []
    for resnet, batch, student in itertools.product(depths, (16, 128), (False, True)):
        job = Job(ModelConfig(resnet=resnet), TrainConfig(batch_size=batch), student, device)
        updates = updates_of(batch)
        job.burst(updates)()
        row = {
            "resnet": resnet,
            "batch": batch,
            "step": "student" if student else "teacher",
            "notes": job.listener.notes,
        }
        if job.fit.replayed is not None:
            bursts = {"engine": job.burst(updates), "graph": job.replays(updates), "teacher": job.teaching(updates)}
            times = interleaved(bursts, rounds, device, device_seconds)
            row |= {f"{name}_ms": 1e3 * statistics.median(taken) / updates for name, taken in times.items()}
            row["engine_over_both"] = row["engine_ms"] / (row["graph_ms"] + row["teacher_ms"])
        results.append(row)
        say(row)
    return results


def side_by_side(resnet: int, rounds: int, device: torch.device) -> list[dict]:
    """Question 3, by the same probe as ``--jobs auto``."""
    train = TrainConfig()
    engine.set_up(train, device, None)
    split, model = random_split(), ModelConfig(resnet=resnet)
    data = Dataset("random", split, None, split, tuple(map(str, range(CLASSES))), MEAN, STD, flip=True)
    trial = Trial(data, lambda: models.build(model, 3, CLASSES), train, device)
    rates = {jobs: [] for jobs in JOBS}
    with ConcurrentTrial(trial, max(JOBS)) as together:
        for _, jobs in itertools.product(range(rounds), JOBS):
            rates[jobs].append(together.images_per_second(jobs))
    results = []
    for jobs, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates[1], strict=True)]
        rate, ratio = statistics.median(found), statistics.median(ratios)
        results.append({"resnet": resnet, "jobs": jobs, "images_per_second": rate, "ratio": ratio})
        results[-1] |= {"ratio_min": min(ratios), "ratio_max": max(ratios), "notes": trial.listener.notes}
        say(results[-1])
    return results


def modern(rounds: int, device: torch.device) -> list[dict]:
    """Question 4: the ratio is to the faster of the two ceilings' names, the graph on a static batch."""
    model = ModelConfig(resnet=18, stem="cifar")
    train = TrainConfig(batch_size=512, precision="bf16", optimizer="sgd", lr=0.1)
    results = []
    for student in (False, True):
        job, updates = Job(model, train, student, device), IMAGES // 512
        bursts = {
            "static batch, graph": job.static(updates, captured=True),
            "static batch, eager": job.static(updates, captured=False),
            "engine": job.burst(updates),
        }
        for row in summary(interleaved(bursts, rounds, device), updates * 512, "static batch, graph"):
            results.append({"step": "student" if student else "teacher"} | row | {"notes": job.listener.notes})
            say(results[-1])
    return results


def say(row: dict) -> None:
    """A row as it comes."""
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


def main() -> None:
    """Measure, print, write the JSON file."""
    set_environment()
    parser = Parser("training_gpu", __doc__)
    parser.add_argument("--device", type=cuda, default="cuda", help="cuda or cuda:<i> [default: cuda]")
    parser.add_argument("--quick", action="store_true", help="ResNet-18 alone, three rounds, unless told otherwise")
    parser.add_argument("--resnet", type=int, choices=DEPTHS, nargs="+", help="depths [default: 18 50]")
    parser.add_argument("--rounds", type=positive, help="rounds [default: 5]")
    parser.add_argument("--output", type=Path, default=RESULTS / "training-cuda.json", help="JSON file [%(default)s]")
    options = parser.parse_args()
    device, depths = options.device, options.resnet or ([18] if options.quick else [18, 50])
    rounds = options.rounds or (3 if options.quick else 5)
    engine.set_up(TrainConfig(), device, None)
    results = {"machine": versions(device) | {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count()}}
    parts = {
        "against_the_obvious": lambda: against_the_obvious(depths, rounds, device),
        "kernel_time": lambda: kernel_time(depths, rounds, device),
        "side_by_side": lambda: side_by_side(depths[-1], rounds, device),
        "modern": lambda: modern(rounds, device),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        results[name] = part()
        options.output.write_text(json.dumps(results, indent=1) + "\n")  # what is measured stays, whatever comes next


if __name__ == "__main__":
    main()
