import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ROOT, config, contents, rows, source

import distill
from distill.errors import UserError
from distill.running.unit import Unit, open_run
from distill.store.rundir import RunDir
from distill.training.fit import Trainer

GRID = {"alpha": [0, 0.5], "seed": [1, 2], "distillation_steps": 2, "max_epochs": 1}


def start(run: Path, unit: Unit) -> subprocess.Popen:
    """Another process that knows nothing but the directory and the unit."""
    program = f"import distill; distill.train_unit({str(run)!r}, {unit.seed}, {unit.arms})"
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)


@pytest.mark.slow
def test_units_trained_in_other_processes_equal_the_serial_run(tmp_path, folder):
    options = config(tmp_path / "units", **GRID, **folder)
    run = distill.create_run(options)
    assert not list(run.rglob("*.pt"))
    units = distill.units(run)
    teachers = units[:2]
    students = random.Random(0).sample(units[2:], 4)
    for together in (teachers, students[:2], students[2:]):
        processes = [start(run, unit) for unit in together]
        assert [process.wait(300) for process in processes] == [0, 0]
    distill.run(config(tmp_path / "serial", **GRID, **folder))
    assert rows(run / "results.csv") == rows(tmp_path / "serial" / "results.csv")
    assert contents(run) == contents(tmp_path / "serial")


def test_run_completes_a_directory_of_trained_units_without_retraining(tmp_path, monkeypatch):
    run = distill.create_run(config(tmp_path / "units", **GRID), source=source())
    for unit in distill.units(run):
        distill.train_unit(run, unit.seed, unit.arms, source=source())
    monkeypatch.setattr(Trainer, "epoch", None)
    results = distill.run(config(tmp_path / "units", **GRID), source=source())
    monkeypatch.undo()
    assert results == distill.run(config(tmp_path / "units", **GRID), source=source())
    distill.run(config(tmp_path / "serial", **GRID), source=source())
    assert contents(run) == contents(tmp_path / "serial")


def test_units_are_teachers_and_groups_of_arms_that_share_students(tmp_path):
    schedules = [[0.2, 0.4], [0.2, 0.6], [0.5]]
    run = distill.create_run(config(tmp_path, seed=[3, 1], alpha_schedule=schedules, alpha=[]), source=source())
    assert distill.units(run) == [
        Unit(3),
        Unit(1),
        Unit(3, ("0.2-0.4", "0.2-0.6")),
        Unit(3, ("0.5",)),
        Unit(1, ("0.2-0.4", "0.2-0.6")),
        Unit(1, ("0.5",)),
    ]


def test_a_unit_returns_each_of_its_results_once(tmp_path):
    run = distill.create_run(config(tmp_path, alpha=[], alpha_schedule=[[0.2, 0.4], [0.2, 0.6]]), source=source())
    (teacher,) = distill.train_unit(run, 1, source=source())
    results = distill.train_unit(str(run), 1, ("0.2-0.4", "0.2-0.6"), source=source())
    assert results[0] == teacher
    assert [(r.arm, r.step) for r in results] == [(None, 0), ("0.2", 1), ("0.2-0.4", 2), ("0.2-0.6", 2)]


def test_train_unit_leaves_torchs_generator_unchanged(tmp_path):
    run = distill.create_run(config(tmp_path), source=source())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    distill.train_unit(run, 1, source=source())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("seed", "arms", "message"),
    [
        (7, (), "has no seed 7; it has 1 2"),
        (1, ("0.7",), "has no arm 0.7; it has 0 0.5"),
        (1, ("0.5",), "the teacher of seed 1 in .* is not finished: train it first"),
    ],
)
def test_unknown_seeds_and_arms_and_missing_teachers_are_refused(tmp_path, seed, arms, message):
    run = distill.create_run(config(tmp_path, **GRID), source=source())
    before = contents(run)
    with pytest.raises(UserError, match=message):
        distill.train_unit(run, seed, arms, source=source())
    assert contents(run) == before


def test_a_unit_needs_the_runs_own_directory_and_images(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        distill.train_unit(tmp_path, 1)
    run = distill.create_run(config(tmp_path), source=source())
    with pytest.raises(UserError, match="give them to run"):
        distill.train_unit(run, 1)
    with pytest.raises(UserError, match="other images or labels"):
        distill.train_unit(run, 1, source=source(1))


def test_the_images_of_a_run_are_read_once_per_process(tmp_path, folder):
    run = distill.create_run(config(tmp_path, **folder))
    options = RunDir(run).config()
    assert open_run(options).source is open_run(options).source


def test_create_run_keeps_the_same_run_and_refuses_another(tmp_path):
    run = distill.create_run(config(tmp_path), source=source())
    distill.train_unit(run, 1, source=source())
    before = contents(run)
    assert distill.create_run(config(tmp_path), source=source()) == run
    assert contents(run) == before
    with pytest.raises(UserError, match="holds a run with other options"):
        distill.create_run(config(tmp_path, lr=0.5), source=source())
