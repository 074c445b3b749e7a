"""The command line: options to a Config, a Config to a run, exceptions to one-line errors."""

import argparse
import os
import signal
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from distill.config import PREVIEW, SECTION_OF, SECTIONS, Config, field_type, from_dict, read_config, read_toml
from distill.environment import set_environment
from distill.errors import ConfigError, UserError, nearest

PROGRAM = "self_distiller.py"
DESCRIPTION = """\
Self-distillation of residual networks: train a teacher on the truth, then students of the same architecture, one after
the other, on alpha * truth + (1 - alpha) * teacher (Borup & Andersen 2021, arXiv 2102.13088).

  python self_distiller.py --config configs/quickstart.toml    a whole small study, in about a minute on two cores
  python self_distiller.py --alpha 0.6 --distillation-steps 5  the paper's chain on CIFAR-10, for a GPU

The same command again goes on where it was stopped."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(message)


def build_parser() -> argparse.ArgumentParser:
    """One option per field of the configuration, grouped as the configuration is."""
    parser = _Parser(
        PROGRAM,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", metavar="FILE", default=None, help="TOML file of options; those given here win over it"
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="say what the run costs on this machine, and what is left of it; write nothing",
    )
    parser.add_argument("--resume", metavar="DIR", default=None, help="go on with the run in this directory")
    for section, cls in SECTIONS.items():
        group = parser.add_argument_group(section, cls.__doc__)
        for f in fields(cls):
            _add_option(group, section, f)
    return parser


def _add_option(group, section: str, f) -> None:
    kind, depth = field_type(section, f.name)
    flag, text, choices = f"--{f.name.replace('_', '-')}", f.metadata["help"], f.metadata["choices"]
    if kind is bool:
        shown = "on" if f.default else "off"
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=f"{text} [default: {shown}]")
        return
    if f.default not in (None, ()):
        shown = " ".join(map(str, f.default)) if depth else f.default
        text += f" [default: {shown}]"
    words = f.metadata["words"]

    def read(text: str):
        return text if text in words else kind(text)

    read.__name__ = " or ".join((kind.__name__, *words))  # as argparse names it in its errors
    metavar = None if choices else f.name.split("_")[-1].upper()
    options = {"nargs": "+"} if depth else {}
    if depth == 2:
        options["action"] = "append"
    group.add_argument(
        flag, type=read, choices=choices or None, metavar=metavar, help=text.replace("%", "%%"), **options
    )


def parse(argv: list[str]) -> Config:
    """The configuration that a command line asks for: defaults, then the file, then the options. Raises ConfigError."""
    # The paper's program wrote some options with underscores: both spellings are taken.
    spelled = [_dashes(word) if word.startswith("--") else word for word in argv]
    parser = build_parser()
    given, unknown = parser.parse_known_args(spelled)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise ConfigError(f"unknown option {unknown[0]}{nearest(unknown[0], flags)}")
    options = vars(given)
    file, resume = options.pop("config"), options.pop("resume")
    options.pop("estimate", None)  # main's
    if resume is not None:
        return _resumed(Path(resume), file, options)
    return from_dict(_merged(read_toml(Path(file)) if file else {}, options))


def _dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _merged(sections: dict[str, dict], options: dict) -> dict[str, dict]:
    merged = {section: dict(values) if isinstance(values, dict) else values for section, values in sections.items()}
    for name, value in options.items():
        merged.setdefault(SECTION_OF[name], {})[name] = value
    return merged


def _resumed(path: Path, file: str | None, options: dict) -> Config:
    if file is not None:
        raise ConfigError("--resume takes its options from the run itself; leave --config out")
    if not (path / "config.toml").exists():
        raise ConfigError(f"{path} holds no run to resume (no config.toml in it)")
    if "output" in options:
        raise ConfigError("--resume goes on in the directory it names; leave --output out")
    held = read_config(path / "config.toml")
    written = {section: {k: v for k, v in values.items() if v is not None} for section, values in asdict(held).items()}
    config = from_dict(_merged(written, options))
    if differing := config.differences(held):
        raise ConfigError(f"--resume goes on with the run as it is, but was given {differing}")
    return replace(config, run=replace(config.run, output=str(path)))


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, 2 for an error of the user's, 130 or 143 where it was stopped."""
    stopped_by = [signal.SIGINT]

    def stop(number, frame):
        stopped_by[0] = number
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    set_environment()
    try:
        words = sys.argv[1:] if argv is None else argv
        config = parse(words)
        (_estimate if "--estimate" in words else _run)(config)
        return 0
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last finished epoch", file=sys.stderr)
        return 128 + stopped_by[0]
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:  # a full or failing disk, a folder that went away
        return _refuse(f"{error}; what was finished is kept")


def _refuse(message: str) -> int:
    print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _estimate(config: Config) -> None:
    from distill.running.cost import done_in, format_remaining, measure, prepare_with_jobs, tell
    from distill.running.experiment import describe, memory_errors
    from distill.store.rundir import RunDir

    with memory_errors(config):
        lab = prepare_with_jobs(config, progress=True)
        RunDir(config.output).check(config, lab.source.fingerprint)
        print(describe(lab), flush=True)
        done = done_in(config)
        cost = measure(lab)
        print(tell(cost))
        if done:
            print(format_remaining(cost, done))


def _run(config: Config) -> None:
    # torch is imported only for a configuration that has passed every check
    from distill.reporting.run_report import report
    from distill.running.cost import prepare_with_jobs
    from distill.running.experiment import count_models, describe, memory_errors
    from distill.running.progress import Progress
    from distill.running.run import run_experiment

    with memory_errors(config):
        lab = prepare_with_jobs(config, progress=True)
        print(describe(lab), flush=True)
        show = Progress(count_models(config), config.train.epochs, lab.config.run.jobs)
        try:
            run_experiment(lab, show)
        finally:
            show.close()
    print(f"\n{report(config.output)}\n")
    for seed in config.chain.seed:  # a page that was drawn before the chain is drawn again after it
        if PREVIEW in config.chain.alpha or (config.output / f"seed_{seed}" / "preview.png").exists():
            from distill.running.preview import page

            with memory_errors(config):
                print(page(config.output, seed), end="\n\n")
    print(f"everything is in {config.output}{os.sep}: results.csv, figures, a folder for each model")
