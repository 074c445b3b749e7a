import os
from dataclasses import replace

import pytest
import torch
from tiny import config, source

from distill.cli import parse
from distill.config import RunConfig
from distill.configfile import from_dict, read_toml, to_toml
from distill.errors import UserError
from distill.running import jobs as jobs_module
from distill.running.experiment import prepare
from distill.running.jobs import fastest_jobs, find_jobs, prepare_with_jobs
from distill.running.trial import ConcurrentTrial, trial_of
from distill.training.listener import Notes


def test_jobs_may_be_a_number_or_auto():
    assert parse(["--jobs", "auto"]).config.run.jobs == RunConfig(jobs="auto").jobs == "auto"
    assert parse(["--jobs", "3"]).config.run.jobs == 3
    for bad in ("many", "1.5"):
        with pytest.raises(UserError, match="invalid int or auto value"):
            parse(["--jobs", bad])
    with pytest.raises(UserError, match=r"jobs must be of type int"):
        RunConfig(jobs="automatic")


def test_jobs_auto_is_kept_in_toml_and_not_in_the_identity(tmp_path):

    c = config(tmp_path, jobs="auto")
    (tmp_path / "c.toml").write_text(to_toml(c))
    assert from_dict(read_toml(tmp_path / "c.toml")).run.jobs == "auto"
    assert c.digest == config(tmp_path, jobs=2).digest


@pytest.mark.parametrize(
    ("options", "cores", "jobs"),
    [
        ({"alpha": [0, 0.5, 1], "seed": [1, 2]}, 4, 4),
        ({"alpha": [0, 0.5, 1], "seed": [1, 2]}, 64, 6),
        ({"alpha": [0, 0.5, 1], "seed": [1, 2], "distillation_steps": 0}, 64, 2),
        ({}, 64, 1),
    ],
)
def test_on_a_cpu_auto_is_the_smaller_number_of_cores_and_chains(tmp_path, monkeypatch, options, cores, jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    prepared = prepare(config(tmp_path, **options), source())
    assert find_jobs(prepared) == jobs


def test_auto_becomes_a_number_before_anything_is_trained(tmp_path, tiny_imagefolder, monkeypatch):
    monkeypatch.setattr(jobs_module, "find_jobs", lambda lab: 3)
    c = config(tmp_path, jobs="auto", dataset="imagefolder", data_dir=str(tiny_imagefolder))
    assert prepare_with_jobs(c).config == replace(c, run=replace(c.run, jobs=3))
    assert prepare_with_jobs(config(tmp_path, jobs="auto"), source()).config.run.jobs == 1


def device_memory(monkeypatch, free: int, peak: int) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peak)


@pytest.mark.parametrize(
    ("rates", "most", "jobs"),
    [
        ({1: 100, 2: 190, 4: 300, 8: 310}, 8, 4),  # the last brings too little
        ({1: 100, 2: 190, 4: 300, 8: 400}, 8, 8),
        ({1: 100, 2: 190, 4: 300, 8: 400}, 5, 4),  # there are no more chains
        ({1: 100, 2: 90}, 8, 1),
        ({1: 100, 2: None}, 8, 1),  # out of memory
    ],
)
def test_fastest_jobs_stops_when_doubling_gains_too_little(monkeypatch, rates, most, jobs):
    def rate(together, jobs):
        if rates[jobs] is None:
            raise torch.OutOfMemoryError
        return rates[jobs]

    device_memory(monkeypatch, free=10**9, peak=1)
    monkeypatch.setattr(ConcurrentTrial, "images_per_second", rate)
    trial = type("Trial", (), {"device": torch.device("cuda"), "listener": Notes()})
    assert fastest_jobs(trial, most) == jobs


def test_fastest_jobs_stops_if_a_capture_fails(monkeypatch):
    def rate(together, jobs):
        if jobs == 4:
            together.trial.listener.notes.append("no CUDA graph")
        return 100 * jobs

    device_memory(monkeypatch, free=10**9, peak=1)
    monkeypatch.setattr(ConcurrentTrial, "images_per_second", rate)
    trial = type("Trial", (), {"device": torch.device("cuda"), "listener": Notes()})
    assert fastest_jobs(trial, 8) == 2


def test_fastest_jobs_stops_if_memory_is_short(monkeypatch):
    device_memory(monkeypatch, free=100, peak=30)
    monkeypatch.setattr(ConcurrentTrial, "images_per_second", lambda self, jobs: 100 * jobs)
    # a job has taken 30: two may take 60 of 80. Two have then taken 30 together: four may.
    assert fastest_jobs(type("Trial", (), {"device": torch.device("cuda"), "listener": Notes()}), 4) == 4
    device_memory(monkeypatch, free=100, peak=50)
    assert fastest_jobs(type("Trial", (), {"device": torch.device("cuda"), "listener": Notes()}), 4) == 1


@pytest.mark.gpu
def test_fastest_jobs_on_a_gpu(tmp_path):
    prepared = prepare(config(tmp_path, device="cuda", alpha=[0, 0.5], seed=[1, 2]), source())
    trial = trial_of(prepared)
    assert fastest_jobs(trial, 4) in (1, 2, 4)
    assert not trial.listener.notes
