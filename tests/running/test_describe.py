from dataclasses import replace

import pytest
from tiny import config, contents, source

from distill.cli import main
from distill.running import describe
from distill.running.cost import Cost, measure
from distill.running.experiment import prepare
from distill.running.trial import Trial


def test_describe_shows_device_data_model_chains_and_output(tmp_path):
    experiment = prepare(config(tmp_path, alpha=[0, 0.5], label_noise=0.25), source())
    text = describe.describe(experiment)
    assert all(len(line) <= 100 for line in text.splitlines()[:-1])
    lines = dict(line.split(None, 1) for line in text.replace("\n        ", " ").splitlines())
    assert lines["device"].startswith("cpu")
    assert (
        lines["data"]
        == "custom: 41 train, 20 test images of 1x8x8, 3 classes, 10 training labels corrupted (symmetric, 24.4%)"
    )
    assert lines["model"].startswith("ResNet-8, ")
    assert "alpha 0 0.5: teacher + 2 students each, 5 models of 2 epochs of 5 updates" in lines["chains"]
    assert lines["output"] == str(tmp_path)


def cost(tmp_path, **options) -> Cost:
    """Ten updates an epoch; round times: 2 s an update of a teacher, 3 of a student, 0.1 an image, 5 a checkpoint."""
    c = config(tmp_path, max_epochs=4, **options)
    return Cost(c, 10, train=40, held_out=20, test=30, teacher=2.0, student=3.0, evaluation=0.1, checkpoint=5.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (40, "40 s"), (720, "12 min"), (5400, "1.5 h"), (12345, "3.4 h")]
)
def test_format_duration_chooses_the_unit(seconds, text):
    assert describe.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00342, "3.42 ms"), (0.0996, "99.6 ms"), (0.283, "283 ms"), (1.41, "1,410 ms")]
)
def test_format_milliseconds(seconds, text):
    assert describe.format_milliseconds(seconds) == text


def test_a_large_scatter_of_bursts_is_reported(tmp_path):
    calm, busy = (describe.format_cost(replace(cost(tmp_path), scatter=scatter)) for scatter in (1.2, 2.3))
    assert "the slowest 1.20 times the fastest\n" in calm
    assert "the slowest 2.30 times the fastest: is this machine doing something else?\n" in busy


def test_notes_of_the_training_are_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(Trial, "evaluation", lambda self: (self.listener.note("no graph"), 0.1)[1])
    made = measure(prepare(config(tmp_path), source()))
    assert describe.format_cost(made).splitlines()[-1] == "note    no graph"


def test_the_cost_counts_no_more_jobs_than_chains(tmp_path):
    assert "1 chain, 3 models, one after the other" in describe.format_cost(cost(tmp_path, jobs=8))
    assert "2 chains, 6 models, 2 jobs" in describe.format_cost(cost(tmp_path, jobs=8, seed=[1, 2]))


def test_estimate_of_a_run_in_progress_shows_the_remaining_cost(tmp_path, capsys):
    words = ["--dataset", "digits", "--resnet", "8", "--width", "2", "--train-size", "64", "--test-size", "32"]
    words += ["--batch-size", "16", "--max-epochs", "1", "--device", "cpu", "--output", str(tmp_path / "run")]
    assert main([*words, "--distillation-steps", "1"]) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert main([*words, "--distillation-steps", "1"]) == 0
    assert capsys.readouterr().out.startswith("nothing left to do: all models are finished")
    assert main(["--resume", str(tmp_path / "run"), "--estimate"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"left    0 s: 2 models finished in {tmp_path / 'run'}, 0 in progress"
    assert main([*words, "--distillation-steps", "1", "--lr", "1", "--estimate"]) == 2
    assert "holds a run with other options" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_estimate_prints_the_cost_and_writes_nothing(tmp_path, capsys, tiny_imagefolder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "imagefolder", "--data-dir", str(tiny_imagefolder), "--resnet", "8", "--width", "2"]
    before = contents(tiny_imagefolder).keys()
    assert main([*words, "--device", "cpu", "--max-epochs", "3", "--estimate", "--output", "run"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert {"device", "models", "chain", "grid", "update"} <= lines.keys()
    assert "3 x 3 updates" in lines["models"]
    assert "1 chain, 6 models, one after the other" in lines["grid"]
    assert not list(tmp_path.iterdir())
    assert contents(tiny_imagefolder).keys() == before
