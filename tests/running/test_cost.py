"""estimate.py: what follows from the measured times, what is measured, and how many jobs are chosen."""

import os
import threading
from dataclasses import replace

import pytest
import torch
from tiny import config, contents, source

from distill.chains.checkpoints import write_tensors
from distill.chains.student import STATE
from distill.cli import main, parse
from distill.config import RunConfig
from distill.errors import UserError
from distill.running import cost as estimate
from distill.running import experiment as lab
from distill.store.rundir import write_json
from distill.training.fit import Trainer
from distill.training.listener import Notes


def cost(tmp_path, **options) -> estimate.Cost:
    """Ten updates an epoch; round times: 2 s an update of a teacher, 3 of a student, 0.1 an image, 5 a checkpoint."""
    c = config(tmp_path, max_epochs=4, **options)
    return estimate.Cost(
        c, 10, train=40, held_out=20, test=30, teacher=2.0, student=3.0, evaluation=0.1, checkpoint=5.0
    )


TEACHER = 4 * (10 * 2 + 2 + 5) + 9  # four epochs with a look at the held-out images, and all three splits at the end
STUDENT = 4 * (10 * 3 + 2 + 5) + 9


def test_a_models_cost_is_its_parts(tmp_path):
    assert cost(tmp_path).model(taught=False) == pytest.approx(TEACHER)
    assert cost(tmp_path).model(taught=True) == pytest.approx(STUDENT)


@pytest.mark.parametrize(
    ("options", "chain", "grid"),
    [
        ({"distillation_steps": 2}, TEACHER + 2 * STUDENT, TEACHER + 2 * STUDENT),
        ({"distillation_steps": 0}, TEACHER, TEACHER),
        ({"alpha": [1], "distillation_steps": 2}, 3 * TEACHER, 3 * TEACHER),
        ({"alpha": [0, 1], "seed": [1, 2, 3]}, TEACHER + 2 * STUDENT, 3 * (TEACHER + 2 * STUDENT + 2 * TEACHER)),
        ({"teacher_ckpt": "t.pt"}, 2 * STUDENT, 2 * STUDENT),
        ({"alpha": [0, 0.5], "seed": [1, 2], "jobs": 2}, TEACHER + 2 * STUDENT, TEACHER + 4 * STUDENT),
        ({"alpha": [0, 0.5], "seed": [1, 2], "jobs": 8}, TEACHER + 2 * STUDENT, TEACHER + 2 * STUDENT),
    ],
)
def test_chains_and_grids_are_sums_of_models(tmp_path, options, chain, grid):
    assert cost(tmp_path, **options).chain == pytest.approx(chain)
    assert cost(tmp_path, **options).grid == pytest.approx(grid)


@pytest.mark.parametrize(
    ("done", "left"),
    [
        ({}, 2 * TEACHER + 8 * STUDENT),
        ({(1, ()): 1.0}, TEACHER + 8 * STUDENT),
        ({(1, ()): 1.0, (1, (0.0,)): 0.25}, TEACHER + 7.75 * STUDENT),
        ({(1, ()): 1.0, (3, ()): 1.0, (1, (0.5,)): 1.0}, TEACHER + 7 * STUDENT),  # seed 3 is no part of it
    ],
)
def test_what_is_done_costs_no_more(tmp_path, done, left):
    options = {"alpha": [0, 0.5], "seed": [1, 2], "distillation_steps": 2}
    assert cost(tmp_path, **options).left(done) == pytest.approx(left)
    assert cost(tmp_path, **options, jobs=2).left(done) == pytest.approx(max(left / 2, TEACHER + 2 * STUDENT))


