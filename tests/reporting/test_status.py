import time

import pytest
from tiny import config, leave_result

from distill.configfile import to_toml
from distill.errors import ConfigError
from distill.reporting.status import status
from distill.store import claims, slurm
from distill.store.rundir import RunDir
from distill.study import expand


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run of two seeds, three arms and two students, of which nothing is trained."""
    run = RunDir(tmp_path)
    run.open()
    options = config(tmp_path, seed=[1, 2], alpha=[0, 0.5, 1])
    (tmp_path / "config.toml").write_text(to_toml(options))
    return run


def test_the_tree_shows_every_state(run):
    leave_result(run)
    leave_result(run, arm="0", alpha=0.0, step=1)
    leave_result(run, arm="0", alpha=0.0, step=2)
    leave_result(run, arm="0.5", alpha=0.5, step=1)
    folder = run.model(1, "0.5", 2)
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch\n1\n")
    claims.write_failure(run.path, "seed_1-alpha_1", "the loss is not finite")
    with claims.claim(run.path, "seed_1-alpha_0.5") as owner:
        lines = status(run.path).splitlines()
    assert lines == [
        f"{run.path}: 4 of 14 models finished",
        "seed 1",
        "  finished    teacher, alpha = 0",
        f"  running     alpha = 0.5: step 2, epoch 2 of 2; {owner}, since {owner.since}",
        "  failed      alpha = 1: the loss is not finite",
        "seed 2",
        "  waiting     teacher, alpha = 0, alpha = 0.5, alpha = 1",
    ]
    assert "  interrupted alpha = 0.5: step 2, epoch 2 of 2" in status(run.path).splitlines()


def test_the_jobs_of_a_study_are_shown_once(tmp_path, monkeypatch):
    study = expand({"train": {"lr": [0.01, 0.02]}, "run": {"output": str(tmp_path / "study")}})
    RunDir(study.path).open()
    (study.path / "config.toml").write_text(study.toml())
    for setting in study.settings:
        RunDir(setting.config.output).open()
        (setting.config.output / "config.toml").write_text(to_toml(setting.config))
    name = slurm.job_name(study.path)
    jobs = [slurm.Job("8", "7", "RUNNING", "n2", name), slurm.Job("9", "9", "PENDING", "(None)", "another")]
    monkeypatch.setattr(slurm, "queue", lambda: jobs)
    for path in (study.path, study.settings[0].config.output):
        lines = status(path).splitlines()
        assert [line for line in lines if line.startswith("job ")] == [f"job 8    {name}: RUNNING n2"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        status(tmp_path)


def test_ten_thousand_models_take_less_than_three_seconds(run):
    options = config(run.path, seed=range(100), alpha=[i / 100 for i in range(99)], distillation_steps=1)
    (run.path / "config.toml").write_text(to_toml(options))
    for model in run.models(options):
        model.folder.mkdir(parents=True)
        (model.folder / "result.json").touch()
    started = time.monotonic()
    assert ": 10000 of 10000 models finished\n" in status(run.path)
    assert time.monotonic() - started < 3
