import io
import re
import sys

import pytest
from tiny import VALUES
from tqdm import tqdm

from distill.running import progress
from distill.running.progress import Progress
from distill.store.results import Result, name_model
from distill.training.listener import Listener

ROW = {"epoch": 1, "train_loss": 0.123456, "train_acc": 0.75, "val_acc": None, "seconds": 1.25}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class FixedSums:
    def read(self):
        return {"loss": 0.5, "acc": 0.25}


@pytest.fixture
def on_terminal(monkeypatch):
    """A function that makes standard error a terminal (in the test itself: capturing takes it back between phases)."""

    def take() -> Terminal:
        monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread that outlives the test
        monkeypatch.setattr(sys, "stderr", screen := Terminal())
        return screen

    return take


def result(**figures) -> Result:
    return Result.of(VALUES, figures)


def show_a_run(listener, models=2, epochs=2):
    for step in range(models):
        name = name_model(1, "0.5" if step else None, step)
        listener.start_model(name, 100, 0)
        for epoch in range(epochs):
            listener.advance(100)
            listener.end_chunk(FixedSums())
            listener.end_epoch(name, ROW | {"epoch": epoch + 1})
        listener.end_model(result(step=step, arm="0.5" if step else None, test_acc=0.875))
    listener.close()


def test_without_a_terminal_progress_is_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    show_a_run(Progress(2, 2))
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "model 1 of 2, 0 s left: seed 1, step 0, test accuracy 0.8750, 0.5 s",
        "model 2 of 2: seed 1, alpha 0.5, step 1, test accuracy 0.8750, 0.5 s",
    ]


def test_a_given_teacher_is_no_model_of_the_run(capsys):
    Progress(1, 1).end_model(result(agreement=None, epochs=0))
    assert capsys.readouterr().out == ""


def test_the_time_left_is_that_of_the_epochs_left(capsys, monkeypatch):
    clock = iter([0.0, 90.0, 90.0, 100.0] + [160.0] * 9)  # made, begun and said so, a model is started
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    listener = Progress(4, 10)
    listener.begin(1)  # of ten epochs
    listener.start_model("student", 100, 0)
    listener.end_epoch("student", ROW)  # a minute for one epoch, and 29 are left
    assert capsys.readouterr().out.splitlines() == [
        "resuming: 1 of 4 models finished",
        "model 2 of 4, 29 min left: student, epoch 1/10, loss 0.1235, accuracy 0.7500",
    ]


def test_without_a_terminal_an_epoch_is_printed_every_ten_seconds(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    listener = Progress(1, 2)
    listener.end_epoch("student", ROW)
    listener.end_epoch("student", ROW | {"epoch": 2, "val_acc": 0.5})
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"model 1 of 1, \S+ s left: student, epoch 1/2, loss 0.1235, accuracy 0.7500", first)
    assert second == "model 1 of 1: student, epoch 2/2, loss 0.1235, accuracy 0.7500, held out 0.5000"


def test_on_a_terminal_there_are_two_bars_and_the_lines_go_to_standard_output(on_terminal, capsys):
    terminal = on_terminal()
    listener = Progress(2, 2)
    show_a_run(listener)
    assert "seed 1, alpha 0.5, step 1" in terminal.getvalue()
    assert "epoch 2/2:   0%|" in terminal.getvalue()
    assert listener.run.n == listener.run.total == 4
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_bar_of_the_epoch_shows_loss_accuracy_and_speed(on_terminal, monkeypatch):
    terminal = on_terminal()
    monkeypatch.setattr(progress, "READ_EVERY", -1.0)
    listener = Progress(1, 1)
    listener.start_model("teacher", 100, 0)
    listener.advance(50)
    listener.end_chunk(FixedSums())
    assert "loss 0.5000 acc 0.250" in terminal.getvalue()
    assert "img/s" in terminal.getvalue()
    listener.close()


def test_there_is_no_bar_of_an_epoch_before_a_model_is_started(on_terminal):
    terminal = on_terminal()
    listener = Progress(1, 1)
    listener.say("preparing")
    listener.close()
    assert "img" not in terminal.getvalue()


def test_sums_are_read_at_most_once_a_second(on_terminal):
    on_terminal()

    class Expensive:
        def read(self):
            raise AssertionError("waited for the device")

    listener = Progress(1, 1)
    listener.start_model("teacher", 100, 0)
    listener.end_chunk(Expensive())
    listener.close()


def test_the_bar_counts_finished_epochs_of_a_resumed_model(on_terminal):
    terminal = on_terminal()
    listener = Progress(1, 5)
    listener.start_model("teacher", 100, 3)
    assert listener.run.n == 3
    assert "epoch 4/5" in terminal.getvalue()
    listener.close()


def test_the_bar_counts_finished_models_of_a_resumed_run(on_terminal):
    on_terminal()
    listener = Progress(3, 5)
    listener.begin(2)
    assert listener.run.n == 10
    listener.close()


def test_with_several_jobs_one_bar_counts_all_epochs(on_terminal):
    terminal = on_terminal()
    listener = Progress(2, 5, jobs=2)
    listener.end_epoch("one", ROW)
    listener.end_epoch("another", ROW)
    assert listener.run.n == 2
    assert "img" not in terminal.getvalue()
    listener.close()


@pytest.mark.parametrize(("arm", "name"), [(None, "seed 2, step 3"), ("0.35", "seed 2, alpha 0.35, step 3")])
def test_models_are_named_as_their_folders_are(arm, name):
    assert name_model(2, arm, 3) == name


def test_the_base_listener_prints_nothing(capsys):
    class Told(Listener):
        def close(self):
            pass

    show_a_run(Told())
    assert capsys.readouterr() == ("", "")


def test_a_repeated_note_is_printed_once(capsys):
    listener = Progress(1, 1)
    for text in ("no graph", "no graph", "another", "no graph"):
        listener.note(text)
    listener.close()
    assert capsys.readouterr().out.splitlines() == ["note    no graph", "note    another"]


def test_several_jobs_have_a_bar_each(on_terminal):
    screen = on_terminal()
    listener = Progress(3, 2, jobs=2)
    names = [name_model(1, None, 0), name_model(2, None, 0), name_model(3, None, 0)]
    for name in names:  # of the third, another process may be the owner
        listener.end_epoch(name, ROW)
    assert [(bar.desc, bar.n) for bar in listener.workers] == [(name, 1) for name in names[:2]]
    listener.end_model(result(seed=1))
    listener.end_epoch(names[2], ROW | {"epoch": 2})
    assert [(bar.desc, bar.n) for bar in listener.workers] == [(names[2], 2), (names[1], 1)]
    listener.close()
    assert names[2] in screen.getvalue()
