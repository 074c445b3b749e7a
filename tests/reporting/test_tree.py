"""The tree of --dry-run: what is finished, begun and to train, and how long it takes."""

import os
import time

import pytest
from tiny import DIGITS, contents, killed_at

from distill.cli import main, parse
from distill.reporting.tree import tree
from distill.store.results import columns
from distill.store.rundir import STATE

GRID = [*DIGITS, "--alpha", "0", "0.5", "--lr", "0.01", "0.02"]


def test_a_study_that_is_not_begun_is_to_train_and_nothing_is_written(capsys, tmp_path):
    assert main([*GRID, "--output", str(tmp_path / "run"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "6 models in 2 settings: 6 to train" in out
    assert "the time is not known" in out
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_study_shows_what_is_finished_and_begun(capsys, tmp_path):
    with killed_at(STATE, 4):  # two of the teacher, two of the first student
        main([*GRID, "--output", str(tmp_path)])
    before = contents(tmp_path)
    capsys.readouterr()
    assert main(["--resume", str(tmp_path), "--seed", "2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "lr 0.01: 1 finished, 1 begun, 4 to train",
        "  teacher: 1 finished, 1 to train",
        "  alpha = 0: 1 begun, 1 to train",
        "  alpha = 0.5: 2 to train",
    ]
    assert f"{tmp_path}: 12 models in 2 settings: 1 finished, 1 begun, 10 to train" in lines
    assert contents(tmp_path) == before


def test_hours_are_those_of_finished_models(tmp_path):
    """36 s per epoch of a teacher, 72 s of a student: 2 epochs of 1 teacher and 4 students are 0.18 h."""
    (tmp_path / "lr_0.01/seed_1/step_0").mkdir(parents=True)
    (tmp_path / "lr_0.01/seed_1/step_0/result.json").touch()
    rows = [{"seconds": 72, "epochs": 2}, {"seconds": 144, "epochs": 2, "arm": "0"}]
    text = [",".join(columns()), *(",".join(str(row.get(name, "")) for name in columns()) for row in rows)]
    (tmp_path / "lr_0.01/results.csv").write_text("\n".join(text))
    assert "about 0.18 h" in tree(parse([*GRID, "--output", str(tmp_path)]).study)


@pytest.mark.parametrize("axes", [[], ["--lr", *(str(i / 1000) for i in range(1, 21))]])
def test_ten_thousand_finished_models_take_less_than_three_seconds(tmp_path, axes):
    seeds = 2500 // max(1, len(axes) - 1)
    words = [*DIGITS, *axes, "--seed", *map(str, range(seeds)), "--alpha", "0", "1", "0.5", "--output", str(tmp_path)]
    for setting in parse(words).study.settings:
        for seed in range(seeds):
            for folder in ("step_0", "alpha_0/step_1", "alpha_1/step_1", "alpha_0.5/step_1"):
                path = setting.config.output / f"seed_{seed}" / folder
                os.makedirs(path)
                (path / "result.json").touch()
    started = time.perf_counter()
    assert "10,000 finished" in tree(parse(words).study)
    assert time.perf_counter() - started < 3
