"""The command line: options to a Config and a mode, a mode to its function, errors to one line."""

from __future__ import annotations

import io
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.config import PREVIEW, Config, RunConfig
from distill.configfile import merged, read_toml
from distill.environment import set_environment, torchrun_rank
from distill.errors import ConfigError, UserError, one_line
from distill.options import checked
from distill.parser import parse_options, program
from distill.program import complain, heeded, run_program, say, write_out
from distill.study import AXES, Study, expand, extended, read_sections, read_study, require_data_folder, run_folders

if typing.TYPE_CHECKING:
    from distill.reporting.results import RunResults
    from distill.running.experiment import Experiment
    from distill.running.schedule import Failed


@dataclass(frozen=True)
class Command:
    """What a command line asks for."""

    mode: str  # a key of MODES
    study: Study  # in the modes "report" and "verify" the default
    directories: tuple[Path, ...] = ()  # in the modes "report" and "verify" the runs
    format: str | None = None  # of the tables that the mode "report" prints; None: text, and files are written
    page: Path | None = None  # the file of the page, in the mode "report"; None: beside the run
    x: str | None = None  # the axis of a study's figure
    step: int | None = None  # that it shows; None: the last

    @property
    def config(self) -> Config:
        """The configuration of the run, or of the first setting of a study."""
        return self.study.settings[0].config


def parse(argv: list[str]) -> Command:
    """The command that a command line asks for: defaults, then the file, then the options. Raises ConfigError."""
    options = parse_options(argv)
    for name, value in options.items():
        if name in AXES and isinstance(value, list) and len(value) == 1:  # several values make an axis
            options[name] = value[0]
    file = options.pop("config", None)
    resume = options.pop("resume", None)
    reads = [mode for mode in ("report", "verify", "status", "work") if mode in options]  # at most one
    directories = tuple(options.pop(reads[0])) if reads else ()
    estimate = options.pop("estimate", False)
    preview = options.pop("preview", False)
    dry_run = options.pop("dry_run", False)
    x = options.pop("x", None)
    step = options.pop("step", None)
    if step is not None and reads != ["report"]:
        raise ConfigError("--step is for --report")
    jobs = [mode for mode in ("detach", "print_sbatch") if options.pop(mode, False)]  # at most one
    if jobs == ["print_sbatch"]:
        options["executor"] = "slurm"
    form = options.pop("format", None)
    if form is not None and reads != ["report"]:
        raise ConfigError("--format is for the tables of --report")
    if directories:
        page = options.pop("output", None) if reads == ["report"] else None
        if form is not None and page is not None:
            raise ConfigError("--format prints tables, and --output is for the page: leave one of them out")
        if options or file is not None or resume is not None or (x is not None and reads != ["report"]):
            raise ConfigError(f"--{reads[0]} reads everything from the run directory; leave other options out")
        page = None if page is None else Path(checked(RunConfig, "output", page))
        return Command(reads[0], expand({}), directories, form, page, x, step)
    if resume is not None:
        sections = _resumed(resume, file, options)
        study = extended(resume, sections, resumes=True)
    else:
        sections = merged({} if file is None else read_toml(file), options)
        study = extended(expand(sections).path, sections)
    alpha = sections.get("chain", {}).get("alpha")
    previews = preview or PREVIEW in (alpha if isinstance(alpha, list) else [alpha])
    if previews:
        for setting in study.settings:
            setting.config.require_preview()
    mode = "dry-run" if dry_run else "estimate" if estimate else "preview" if previews else [*jobs, "train"][0]
    if mode == "detach" and study.settings[0].config.run.executor != "slurm":
        raise ConfigError("--detach is for --executor slurm: without it, this process trains")
    if x is not None and (mode != "train" or not study.axes):
        raise ConfigError("--x is for a study, while it is trained or with --report: give an option several values")
    return Command(mode, study, x=x)


