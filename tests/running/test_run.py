import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import ROOT, Killed, config, contents, rows, source

import distill
from distill.chains import chain as chain_module
from distill.errors import UserError
from distill.running import executors as workers_module
from distill.running import experiment as lab_module
from distill.store.rundir import RunDir
from distill.training import cuda_graph as graph
from distill.training.fit import Trainer
from distill.training.listener import Listener, Notes


@pytest.fixture
def folder(tiny_imagefolder) -> dict:
    """Options for images that worker processes can read for themselves."""
    return {"dataset": "imagefolder", "data_dir": str(tiny_imagefolder), "label_noise": 0.25}


# ------------------------------------------------------------------------------------------------------- crash safety


def crash(monkeypatch, at: int, before: bool) -> list:
    """Let the ``at``-th write end the process: before its rename, with a torn temporary file left, or right after."""
    torn, count, replace = [], iter(range(1, 10_000)), os.replace

    def dying(temporary, path):
        this = next(count)
        if this == at and before:
            torn.append((Path(temporary), Path(temporary).read_bytes()[:-3]))
            raise Killed
        replace(temporary, path)
        if this == at:
            raise Killed

    monkeypatch.setattr("distill.files.os.replace", dying)
    return torn


@pytest.mark.parametrize("before", [True, False], ids=["before_the_rename", "after_the_rename"])
def test_a_run_that_ended_at_any_write_goes_on_to_the_same_bits(tmp_path, monkeypatch, before):
    monkeypatch.setattr("distill.files.os.fsync", lambda file: None)
    monkeypatch.setattr("distill.store.rundir._commit", lambda: None)
    options = {"distillation_steps": 1, "label_noise": 0.25}
    distill.run(config(tmp_path / "whole", **options), source=source())
    whole = contents(tmp_path / "whole")
    for at in range(1, 100):
        run = tmp_path / str(at)
        try:
            with monkeypatch.context() as patch:
                torn = crash(patch, at, before)
                distill.run(config(run, **options), source=source())
        except Killed:
            for temporary, content in torn:
                temporary.write_bytes(content)
        else:
            break
        distill.run(config(run, **options), source=source())
        assert contents(run) == whole, f"after an end at write {at}"
    # configuration, data, environment, labels; two models of two epochs; environment and results at the end
    assert at - 1 == 4 + 2 * (2 * 2 + 3) + 2


def test_crash_after_crash_ends_with_the_same_bits(tmp_path, monkeypatch):
    distill.run(config(tmp_path / "whole", alpha=[0, 0.5]), source=source())
    ends = 0
    while True:
        try:
            with monkeypatch.context() as patch:
                crash(patch, 7, before=ends % 2 == 0)
                distill.run(config(tmp_path / "parts", alpha=[0, 0.5]), source=source())
            break
        except Killed:
            ends += 1
    assert ends > 5
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = distill.run(config(tmp_path), source=source())
    monkeypatch.setattr(Trainer, "epoch", None)
    assert distill.run(config(tmp_path), source=source()) == first


def test_an_interrupted_epoch_is_all_that_is_lost(tmp_path, monkeypatch):
    epochs, epoch = [], Trainer.epoch

    def counted(self, *args):
        epochs.append(self.epochs)
        if len(epochs) == 4:  # the second epoch of the first student
            raise KeyboardInterrupt
        return epoch(self, *args)

    monkeypatch.setattr(Trainer, "epoch", counted)
    with pytest.raises(KeyboardInterrupt):
        distill.run(config(tmp_path), source=source())
    distill.run(config(tmp_path), source=source())
    assert epochs == [0, 1, 0, 1, 1, 0, 1]


def test_a_full_disk_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    distill.run(config(tmp_path / "whole"), source=source())

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    epoch = Listener.end_epoch
    with monkeypatch.context() as patch:
        fill = partial(patch.setattr, "distill.files.os.fsync", full)
        patch.setattr(Listener, "end_epoch", lambda *args: (fill(), epoch(*args)))
        with pytest.raises(OSError, match="No space left"):
            distill.run(config(tmp_path / "run"), source=source())
    assert not list((tmp_path / "run").rglob("*.tmp"))
    distill.run(config(tmp_path / "run"), source=source())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------------- grids


def test_a_grid_trains_each_seeds_teacher_once(tmp_path):
    c = config(tmp_path, alpha=[0.2, 0.7], seed=[3, 1], distillation_steps=1, max_epochs=1)
    results = distill.run(c, source=source())
    expected = [(s, a, k) for s in (1, 3) for a, k in ((None, 0), (0.2, 1), (0.7, 1))]
    assert [(r.seed, r.alpha, r.step) for r in results] == expected
    assert lab_module.count_models(c) == len(expected)
    assert [row["alpha"] for row in rows(tmp_path / "results.csv")] == ["", "0.2", "0.7"] * 2


def test_a_given_teacher_is_not_counted_as_a_model_to_train(tmp_path):
    c = config(tmp_path, alpha=[0, 1], seed=[1, 2, 3], teacher_ckpt="teacher.pt", distillation_steps=4)
    assert lab_module.count_models(c) == 3 * 2 * 4


