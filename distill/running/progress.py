"""Progress of a run: two bars on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

from distill.program import say
from distill.store.results import Result, name_model
from distill.training.fit import EpochSums
from distill.training.listener import Listener

LINE_EVERY = 10.0  # seconds between lines about epochs, without a terminal
READ_EVERY = 1.0  # seconds between readings of the metrics, which wait for the device


class Progress(Listener):
    """Bars on standard error (epochs of the whole run; images of the epoch), lines on standard output."""

    def __init__(self, models: int, epochs: int, jobs: int = 1):
        self.bars = sys.stderr.isatty()
        self.epochs = epochs
        style = {"disable": not self.bars, "dynamic_ncols": True, "leave": False}
        self.run = tqdm(total=models * epochs, unit="epoch", desc="run", **style)
        # Several jobs train different epochs at once, so their images are not shown.
        self.epoch = tqdm(unit="img", unit_scale=True, position=1, **style | {"disable": not self.bars or jobs > 1})
        self.last_line = time.monotonic()
        self.last_read = self.last_line
        self.noted: set[str] = set()

    def begin(self, finished: int) -> None:
        self.run.update(finished * self.epochs)

    def note(self, text: str) -> None:
        if text not in self.noted:  # several models may report the same
            self.noted.add(text)
            self.say(f"note    {text}")

    def start_model(self, name: str, images: int, done: int) -> None:
        self.run.set_description(name)
        self.epoch.set_description(f"epoch {done + 1}/{self.epochs}")
        self.run.update(done)
        self.epoch.reset(images)

    def advance(self, images: int) -> None:
        self.epoch.update(images)

    def end_chunk(self, sums: EpochSums) -> None:
        if self.bars and time.monotonic() - self.last_read > READ_EVERY:
            so_far = sums.read()
            self.epoch.set_postfix_str(f"loss {so_far['loss']:.4f} acc {so_far['acc']:.3f}")
            self.last_read = time.monotonic()

    def end_epoch(self, name: str, row: dict) -> None:
        self.run.update()
        self.epoch.reset()
        self.epoch.set_description(f"epoch {min(row['epoch'] + 1, self.epochs)}/{self.epochs}")
        if not self.bars and time.monotonic() - self.last_line > LINE_EVERY:
            val = "" if row["val_acc"] is None else f", held out {row['val_acc']:.4f}"
            self.say(
                f"{name}, epoch {row['epoch']}/{self.epochs}: loss {row['train_loss']:.5f}, "
                f"accuracy {row['train_acc']:.4f}{val}, {row['seconds']:.1f} s"
            )

    def end_model(self, result: Result) -> None:
        if result.arm is not None and not result.epochs:  # the probe became the student: its epochs are not trained
            self.run.update(self.epochs)
        agrees = "" if result.agreement is None else f", agrees with its teacher on {result.agreement:.4f}"
        name = name_model(result.seed, result.arm, result.step)
        self.say(f"{name}: test accuracy {result.test_acc:.4f}{agrees}, {result.seconds:.1f} s")

    def say(self, line: str) -> None:
        """Print a line on standard output, above the bars."""
        with tqdm.external_write_mode():
            say(line)
        self.last_line = time.monotonic()

    def close(self) -> None:
        """Remove the bars."""
        self.epoch.close()
        self.run.close()