def _resumed(path: Path, file: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of the run in ``path`` with the options that are given."""
    if file is not None:
        raise ConfigError("--resume takes its options from the run itself; leave --config out")
    if not (path / "config.toml").exists():
        raise ConfigError(f"{path} holds no run to resume (no config.toml in it)")
    if "output" in options:
        raise ConfigError("--resume continues in the directory it names; leave --output out")
    return require_data_folder(path, merged(read_sections(path), options))


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit status, see ``run_program``."""
    set_environment()
    with suppress(OSError):  # no working directory: it was removed
        sys.path.append(os.getcwd())  # for --network and --dataset package.module:function

    def work() -> int:
        words = sys.argv[1:] if argv is None else argv
        if torchrun_rank()[1] > 1:
            return _on_a_rank(words)
        command = parse(words)
        return MODES[command.mode](command) or 0

    after_stop = "; run the same command to resume from the last finished epoch"
    return run_program(program(), work, after_stop, after_failure="; finished work is kept")


def _on_a_rank(words: list[str]) -> int:
    """Run the program on one of torchrun's ranks: rank 0 runs it as usual, and the others follow rank 0."""
    rank, size = torchrun_rank()
    with ExitStack() as stack:
        if rank > 0:
            stack.enter_context(redirect_stdout(io.StringIO()))  # rank 0 prints all that concerns every rank
            for number in heeded():
                signal.signal(number, signal.SIG_DFL)  # a follower has nothing to clean up, and may be waiting
        try:
            command = parse(words)
            for setting in command.study.settings if command.mode in ("train", "preview", "estimate") else ():
                setting.config.check_ranks(size, command.mode)
        except UserError:
            if rank == 0:
                raise
            return 2
        leads = rank == 0
        if command.mode in ("train", "preview"):
            from distill.running.follower import joined_or_following

            leads = stack.enter_context(joined_or_following(command.config))
        return MODES[command.mode](command) or 0 if leads else 0


# torch is imported in the modes, so that a configuration is checked before that takes its time.


def _settings(command: Command) -> Iterator[Config]:
    """The configuration of each setting, after a line that names it."""
    for i, setting in enumerate(command.study.settings, start=1):
        if setting.values:
            say(f"\nsetting {i} of {len(command.study.settings)}: {setting.title}")
        yield setting.config


def _estimate(command: Command) -> None:
    seconds = [_estimate_run(config) for config in _settings(command)]
    if len(seconds) > 1:
        from distill.running.progress import format_duration

        say(f"\nstudy   {format_duration(sum(seconds))} are left for all settings")


def _estimate_run(config: Config) -> float:
    """Print what a run costs; returns the seconds that are left."""
    from distill.running.cost import done_in, measure
    from distill.running.describe import describe, format_cost, format_remaining
    from distill.running.experiment import memory_errors
    from distill.running.jobs import prepare_with_jobs
    from distill.store.rundir import RunDir

    with memory_errors(config):
        experiment = prepare_with_jobs(config, progress=True)
        RunDir(config.output).check(config, experiment.source.fingerprint)
        say(describe(experiment))
        done = done_in(config)
        cost = measure(experiment)
        say(format_cost(cost))
        if done:
            say(format_remaining(cost, done))
        return cost.left(done)


def _train(command: Command) -> int:
    if command.study.axes:
        return _train_study(command)
    config = command.config
    preview = command.mode == "preview"
    if not preview and _is_finished(config):  # said before torch is loaded
        say("nothing left to do: all models are finished; verifying them and writing the report")
    from distill.reporting.run_report import report
    from distill.running.experiment import memory_errors
    from distill.running.jobs import prepare_with_jobs
    from distill.running.loaded import load_run
    from distill.running.schedule import FailedError

    failures: Sequence[Failed] = ()
    with memory_errors(config):
        try:
            results = _run(prepare_with_jobs(config, progress=True), preview, command.mode == "detach")
        except FailedError as error:
            failures = error.failures
            results = load_run(config.output)
    if command.mode == "detach":
        return _detached(config.output)
    say(f"\n{report(results)}\n")
    finished = {result.seed for result in results}
    for seed in config.chain.seed:  # a page drawn before the students were trained now shows their results too
        if seed in finished and (preview or (config.output / f"seed_{seed}" / "preview.png").exists()):
            _print_page(config, seed)
    say(f"everything is in {config.output}{os.sep}: begin with report.html")
    return _end(failures)


def _is_finished(config: Config) -> bool:
    """Whether all models of this run are finished, as far as their folders show."""
    from distill.store.rundir import RunDir

    return (config.output / "config.toml").exists() and RunDir(config.output).is_finished(config)


def _train_study(command: Command) -> int:
    from distill.reporting.study import StudyResults, choose_axis, report, write_results
    from distill.running.experiment import memory_errors
    from distill.running.run import progress_of
    from distill.running.schedule import FailedError
    from distill.running.settings import describe_study, prepare_study, train_study

    study = command.study
    choose_axis(study, command.x)
    preview = command.mode == "preview"
    failures: Sequence[Failed] = ()
    with memory_errors(command.config):
        experiments = prepare_study(study)
        configs = [experiment.config for experiment in experiments]
        say(describe_study(study, experiments))
        try:
            with closing(progress_of(configs, preview)) as progress:
                train_study(study, experiments, progress, preview, command.mode == "detach")
        except FailedError as error:
            failures = error.failures
        finally:
            with suppress(ConfigError):  # moved, deleted, or not begun
                write_results(StudyResults.load(study.path))
    if command.mode == "detach":
        return _detached(study.path)
    for setting in study.settings if preview else ():
        for seed in setting.config.chain.seed:
            _print_page(setting.config, seed)
    say(f"\n{report(StudyResults.load(study.path), command.x)}")
    return _end(failures)


def _detached(path: Path) -> int:
    say(f"--status {path} shows what the jobs do; the same command without --detach waits for them")
    return 0


def _end(failures: Sequence[Failed]) -> int:
    """Print what failed, if anything; returns the exit status."""
    if not failures:
        return 0
    units = "1 unit" if len(failures) == 1 else f"{len(failures)} units"
    complain(f"{program()}: {units} could not be trained; run the same command to try again:")
    for failed in failures:
        complain(f"  {one_line(str(failed))}")
    return 1


def _run(experiment: Experiment, teachers_only: bool, detach: bool) -> RunResults:
    from distill.running.describe import describe
    from distill.running.run import progress_of, run_experiments

    say(describe(experiment))
    with closing(progress_of([experiment.config], teachers_only)) as progress:
        return run_experiments([experiment], progress, teachers_only, detach=detach)[0]


def _print_page(config: Config, seed: int) -> None:
    from distill.running.experiment import memory_errors
    from distill.running.preview import page

    with memory_errors(config):
        say(f"{page(config.output, seed)}\n")


def _folders(command: Command) -> list[Path]:
    """The folders of the runs in the directories that were given. Raises ConfigError if there are none."""
    folders = [folder for path in command.directories for folder in run_folders(path)]
    if not folders:
        raise ConfigError(f"{command.directories[0]}: no run of this study is begun yet")
    return folders


def _report(command: Command) -> int:
    from distill.reporting.comparison import check_same_data
    from distill.reporting.results import RunResults
    from distill.reporting.run_report import reports
    from distill.reporting.run_tables import all_formatted

    if len(command.directories) == 1 and read_study(command.directories[0]).axes:
        return _report_study(command)
    if command.x is not None or command.step is not None:
        raise ConfigError("--x and --step are for one study, a run whose options have several values")
    runs = [RunResults.load(folder) for folder in _folders(command)]
    if command.format is None:
        check_same_data(runs)
        say(reports(runs, command.page))
    else:
        say(all_formatted(runs, command.format))
    return _complain([problem for run in runs for problem in run.problems])


def _report_study(command: Command) -> int:
    from distill.reporting.study import StudyResults, formatted, report

    results = StudyResults.load(command.directories[0], command.step)
    kind = command.format
    say(report(results, command.x, command.page) if kind is None else formatted(results, kind))
    return _complain(results.problems)


def _complain(problems: list[str]) -> int:
    for problem in problems:
        complain(f"{program()}: error: {one_line(problem)}")
    return 2 if problems else 0


def _status(command: Command) -> None:
    from distill.reporting.status import status

    say("\n\n".join(map(status, command.directories)))


def _print_sbatch(command: Command) -> None:
    from distill.running.experiment import memory_errors
    from distill.running.run import batch_script
    from distill.running.settings import prepare_study

    with memory_errors(command.config):
        write_out(batch_script(command.study, prepare_study(command.study)))


def _work(command: Command) -> int:
    from distill.running.run import progress_of, work
    from distill.store.rundir import RunDir

    configs = [RunDir(folder).config() for folder in _folders(command)]
    configs = [replace(config, run=replace(config.run, executor="local")) for config in configs]
    with closing(progress_of(configs)) as progress:
        return _end(work(configs, progress))


def _verify(command: Command) -> int:
    from distill.reporting.verify import verify

    folders = [folder for path in command.directories for folder in run_folders(path)]
    found = [verify(folder) for folder in folders]
    say("\n".join(text for text, _ in found) or "no run of this study is begun yet")
    return 0 if all(whole for _, whole in found) else 1


def _dry_run(command: Command) -> None:
    from distill.reporting.tree import tree

    say(tree(command.study))


MODES: dict[str, Callable[[Command], int | None]] = {
    "train": _train,
    "dry-run": _dry_run,
    "detach": _train,
    "print_sbatch": _print_sbatch,
    "status": _status,
    "work": _work,
    "estimate": _estimate,
    "preview": _train,
    "report": _report,
    "verify": _verify,
}


if __name__ == "__main__":
    sys.exit(main())
