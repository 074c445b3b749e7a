"""Jobs of a cluster, with stand-ins of ``sbatch`` and ``squeue``."""

import os
from pathlib import Path

import pytest
from tiny import DIGITS, config

from distill.cli import main
from distill.configfile import to_toml
from distill.errors import ConfigError
from distill.running import slurm
from distill.running.run import check_executor
from distill.store import claims
from distill.store import slurm as cluster
from distill.store.rundir import RunDir
from distill.store.tasks import tasks
from distill.study import run_folders
from distill.training.listener import Listener


@pytest.fixture(autouse=True)
def calls(tmp_path, monkeypatch) -> Path:
    """The file to which the stand-in of sbatch writes its options; the queue is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    file = folder / "calls"
    programs = {"sbatch": f'cat >/dev/null\necho "$@" >>{file}\necho 7', "squeue": ""}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(cluster, "KEEP", 0.0)
    return file


@pytest.mark.parametrize(("words", "runs"), [([], 1), (["--lr", "0.01", "0.02"], 2)], ids=["run", "study"])
def test_the_printed_script_can_be_submitted(tmp_path, capsys, calls, words, runs):
    run = tmp_path / "run"
    setup = "module load\tcuda"
    assert (
        main([*DIGITS, *words, "--device", "cuda", "--print-sbatch", "--slurm-setup", setup, "--output", str(run)]) == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("#!/bin/bash\n#SBATCH --job-name=run-")
    assert f"\n{setup}\n" in out
    assert f"--work {run} &\n" in out
    assert (run / "slurm").is_dir()
    assert len(run_folders(run)) == runs
    assert all((folder / "config.toml").exists() for folder in run_folders(run))
    assert not list(run.rglob("step_*"))
    assert not calls.exists()


def test_jobs_are_submitted_only_if_a_model_is_left(tmp_path, calls):
    words = [*DIGITS, "--output", str(tmp_path / "run")]
    assert main([*words, "--executor", "slurm", "--detach"]) == 0
    assert calls.read_text().splitlines() == ["--test-only", "--parsable"]
    assert main(words) == 0
    assert main([*words, "--executor", "slurm"]) == 0
    assert calls.read_text().splitlines() == ["--test-only", "--parsable", "--test-only"]


def test_a_failure_of_before_keeps_its_message(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "PATIENCE", -1.0)
    options = config(tmp_path / "run")
    run = RunDir(options.output)
    run.open()
    (run.path / "config.toml").write_text(to_toml(options))
    every = list(tasks(options))
    claims.write_failure(run.path, every[0].claim, "the loss is not finite")
    os.utime(run.path / claims.WORK / f"{every[0].claim}.failed", (0, 0))
    failures = slurm.wait_for_jobs(run.path, every, Listener())
    assert [failed.task for failed in failures] == every
    assert failures[0].message == "the loss is not finite"
    assert failures[1].message.startswith("no job of the run is left in the queue")


def test_what_cannot_be_submitted_is_refused_first(tmp_path, monkeypatch, calls):
    run = config(tmp_path, executor="slurm").run
    with pytest.raises(ConfigError, match="--preview trains its teachers here"):
        check_executor(tmp_path, run, teachers_only=True)
    calls.with_name("sbatch").write_text("#!/bin/sh\necho sbatch: no such partition >&2\nexit 1\n")
    with pytest.raises(ConfigError, match="SLURM rejects the jobs: sbatch: no such partition"):
        check_executor(tmp_path, run)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs sbatch, which is not here"):
        check_executor(tmp_path, run)
