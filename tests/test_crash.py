"""The crash harness: a few of its trials, and that it notices what must not happen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import checks
from tests.crash.processes import Outcome
from tests.crash.scenarios import SCENARIOS, plans

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and forks")

CALLS = ["main write run/results.csv"] * 3


@pytest.mark.slow
def test_runs_that_are_disturbed_end_with_the_same_results(tmp_path):
    faults = ("--scenario", "grid", "--trials", "2")
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", *faults],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("grid    2 trials")
    assert ", 0 failed," in done.stdout


def test_every_change_is_killed_and_every_call_meets_every_error():
    calls = [*CALLS, "main read run/config.toml"]
    tried = {
        plan[0] for plan in plans(SCENARIOS["jobs"], calls, seconds=1.0, seed=0) if not plan[0].startswith("after")
    }
    kills = {f"{action}:{count}" for action in ("kill", "worker", "parent", "group", "power") for count in (1, 2, 3)}
    errors = {f"{e}:{count}" for e in ("ENOSPC", "EIO", "EDQUOT", "EROFS", "ESTALE") for count in (1, 2, 3, 4)}
    assert tried == kills | errors


LINE = "self_distiller.py: error: [Errno 28] No space left on device; finished work is kept\n"


@pytest.mark.parametrize(
    ("fault", "outcome", "complaint"),
    [
        ("ENOSPC:2", Outcome(2, "", LINE, CALLS, []), None),
        ("ENOSPC:2", Outcome(2, "", LINE * 2, CALLS, []), "2 lines of error"),
        ("ENOSPC:2", Outcome(2, "", "", CALLS, []), "0 lines of error"),
        ("ENOSPC:2", Outcome(1, "", f"Traceback (most recent call last):\n{LINE}", CALLS, []), "traceback"),
        ("ENOSPC:2", Outcome(0, "everything is in run", "", CALLS, []), "does not mention the error"),
        ("kill:2", Outcome(-9, "", "", CALLS, []), None),
        ("kill:2", Outcome(-9, "", "", CALLS, [12345]), "process 12345 outlives it"),
        ("kill:2", Outcome(1, "", "", CALLS, []), "status 1"),
        ("", Outcome(None, "", "", CALLS, []), "it hangs"),
    ],
)
def test_a_bad_end_is_noticed(fault, outcome, complaint):
    found = checks.how_it_ended(fault, outcome, workers=False)
    assert found == [] if complaint is None else any(complaint in line for line in found)


@pytest.mark.parametrize(("before", "complaints"), [({"run/.a.csv.0.tmp"}, 0), (set(), 1)])
def test_an_error_is_harmless_only_at_a_file_that_a_killed_process_left(before, complaints):
    outcome = Outcome(0, "everything is in run", "", ["main open run/.a.csv.0.tmp"], [])
    assert len(checks.how_it_ended("EIO:1", outcome, False, frozenset(before))) == complaints


def test_damage_on_disk_is_noticed(tmp_path):
    folder = tmp_path / "seed_1/step_0"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"parameters")
    (folder / "result.json").write_text(json.dumps({"model_sha256": "of another"}))
    (tmp_path / "results.csv").write_text("seed,step\n1,0\n1")
    assert [line.split(" ", 1)[1] for line in checks.half_written(tmp_path)] == ["names another model.pt", "is torn"]

    before = checks.finished_models(tmp_path)
    (folder / "result.json").write_text("{}")
    assert checks.trained_again(before, checks.finished_models(tmp_path)) == [
        "seed_1/step_0/result.json was written again"
    ]
    there = checks.files(tmp_path) - {"results.csv"} | {"config.toml"}
    assert checks.differences({"seed_1/step_0/model.pt": b""}, {}, there, checks.files(tmp_path)) == [
        "results.csv is a stray file",
        "config.toml is missing",
        "seed_1/step_0/model.pt differs",
    ]
