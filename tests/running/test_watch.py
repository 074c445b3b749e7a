import pytest
from tiny import config, source

import distill
from distill.running.watch import RunWatcher, read_metrics
from distill.store.rundir import to_csv
from distill.training.listener import Listener

OPTIONS = {"alpha": [0.3, "auto"], "val_size": 6, "seed": [1, 2], "distillation_steps": 1}


class Events(Listener):
    """Keeps what it hears, apart by kind."""

    def __init__(self):
        self.epochs = []
        self.notes = []
        self.results = []

    def note(self, text):
        self.notes.append(text)

    def end_epoch(self, name, row):
        self.epochs.append((name, row))

    def end_model(self, result):
        self.results.append(result)


def test_the_watcher_reports_the_events_of_a_serial_run(tmp_path):
    told = Events()
    read = Events()
    c = config(tmp_path, **OPTIONS)
    watcher = RunWatcher(c, read)
    distill.run(c, source=source(), listener=told)
    watcher.report_new()
    assert len(told.notes) == 2
    assert len(told.results) == 2 * 4  # a teacher, a student of 0.3, a probe, and the student of the estimated alpha
    assert read.epochs == told.epochs
    assert read.notes == told.notes
    assert read.results == told.results


def test_the_watcher_reports_only_new_events_and_each_once(tmp_path):
    first = Events()
    c = config(tmp_path, **OPTIONS)
    watcher = RunWatcher(c, first)
    watcher.report_new()
    assert not first.results
    distill.run(c, source=source())
    watcher.report_new()
    epochs = list(first.epochs)
    results = list(first.results)
    watcher.report_new()
    later = Events()
    RunWatcher(c, later).report_new()
    assert epochs
    assert first.epochs == epochs
    assert results
    assert first.results == results
    assert not later.epochs + later.results + later.notes


def test_epochs_are_reported_as_they_are_written(tmp_path):
    events = Events()
    c = config(tmp_path, distillation_steps=0, max_epochs=5)
    folder = tmp_path / "seed_1" / "step_0"
    rows = [{"epoch": k, "train_loss": k / 3, "val_loss": None} for k in (1, 2, 3)]
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(to_csv(list(rows[0]), rows[:1]))
    watcher = RunWatcher(c, events)
    watcher.report_new()
    assert events.epochs == []  # of an earlier process
    (folder / "metrics.csv").write_text(to_csv(list(rows[0]), rows))
    watcher.report_new()
    assert events.epochs == [("seed 1, step 0", rows[1]), ("seed 1, step 0", rows[2])]
    again = [{"epoch": 1, "train_loss": 0.5, "val_loss": 0.25}]
    (folder / "metrics.csv").write_text(to_csv(list(rows[0]), again))  # its state was deleted: it is trained again
    watcher.report_new()
    assert events.epochs[2:] == [("seed 1, step 0", again[0])]


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_the_watcher_ignores_a_damaged_result(tmp_path, content):
    events = Events()
    watcher = RunWatcher(config(tmp_path, distillation_steps=0), events)
    folder = tmp_path / "seed_1" / "step_0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(content)
    watcher.report_new()
    assert not events.results
    assert read_metrics(folder) == []


def test_worker_processes_report_what_a_serial_run_reports(tmp_path, folder):
    one = Events()
    two = Events()
    distill.run(config(tmp_path / "one", **OPTIONS, **folder), listener=one)
    distill.run(config(tmp_path / "two", jobs=2, **OPTIONS, **folder), listener=two)

    def timeless(events):
        epochs = [(name, row | {"seconds": 0}) for name, row in events.epochs]
        results = [result.row() | {"seconds": 0} for result in events.results]
        return sorted(epochs, key=str), sorted(events.notes), sorted(results, key=str)

    assert timeless(two) == timeless(one)
