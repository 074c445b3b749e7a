import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from tiny import ROOT

from distill.store import claims, slurm

HOLD = """import sys, time
from pathlib import Path
from distill.store import claims
with claims.claim(Path(sys.argv[1]), "unit") as owner:
    print(owner is not None, flush=True)
    time.sleep(60)"""


@pytest.fixture(autouse=True)
def run(tmp_path):
    """A folder that looks like a run's."""
    (tmp_path / "config.toml").touch()
    (tmp_path / claims.WORK).mkdir()
    return tmp_path


def leave(run, owner: claims.Owner | None, age: float = 0) -> None:
    """A claim that an owner left, last touched some seconds ago."""
    file = run / claims.WORK / "unit.claim"
    file.write_text("" if owner is None else json.dumps(vars(owner)))
    os.utime(file, (time.time() - age,) * 2)


def elsewhere(**values) -> claims.Owner:
    """An owner on another machine."""
    return replace(claims.Owner(), host="n2", machine="another", **values)


def taken(run) -> bool:
    """Whether this process can take the claim."""
    with claims.claim(run, "unit") as owner:
        return owner is not None


def leftovers(run) -> list[str]:
    return [path.name for path in (run / claims.WORK).iterdir()]


def test_a_claim_is_held_by_one_and_gone_afterwards(run):
    with claims.claim(run, "unit") as owner:
        assert owner is not None
        assert claims.holder(run, "unit") == owner
        assert claims.holders(run) == {"unit": owner}
        assert not taken(run)
        with claims.claim(run, "other") as other:
            assert other is not None
    assert claims.holder(run, "unit") is None
    assert leftovers(run) == []