def test_what_is_done_is_read_from_the_runs_folder(tmp_path):
    """Of a finished model all, of a model in training its epochs, of an estimated alpha's probe a half."""
    c = config(tmp_path, max_epochs=4, alpha=[0.5, "auto"], seed=[1, 2], val_size=6, distillation_steps=2)
    assert estimate.done_in(c) == {}
    write_json(tmp_path / "seed_1" / "step_0" / "result.json", {})
    for folder in ("seed_1/alpha_0.5/step_1", "seed_1/alpha_auto/step_1/probe", "seed_2/step_0"):
        write_tensors(tmp_path / folder / STATE, {"rows": [{}]})
    quarter = {(1, (0.5,)): 0.25, (1, ("auto",)): 0.125, (2, ()): 0.25}
    assert estimate.done_in(c) == {(1, ()): 1.0} | quarter
    write_json(tmp_path / "seed_1" / "alpha_auto" / "step_1" / "probe" / "result.json", {})
    assert estimate.done_in(c) == {(1, ()): 1.0} | quarter | {(1, ("auto",)): 0.5}
    write_tensors(tmp_path / "seed_2" / "step_0" / STATE, {"lines": []})
    with pytest.raises(UserError, match="is no state of this training; delete it"):
        estimate.done_in(c)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (40, "40 s"), (720, "12 min"), (5400, "1.5 h"), (12345, "3.4 h")]
)
def test_durations_are_told_in_their_unit(seconds, text):
    assert estimate.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00342, "3.42 ms"), (0.0996, "99.6 ms"), (0.283, "283 ms"), (1.41, "1,410 ms")]
)
def test_updates_are_told_in_milliseconds(seconds, text):
    assert estimate.milliseconds(seconds) == text


def test_bursts_that_differ_much_are_told_of(tmp_path):
    calm, busy = (estimate.tell(replace(cost(tmp_path), scatter=scatter)) for scatter in (1.2, 2.3))
    assert "the slowest 1.20 times the fastest\n" in calm
    assert "the slowest 2.30 times the fastest: is this machine doing something else?\n" in busy


def test_what_training_says_of_itself_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate.Trial, "evaluation", lambda self: (self.listener.note("no graph"), 0.1)[1])
    made = estimate.measure(lab.prepare(config(tmp_path), source()))
    assert estimate.tell(made).splitlines()[-1] == "note    no graph"


def test_more_jobs_than_chains_are_not_spoken_of(tmp_path):
    assert "1 chain, 3 models, one after the other" in estimate.tell(cost(tmp_path, jobs=8))
    assert "2 chains, 6 models, 2 jobs" in estimate.tell(cost(tmp_path, jobs=8, seed=[1, 2]))


def test_teacher_and_student_take_turns_and_medians_count(tmp_path, monkeypatch):
    trial = estimate.trial_of(lab.prepare(config(tmp_path), source()))
    asked, seconds = [], iter([0.1] * 6 + [1, 5, 2, 6, 9, 4])  # two warm-ups and a burst each, and three in turn

    def burst(fit, taught, updates):
        asked.append(taught)
        return next(seconds)

    monkeypatch.setattr(trial, "burst", burst)
    monkeypatch.setattr(trial, "evaluation", lambda: 0.1)
    monkeypatch.setattr(trial, "checkpoint", lambda: 0.1)
    monkeypatch.setattr(estimate, "trial_of", lambda lab: trial)
    made = estimate.measure(lab.prepare(config(tmp_path), source()))
    assert asked == [False] * 3 + [True] * 3 + [False, True] * 3
    assert (made.teacher, made.student) == (2 / made.updates, 5 / made.updates)
    assert made.scatter == 9


def test_the_bursts_are_of_the_run_itself(tmp_path, monkeypatch):
    """Its batch size, its chunks, with a teacher and without; and nothing is left on disk."""
    seen, epoch = [], Trainer.epoch

    def spied(self, pool, plan, classes, teacher, alpha, listener):
        seen.append((self.train.batch_size, len(plan), teacher is not None))
        return epoch(self, pool, plan, classes, teacher, alpha, listener)

    monkeypatch.setattr(Trainer, "epoch", spied)
    made = estimate.measure(lab.prepare(config(tmp_path / "run", val_size=6), source()))
    assert (made.updates, made.held_out, made.test) == (5, 6, 20)
    assert {batch for batch, _, _ in seen} == {8}
    assert {(images, taught) for _, images, taught in seen} >= {(24, False), (24, True), (35, False), (35, True)}
    assert min(made.teacher, made.student, made.evaluation, made.checkpoint) > 0
    assert not (tmp_path / "run").exists()


