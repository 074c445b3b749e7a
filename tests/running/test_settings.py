"""Studies as a whole: settings equal single runs, shared teachers, interruption and extension."""

import csv

import pytest
from tiny import DIGITS, config, contents, killed_at, result, rows, source

import distill
from distill.cli import main, parse
from distill.running.run import run_experiment
from distill.running.settings import _take_teachers, prepare_study, train_study
from distill.store import claims
from distill.store.rundir import RunDir
from distill.study import read_study
from distill.training.listener import Notes

QUICK = [*DIGITS, "--max-epochs", "1", "--loss", "ce"]
AXES = ["--label-noise", "0", "0.4", "--temperature", "1", "3"]
GRID = ["--alpha", "0", "0.5", "--seed", "1", "2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that was trained at once."""
    path = tmp_path_factory.mktemp("study") / "whole"
    assert main([*QUICK, *AXES, *GRID, "--output", str(path)]) == 0
    return path


def models(path) -> dict:
    """The models of a study and all that is computed from them, without times and the grid of the time."""
    names = {".pt": lambda file: file.read_bytes(), ".json": lambda file: result(file) | {"configuration": None}}
    found = {
        file.relative_to(path): names[file.suffix](file) for file in path.rglob("step_*/*") if file.suffix in names
    }
    return found | {"results.csv": rows(path / "results.csv")}


def test_a_setting_is_the_run_of_its_values(tmp_path, whole):
    assert main([*QUICK, *GRID, "--label-noise", "0.4", "--temperature", "3", "--output", str(tmp_path)]) == 0
    setting = whole / "label_noise_0.4,temperature_3"
    figures = (".png", ".svg", ".pdf", ".html")
    found, single = (
        {name: content for name, content in contents(path).items() if not name.endswith(figures)}
        for path in (setting, tmp_path)
    )
    assert found == single


def test_teachers_that_settings_share_are_trained_once(whole):
    for noise in ("0", "0.4"):
        one, other = (whole / f"label_noise_{noise},temperature_{t}/seed_1/step_0" for t in (1, 3))
        for name in ("model.pt", "metrics.csv", "predictions.npz"):
            assert (one / name).samefile(other / name)
    assert (
        len(
            {
                (whole / f"label_noise_{noise},temperature_1/seed_1/step_0/model.pt").stat().st_ino
                for noise in ("0", "0.4")
            }
        )
        == 2
    )


def test_the_results_have_a_column_for_each_axis(whole):
    with open(whole / "results.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 4 * 2 * 3
    assert list(found[0])[:4] == ["label_noise", "temperature", "seed", "alpha"]
    for row in found:
        setting = whole / f"label_noise_{float(row['label_noise']):g},temperature_{float(row['temperature']):g}"
        own = [{k: v for k, v in r.items()} for r in rows(setting / "results.csv")]
        assert {k: v for k, v in row.items() if k not in ("label_noise", "temperature", "seconds")} in own


@pytest.mark.parametrize("occurrence", [3, 10])
def test_a_killed_study_resumes_to_the_same_bits(tmp_path, whole, occurrence):
    with killed_at("result.json", occurrence):
        main([*QUICK, *AXES, *GRID, "--output", str(tmp_path / "run")])
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert models(tmp_path / "run") == models(whole)


def test_an_extended_study_has_the_models_of_one_that_was_trained_at_once(tmp_path, whole):
    run = tmp_path / "run"
    assert (
        main([*QUICK, "--label-noise", "0.4", "0", "--temperature", "1", "3", "--alpha", "0.5", "--output", str(run)])
        == 0
    )
    before = {file: file.stat().st_mtime_ns for file in run.rglob("model.pt")}
    assert main(["--resume", str(run), "--alpha", "0"]) == 0
    assert main(["--resume", str(run), "--seed", "2"]) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    found, expected = models(run), models(whole)
    for numbers in (found, expected):
        numbers["results.csv"].sort(key=str)
    assert found == expected


def test_what_another_command_added_meanwhile_is_kept(tmp_path, whole):
    run = tmp_path / "run"
    words = [*QUICK, "--lr", "0.01", "0.02", "--distillation-steps", "0", "--output", str(run)]
    assert main(words) == 0
    late = parse(["--resume", str(run), "--seed", "2"]).study
    assert main(["--resume", str(run), "--lr", "0.03"]) == 0
    train_study(late, prepare_study(late), Notes(), teachers_only=False)
    study = read_study(run)
    assert study.axes == {"lr": (0.01, 0.02, 0.03)}
    assert study.settings[0].config.chain.seed == (1, 2)


def test_a_teacher_that_another_process_trains_is_not_replaced(tmp_path, whole):
    run = tmp_path / "run"
    words = [*QUICK, "--temperature", "1", "3", "--distillation-steps", "1", "--alpha", "0.5", "--output", str(run)]
    study = parse(words).study
    first, second = prepare_study(study)
    run_experiment(first, Notes(), teachers_only=True)
    RunDir(second.config.output).open()
    with claims.claim(second.config.output, "seed_1"):
        _take_teachers(second, first.config)
        assert not (second.config.output / "seed_1/step_0/result.json").exists()
    _take_teachers(second, first.config)
    assert (second.config.output / "seed_1/step_0/result.json").exists()


def test_a_run_with_more_steps_keeps_its_models(tmp_path):
    words = [*QUICK, "--alpha-schedule", "0", "0.5", "--output"]
    assert main([*words, str(tmp_path / "short"), "--distillation-steps", "2"]) == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "short").rglob("model.pt")}
    assert main([*words, str(tmp_path / "short"), "--distillation-steps", "3"]) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert main([*words, str(tmp_path / "long"), "--distillation-steps", "3"]) == 0
    assert models(tmp_path / "short").keys() == models(tmp_path / "long").keys()
    assert rows(tmp_path / "short/results.csv") == rows(tmp_path / "long/results.csv")


def test_a_run_from_python_is_extended_too(tmp_path):
    distill.run(config(tmp_path, max_epochs=1, distillation_steps=1), source=source())
    results = distill.run(config(tmp_path, max_epochs=1, distillation_steps=1, alpha=0.6, seed=2), source=source())
    assert {(result.seed, result.arm) for result in results} == {(s, a) for s in (1, 2) for a in (None, "0.3", "0.6")}


def test_nothing_is_written_if_a_later_setting_cannot_run(capsys, tmp_path):
    assert main([*QUICK, "--batch-size", "8", "50", "--output", str(tmp_path / "run")]) == 2
    assert "fewer than a batch of 50" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_if_slurm_is_not_here(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    words = [*QUICK, "--lr", "0.1", "0.01", "--executor", "slurm", "--output", str(tmp_path / "run")]
    assert main(words) == 2
    assert "needs sbatch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
