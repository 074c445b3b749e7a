"""A whole run: every seed's teacher once, then the students of every arm, in one job or in several."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from torch import nn

from distill.config import Config, RunConfig
from distill.data.source import Source
from distill.errors import ConfigError
from distill.files import write_atomically
from distill.running import slurm
from distill.running.executors import make_executor
from distill.running.experiment import (
    Experiment,
    caller_unaffected,
    count_finished,
    count_models,
    versions,
    worker_count,
)
from distill.running.jobs import prepare_with_jobs
from distill.running.loaded import LoadedRun
from distill.running.progress import Progress, in_notebook
from distill.running.schedule import Failed, FailedError, train_tasks
from distill.running.unit import open_run
from distill.store import claims
from distill.store.events import write_events_of_finished
from distill.store.processes import add_process, note_complete, processes
from distill.store.rundir import RunDir, is_finished
from distill.store.tasks import tasks
from distill.study import Study, extended
from distill.training.device import pick_device
from distill.training.listener import Listener, check_listener

MOST_CHECKED = 100  # seeds
HARDWARE = ("device", "threads", "ranks")  # of a process, on which the last bits of its results depend


def run(
    config: Config,
    source: Source | None = None,
    network: Callable[[], nn.Module] | None = None,
    listener: Listener | None = None,
) -> LoadedRun:
    """Train every chain of a grid and return all results; models that are finished in the directory are kept.

    ``source`` (see ``from_arrays``) and ``network`` replace the data set and the network of the configuration;
    ``network()`` makes a new network from normalised images (n, c, h, w) float32 to logits (n, classes).
    Progress goes to ``listener``, by default to bars in a notebook and to nothing elsewhere. Raises UserError
    (ConfigError, DataError) with a one-line message.
    """
    check_listener(listener)
    with caller_unaffected(config):
        experiment = prepare_with_jobs(config, source, network)
        if listener is not None or not in_notebook():
            return run_experiment(experiment, listener or Listener())
        with closing(progress_of([experiment.config])) as progress:
            return run_experiment(experiment, progress)


def create_run(config: Config, source: Source | None = None, network: Callable[[], nn.Module] | None = None) -> Path:
    """Make the directory of a run, train nothing, and return its path, for ``units`` and ``train_unit``.

    Arguments and errors are those of ``run``. A directory that holds this run is kept as it is.
    """
    with caller_unaffected(config):
        experiment = prepare_with_jobs(config, source, network)
        check(experiment)
        _begin(experiment, Listener())
        return experiment.config.output


def run_experiment(experiment: Experiment, listener: Listener, teachers_only: bool = False) -> LoadedRun:
    """Train all units of an experiment, or only its teachers (for a preview), and return all results.

    Other processes may train units of the same run meanwhile. Raises FailedError if some could not be trained.
    """
    return run_experiments([experiment], listener, teachers_only)[0]


def run_experiments(
    experiments: Sequence[Experiment],
    listener: Listener,
    teachers_only: bool = False,
    path: Path | None = None,
    detach: bool = False,
) -> list[LoadedRun]:
    """Train all units of several experiments, which agree in device and jobs: see ``run_experiment``.

    ``path`` is the folder of their study, which has checked them, if there is one. With ``detach`` the jobs of a
    cluster are submitted and not waited for.
    """
    run = experiments[0].config.run
    if path is None:  # the settings of a study have been checked
        path = experiments[0].config.output
        check_executor(path, run, teachers_only)
        for experiment in experiments:
            check(experiment)
    for experiment in experiments:
        _begin(experiment, listener)
    runs = [RunDir(experiment.config.output) for experiment in experiments]
    listener.begin(sum(count_finished(experiment.config) for experiment in experiments))
    every = [task for experiment in experiments for task in tasks(experiment.config)]
    if run.executor == "slurm":
        if not all(task.is_finished for task in every):
            listener.note(slurm.submit(path, run, every))
        failures = [] if detach else slurm.wait_for_jobs(path, every, listener)
    else:
        chosen = [task for task in every if not (teachers_only and task.unit.arms)]
        by_run = {experiment.config.output: experiment for experiment in experiments}
        configs = [experiment.config for experiment in experiments]
        with make_executor(configs, lambda config: by_run[config.output], listener) as executor:
            failures = train_tasks(chosen, executor, listener)
    for rundir in runs:
        rundir.write_results()
        if not detach and not any(failed.task.run == rundir.path for failed in failures):
            note_complete(rundir.path)
    if failures:
        raise FailedError(failures)
    return [LoadedRun.load(rundir.path) for rundir in runs]


def check_executor(path: Path, run: RunConfig, teachers_only: bool = False) -> None:
    """Raise ConfigError if SLURM would reject the jobs of a run or study. Writes nothing."""
    if run.executor == "slurm":
        if teachers_only:
            raise ConfigError("--preview trains its teachers here: give --executor local")
        slurm.check(path, run)


def begin_study(study: Study) -> None:
    """Make the folder of a study and write its config.toml, which keeps what other commands have added meanwhile."""
    RunDir(study.path).open()
    with claims.turn(study.path, "begin"):
        working = any(RunDir(setting.config.output).is_worked_on for setting in study.settings)
        write_atomically(study.path / "config.toml", extended(study.path, study.sections(), working=working).toml())


def batch_script(study: Study, experiments: Sequence[Experiment]) -> str:
    """Make the directories of a study or a run, train nothing, and return the script of its jobs. Raises UserError."""
    if study.axes:
        begin_study(study)
    for experiment in experiments:
        _begin(experiment, Listener())
    slurm.make_folder(study.path)
    run = experiments[0].config.run
    every = [task for experiment in experiments for task in tasks(experiment.config)]
    return slurm.script(study.path, run, slurm.jobs_for(every, run))


def work(configs: Sequence[Config], listener: Listener) -> list[Failed]:
    """Train what no other process trains in the directories of some runs; returns what failed. Raises UserError."""
    paths = [config.output for config in configs]
    every = [task for config in configs for task in tasks(config)]
    before = sum(map(count_finished, configs))
    listener.begin(before)
    for path in paths:
        add_process(path, **versions(pick_device(configs[0].run.device)))
    with make_executor(configs, open_run, listener) as executor:
        failures = train_tasks(every, executor, listener, stay=False, verify=False)
    if before < sum(map(count_finished, configs)):
        for path in paths:
            RunDir(path).write_results()
    return failures


def progress_of(configs: Sequence[Config], teachers_only: bool = False) -> Progress:
    """The progress of runs for a person; the caller closes it."""
    models = sum(len(config.chain.seed) if teachers_only else count_models(config) for config in configs)
    return Progress(models, max(config.train.epochs for config in configs), worker_count(configs[0]))


def check(experiment: Experiment) -> None:
    """Check the data of the first seeds and the given teacher now, rather than after hours of training other seeds."""
    chain = experiment.config.chain
    for seed in chain.seed[:MOST_CHECKED]:
        data = experiment.dataset(seed)
    if experiment.config.model.network is not None or experiment.make_network is not None:
        experiment.check_network(data)
    if chain.teacher_ckpt is not None:
        rundir = RunDir(experiment.config.output)
        teachers = (rundir.model(seed, None, chain.first_step) for seed in chain.seed)
        if Path(chain.teacher_ckpt).exists() or not all(map(is_finished, teachers)):
            experiment.check_teacher(data)


def _begin(experiment: Experiment, listener: Listener) -> None:
    """Write the files that describe the run. Note a change of device, threads or ranks since the last process."""
    rundir = RunDir(experiment.config.output)
    rundir.open()
    with claims.turn(rundir.path, "begin"):
        rundir.begin(experiment.config, experiment.source.fingerprint)
    rundir.check_finished()
    facts = versions(experiment.device)
    if experiment.config.run.executor == "slurm":  # the jobs report their own
        facts = {name: value for name, value in facts.items() if name not in HARDWARE}
    before = processes(rundir.path)
    for key in HARDWARE:
        if before and key in facts and before[-1].get(key, facts[key]) != facts[key]:
            listener.note(
                f"{key} changed from {before[-1][key]} to {facts[key]}: "
                "the last bits may differ from those of an uninterrupted run"
            )
    add_process(rundir.path, **facts)
    if experiment.config.run.tensorboard:
        write_events_of_finished(rundir)
