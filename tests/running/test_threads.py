"""executors.Threads: what a CUDA device uses, here on a CPU."""

import gc
import shutil
import signal
import threading
import time
import weakref

import pytest
import torch
from tiny import config, contents, rows, wait_for

import distill
from distill.chains import session as session_module
from distill.errors import UserError
from distill.running import executors
from distill.running.experiment import Experiment
from distill.training import cuda_graph as graph
from distill.training.listener import Listener, Notes


@pytest.fixture
def threads(monkeypatch):
    """What a CUDA device chooses, on a CPU."""
    monkeypatch.setattr(executors, "uses_threads", lambda device: True)


def our_threads() -> list[threading.Thread]:
    """The living threads, without the one that tqdm starts with its first bar and keeps."""
    return [thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"]


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
    monkeypatch.setattr(graph.GraphCapture, "can_capture", staticmethod(lambda device: True))


@pytest.mark.parametrize("jobs", [2, 5])
def test_threads_give_the_same_bits_as_a_serial_run(tmp_path, folder, threads, graphs, jobs):
    options = folder | {"alpha": [0, 0.5, 1], "seed": [1, 2], "distillation_steps": 2, "val_size": 6}
    one = distill.run(config(tmp_path / "one", **options))
    many = distill.run(config(tmp_path / "many", jobs=jobs, **options))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert [(r.seed, r.alpha, r.step) for r in many] == [(r.seed, r.alpha, r.step) for r in one]


def test_threads_read_each_seeds_images_once(tmp_path, folder, threads, monkeypatch):
    made, make = [], Experiment.chain
    monkeypatch.setattr(Experiment, "chain", lambda self, *args: (made.append(args[0]), make(self, *args))[1])
    options = {"alpha": [0, 0.5, 1], "seed": [1, 2], "distillation_steps": 1, "max_epochs": 1}
    distill.run(config(tmp_path, jobs=3, **folder, **options))
    assert sorted(made) == [1, 2]


def test_a_student_that_was_deleted_is_trained_again_by_threads(tmp_path, folder, threads, monkeypatch):
    """The teacher is read before the arms are begun, not by whichever thread asks for it first."""
    options = folder | {"alpha": [0, 0.5], "distillation_steps": 2}
    distill.run(config(tmp_path, **options))
    before = contents(tmp_path)
    shutil.rmtree(tmp_path / "seed_1" / "alpha_0.5" / "step_1")
    order, load, share = [], session_module.load_parameters, executors._share_teacher
    monkeypatch.setattr(
        session_module, "load_parameters", lambda model, file: (order.append(file.parent.name), load(model, file))
    )
    monkeypatch.setattr(executors, "_share_teacher", lambda chains: (share(chains), order.append("shared")))
    distill.run(config(tmp_path, jobs=2, **options))
    assert contents(tmp_path) == before
    assert order[:2] == ["step_0", "shared"]


def test_threads_do_not_share_random_draws(tmp_path, folder, threads, monkeypatch):
    """Initial weights are drawn from the process's one generator, here with every chance for others to interfere."""
    seed, build = torch.manual_seed, Experiment.network_factory

    def slow_network(self, data):
        network = build(self, data)
        return lambda: (time.sleep(0.02), network())[1]

    options = folder | {"alpha": [0, 0.3, 0.6, 1], "max_epochs": 1, "distillation_steps": 2}
    distill.run(config(tmp_path / "one", **options))
    monkeypatch.setattr(Experiment, "network_factory", slow_network)
    monkeypatch.setattr(torch, "manual_seed", lambda value: (seed(value), time.sleep(0.01))[0])
    distill.run(config(tmp_path / "many", jobs=4, **options))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_threads_report_progress_one_at_a_time(tmp_path, folder, threads):
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
    started = our_threads()
    with pytest.raises(UserError, match="loss is not finite at update"):
        distill.run(config(tmp_path, **folder, jobs=2, seed=[1, 2], lr=1e38, optimizer="sgd"))
    assert our_threads() == started


def test_stopped_threads_end_at_a_chunk_and_resume_to_the_same_bits(tmp_path, folder, threads):
    options = folder | {"alpha": [0, 0.5], "max_epochs": 16, "distillation_steps": 2}
    main = threading.main_thread().ident

    def stop():
        wait_for(lambda: list(tmp_path.rglob("alpha_*/step_1/training_state.pt")))
        signal.pthread_kill(main, signal.SIGINT)

    started = our_threads()
    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        distill.run(config(tmp_path / "run", jobs=2, **options))
    stopper.join()
    assert our_threads() == started
    assert len(rows(tmp_path / "run" / "results.csv")) < 5
    distill.run(config(tmp_path / "run", jobs=2, **options))
    distill.run(config(tmp_path / "whole", **options))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_threads_release_the_images_of_a_finished_seed(tmp_path, folder, threads, monkeypatch):
    """Without waiting for Python's cycle collector."""
    distill.run(config(tmp_path / "first", **folder))  # torch keeps frames of the first optimiser of a process
    sessions, make = [], Experiment.chain

    def chains(self, *arguments):
        chain = make(self, *arguments)
        sessions.append(weakref.ref(chain.session))
        return chain

    monkeypatch.setattr(Experiment, "chain", chains)
    gc.disable()
    try:
        distill.run(config(tmp_path / "run", jobs=2, seed=[1, 2], alpha=[0, 1], max_epochs=1, **folder))
    finally:
        gc.enable()
    assert [session() for session in sessions] == [None, None]


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
