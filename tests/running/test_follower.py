"""A run on several ranks: the whole program under torchrun, what it leaves on disk, and the death of a rank."""

import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks_tools import ROOT, environment_of, start_ranks
from tiny import refusal, wait_for

from distill.cli import main
from distill.program import STOPPING
from distill.records import read_json

OPTIONS = (
    "--dataset digits --train-size 150 --val-size 50 --test-size 60 --resnet 8 --width 2 --batch-size 32 --threads 1"
)
OPTIONS += " --max-epochs 3 --distillation-steps 1 --alpha 0.5 auto --target soft --lr 0.01 --device cpu"
OPTIONS += " --sync-batchnorm --teacher-select best --label-noise 0.2 --ema 0.9"
STOPPED = "stopped; run the same command to resume from the last finished epoch\n"
LOST = r"self_distiller\.py: error: rank \d lost the others: .*; run the same command to resume [^\n]*\n"


def results(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def parameters(run: Path) -> dict[str, torch.Tensor]:
    models = sorted(run.glob("**/model.pt"))
    return {f"{m.parent.relative_to(run)} {k}": v for m in models for k, v in torch.load(m, weights_only=True).items()}


@pytest.fixture(scope="module")
def under_torchrun(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    run = tmp_path_factory.mktemp("ranks") / "run"
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*program, "self_distiller.py", *OPTIONS.split(), "--output", str(run)]
    return run, subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_torchrun_trains_the_run_of_one_process(under_torchrun, tmp_path):
    run, ended = under_torchrun
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("everything is in") == 1
    assert "device  2 ranks, each on a device like cpu" in ended.stdout
    assert read_json(run / "environment.json")["runs"][0]["ranks"] == 2
    assert main([*OPTIONS.split(), "--output", str(tmp_path / "run")]) == 0
    found, expected = parameters(run), parameters(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0.05, atol=0.01, msg=name)
    for one, other in zip(results(run), results(tmp_path / "run"), strict=True):
        assert one.keys() == other.keys()
        assert float(one["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=0.02)


def interrupted(run: Path, model: str, words: list[str], act) -> tuple[list[int], list[str]]:
    """Start two ranks, and ``act`` on them as soon as they train a model; their statuses and what they said."""
    processes = start_ranks(2, "self_distiller.py", *words, "--output", str(run))
    state = run / "seed_1" / model / "training_state.pt"
    wait_for(lambda: state.exists() or any(process.poll() is not None for process in processes))
    act(*processes)
    said = [process.communicate(timeout=200)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_all_and_the_same_command_resumes(under_torchrun, tmp_path):
    run = tmp_path / "run"
    words = OPTIONS.split()
    statuses, said = interrupted(run, "step_0", words, lambda leader, follower: follower.kill())
    assert statuses == [2, -signal.SIGKILL]
    assert re.fullmatch(LOST, said[0]), said
    assert interrupted(run, "none", words, lambda *_: None)[0] == [0, 0]
    assert results(run) == results(under_torchrun[0])
    torch.testing.assert_close(parameters(run), parameters(under_torchrun[0]), rtol=0, atol=0)


@pytest.mark.slow
def test_ctrl_c_while_a_rank_does_not_answer(tmp_path):
    """Rank 0 ends with one line; the other, which is without its leader when it awakes, with another."""

    def ctrl_c(leader: subprocess.Popen, follower: subprocess.Popen) -> None:
        follower.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        leader.send_signal(signal.SIGINT)
        leader.wait(60)
        follower.send_signal(signal.SIGCONT)

    words = [*OPTIONS.split(), "--max-epochs", "1000"]
    statuses, said = interrupted(tmp_path / "run", "step_0", words, ctrl_c)
    assert statuses == [130, 2]
    assert said[0] == STOPPED
    assert re.fullmatch(LOST, said[1])


@pytest.fixture
def rank_0_of_3(monkeypatch):
    for name, value in environment_of(0, 3, 1).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--batch-size 16", "--batch-size 16 cannot be divided by the 3 ranks"),
        ("--batch-size 3", "leaves one image to each of 3 ranks"),
        ("--batch-size 12 --jobs 2", "--jobs 2: all ranks of torchrun train one model at a time"),
        ("--batch-size 12 --jobs auto", "--jobs auto: all ranks of torchrun"),
        ("--batch-size 12 --devices 0,1", "--devices 0,1: all ranks of torchrun"),
        ("--batch-size 12 --executor slurm", "--executor slurm: all ranks of torchrun"),
        ("--batch-size 12 --device cuda:1", "--device cuda:1: torchrun gives each rank its device"),
        ("--batch-size 12 --estimate", "--estimate measures one process: leave torchrun out"),
        ("--batch-size 12 --sync-batchnorm --compile", "which --compile cannot"),
        ("--batch-size 12 --preview", "--preview needs held-out images"),
    ],
)
def test_what_ranks_cannot_do_is_refused(rank_0_of_3, capsys, tmp_path, words, reason):
    assert reason in refusal(capsys, tmp_path / "run", "--dataset", "digits", *words.split())


def test_a_follower_says_nothing_of_what_rank_0_refuses(rank_0_of_3, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    kept = [signal.getsignal(number) for number in STOPPING]
    assert main(["--batch-size", "16"]) == 2
    assert main(["--report", "nowhere"]) == 0
    assert capsys.readouterr() == ("", "")
    assert kept == [signal.getsignal(number) for number in STOPPING]
