"""The order of tasks, what waits, and what failed."""

import os
from concurrent.futures import Future

import pytest
from tiny import config, contents, leave_result, source

import distill
from distill.chains import model_training
from distill.cli import main
from distill.configfile import to_toml
from distill.errors import ConfigError, TrainingError
from distill.running import executors, experiment, schedule
from distill.running.executors import Executor
from distill.running.schedule import FailedError, train_tasks
from distill.running.unit import ClaimedError
from distill.store import claims
from distill.store.rundir import RunDir
from distill.store.tasks import tasks
from distill.training.listener import Notes


class Recorder(Executor):
    """Finishes tasks at once, except those that are to fail, and keeps their names."""

    def __init__(self, size: int = 1, failing: tuple[str, ...] = ()) -> None:
        self.size = size
        self.failing = failing
        self.names: list[str] = []

    def submit(self, task):
        self.names.append(task.claim)
        future = Future()
        if task.claim in self.failing:
            future.set_exception(TrainingError("no memory"))
            return future
        for number, _ in enumerate(task.models, start=bool(task.unit.arms)):
            leave_result(
                RunDir(task.run), seed=task.unit.seed, arm=task.unit.arms[0] if task.unit.arms else None, step=number
            )
        future.set_result(None)
        return future


@pytest.fixture
def grid(tmp_path):
    """The tasks of two seeds with two arms, of which nothing is trained."""
    options = config(tmp_path, seed=[1, 2], alpha=[0, 0.5])
    RunDir(tmp_path).open()
    (tmp_path / "config.toml").write_text(to_toml(options))
    return list(tasks(options))


ONE = ["seed_1", "seed_1-alpha_0", "seed_1-alpha_0.5"]
TWO = ["seed_2", "seed_2-alpha_0", "seed_2-alpha_0.5"]


@pytest.mark.parametrize(("size", "order"), [(1, ONE + TWO), (2, [ONE[0], TWO[0], *ONE[1:], *TWO[1:]])])
def test_the_order_of_tasks(grid, size, order):
    executor = Recorder(size)
    assert train_tasks(grid, executor, Notes()) == []
    assert executor.names == order
    again = Recorder(size)
    train_tasks(grid, again, Notes(), verify=False)
    assert again.names == []


def test_what_others_train_is_waited_for(grid, monkeypatch):
    executor = Recorder()
    listener = Notes()
    with claims.claim(grid[0].run, "seed_1"):
        monkeypatch.setattr(
            schedule.time, "sleep", lambda seconds: Recorder().submit(grid[0])
        )  # it is finished elsewhere
        train_tasks(grid, executor, listener)
    assert executor.names == TWO + ONE[1:]
    assert listener.notes == ["other processes train what is left: waiting for them"]


def test_a_run_that_is_moved_is_not_waited_for(grid):
    class Moving(Recorder):
        def submit(self, task):
            future = super().submit(task)
            task.run.rename(task.run.with_name("moved"))
            return future

    with pytest.raises(ConfigError, match="is gone"):
        train_tasks(grid[:3], Moving(), Notes())


def test_a_worker_ends_when_others_train_what_is_left(grid):
    with claims.claim(grid[0].run, "seed_1-alpha_0"), claims.claim(grid[0].run, "seed_2-alpha_0"):
        executor = Recorder()
        train_tasks(grid, executor, Notes(), stay=False)
    assert executor.names == ["seed_1", "seed_2", "seed_1-alpha_0.5", "seed_2-alpha_0.5"]


def test_what_needs_a_failed_teacher_is_not_tried(grid):
    executor = Recorder(failing=("seed_1", "seed_2-alpha_0"))
    failures = train_tasks(grid, executor, Notes())
    assert [str(failed) for failed in failures] == ["seed 1, teacher: no memory", "seed 2, alpha = 0: no memory"]
    assert executor.names == ["seed_1", *TWO]


