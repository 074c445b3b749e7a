"""Progress of a run, read from its directory, so that any process may train there."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from distill.chains.estimated_alpha import Choice, format_choice
from distill.config import Config
from distill.errors import UserError
from distill.store.results import Result, read_record
from distill.store.rundir import RunDir, is_finished, read_metrics
from distill.training.listener import Listener


class RunWatcher:
    """Reports new epochs, results and estimates in a run directory to a listener."""

    def __init__(self, config: Config, listener: Listener):
        self.listener = listener
        self.held_out = config.data.val_size
        if config.train.fast_dev_run:
            self.held_out = min(self.held_out, 2 * config.train.batch_size)
        models = RunDir(config.output).models(config)
        self.unfinished = {model.folder: model.name for model in models if not is_finished(model.folder)}
        self.rows = {folder: read_metrics(folder) for folder in self.unfinished}
        self.due = 0.0  # when to read again

    def leave_out(self, folders: Iterable[Path]) -> None:
        """Report nothing more of these models, nor of their probes."""
        for folder in folders:
            self.unfinished.pop(folder, None)
            self.unfinished.pop(folder / "probe", None)

    def report_new(self, at_once: bool = True) -> None:
        """Report what has appeared since the last call. Not ``at_once``: less often where reading takes long."""
        started = time.monotonic()
        if started < self.due and not at_once:
            return
        for folder, name in list(self.unfinished.items()):
            finished = is_finished(folder)  # checked before its epochs are read, so that none is missed
            self._report_epochs(folder, name)
            if finished:
                del self.unfinished[folder]
                self._report_result(folder, name)
        self.due = time.monotonic() + 20 * (time.monotonic() - started)

    def _report_epochs(self, folder: Path, name: str) -> None:
        before = self.rows[folder]
        rows = read_metrics(folder)
        trained_again = rows[: len(before)] != before
        for row in rows if trained_again else rows[len(before) :]:
            self.listener.end_epoch(name, row)
        self.rows[folder] = rows

    def _report_result(self, folder: Path, name: str) -> None:
        with suppress(UserError):  # the code that needs the model reports a damaged file
            record = read_record(folder)
            if "auto" in record:
                choice = Choice.of(record["auto"], folder / "result.json")
                self.listener.note(f"{name}: {format_choice(choice, self.held_out)}")
            self.listener.end_model(Result.of(record))
