"""The training benchmark's variants: each of them trains, and the obvious program has the same loss as ours."""

import json

import pytest
import torch

from benchmarks import training, variants
from benchmarks.variants import INGREDIENTS, OBVIOUS, Job, Process
from distill import decay, engine

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