def test_a_hopeless_learning_rate_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"not finite at update .*; try a smaller --lr"):
        estimate.measure(lab.prepare(config(tmp_path, lr=1e38, optimizer="sgd"), source()))


def test_the_program_tells_it_and_writes_nothing(tmp_path, capsys, tiny_imagefolder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "imagefolder", "--data-dir", str(tiny_imagefolder), "--resnet", "8", "--width", "2"]
    before = contents(tiny_imagefolder).keys()
    assert main([*words, "--device", "cpu", "--max-epochs", "3", "--estimate", "--output", "run"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert {"device", "models", "chain", "grid", "update"} <= lines.keys()
    assert "3 x 3 updates" in lines["models"]
    assert "1 chain, 6 models, one after the other" in lines["grid"]
    assert not list(tmp_path.iterdir())
    assert contents(tiny_imagefolder).keys() - before <= {".self-distiller-native.npz"}  # the decoded images


def test_of_a_run_that_began_it_tells_what_is_left(tmp_path, capsys):
    words = ["--dataset", "digits", "--resnet", "8", "--width", "2", "--train-size", "64", "--test-size", "32"]
    words += ["--batch-size", "16", "--max-epochs", "1", "--device", "cpu", "--output", str(tmp_path / "run")]
    assert main([*words, "--distillation-steps", "1"]) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert main(["--resume", str(tmp_path / "run"), "--estimate"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"left    0 s: 2 models finished in {tmp_path / 'run'}, 0 begun"
    assert main([*words, "--distillation-steps", "1", "--lr", "1", "--estimate"]) == 2
    assert "holds a run with other options" in capsys.readouterr().err
    assert contents(tmp_path) == before


# -------------------------------------------------------------------------------------------------------- --jobs auto


def test_jobs_may_be_a_number_or_auto():
    assert parse(["--jobs", "auto"]).config.run.jobs == RunConfig(jobs="auto").jobs == "auto"
    assert parse(["--jobs", "3"]).config.run.jobs == 3
    for bad in ("many", "1.5"):
        with pytest.raises(UserError, match="invalid int or auto value"):
            parse(["--jobs", bad])
    with pytest.raises(UserError, match=r"jobs must be of type int"):
        RunConfig(jobs="automatic")


def test_more_jobs_than_a_device_has_streams_for_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.running.experiment.pick_device", lambda name: torch.device("cuda"))
    with pytest.raises(UserError, match="--jobs 17: at most 16 on a CUDA device"):
        lab.prepare(config(tmp_path, jobs=17), source())


def test_auto_goes_through_a_file_and_is_no_part_of_the_run(tmp_path):
    from distill.configfile import from_dict, read_toml, to_toml

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
def test_on_a_cpu_auto_is_a_job_for_each_core_and_chain(tmp_path, monkeypatch, options, cores, jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    prepared = lab.prepare(config(tmp_path, **options), source())
    assert estimate.best_jobs(prepared) == jobs


def test_auto_becomes_a_number_before_anything_is_trained(tmp_path, tiny_imagefolder, monkeypatch):
    monkeypatch.setattr(estimate, "best_jobs", lambda lab: 3)
    c = config(tmp_path, jobs="auto", dataset="imagefolder", data_dir=str(tiny_imagefolder))
    assert estimate.prepare_with_jobs(c).config == replace(c, run=replace(c.run, jobs=3))
    assert estimate.prepare_with_jobs(config(tmp_path, jobs="auto"), source()).config.run.jobs == 1


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
def test_the_probe_takes_jobs_as_long_as_they_pay(monkeypatch, rates, most, jobs):
    def rate(together, jobs):
        if rates[jobs] is None:
            raise torch.OutOfMemoryError
        return rates[jobs]

    device_memory(monkeypatch, free=10**9, peak=1)
    monkeypatch.setattr(estimate.ConcurrentTrial, "images_per_second", rate)
    trial = type("Trial", (), {"device": torch.device("cuda"), "listener": Notes()})
    assert estimate.probe(trial, most) == jobs


def test_the_probe_stops_where_a_capture_fails(monkeypatch):
    def rate(together, jobs):
        if jobs == 4:
            together.trial.listener.notes.append("no CUDA graph")
        return 100 * jobs

    device_memory(monkeypatch, free=10**9, peak=1)
    monkeypatch.setattr(estimate.ConcurrentTrial, "images_per_second", rate)
    trial = type("Trial", (), {"device": torch.device("cuda"), "listener": Notes()})
    assert estimate.probe(trial, 8) == 2


def test_a_trial_keeps_what_its_training_says(tmp_path, monkeypatch):
    trial = estimate.trial_of(lab.prepare(config(tmp_path), source()))
    monkeypatch.setattr(Trainer, "_graph", lambda *arguments: arguments[-1].note("no CUDA graph"))
    trial.burst(trial.fit(), False, 1)
    assert trial.listener.notes == ["no CUDA graph"]


def device_memory(monkeypatch, free: int, peak: int) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peak)


def test_the_probe_takes_no_more_jobs_than_memory_has_room_for(monkeypatch):
    device_memory(monkeypatch, free=100, peak=30)
    monkeypatch.setattr(estimate.ConcurrentTrial, "images_per_second", lambda self, jobs: 100 * jobs)
    # a job has taken 30: two may take 60 of 80. Two have then taken 30 together: four may.
    assert estimate.probe(type("Trial", (), {"device": torch.device("cuda"), "listener": Notes()}), 4) == 4
    device_memory(monkeypatch, free=100, peak=50)
    assert estimate.probe(type("Trial", (), {"device": torch.device("cuda"), "listener": Notes()}), 4) == 1


def test_jobs_are_timed_together_for_the_same_updates(tmp_path, monkeypatch):
    """One student finds out how many updates a burst has; then all of them train so many, whatever their number."""
    trial, bursts, burst = estimate.trial_of(lab.prepare(config(tmp_path), source())), [], estimate.Trial.burst

    def spied(self, fit, taught, updates):
        bursts.append((threading.current_thread().name, updates, taught))
        return burst(self, fit, taught, updates)

    monkeypatch.setattr(estimate.Trial, "burst", spied)
    monkeypatch.setattr(estimate.Trial, "warmed_up", lambda self, taught: (None, 4 + taught))
    with estimate.ConcurrentTrial(trial, 3) as together:
        for jobs in (1, 3, 2):
            bursts.clear()
            assert together.images_per_second(jobs) > 0
            assert sorted(b[1:] for b in bursts) == sorted(jobs * [(estimate.WARM_UP, True), (5, True), (5, True)])
            assert len({name for name, *_ in bursts}) == jobs
        assert len(together.threads._threads) == 3  # the same ones, which know their algorithms


def test_a_job_that_fails_in_the_probe_does_not_leave_the_others_waiting(tmp_path, monkeypatch):
    trial, fits = estimate.trial_of(lab.prepare(config(tmp_path), source())), []
    fit = estimate.Trial.fit

    def failing(self):
        fits.append(1)
        if len(fits) == 3:
            raise torch.OutOfMemoryError("no more")
        return fit(self)

    monkeypatch.setattr(estimate.Trial, "fit", failing)
    started = threading.active_count()
    with pytest.raises(torch.OutOfMemoryError), estimate.ConcurrentTrial(trial, 3) as together:
        together.images_per_second(3)
    assert threading.active_count() == started


def test_ctrl_c_in_the_probe_ends_its_threads(tmp_path, monkeypatch):
    def stopped(tasks):
        raise KeyboardInterrupt

    trial = estimate.trial_of(lab.prepare(config(tmp_path), source()))
    started = threading.active_count()
    monkeypatch.setattr(estimate, "wait", stopped)
    with estimate.ConcurrentTrial(trial, 2) as together:
        together.updates = 3
        with pytest.raises(KeyboardInterrupt):
            together.images_per_second(2)
    assert threading.active_count() == started


@pytest.mark.gpu
def test_on_a_gpu_the_probe_answers(tmp_path):
    prepared = lab.prepare(config(tmp_path, device="cuda", alpha=[0, 0.5], seed=[1, 2]), source())
    trial = estimate.trial_of(prepared)
    assert estimate.probe(trial, 4) in (1, 2, 4)
    assert not trial.listener.notes