def test_a_failure_names_its_model_once(tmp_path):
    (task, *_) = tasks(config(tmp_path / "lr=0.1"))
    message = "seed 1, step 0, epoch 1: the loss is not finite"
    assert str(schedule.Failed(task, message)) == message
    (tmp_path / "config.toml").touch()  # now it is the setting of a study
    assert str(schedule.Failed(task, message)) == f"lr=0.1, {message}"


def test_finished_students_of_a_teacher_that_fails_are_not_waited_for(grid):
    train_tasks(grid, Recorder(), Notes())
    (grid[0].teacher / "result.json").unlink()
    failures = train_tasks(grid, Recorder(failing=("seed_1",)), Notes())
    assert [str(failed) for failed in failures] == ["seed 1, teacher: no memory"]


@pytest.mark.parametrize("error", [ClaimedError("taken"), claims.ClaimLostError("lost")])
def test_a_teacher_whose_claim_was_lost_is_tried_before_its_students(grid, error):
    class Losing(Recorder):
        def submit(self, task):
            if self.names:
                return super().submit(task)
            self.names.append(task.claim)
            future = Future()
            future.set_exception(error)
            return future

    executor = Losing()
    assert train_tasks(grid, executor, Notes()) == []
    assert executor.names == ["seed_1", *ONE, *TWO]


def test_a_failure_elsewhere_is_not_repeated_but_an_old_one_is(grid):
    claims.write_failure(grid[0].run, "seed_1-alpha_0", "an old one")
    file = grid[0].run / claims.WORK / "seed_1-alpha_0.failed"
    os.utime(file, (0, 0))

    class Other(Recorder):
        def submit(self, task):
            if not self.names:
                claims.write_failure(task.run, "seed_2-alpha_0", "meanwhile, elsewhere")
            return super().submit(task)

    executor = Other()
    failures = train_tasks(grid, executor, Notes())
    assert [failed.message for failed in failures] == ["meanwhile, elsewhere"]
    assert "seed_1-alpha_0" in executor.names
    assert "seed_2-alpha_0" not in executor.names


def test_a_failed_arm_stops_no_other_and_only_it_is_tried_again(tmp_path, monkeypatch):
    options = {"alpha": [0, 0.5, 1], "max_epochs": 1}
    distill.run(config(tmp_path / "whole", **options), source=source())
    train, tried = model_training._train_epoch, []

    def failing(session, spec, *rest):
        tried.append((spec.arm, spec.step))
        if spec.arm == "0.5" and len(tried) < 10:
            raise TrainingError("the loss is not finite")
        return train(session, spec, *rest)

    monkeypatch.setattr(model_training, "_train_epoch", failing)
    with pytest.raises(FailedError, match="the loss is not finite"):
        distill.run(config(tmp_path / "run", **options), source=source())
    assert tried == [(None, 0), ("0", 1), ("0", 2), ("0.5", 1), ("1", 1), ("1", 2)]
    assert claims.read_failure(tmp_path / "run", "seed_1-alpha_0.5").message == "the loss is not finite"
    tried.extend([()] * 10)
    distill.run(config(tmp_path / "run", **options), source=source())
    assert tried[16:] == [("0.5", 1), ("0.5", 2)]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_devices_have_processes_of_their_own(tmp_path, folder, monkeypatch):
    """Two processes on the CPU, in the place of two devices."""
    options = folder | {"alpha": [0, 0.5], "seed": [1, 2], "distillation_steps": 1, "max_epochs": 1}
    distill.run(config(tmp_path / "one", **options))
    for module in (executors, experiment):
        monkeypatch.setattr(module, "device_names", lambda config: ["cpu", "cpu"])
    distill.run(config(tmp_path / "two", **options | {"device": "auto", "devices": "0,1"}))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("devices", "said"), [("99", "CUDA device"), ("0,", "devices must be"), ("gpu", "devices must be")]
)
def test_devices_that_are_not_here(capsys, tmp_path, devices, said):
    assert main(["--dataset", "digits", "--devices", devices, "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
