"""Training on a CUDA device: graphs against eager updates, chains side by side, and the ceiling of a modern setting.

    python -m benchmarks.training_gpu            # on an idle device
    python -m benchmarks.training_gpu --quick    # ResNet-18 alone, fewer rounds

Four questions, each answered within one process; variants are timed in turn, round after round, after a warm-up:
1. Images/s of the obvious program (in float32, and with torch's defaults: TF32 in convolutions, cuDNN's first guess)
   and of the engine with and without graphs, in each precision, with plain convolutions, and without the regulariser;
   teacher and student, batch 16 and 128.
2. The time of an update of the engine, against the device's own time for it: replays back to back, with no other work
   between them, and the teacher's pass over the same images.
3. Images/s of 1, 2, 4 and 8 chains at once, all together (ResNet-50, batch 16, student).
4. ResNet-18, CIFAR stem, batch 512, bf16: the engine against the same updates and the same teacher's pass on one batch
   that is already on the device, eager and as a graph. No program with this network can be faster.

Results are written to benchmarks/results/training-cuda.json. This has not yet run on a device.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import ALPHA, CLASSES, MEAN, RESULTS, STD, classifier, plain_classifier, plain_network
from benchmarks.obvious import Images, Obvious, loader
from benchmarks.options import DEPTHS, Parser, cuda, positive
from distill.arms import Fixed
from distill.config import ModelConfig, TrainConfig
from distill.data.splits import Dataset
from distill.environment import available_cores, set_environment
from distill.running.experiment import versions
from distill.running.trial import ConcurrentTrial, Trial
from distill.training import augment, models
from distill.training import cuda_graph as graph
from distill.training.batches import Batch, make_image_store
from distill.training.device import place, set_up
from distill.training.fit import Trainer
from distill.training.listener import Notes
from distill.training.objective import Objective, one_hot
from distill.training.predict import soft_targets

IMAGES = 4096
BATCHES = (16, 128)
BURST = 128  # updates, of IMAGES images at most
JOBS = (1, 2, 4, 8)
Burst = Callable[[], object]
MakeClassifier = Callable[[ModelConfig, int], models.Classifier]


def plain(model: ModelConfig, seed: int) -> models.Classifier:
    """The network of this configuration with torch's own convolutions."""
    return plain_classifier(model.resnet, seed)


