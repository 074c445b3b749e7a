"""Progress of a run: two bars on a terminal or in a notebook, plain lines elsewhere."""

import sys
import time
from functools import cached_property
from typing import Any

from tqdm.auto import tqdm

from distill.program import say
from distill.store.results import Result, name_model
from distill.training.fit import EpochSums
from distill.training.listener import Listener

LINE_EVERY = 10.0  # seconds between lines about epochs, without a terminal
READ_EVERY = 1.0  # seconds between readings of the metrics, which wait for the device
RUN_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} epochs [{elapsed}<{remaining}, {rate_fmt}]"


class Progress(Listener):
    """Bars on standard error (epochs of the whole run; images of the epoch), lines on standard output."""

    def __init__(self, models: int, epochs: int, jobs: int = 1):
        self.bars = sys.stderr.isatty() or in_notebook()
        self.models = models
        self.epochs = epochs
        self.jobs = jobs
        self.style: dict[str, Any] = {"disable": not self.bars, "dynamic_ncols": True, "leave": False}
        self.run = tqdm(
            total=models * epochs, unit="epoch", desc=f"0 of {models} models", bar_format=RUN_BAR, **self.style
        )
        positions = range(1, jobs + 1) if jobs > 1 else ()
        self.workers = [tqdm(total=epochs, unit="epoch", position=i, **self.style) for i in positions]
        self.by_model: dict[str, tqdm] = {}  # the bar of each model in training, if several jobs train
        self.started = self.last_line = self.last_read = time.monotonic()
        self.noted: set[str] = set()
        self.finished = 0  # models
        self.done = 0  # epochs, finished or not to be trained
        self.trained = 0  # epochs, since this process began
        self.images = 0  # of an epoch

    @cached_property
    def epoch(self) -> tqdm:
        """The bar of an epoch, from the first model on; none with several jobs: they train different epochs."""
        return tqdm(unit="img", unit_scale=True, position=1, **self.style | {"disable": not self.bars or self.jobs > 1})

    def begin(self, finished: int) -> None:
        self.started = time.monotonic()
        self.finished = finished
        self._advance_to(finished * self.epochs)
        if 0 < finished < self.models:
            self.say(f"resuming: {finished} of {self.models} models finished")

    def note(self, text: str) -> None:
        if text not in self.noted:  # several models may report the same
            self.noted.add(text)
            self.say(f"note    {text}")

    def start_model(self, name: str, images: int, done: int) -> None:
        if not self.trained:
            self.started = time.monotonic()  # the time before the first epoch says nothing about those left
        self.images = images
        self.run.set_description_str(f"{self.finished + 1} of {self.models}, {name}")
        self.epoch.set_description_str(f"epoch {done + 1}/{self.epochs}")
        self._advance_to(self.done + done)
        self.epoch.reset(images)

    def advance(self, images: int) -> None:
        self.epoch.update(images)
        self.run.update(images / self.images)  # so that it has a rate before an epoch is over

    def end_chunk(self, sums: EpochSums) -> None:
        if self.bars and time.monotonic() - self.last_read > READ_EVERY:
            so_far = sums.read()
            self.epoch.set_postfix_str(f"loss {so_far['loss']:.4f} acc {so_far['acc']:.3f}")
            self.last_read = time.monotonic()

    def end_epoch(self, name: str, row: dict) -> None:
        self.trained += 1
        self._advance_to(self.done + 1)
        self.epoch.reset()
        self.epoch.set_description_str(f"epoch {min(row['epoch'] + 1, self.epochs)}/{self.epochs}")
        self._show(name, row["epoch"])
        if not self.bars and time.monotonic() - self.last_line > LINE_EVERY:
            val = "" if row["val_acc"] is None else f", held out {row['val_acc']:.4f}"
            self.say(
                f"{self._place(self.finished + 1)}: {name}, epoch {row['epoch']}/{self.epochs}, "
                f"loss {row['train_loss']:.4f}, accuracy {row['train_acc']:.4f}{val}"
            )

    def end_model(self, result: Result) -> None:
        if result.arm is None and not result.epochs:  # a given teacher
            return
        self.finished += 1
        if not result.epochs:  # the probe became the student: its epochs are not trained
            self._advance_to(self.done + self.epochs)
        if self.jobs > 1:
            self.run.set_description_str(f"{self.finished} of {self.models} models")
        name = name_model(result.seed, result.arm, result.step)
        if name in self.by_model:
            self.by_model.pop(name).reset()
        self.say(f"{self._place(self.finished)}: {name}, test accuracy {result.test_acc:.4f}, {result.seconds:.1f} s")

    def _show(self, name: str, epoch: int) -> None:
        """Show the epochs of a model on the bar of a worker, if there is one."""
        if name not in self.by_model:
            free = [bar for bar in self.workers if bar not in self.by_model.values()]
            if not free:
                return
            self.by_model[name] = free[0]
            free[0].set_description_str(name)
        self.by_model[name].update(epoch - self.by_model[name].n)

    def _advance_to(self, epochs: int) -> None:
        self.done = epochs
        self.run.update(epochs - self.run.n)

    def _place(self, model: int) -> str:
        """``model 7 of 39, 3 min left``; without the time if bars show it, or if it is not known yet."""
        left = self.models * self.epochs - self.done
        if self.bars or not self.trained or not left:
            return f"model {model} of {self.models}"
        seconds = left * (time.monotonic() - self.started) / self.trained
        return f"model {model} of {self.models}, {format_duration(seconds)} left"

    def say(self, line: str) -> None:
        """Print a line on standard output, above the bars."""
        with tqdm.external_write_mode():
            say(line)
        self.last_line = time.monotonic()

    def close(self) -> None:
        """Remove the bars."""
        for bar in self.workers:
            bar.close()
        if "epoch" in vars(self):
            self.epoch.close()
        self.run.close()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, in which tqdm shows the notebook's own bars."""
    return tqdm.__mro__[1].__module__ == "tqdm.notebook"


def format_duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
