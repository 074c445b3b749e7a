import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
from tiny import ROOT, config, contents, rows, source, wait_for

import distill
from distill.errors import ConfigError, UserError
from distill.running import executors
from distill.running.experiment import Experiment
from distill.training.listener import Listener


def test_two_processes_give_the_same_bits_as_a_serial_run(tmp_path, folder):
    options = folder | {"alpha": [0, 0.5], "seed": [1, 2], "distillation_steps": 1, "max_epochs": 1}
    one = distill.run(config(tmp_path / "one", **options))
    two = distill.run(config(tmp_path / "two", jobs=2, **options))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert [(r.seed, r.alpha, r.step) for r in two] == [(r.seed, r.alpha, r.step) for r in one]


def test_a_user_error_in_a_worker_keeps_its_message(tmp_path, folder):
    with pytest.raises(UserError, match="loss is not finite at update"):
        distill.run(config(tmp_path, **folder, jobs=2, lr=1e38, optimizer="sgd"))


def workers(run: Path) -> list[int]:
    """The processes that have this run's directory on their command line or that of their parent, by /proc."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes()
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            found[int(process.name)] = (command, parent)
    mine = {pid for pid, (command, _) in found.items() if str(run).encode() in command}
    return sorted(mine | {pid for pid, (_, parent) in found.items() if parent in mine})


def alive(pids: list[int]) -> list[int]:
    left = []
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        if stat.rpartition(")")[2].split()[0] != "Z":
            left.append(pid)
    return left


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("ending", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_workers_end_with_their_parent_and_the_run_resumes_to_the_same_bits(tmp_path, folder, ending):
    options = folder | {"alpha": [0, 0.5], "max_epochs": 16}
    run = tmp_path / "parts"
    words = [f"--{name}={value}" for name, value in options.items() if name != "alpha"]
    words += ["--resnet=8", "--width=2", "--batch-size=8", "--lr=0.01", "--distillation-steps=2", "--threads=1"]
    words += ["--device=cpu", "--jobs=2", f"--output={run}", "--alpha", "0", "0.5"]
    parent = subprocess.Popen(
        [sys.executable, "self_distiller.py", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with parent:
        wait_for(lambda: list(run.rglob("alpha_*/step_1/training_state.pt")) or parent.poll() is not None)
        assert parent.poll() is None
        pids = workers(run)
        assert len(pids) >= 3
        if ending == signal.SIGINT:
            os.killpg(parent.pid, ending)  # as Ctrl-C does: everyone in the terminal's group
        else:
            parent.kill()
        said = parent.communicate(timeout=300)[1]
    wait_for(lambda: not alive(pids), seconds=30)
    assert "Traceback" not in said, said
    assert parent.returncode == (-signal.SIGKILL if ending == signal.SIGKILL else 130)
    assert len(rows(run / "results.csv")) < 5
    distill.run(config(run, **options))
    distill.run(config(tmp_path / "whole", **options))
    assert contents(run) == contents(tmp_path / "whole")


def test_a_killed_worker_is_reported_in_one_line(tmp_path, folder):
    def kill_one():
        wait_for(lambda: list(tmp_path.rglob("training_state.pt")))
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(UserError, match="a worker process ended unexpectedly: killed"):
        distill.run(config(tmp_path, **folder, jobs=2, max_epochs=1000))
    killer.join()


@pytest.mark.parametrize("case", ["stdin", "daemon"])
def test_a_program_that_cannot_have_workers_is_refused_first(tmp_path, folder, monkeypatch, case):
    if case == "stdin":
        monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
    else:
        monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    monkeypatch.setattr(executors, "_make_pool", None)
    message = {"stdin": "cannot import the main program, <stdin>: save it as a file", "daemon": "is daemonic"}[case]
    with pytest.raises(ConfigError, match=f"{message}.* jobs = 1"):
        distill.run(config(tmp_path, **folder, jobs=2))


def test_a_serial_run_holds_the_images_of_one_seed(tmp_path, monkeypatch):
    """Without waiting for Python's cycle collector."""
    distill.run(config(tmp_path / "first"), source=source())  # torch keeps frames of the first optimiser of a process
    alive, make = [], Experiment.chain

    def chains(self, *arguments):
        assert [session() for session in alive] == [None] * len(alive)
        chain = make(self, *arguments)
        alive.append(weakref.ref(chain.session))
        return chain

    monkeypatch.setattr(Experiment, "chain", chains)
    gc.disable()
    try:
        options = {"alpha": [0.5, "auto"], "val_size": 6, "distillation_steps": 1, "max_epochs": 1}
        distill.run(config(tmp_path / "run", seed=[1, 2, 3], **options), source=source())
    finally:
        gc.enable()
    assert [session() for session in alive] == [None] * 3


def test_a_serial_run_finishes_a_seed_before_the_next(tmp_path):
    class Order(Listener):
        def __init__(self):
            self.seeds = []

        def end_model(self, result):
            self.seeds.append(result.seed)

    order = Order()
    distill.run(config(tmp_path, seed=[2, 1], max_epochs=1), source=source(), listener=order)
    assert order.seeds == [2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("jobs", ["processes", "threads"])
def test_signals_during_a_concurrent_run_are_raised_once_after_its_clean_up(tmp_path, folder, monkeypatch, jobs):
    if jobs == "threads":
        monkeypatch.setattr(executors, "uses_threads", lambda device: True)

    class Interrupting(Listener):
        sent = False

        def end_epoch(self, name, row):
            if not self.sent:
                self.sent = True
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        distill.run(config(tmp_path, **folder, jobs=2, max_epochs=1000), listener=Interrupting())
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.rglob("*.tmp"))
