import threading

import pytest
import torch
from tiny import config, source

from distill.running import trial as trial_module
from distill.running.experiment import prepare
from distill.running.trial import WARM_UP, ConcurrentTrial, Trial, trial_of
from distill.training.fit import Trainer


def test_trial_keeps_the_notes_of_its_training(tmp_path, monkeypatch):
    trial = trial_of(prepare(config(tmp_path), source()))
    monkeypatch.setattr(Trainer, "_graph", lambda *arguments: arguments[-1].note("no CUDA graph"))
    trial.burst(trial.new_trainer(), False, 1)
    assert trial.listener.notes == ["no CUDA graph"]


def test_concurrent_jobs_are_timed_over_the_same_number_of_updates(tmp_path, monkeypatch):
    """One student finds out how many updates a burst has; then all of them train so many, whatever their number."""
    trial, bursts, burst = trial_of(prepare(config(tmp_path), source())), [], Trial.burst

    def spied(self, trainer, with_teacher, updates):
        bursts.append((threading.current_thread().name, updates, with_teacher))
        return burst(self, trainer, with_teacher, updates)

    monkeypatch.setattr(Trial, "burst", spied)
    monkeypatch.setattr(Trial, "warmed_up", lambda self, with_teacher: (None, 4 + with_teacher))
    with ConcurrentTrial(trial, 3) as together:
        for jobs in (1, 3, 2):
            bursts.clear()
            assert together.images_per_second(jobs) > 0
            assert sorted(b[1:] for b in bursts) == sorted(jobs * [(WARM_UP, True), (5, True), (5, True)])
            assert len({name for name, *_ in bursts}) == jobs
        assert len(together.threads._threads) == 3  # the same ones, which know their algorithms


def test_a_failing_concurrent_job_ends_the_others(tmp_path, monkeypatch):
    trial, fits = trial_of(prepare(config(tmp_path), source())), []
    trainer = Trial.new_trainer

    def failing(self):
        fits.append(1)
        if len(fits) == 3:
            raise torch.OutOfMemoryError("no more")
        return trainer(self)

    monkeypatch.setattr(Trial, "new_trainer", failing)
    started = threading.active_count()
    with pytest.raises(torch.OutOfMemoryError), ConcurrentTrial(trial, 3) as together:
        together.images_per_second(3)
    assert threading.active_count() == started


def test_ctrl_c_ends_the_threads_of_a_concurrent_trial(tmp_path, monkeypatch):
    def stopped(tasks):
        raise KeyboardInterrupt

    trial = trial_of(prepare(config(tmp_path), source()))
    started = threading.active_count()
    monkeypatch.setattr(trial_module, "wait", stopped)
    with ConcurrentTrial(trial, 2) as together:
        together.updates = 3
        with pytest.raises(KeyboardInterrupt):
            together.images_per_second(2)
    assert threading.active_count() == started
