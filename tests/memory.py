"""Whether memory grows: ``python -m tests.memory``. Prints a line per case; exit status 1 if one grows.

Two cases: many runs in one process, each a teacher and a student, and one chain of many students. After each run, and
after each model, three numbers are taken: resident memory in bytes, open file descriptors, and the objects that Python
tracks. The first samples are left out, because caches fill. Of the rest, the slope of a line through the objects, the
difference of the descriptors and the growth of memory must stay below the limits. Linux only.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # pytest adds it too

from tiny import config, source

import distill
from distill.store.results import Result
from distill.training.listener import Listener

MOST_OBJECTS = 10.0  # per run or step: a result and its place in the run take six; a model that stays has hundreds
MOST_BYTES = 8 << 20  # in all; the allocator keeps some blocks


@dataclass
class Samples:
    """What a process holds, after each unit of work."""

    rss: list[int] = field(default_factory=list)  # bytes
    handles: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)

    def take(self) -> None:
        """Take a sample, after a collection of garbage."""
        gc.collect()
        self.objects.append(len(gc.get_objects()))
        self.handles.append(len(os.listdir("/proc/self/fd")))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.rss.append(pages * os.sysconf("SC_PAGE_SIZE"))

    def settled(self) -> "Samples":
        """The samples without the first fifth (three at least), in which caches fill."""
        first = max(3, len(self.rss) // 5)
        return Samples(self.rss[first:], self.handles[first:], self.objects[first:])

    @property
    def objects_per_unit(self) -> float:
        """The slope of the number of objects."""
        return float(np.polyfit(np.arange(len(self.objects)), self.objects, 1)[0])

    @property
    def more_bytes(self) -> float:
        """How much the mean of the last third is above that of the first."""
        third = max(1, len(self.rss) // 3)
        return float(np.mean(self.rss[-third:]) - np.mean(self.rss[:third]))

    @property
    def more_handles(self) -> int:
        """How many descriptors there are more at the end."""
        return self.handles[-1] - self.handles[0]


def growth(late: Samples) -> list[str]:
    """What grows more than it may."""
    found = []
    if late.objects_per_unit > MOST_OBJECTS:
        found.append(f"{late.objects_per_unit:.1f} objects more each time")
    if late.more_handles > 0:
        found.append(f"{late.more_handles} file descriptors more")
    if late.more_bytes > MOST_BYTES:
        found.append(f"{late.more_bytes / 2**20:.1f} MiB more")
    return found


def many_runs(root: Path, count: int) -> Samples:
    """Samples after each of several runs in this process, of different seeds."""
    samples = Samples()
    for seed in range(count):
        options = {"distillation_steps": 1, "max_epochs": 1, "seed": [seed]}
        distill.run(config(root / f"run_{seed}", **options), source=source())
        samples.take()
    return samples


class Sampler(Listener):
    """Takes a sample after each model."""

    def __init__(self) -> None:
        self.samples = Samples()

    def end_model(self, result: Result) -> None:
        self.samples.take()


def long_chain(root: Path, steps: int) -> Samples:
    """Samples after each model of one chain."""
    sampler = Sampler()
    options = {"distillation_steps": steps, "max_epochs": 1}
    distill.run(config(root / "chain", **options), source=source(), listener=sampler)
    return sampler.samples


def main(argv: list[str] | None = None) -> int:
    """Take the samples and judge them; returns the exit status."""
    parser = argparse.ArgumentParser("tests.memory", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="[default: 100]")
    parser.add_argument("--steps", type=int, default=50, help="[default: 50]")
    options = parser.parse_args(argv)
    failures = 0
    for name, case, count in (
        ("runs in one process", many_runs, options.runs),
        ("steps of one chain", long_chain, options.steps),
    ):
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            late = case(Path(root), count).settled()
        found = growth(late)
        failures += bool(found)
        print(
            f"{count} {name}: {late.more_bytes / 2**20:+.1f} MiB, {late.more_handles:+d} file descriptors, "
            f"{late.objects_per_unit:+.2f} objects each time, {time.monotonic() - started:.0f} s: "
            f"{'; '.join(found) or 'does not grow'}",
            flush=True,
        )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
