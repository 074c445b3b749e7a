"""The real program in its own process, on CIFAR-10's file format, stopped and resumed."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import ROOT, contents, rows

pytestmark = pytest.mark.smoke

OPTIONS = shlex.split("""
--resnet 8 --width 4 --max-epochs 3 --batch-size 16 --lr 0.01 --distillation-steps 2 --alpha 0 0.6
--device cpu --threads 1
""")


def start(words, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "self_distiller.py", *map(str, words)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_when(process: subprocess.Popen, file: Path, number: int) -> str:
    """Send a signal as soon as there is such a file; what the program then said on standard error."""
    until = time.monotonic() + 300
    while not file.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(number)
    return process.communicate(timeout=300)[1]


def test_a_run_stopped_three_times_gives_the_same_results(tmp_path, tiny_cifar10, tiny_cifar10_archive, http_server):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reference = start([*OPTIONS, "--data-dir", tiny_cifar10, "--output", whole])  # beside the other: two cores

    archive, md5 = tiny_cifar10_archive
    download = {
        "SELF_DISTILLER_CIFAR_URL": f"{http_server(archive.parent)}/{archive.name}",
        "SELF_DISTILLER_CIFAR_MD5": md5,
    }
    same_command = [*OPTIONS, "--data-dir", tmp_path / "data", "--output", parts]

    process = start(same_command, **download)
    said = stop_when(process, parts / "seed_1/step_0/training_state.pt", signal.SIGTERM)
    assert (process.returncode, said.strip().splitlines()[-1][:8]) == (143, "stopped;")

    process = start(["--resume", parts])
    said = stop_when(process, parts / "seed_1/alpha_0/step_1/training_state.pt", signal.SIGINT)
    assert (process.returncode, said.strip().splitlines()[-1][:8]) == (130, "stopped;")

    process = start(same_command)
    stop_when(process, parts / "seed_1/alpha_0.6/step_1/training_state.pt", signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (parts / "seed_1/alpha_0.6/step_2/result.json").exists()

    process = start(["--resume", parts])
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "everything is in" in out.splitlines()[-1]

    reference.communicate(timeout=300)
    assert reference.returncode == 0
    assert rows(parts / "results.csv") == rows(whole / "results.csv")
    assert [(row["alpha"], row["step"]) for row in rows(whole / "results.csv")] == [
        *[("", "0"), ("0.0", "1"), ("0.0", "2"), ("0.6", "1"), ("0.6", "2")]
    ]
    models = sorted(path.relative_to(whole) for path in whole.rglob("model.pt"))
    assert len(models) == 5
    for model in models:
        one, other = (torch.load(run / model, weights_only=True) for run in (whole, parts))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert contents(parts) == contents(whole)
    assert not [path for path in parts.rglob("*") if path.name == "training_state.pt" or ".tmp" in path.name]


def test_a_wrong_command_is_one_line(tmp_path):
    process = start([*OPTIONS, "--alpha", "1.5", "--loss", "ce", "--output", tmp_path / "run"])
    out, said = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert said.startswith("self_distiller.py: error: alpha 1.5 is outside [0, 1], which needs --loss mse")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
