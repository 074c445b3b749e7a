"""A grid of digits on a real SLURM of two nodes, whose jobs are disturbed in every way: results equal a local run's."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm.cluster import Cluster, is_installed
from tiny import ROOT, contents, refusal, rows, wait_for

from distill.cli import main

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not is_installed(), reason="needs root, slurm-wlm and munge")]

GRID = shlex.split("""
--dataset digits --train-size 400 --test-size 40 --resnet 8 --width 4 --max-epochs 20 --batch-size 8 --lr 0.01
--distillation-steps 1 --device cpu --threads 1 --alpha 0 0.5 1 --seed 1 2
""")
ON_SLURM = ["--executor", "slurm", "--slurm-partition", "low", "--slurm-array-parallelism", "2"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def client(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])


def start(cluster: Cluster, run: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "self_distiller.py", *GRID, *ON_SLURM, *words, "--output", run]
    return subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, text=True)


def workers(run: Path) -> list[int]:
    """The processes that work in a run for a job, by /proc."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--work" in words and str(run).encode() in words:
                found.append(int(process.name))
    return found


def epochs(run: Path) -> int:
    """The epochs on disk."""
    return sum(max(0, len(file.read_text().splitlines()) - 1) for file in run.rglob("metrics.csv"))


def running(cluster: Cluster) -> list[str]:
    return [number for number, (state, _) in cluster.jobs().items() if state == "RUNNING"]


def later(cluster: Cluster, run: Path, number: int = 8) -> None:
    """Wait until a job trains, and some more epochs are on disk."""
    goal = epochs(run) + number

    def is_reached() -> bool:
        cluster.start_now()
        time.sleep(0.5)
        return epochs(run) >= goal

    wait_for(is_reached)


@pytest.mark.page
def test_a_disturbed_study_equals_a_local_run(cluster, tmp_path):
    run = tmp_path / "run"
    first = start(cluster, run)
    wait_for(lambda: len(workers(run)) == 2 and epochs(run) > 5)
    first.kill()  # the submitting command
    first.communicate()
    assert len(running(cluster)) == 2
    second = start(cluster, run)  # sees the jobs, submits no others

    cluster.ask("sbatch", "--partition=high", "--nodes=1", "--wrap=sleep 3", "--output=/dev/null")  # preempts a job
    later(cluster, run)
    cluster.ask("scontrol", "requeue", running(cluster)[0])
    later(cluster, run)
    os.kill(workers(run)[0], signal.SIGKILL)
    later(cluster, run)
    cluster.ask("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    cluster.ask("scontrol", "requeue", running(cluster)[0])
    later(cluster, run)
    cluster.ask("scontrol", "update", "nodename=n1", "state=resume")
    wait_for(lambda: (cluster.start_now(), time.sleep(0.5), second.poll() is not None)[-1], seconds=600)
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert "is in the queue already" in said
    assert len(list((run / "slurm").glob("*.log"))) == 2  # one array: nothing was submitted twice

    assert main([*GRID, "--output", str(tmp_path / "local")]) == 0
    assert rows(run / "results.csv") == rows(tmp_path / "local" / "results.csv")
    there = {name: content for name, content in contents(run).items() if not name.startswith("slurm")}
    assert there == contents(tmp_path / "local")


def test_submission_status_and_a_job_that_reaches_its_time_limit(cluster, tmp_path, capsys):
    run = tmp_path / "run"
    words = [*GRID, *ON_SLURM, "--max-epochs", "3", "--output", str(run)]
    assert main([*words, "--detach"]) == 0
    submitted = time.monotonic()
    out = capsys.readouterr().out
    number = out.partition("note    job ")[2].partition(":")[0]
    assert f"stop them with scancel {number}" in out
    wait_for(lambda: epochs(run) > 0)
    with capsys.disabled():
        print(f"\n{time.monotonic() - submitted:.1f} s from submission to the first epoch")
    main(["--status", str(run)])
    tree = capsys.readouterr().out
    assert "running" in tree
    assert f"job {number}" in tree
    cluster.ask("scancel", "--signal=USR1", "--batch", number)  # as before the time limit
    wait_for(lambda: "PENDING" in str(cluster.jobs()) or (run / "results.csv").exists())
    assert not list((run / ".work").glob("*.tmp"))
    wait_for(lambda: (cluster.start_now(), time.sleep(0.5), not cluster.jobs())[-1])
    main(["--status", str(run)])
    assert "8 of 8 models finished" in capsys.readouterr().out


def test_what_slurm_rejects_is_one_line(cluster, tmp_path, capsys):
    said = refusal(capsys, tmp_path / "run", *GRID, "--executor", "slurm", "--slurm-partition", "nowhere")
    assert "SLURM rejects the jobs" in said
    assert "nowhere" in said