def test_the_claim_of_a_killed_process_is_taken_over_at_once(run):
    process = subprocess.Popen([sys.executable, "-c", HOLD, run], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "True\n"
        assert not taken(run)
        assert f"process {process.pid} on " in str(claims.holder(run, "unit"))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert claims.holder(run, "unit") is None
    assert taken(run)
    assert leftovers(run) == []


def test_a_process_number_that_is_used_again_is_another_process(run):
    leave(run, replace(claims.Owner(), born="1"))
    assert taken(run)


def test_a_claim_that_an_interrupt_left_in_this_process_is_not_held(run):
    leave(run, claims.Owner())
    assert taken(run)


@pytest.mark.parametrize(
    ("owner", "age", "is_taken"),
    [
        (elsewhere(), 5, False),
        (elsewhere(), 90, True),
        (elsewhere(job="7"), 5, False),
        (elsewhere(job="7"), 30, True),  # it has left the queue
        (elsewhere(job="8"), 30, False),  # it is in the queue
        (elsewhere(job="9"), 30, True),  # it waits to be started again
        (None, 0, False),  # being written
        (None, 5, True),
    ],
)
def test_who_is_dead_elsewhere(run, monkeypatch, owner, age, is_taken):
    jobs = [slurm.Job("8", "8", "RUNNING", "n2", "x"), slurm.Job("9", "9", "PENDING", "(None)", "x")]
    monkeypatch.setattr(slurm, "queue", lambda: jobs)
    leave(run, owner, age)
    assert taken(run) is is_taken
    assert (claims.holder(run, "unit") is None) is is_taken
    claims.remove_dead(run)
    assert leftovers(run) == ([] if is_taken else ["unit.claim"])


def test_a_heartbeat_keeps_a_claim(run, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    file = run / claims.WORK / "unit.claim"
    with claims.claim(run, "unit"):
        os.utime(file, (0, 0))
        time.sleep(0.2)
        assert file.stat().st_mtime > time.time() - 60
    assert threading.active_count() == 1 or not any("_touch" in t.name for t in threading.enumerate())


def test_of_many_that_take_over_one_succeeds(run):
    for _ in range(20):
        leave(run, elsewhere(), age=90)
        start = threading.Barrier(8)
        ended = threading.Barrier(8)
        won = []

        def take(start=start, ended=ended, won=won):
            start.wait()
            with claims.claim(run, "unit") as owner:
                won.append(owner is not None)
                ended.wait()

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won.count(True) == 1
        assert leftovers(run) == []


def test_a_process_that_lost_its_claim_stops_and_leaves_the_other_one(run):
    with claims.claim(run, "unit"):
        claims.check()
        leave(run, elsewhere())
        with pytest.raises(claims.ClaimLostError):
            claims.check()
    assert claims.holder(run, "unit").host == "n2"
    claims.check()  # outside there is nothing to lose


def test_a_deleted_run_is_not_a_lost_claim(run):
    with claims.claim(run, "unit"):
        (run / claims.WORK / "unit.claim").unlink()
        with pytest.raises(claims.ClaimLostError):
            claims.check()
        (run / "config.toml").unlink()
        claims.check()


def test_deaths_in_a_row_are_counted_in_the_jobs_of_one_array(run, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    for array, deaths in (("5", 3), ("4", 0)):
        leave(run, elsewhere(array=array, deaths=2), age=90)
        with claims.claim(run, "unit") as owner:
            assert owner.deaths == deaths


def test_failures_are_new_since_a_time_and_within_an_array(run, monkeypatch):
    assert claims.read_failure(run, "unit") is None
    before = claims.clock(run)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    claims.write_failure(run, "unit", "no memory")
    failure = claims.read_failure(run, "unit")
    assert failure.message == "no memory"
    assert failure.is_new(before)
    assert failure.is_new(before + 10)  # another job of the array need not try it again
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    assert not failure.is_new(before + 10)
    claims.remove_failure(run, "unit")
    claims.remove_failure(run, "unit")
    assert leftovers(run) == []


def test_a_claim_dated_in_the_future_is_silent_from_now_on(run, monkeypatch):
    monkeypatch.setattr(claims, "SILENCE", 0.2)
    leave(run, elsewhere(), age=-(10**8))
    assert not taken(run)
    time.sleep(0.3)
    assert taken(run)


def test_a_failure_dated_in_the_future_is_old(run):
    claims.write_failure(run, "unit", "no memory")
    os.utime(run / claims.WORK / "unit.failed", (2e9, 2e9))
    began = claims.begin(run)
    assert not claims.read_failure(run, "unit").is_new(began)


@pytest.mark.parametrize("name", ["unit.claim", "unit.failed"])
def test_a_file_that_is_nested_too_deeply_is_that_of_a_dead_process(run, name):
    (run / claims.WORK / name).write_text("[" * 9000)
    os.utime(run / claims.WORK / name, (time.time() - 10,) * 2)
    assert claims.holders(run) == {}
    assert claims.read_failure(run, "unit") is None
    assert taken(run)


def test_folders_among_the_claims_are_ignored(run):
    (run / claims.WORK / "other.claim").mkdir()
    claims.remove_dead(run)
    assert claims.holders(run) == {}


def test_turns_do_not_overlap(run):
    inside = []

    def work():
        with claims.turn(run, "environment"):
            inside.append(1)
            assert len(inside) == 1
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert leftovers(run) == []


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="makes a namespace for a second host")
def test_the_claim_of_another_host_is_taken_over_when_nobody_touches_it_any_more(run, monkeypatch):
    """A process in namespaces of its own has another host name, and its number means nothing here."""
    monkeypatch.setattr(claims, "SILENCE", 1.0)
    program = HOLD.replace("with claims", "import socket; socket.sethostname('n2'); claims.BEAT = 0.05\nwith claims")
    command = ["unshare", "--uts", "--net", sys.executable, "-c", program, run]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "True\n"
        assert claims.holder(run, "unit").host == "n2"
        time.sleep(1.5)
        assert not taken(run)
        process.kill()
        process.wait()
        assert not taken(run)  # nobody can know
    time.sleep(1.1)
    assert taken(run)