def test_seeds_differ(tmp_path):
    distill.run(config(tmp_path, seed=[1, 2], distillation_steps=0), source=source())
    a, b = (torch.load(tmp_path / f"seed_{seed}/step_0/model.pt", weights_only=True) for seed in (1, 2))
    assert not torch.equal(a["network.conv1.weight"], b["network.conv1.weight"])


def test_every_seeds_data_are_checked_before_anything_is_written(tmp_path, monkeypatch):
    dataset = lab_module.Experiment.dataset

    def bad_for_seed_2(self, seed):
        if seed == 2:
            raise UserError("too few")
        return dataset(self, seed)

    monkeypatch.setattr(lab_module.Experiment, "dataset", bad_for_seed_2)
    with pytest.raises(UserError, match="too few"):
        distill.run(config(tmp_path / "run", seed=[1, 2]), source=source())
    assert not (tmp_path / "run").exists()


def test_what_is_about_to_run_is_described(tmp_path):
    lab = lab_module.prepare(config(tmp_path, alpha=[0, 0.5], label_noise=0.25), source())
    lines = dict(line.split(None, 1) for line in lab_module.describe(lab).splitlines())
    assert lines["device"].startswith("cpu")
    assert lines["data"] == "custom: 41 train, 20 test images of 1x8x8, 3 classes, 10 training labels corrupted"
    assert lines["model"].startswith("ResNet-8, ")
    assert "alpha 0 0.5: teacher + 2 students each, 5 models of 2 epochs of 5 updates" in lines["chains"]
    assert lines["output"] == str(tmp_path)


# ------------------------------------------------------------------------------------------------------- side by side


def test_two_jobs_give_the_bits_of_one(tmp_path, folder):
    options = folder | {"alpha": [0, 0.5], "seed": [1, 2], "distillation_steps": 1, "max_epochs": 1}
    one = distill.run(config(tmp_path / "one", **options))
    two = distill.run(config(tmp_path / "two", jobs=2, **options))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert [(r.seed, r.alpha, r.step) for r in two] == [(r.seed, r.alpha, r.step) for r in one]


def test_a_users_error_in_a_worker_is_the_same_one_line(tmp_path, folder):
    with pytest.raises(UserError, match="loss is not finite at update"):
        distill.run(config(tmp_path, **folder, jobs=2, lr=1e38, optimizer="sgd"))


def test_jobs_need_what_a_configuration_can_name(tmp_path):
    with pytest.raises(UserError, match="jobs"):
        distill.run(config(tmp_path / "run", jobs=2), source=source())
    assert not (tmp_path / "run").exists()


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


def wait_for(condition, seconds: float = 300.0):
    until = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
    return answer


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
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent_and_the_run_goes_on_exactly(tmp_path, folder, ending):
    options = folder | {"alpha": [0, 0.5], "max_epochs": 15}
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
    assert "Traceback" not in said
    assert parent.returncode == (-signal.SIGKILL if ending == signal.SIGKILL else 130)
    assert len(rows(run / "results.csv")) < 5
    distill.run(config(run, **options))
    distill.run(config(tmp_path / "whole", **options))
    assert contents(run) == contents(tmp_path / "whole")


def test_a_worker_that_was_killed_is_one_line(tmp_path, folder):
    def kill_one():
        wait_for(lambda: list(tmp_path.rglob("training_state.pt")))
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(UserError, match="a worker process ended at once: killed"):
        distill.run(config(tmp_path, **folder, jobs=2, max_epochs=1000))
    killer.join()


def test_two_runs_may_not_share_a_directory(tmp_path):
    with RunDir(tmp_path).lock(), pytest.raises(UserError, match="another process"):
        distill.run(config(tmp_path), source=source())


# --------------------------------------------------------------------------------------------- side by side, in threads


@pytest.fixture
def threads(monkeypatch):
    """What a CUDA device chooses, on a CPU."""
    monkeypatch.setattr(workers_module, "uses_threads", lambda device: True)


@pytest.fixture
def graphs(monkeypatch):
    """The stand-in for graphs: capture runs nothing, replay does what was captured."""

    class Recording:
        def __init__(self, device):
            pass

        def warm_up(self, work):
            work()

        def capture(self, work):
            self.replay = work

    monkeypatch.setattr(graph, "Recording", Recording)
    monkeypatch.setattr(graph, "possible", lambda device: True)


@pytest.mark.parametrize("jobs", [2, 5])
def test_threads_give_the_bits_of_one(tmp_path, folder, threads, graphs, jobs):
    options = folder | {"alpha": [0, 0.5, 1], "seed": [1, 2], "distillation_steps": 2, "val_size": 6}
    one = distill.run(config(tmp_path / "one", **options))
    many = distill.run(config(tmp_path / "many", jobs=jobs, **options))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert [(r.seed, r.alpha, r.step) for r in many] == [(r.seed, r.alpha, r.step) for r in one]