def updates_of(batch: int) -> int:
    """The number of updates in a burst."""
    return min(BURST, IMAGES // batch)


class EngineRun:
    """The engine's training of one network, with its data and its teacher, and bursts of it.

    ``make(model, seed)`` makes both networks.
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        student: bool,
        device: torch.device,
        make: MakeClassifier = classifier,
    ):
        self.model = model
        self.train = train
        self.device = device
        self.listener = Notes()
        set_up(train, device, None)
        self.store = make_image_store(common.random_split(IMAGES), device)
        self.fit = Trainer(make(model, 0), train, device)
        self.teacher = None
        if student:
            self.teacher = place(make(model, 1), train, device).requires_grad_(False).eval()
        self.objective = Objective(train.loss, train.temperature, ALPHA)

    def burst(self, updates: int) -> Burst:
        """So many updates of the engine, as in an epoch of a chain."""
        plan = augment.plan(0, 0, 0, IMAGES, 32, True, True)[: updates * self.train.batch_size]
        return lambda: self.fit.epoch(self.store, plan, CLASSES, self.teacher, Fixed(ALPHA), self.listener)

    def replays(self, updates: int) -> Burst:
        """So many replays of the captured graph, back to back on one chunk; needs a burst before it."""
        captured = self.fit.captured[1]

        def replay() -> None:
            for i in range(updates):
                if i % len(captured.regs) == 0:
                    captured.next.zero_()
                captured.recording.replay()

        return replay

    def teaching(self, updates: int) -> Burst:
        """The teacher's pass over the images of so many updates, if there is a teacher."""
        images = self.store.images[: updates * self.train.batch_size]
        return lambda: soft_targets(self.teacher, images, self.train)

    def static(self, updates: int, captured: bool) -> Burst:
        """So many updates on one batch on the device: forward, loss, backward, optimiser; and the teacher's pass."""
        teaching = self.teaching(updates)
        fit = Trainer(classifier(self.model, 0), self.train, self.device)
        size = self.train.batch_size
        images = self.store.images[:size]
        soft = soft_targets(self.teacher, images, self.train)
        batch = Batch(images, one_hot(self.store.labels[:size], CLASSES), soft)
        rate = torch.tensor(self.train.lr, device=self.device)
        fit.model.train()

        def update() -> None:
            fit.update(batch, self.objective, rate)

        if captured:
            for group in fit.optimizer.param_groups:
                group["capturable"] = True
            recording = graph.Recording(self.store.images.device)
            recording.warm_up(update)
            recording.capture(update)
            recording.kept = fit, batch, rate  # a graph does not keep the memory that it works on
            update = recording.replay

        def burst() -> None:
            teaching()
            for _ in range(updates):
                update()

        return burst


def seconds(burst: Burst, device: torch.device) -> float:
    """Seconds of one burst, including the device's work."""
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    burst()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def device_seconds(burst: Burst, device: torch.device) -> float:
    """Seconds of one burst by the device's own clock, between two events on its stream."""
    before = torch.cuda.Event(enable_timing=True)
    after = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    before.record()
    burst()
    after.record()
    torch.cuda.synchronize(device)
    return before.elapsed_time(after) / 1e3


def interleaved(
    bursts: dict[str, Burst], rounds: int, device: torch.device, clock: Callable[[Burst, torch.device], float] = seconds
) -> dict[str, list[float]]:
    """Seconds of every burst by name and round, timed in turn after each has run once."""
    for burst in bursts.values():
        burst()
    times: dict[str, list[float]] = {name: [] for name in bursts}
    for _ in range(rounds):
        for name, burst in bursts.items():
            times[name].append(clock(burst, device))
    return times


def against_the_obvious(depths: list[int], rounds: int, device: torch.device) -> list[dict]:
    """Question 1: images/s, and their ratio to the obvious program's."""
    results = []
    for resnet, batch, student in itertools.product(depths, BATCHES, (False, True)):
        updates = updates_of(batch)
        runs = _engine_runs(resnet, batch, student, device)
        bursts = _obvious_bursts(resnet, batch, student, runs["engine, fp32"])
        bursts |= {name: _with_settings(run, run.burst(updates)) for name, run in runs.items()}
        times = interleaved(bursts, rounds, device)
        where = {"resnet": resnet, "batch": batch, "step": common.step_name(student)}
        for row in common.rates(times, updates * batch, "obvious program"):
            run = runs.get(row["variant"])
            results.append(where | row | {"notes": [] if run is None else run.listener.notes})
            show(results[-1])
    return results


def _engine_runs(resnet: int, batch: int, student: bool, device: torch.device) -> dict[str, EngineRun]:
    """The variants of the engine, by name."""
    model = ModelConfig(resnet=resnet)
    fp32 = TrainConfig(batch_size=batch)
    return {
        "engine, fp32, without graphs": EngineRun(model, replace(fp32, graph=False), student, device),
        "engine, fp32, plain convolutions": EngineRun(model, fp32, student, device, plain),
        # The regulariser's gradient takes a kernel per tensor.
        "engine, fp32, no regulariser": EngineRun(model, replace(fp32, reg="none"), student, device),
        "engine, fp32": EngineRun(model, fp32, student, device),
        "engine, tf32": EngineRun(model, replace(fp32, precision="tf32"), student, device),
        "engine, bf16": EngineRun(model, replace(fp32, precision="bf16"), student, device),
    }


def _obvious_bursts(resnet: int, batch: int, student: bool, fp32: EngineRun) -> dict[str, Burst]:
    """The obvious program with the settings of the engine's float32 run, and with torch's defaults."""
    split = common.random_split(IMAGES)
    images = updates_of(batch) * batch
    data = Images(split.images[:images], split.labels[:images], MEAN, STD)
    batches = loader(data, batch, min(8, available_cores()))
    teacher = plain_network(resnet, 1) if student else None
    program = Obvious(plain_network(resnet, 0), teacher, ALPHA, 1e-4, 1e-4, fp32.device)

    def with_defaults() -> None:
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = False
        program.train(batches)

    return {
        "obvious program": _with_settings(fp32, lambda: program.train(batches)),
        "obvious program, torch's defaults": with_defaults,
    }


def _with_settings(run: EngineRun, burst: Burst) -> Burst:
    """The burst after torch's settings for this run: they are the process's, so each variant makes its own."""

    def set_up_and_burst() -> None:
        set_up(run.train, run.device, None)
        burst()

    return set_up_and_burst


def kernel_time(depths: list[int], rounds: int, device: torch.device) -> list[dict]:
    """Question 2: milliseconds per update of the engine, of the graph alone and of the teacher's pass alone."""
    results = []
    for resnet, batch, student in itertools.product(depths, BATCHES, (False, True)):
        run = EngineRun(ModelConfig(resnet=resnet), TrainConfig(batch_size=batch), student, device)
        updates = updates_of(batch)
        run.burst(updates)()
        row = {"resnet": resnet, "batch": batch, "step": common.step_name(student), "notes": run.listener.notes}
        if run.fit.captured is not None:
            bursts = {"engine": run.burst(updates), "graph": run.replays(updates), "teacher": run.teaching(updates)}
            times = interleaved(bursts, rounds, device, device_seconds)
            row |= {f"{name}_ms": 1e3 * statistics.median(taken) / updates for name, taken in times.items()}
            row["engine_over_both"] = row["engine_ms"] / (row["graph_ms"] + row["teacher_ms"])
        results.append(row)
        show(row)
    return results


def side_by_side(resnet: int, rounds: int, device: torch.device) -> list[dict]:
    """Question 3, by the same trial as ``--jobs auto``: images/s of several chains, and their ratio to one chain's."""
    train = TrainConfig()
    set_up(train, device, None)
    split = common.random_split(IMAGES)
    model = ModelConfig(resnet=resnet)
    data = Dataset("random", split, None, split, tuple(map(str, range(CLASSES))), MEAN, STD, flip=True)
    trial = Trial(data, lambda: models.build(model, 3, CLASSES), train, device)
    rates: dict[int, list[float]] = {jobs: [] for jobs in JOBS}
    with ConcurrentTrial(trial, max(JOBS)) as chains:
        for _, jobs in itertools.product(range(rounds), JOBS):
            rates[jobs].append(chains.images_per_second(jobs))
    results = []
    for jobs, found in rates.items():
        row = {"resnet": resnet, "jobs": jobs, "images_per_second": statistics.median(found)}
        results.append(row | common.paired_ratio(found, rates[1]) | {"notes": trial.listener.notes})
        show(results[-1])
    return results


def modern(rounds: int, device: torch.device) -> list[dict]:
    """Question 4: images/s, and their ratio to those of the graph on a static batch."""
    model = ModelConfig(resnet=18, stem="cifar")
    train = TrainConfig(batch_size=512, precision="bf16", optimizer="sgd", lr=0.1)
    updates = IMAGES // 512
    results = []
    for student in (False, True):
        run = EngineRun(model, train, student, device)
        bursts = {
            "static batch, graph": run.static(updates, captured=True),
            "static batch, eager": run.static(updates, captured=False),
            "engine": run.burst(updates),
        }
        for row in common.rates(interleaved(bursts, rounds, device), updates * 512, "static batch, graph"):
            results.append({"step": common.step_name(student)} | row | {"notes": run.listener.notes})
            show(results[-1])
    return results


def show(row: dict) -> None:
    """Print a row as soon as it is measured."""
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


def main() -> None:
    """Measure, print the rows, write the JSON file."""
    set_environment()
    parser = Parser("training_gpu", __doc__)
    parser.add_argument("--device", type=cuda, default="cuda", help="cuda or cuda:<i> [default: cuda]")
    parser.add_argument("--quick", action="store_true", help="by default ResNet-18 alone and three rounds")
    parser.add_argument("--resnet", type=int, choices=DEPTHS, nargs="+", help="depths [default: 18 50]")
    parser.add_argument("--rounds", type=positive, help="rounds [default: 5]")
    parser.add_argument("--output", type=Path, default=RESULTS / "training-cuda.json", help="JSON file [%(default)s]")
    options = parser.parse_args()
    device = options.device
    depths = options.resnet or ([18] if options.quick else [18, 50])
    rounds = options.rounds or (3 if options.quick else 5)
    set_up(TrainConfig(), device, None)
    results = {"machine": common.machine() | versions(device)}
    parts = {
        "against_the_obvious": lambda: against_the_obvious(depths, rounds, device),
        "kernel_time": lambda: kernel_time(depths, rounds, device),
        "side_by_side": lambda: side_by_side(depths[-1], rounds, device),
        "modern": lambda: modern(rounds, device),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        results[name] = part()
        options.output.write_text(json.dumps(results, indent=1) + "\n")  # after each part: a later one may fail


if __name__ == "__main__":
    main()
