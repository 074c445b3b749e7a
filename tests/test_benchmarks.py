"""The training benchmark's variants: each of them trains, and the obvious program has the same loss as ours."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from benchmarks import accuracy, training, variants
from benchmarks.variants import INGREDIENTS, OBVIOUS, Job, Process
from distill import decay, engine, sweep

CPU = torch.device("cpu")


def test_the_obvious_program_has_our_loss():
    assert training.check_same_losses(CPU) < 1e-6


@pytest.mark.parametrize("variant", INGREDIENTS[1:4], ids=lambda variant: variant.name)
def test_a_variant_has_its_ingredient_and_no_other(variant, monkeypatch):
    folded, predicted = [], []
    step, predict = decay.step, engine.predict
    monkeypatch.setattr(decay, "step", lambda *arguments: (folded.append(1), step(*arguments))[1])
    monkeypatch.setattr(engine, "predict", lambda *a: (predicted.append(len(a[1])), predict(*a))[1])
    variants.make_burst(Job(8, 4, True, 3, "cpu"), variant)()
    assert len(folded) == (3 if variant.folded else 0)
    assert predicted == ([12] if variant.teacher_once else [])


def test_a_process_answers_with_the_seconds_of_a_burst():
    process = Process(Job(8, 4, True, 2, "cpu"), OBVIOUS)
    assert 0 < process.seconds() < 60
    process.end()
    assert process.process.returncode == 0


def test_rows_of_other_depths_stay_in_the_file(tmp_path):
    file = tmp_path / "results" / "training.json"
    training.write(file, {}, [{"resnet": 50, "ratio": 1.0}])
    training.write(file, {}, [{"resnet": 18, "ratio": 2.0}])
    training.write(file, {}, [{"resnet": 50, "ratio": 3.0}])
    assert json.loads(file.read_text())["results"] == [
        {"resnet": 18, "ratio": 2.0},
        {"resnet": 50, "ratio": 3.0},
    ]


def test_precisions_are_compared_model_by_model(tmp_path, monkeypatch):
    asked, program = [], sweep.run

    def run(config):
        asked.append((config.train.precision, config.output))
        return program(config, tiny.source())

    monkeypatch.setattr(sweep, "run", run)
    config = tiny.config(tmp_path, alpha=0.3, seed=(1, 2))
    found = accuracy.accuracies(config, "bf16")
    assert asked == [("bf16", Path(f"{tmp_path}-bf16"))]
    assert {model: len(values) for model, values in found.items()} == {(None, 0): 2, ("0.3", 1): 2, ("0.3", 2): 2}


def test_differences_between_precisions_by_hand():
    exact, other = {(None, 0): np.array([0.5, 0.7])}, {(None, 0): np.array([0.6, 0.7])}
    row = accuracy.table({"fp32": exact, "bf16": other}).splitlines()[1].split()
    # differences 0.1 and 0: mean 0.05, standard error 0.05, Student's t with one degree of freedom 12.7062
    assert row == ["teacher", "0", "0.6000", "±", "0.1414", "0.6500", "±", "0.0707", "+0.0500", "±", "0.6353"]


def test_a_bad_option_is_one_line(capsys):
    assert accuracy.main(["--alhpa", "1"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "benchmarks.accuracy: error: unknown option --alhpa (did you mean --alpha?)"
    ]


def test_one_seed_has_no_spread():
    one = {(None, 0): np.array([0.5])}
    assert accuracy.table({"fp32": one, "bf16": one}).splitlines()[1].split() == [
        "teacher",
        "0",
        "0.5000",
        "0.5000",
        "+0.0000",
    ]


@pytest.mark.parametrize("words", [["--precision", "bf16"], ["--estimate"], ["--resume=runs/a"]])
def test_options_without_a_meaning_are_refused(words, capsys):
    assert accuracy.main(words) == 2
    assert f"{words[0].partition('=')[0]} has no meaning here" in capsys.readouterr().err
