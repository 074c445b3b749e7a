import errno
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import Killed, config, contents, rows, source
from torch import nn

import distill
from distill.errors import ConfigError, UserError
from distill.running.experiment import Experiment, count_models
from distill.training.fit import Trainer
from distill.training.listener import Listener


def crash(monkeypatch, at: int, before: bool) -> list:
    """Let the ``at``-th write end the process: before its rename, with a torn temporary file left, or right after."""
    torn, count, replace = [], iter(range(1, 10_000)), os.replace

    def dying(temporary, path):
        this = next(count)
        if this == at and before:
            torn.append((Path(temporary), Path(temporary).read_bytes()[:-3]))
            raise Killed
        replace(temporary, path)
        if this == at:
            raise Killed

    monkeypatch.setattr("distill.files.os.replace", dying)
    return torn


@pytest.mark.parametrize("before", [True, False], ids=["before_the_rename", "after_the_rename"])
def test_a_run_killed_at_any_write_resumes_to_the_same_bits(tmp_path, monkeypatch, before):
    monkeypatch.setattr("distill.files.os.fsync", lambda file: None)
    monkeypatch.setattr("distill.store.processes.commit", lambda: None)
    options = {"distillation_steps": 1, "label_noise": 0.25}
    distill.run(config(tmp_path / "whole", **options), source=source())
    whole = contents(tmp_path / "whole")
    for at in range(1, 100):
        run = tmp_path / str(at)
        try:
            with monkeypatch.context() as patch:
                torn = crash(patch, at, before)
                distill.run(config(run, **options), source=source())
        except Killed:
            for temporary, content in torn:
                temporary.write_bytes(content)
        else:
            break
        distill.run(config(run, **options), source=source())
        assert contents(run) == whole, f"after an end at write {at}"
    # configuration, data, environment, labels; two models of two epochs; environment and results at the end
    assert at - 1 == 4 + 2 * (2 * 2 + 4) + 2  # each model also writes its predictions


def test_repeated_crashes_end_with_the_same_bits(tmp_path, monkeypatch):
    distill.run(config(tmp_path / "whole", alpha=[0, 0.5]), source=source())
    ends = 0
    while True:
        try:
            with monkeypatch.context() as patch:
                crash(patch, 7, before=ends % 2 == 0)
                distill.run(config(tmp_path / "parts", alpha=[0, 0.5]), source=source())
            break
        except Killed:
            ends += 1
    assert ends > 5
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = distill.run(config(tmp_path), source=source())
    monkeypatch.setattr(Trainer, "epoch", None)
    assert distill.run(config(tmp_path), source=source()) == first


def test_an_interrupt_loses_only_the_current_epoch(tmp_path, monkeypatch):
    epochs, epoch = [], Trainer.epoch

    def counted(self, *args):
        epochs.append(self.epochs)
        if len(epochs) == 4:  # the second epoch of the first student
            raise KeyboardInterrupt
        return epoch(self, *args)

    monkeypatch.setattr(Trainer, "epoch", counted)
    with pytest.raises(KeyboardInterrupt):
        distill.run(config(tmp_path), source=source())
    distill.run(config(tmp_path), source=source())
    assert epochs == [0, 1, 0, 1, 1, 0, 1]


def test_a_run_resumes_after_a_full_disk(tmp_path, monkeypatch):
    distill.run(config(tmp_path / "whole"), source=source())

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    epoch = Listener.end_epoch
    with monkeypatch.context() as patch:
        fill = partial(patch.setattr, "distill.files.os.fsync", full)
        patch.setattr(Listener, "end_epoch", lambda *args: (fill(), epoch(*args)))
        with pytest.raises(OSError, match="No space left"):
            distill.run(config(tmp_path / "run"), source=source())
    assert not list((tmp_path / "run").rglob("*.tmp"))
    distill.run(config(tmp_path / "run"), source=source())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_grid_trains_each_seeds_teacher_once(tmp_path):
    c = config(tmp_path, alpha=[0.2, 0.7], seed=[3, 1], distillation_steps=1, max_epochs=1)
    results = distill.run(c, source=source())
    expected = [(s, a, k) for s in (1, 3) for a, k in ((None, 0), (0.2, 1), (0.7, 1))]
    assert [(r.seed, r.alpha, r.step) for r in results] == expected
    assert count_models(c) == len(expected)
    assert [row["alpha"] for row in rows(tmp_path / "results.csv")] == ["", "0.2", "0.7"] * 2


def test_seeds_differ(tmp_path):
    distill.run(config(tmp_path, seed=[1, 2], distillation_steps=0), source=source())
    a, b = (torch.load(tmp_path / f"seed_{seed}/step_0/model.pt", weights_only=True) for seed in (1, 2))
    assert not torch.equal(a["network.conv1.weight"], b["network.conv1.weight"])


def test_every_seeds_data_are_checked_before_anything_is_written(tmp_path, monkeypatch):
    dataset = Experiment.dataset

    def bad_for_seed_2(self, seed):
        if seed == 2:
            raise UserError("too few")
        return dataset(self, seed)

    monkeypatch.setattr(Experiment, "dataset", bad_for_seed_2)
    with pytest.raises(UserError, match="too few"):
        distill.run(config(tmp_path / "run", seed=[1, 2]), source=source())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": "x"}, "config must be a distill.Config, not 'x'"),
        ({"source": 3}, "source must be what distill.from_arrays returns, not 3"),
        ({"network": 3}, "network must be a function that makes a network, not 3"),
        ({"network": lambda: None}, "a custom network must be a torch.nn.Module, not None"),
        ({"network": nn.Flatten}, "a custom network has no parameters to train"),
        ({"listener": 3}, "listener must have the methods of Listener, and has no begin"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_of_another_type_is_named(tmp_path, changed, message):
    with pytest.raises(ConfigError) as caught:
        distill.run(**{"config": config(tmp_path / "run"), "source": source(), **changed})
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distill.Config(train={"lr": 1}), "train must be a distill.TrainConfig, not {'lr': 1}"),
        (lambda: distill.Config(train=None), "train must be a distill.TrainConfig, not None"),
        (lambda: distill.Config(3), "data must be a distill.DataConfig, not 3"),
        (lambda: distill.create_run(3), "config must be a distill.Config, not 3"),
        (lambda: distill.load_run(3), "path must be a path, not 3"),
        (lambda: distill.units(None), "run_directory must be a path, not None"),
        (lambda: distill.train_unit(3, 1), "run_directory must be a path, not 3"),
        (lambda: distill.train_unit(".", 1, "0.6"), "arms must be a list of names, such as ['0.6'], not '0.6'"),
        (
            lambda: distill.train_unit(".", 1, listener=3),
            "listener must have the methods of Listener, and has no begin",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_public_function_names_such_an_argument(call, message):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value) == message
