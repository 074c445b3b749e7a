"""The settings of a study: their experiments, checked before the first is trained, and the teachers that they share."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distill.config import Config
from distill.files import write_atomically
from distill.pages.tables import filled, format_count
from distill.records import write_json
from distill.running.describe import describe
from distill.running.experiment import Experiment, count_models
from distill.running.jobs import prepare_with_jobs
from distill.running.run import begin_study, check, check_executor, run_experiments
from distill.running.schedule import FailedError
from distill.store import claims
from distill.store.predictions import PREDICTIONS
from distill.store.results import read_record
from distill.store.rundir import RunDir, is_finished, options_of_models
from distill.store.tasks import claim_name
from distill.study import Study, shown, with_held
from distill.training.listener import Listener

# The options of the data that are applied to images after they are read.
AFTER_READING = (
    *("train_size", "test_size", "val_size", "label_noise", "epsilon", "confusion", "augment", "cutout"),
    "data_sha256",
)
STUDENTS_ONLY = ("chain.student_init", "chain.alpha_range", "train.temperature")  # a teacher does not depend on them


def prepare_study(study: Study) -> list[Experiment]:
    """The experiment of each setting. Images that settings share are read once. Writes nothing. Raises UserError.

    The data and network of every setting that is not finished are checked now, rather than after hours of training.
    """
    experiments: list[Experiment] = []
    by_images: dict[tuple[Any, ...], Experiment] = {}  # the first that reads them
    checked = set()
    for setting in study.settings:
        config = setting.config
        first = by_images.get(_images(config))
        if first is None:
            experiment = prepare_with_jobs(config, progress=True)
            by_images[_images(config)] = experiment
        else:
            run = replace(config.run, jobs=first.config.run.jobs)
            experiment = replace(first, config=with_held(replace(config, run=run)))
            experiment.set_up()  # the device may lack its precision
        experiments.append(experiment)
        train = config.train
        key = (config.data, config.model, train.batch_size, train.fast_dev_run, config.chain.teacher_ckpt)
        if key not in checked and not RunDir(config.output).is_finished(config):
            checked.add(key)
            check(experiment)
    return experiments


def _images(config: Config) -> tuple[Any, ...]:
    """The values of the options that say which images and labels are read."""
    return tuple(value for name, value in asdict(config.data).items() if name not in AFTER_READING)


def describe_study(study: Study, experiments: list[Experiment]) -> str:
    """A study in a line, and its first setting."""
    axes = ", ".join(f"{name.replace('_', ' ')} {' '.join(map(shown, values))}" for name, values in study.axes.items())
    models = sum(count_models(experiment.config) for experiment in experiments)
    count = f"{format_count(len(experiments), 'setting')}, {format_count(models, 'model')}"
    return "\n".join([filled(f"study   {count}: {axes}; the first:", indent=8), describe(experiments[0])])


def train_study(
    study: Study, experiments: list[Experiment], listener: Listener, teachers_only: bool, detach: bool = False
) -> None:
    """Train the settings of a study. Raises FailedError if some models could not be trained."""
    check_executor(study.path, experiments[0].config.run, teachers_only)
    begin_study(study)
    first: dict[str, Experiment] = {}
    for experiment in experiments:
        first.setdefault(_teacher(experiment.config), experiment)
    shared = [(experiment, first[_teacher(experiment.config)]) for experiment in experiments]
    shared = [(experiment, donor) for experiment, donor in shared if experiment is not donor]
    if shared and experiments[0].config.run.executor == "local":
        donors = {donor.config.output: donor for _, donor in shared}
        with suppress(FailedError):  # what needs the failed teachers fails below
            run_experiments(list(donors.values()), listener, teachers_only=True, path=study.path)
    for experiment, donor in shared:
        _take_teachers(experiment, donor.config)
    run_experiments(experiments, listener, teachers_only, study.path, detach)


def _take_teachers(experiment: Experiment, donor: Config) -> None:
    """Take the finished teachers of another setting, which trains the same ones."""
    config = experiment.config
    rundir = RunDir(config.output)
    rundir.open()
    with claims.turn(rundir.path, "begin"):
        rundir.begin(config, experiment.source.fingerprint)
    for seed in config.chain.seed:
        there, here = (RunDir(c.output).model(seed, None, config.chain.first_step) for c in (donor, config))
        with claims.claim(rundir.path, claim_name(seed)) as owner:  # None: another process trains it
            if owner is not None and is_finished(there) and not is_finished(here):
                record = read_record(there)
                rundir.make_folder(here)
                for name in ("model.pt", "metrics.csv", PREDICTIONS):
                    _link(there / name, here / name)
                write_json(here / "result.json", record | {"configuration": config.identity})


def _teacher(config: Config) -> str:
    """The options that a teacher depends on."""
    ignored = (*STUDENTS_ONLY, *(() if config.data.corrupts else ("data.label_noise_kind",)))
    options = options_of_models(config)
    return json.dumps({name: options[name] for name in sorted(options) if name not in ignored})


def _link(there: Path, here: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot. No file of a run is changed in place."""
    if there.exists():
        here.unlink(missing_ok=True)
        try:
            os.link(there, here)
        except OSError:
            write_atomically(here, there.read_bytes())