def test_threads_read_each_seeds_images_once(tmp_path, folder, threads, monkeypatch):
    made, make = [], lab_module.Experiment.chains
    monkeypatch.setattr(
        lab_module.Experiment, "chains", lambda self, *args: (made.append(args[0]), make(self, *args))[1]
    )
    options = {"alpha": [0, 0.5, 1], "seed": [1, 2], "distillation_steps": 1, "max_epochs": 1}
    distill.run(config(tmp_path, jobs=3, **folder, **options))
    assert sorted(made) == [1, 2]


def test_a_student_that_was_deleted_is_trained_again_by_threads(tmp_path, folder, threads, monkeypatch):
    """The teacher is read before the arms are begun, not by whichever thread asks for it first."""
    options = folder | {"alpha": [0, 0.5], "distillation_steps": 2}
    distill.run(config(tmp_path, **options))
    before = contents(tmp_path)
    shutil.rmtree(tmp_path / "seed_1" / "alpha_0.5" / "step_1")
    order, load, share = [], chain_module.load_parameters, workers_module._share_teacher
    monkeypatch.setattr(
        chain_module, "load_parameters", lambda model, file: (order.append(file.parent.name), load(model, file))
    )
    monkeypatch.setattr(workers_module, "_share_teacher", lambda chains: (share(chains), order.append("shared")))
    distill.run(config(tmp_path, jobs=2, **options))
    assert contents(tmp_path) == before
    assert order[:2] == ["step_0", "shared"]


def test_threads_do_not_draw_from_each_other(tmp_path, folder, threads, monkeypatch):
    """Initial weights are drawn from the process's one generator, here with every chance for others to interfere."""
    seed, build = torch.manual_seed, lab_module.Experiment.make_network

    def slow_network(self, data):
        network = build(self, data)
        return lambda: (time.sleep(0.02), network())[1]

    options = folder | {"alpha": [0, 0.3, 0.6, 1], "max_epochs": 1, "distillation_steps": 2}
    distill.run(config(tmp_path / "one", **options))
    monkeypatch.setattr(lab_module.Experiment, "make_network", slow_network)
    monkeypatch.setattr(torch, "manual_seed", lambda value: (seed(value), time.sleep(0.01))[0])
    distill.run(config(tmp_path / "many", jobs=4, **options))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_progress_is_told_by_one_thread_at_a_time(tmp_path, folder, threads):
    class Show(Listener):
        def __init__(self):
            self.inside, self.together, self.told = 0, 0, []

        def end_epoch(self, *args):
            self.inside += 1
            time.sleep(0.01)
            self.together += self.inside > 1
            self.inside -= 1
            self.told.append(args[0])

        end_model = end_epoch

    listener = Show()
    options = {"alpha": [0, 0.3, 0.6, 1], "max_epochs": 2, "distillation_steps": 1}
    distill.run(config(tmp_path, jobs=4, **folder, **options), listener=listener)
    assert listener.together == 0
    assert len(listener.told) == 5 * 3


def test_a_users_error_in_a_thread_ends_the_others(tmp_path, folder, threads):
    started = threading.active_count()
    with pytest.raises(UserError, match="loss is not finite at update"):
        distill.run(config(tmp_path, **folder, jobs=2, seed=[1, 2], lr=1e38, optimizer="sgd"))
    assert threading.active_count() == started


def test_threads_that_are_stopped_end_at_a_chunk_and_go_on_exactly(tmp_path, folder, threads):
    options = folder | {"alpha": [0, 0.5], "max_epochs": 20, "distillation_steps": 2}
    main = threading.main_thread().ident

    def stop():
        wait_for(lambda: list(tmp_path.rglob("alpha_*/step_1/training_state.pt")))
        signal.pthread_kill(main, signal.SIGINT)

    started = threading.active_count()
    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        distill.run(config(tmp_path / "run", jobs=2, **options))
    stopper.join()
    assert threading.active_count() == started
    assert len(rows(tmp_path / "run" / "results.csv")) < 5
    distill.run(config(tmp_path / "run", jobs=2, **options))
    distill.run(config(tmp_path / "whole", **options))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.gpu
def test_a_gpu_captures_in_one_thread_while_others_search_for_algorithms(tmp_path, folder):
    """Without --deterministic cuDNN times its algorithms for every new shape, and waits for the whole device."""
    listener = Notes()
    options = folder | {"alpha": [0, 0.3, 0.6, 1], "seed": [1, 2], "device": "cuda", "jobs": 4}
    results = distill.run(config(tmp_path / "run", **options), listener=listener)
    assert len(results) == 2 * (1 + 4 * 2)
    assert not listener.notes


@pytest.mark.gpu
@pytest.mark.parametrize("jobs", [2, 5])
def test_a_gpus_results_do_not_depend_on_the_jobs(tmp_path, folder, jobs):
    listener = Notes()
    options = folder | {"alpha": [0, 0.5, 1], "seed": [1, 2], "device": "cuda", "deterministic": True}
    try:
        distill.run(config(tmp_path / "one", **options))
        distill.run(config(tmp_path / "many", jobs=jobs, **options), listener=listener)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not listener.notes
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
