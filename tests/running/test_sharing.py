"""Several processes that work in one run directory."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tiny import DIGITS, ROOT, contents, rows

from distill.cli import main

# The program, in a process that adds a line to a file for every epoch that it trains.
COUNTED = """import os, sys
from distill.chains.model_training import Training
from distill.cli import main
record = Training.record
def counted(self, row):
    record(self, row)
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{self.folder.relative_to(self.folder.parents[2])} {row['epoch']}\\n".encode())
Training.record = counted
sys.exit(main(sys.argv[2:]))"""
GRID = [*DIGITS, "--alpha", "0", "0.5", "1", "--seed", "1", "2"]


def start(log: Path, run: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-c", COUNTED, log, *words, "--output", run]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of the grid by one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main([*GRID, "--output", str(run)]) == 0
    return run


@pytest.mark.parametrize("jobs", [("1", "1"), pytest.param(("2", "1"), marks=pytest.mark.slow)])
def test_commands_share_a_directory_and_train_no_model_twice(tmp_path, alone, jobs):
    log = tmp_path / "log"
    processes = [start(log, tmp_path / "run", *GRID, "--jobs", number) for number in jobs]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    if jobs == ("1", "1"):  # workers do not write the log
        trained = Counter(log.read_text().splitlines())
        assert len(trained) == 2 * 4 * 2
        assert set(trained.values()) == {1}
    assert rows(tmp_path / "run" / "results.csv") == rows(alone / "results.csv")
    assert contents(tmp_path / "run") == contents(alone)
    for out, _ in said:
        assert "everything is in" in out
        assert out.count("test accuracy") + out.count("model") > 0
