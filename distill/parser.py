"""The parser of the command line: one option per field of the configuration, and the modes."""

import argparse
from dataclasses import fields
from typing import Any

from distill.arguments import OneLineParser, to_path
from distill.config import SECTIONS
from distill.errors import ConfigError, suggestion
from distill.options import add_option
from distill.program import program_name
from distill.study import AXES

DESCRIPTION = """\
Self-distillation of residual networks. Train a teacher on the given labels, then students of the same architecture,
each on alpha * given label + (1 - alpha) * teacher's prediction (Borup & Andersen 2021, arXiv 2102.13088).

  python self_distiller.py --config configs/quickstart.toml    a small study, in about a minute on two cores
  python self_distiller.py --alpha 0.6 --distillation-steps 5  the paper's chain on CIFAR-10, for a GPU

Several values of an option that changes results, such as --label-noise 0 0.2 0.4, make a grid.
Run the same command again to resume an interrupted run."""


def program() -> str:
    """The program's name as it was typed."""
    return program_name("self_distiller.py", "self-distiller")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help in which an option of several values is ``--lr LR ...``, and not ``--lr LR [LR ...]``."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs != "+":
            return super()._format_args(action, default_metavar)
        return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."


def build_parser() -> argparse.ArgumentParser:
    """The parser: one option per field of the configuration, grouped by section, and the modes."""
    parser = OneLineParser(
        program(),
        usage="%(prog)s [options]",
        description=DESCRIPTION,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", type=to_path, metavar="FILE", help="TOML file of options; options on the command line win"
    )
    parser.add_argument("--resume", type=to_path, metavar="DIR", help="resume the run in this directory")
    modes = parser.add_argument_group("modes", "What to do instead of training the whole grid.")
    mode = modes.add_mutually_exclusive_group()
    mode.add_argument("--estimate", action="store_true", help="estimate the cost on this machine; write nothing")
    mode.add_argument(
        "--dry-run",
        action="store_true",
        help="print what is finished, begun and to be trained; write nothing",
    )
    mode.add_argument(
        "--preview", action="store_true", help="train only the teachers, and forecast their chains (needs --val-size)"
    )
    mode.add_argument(
        "--report",
        nargs="+",
        type=to_path,
        metavar="DIR",
        help="print the tables of runs, draw figures and write report.html, or the page alone to --output FILE",
    )
    mode.add_argument(
        "--verify", nargs="+", type=to_path, metavar="DIR", help="verify the files of runs; write nothing"
    )
    mode.add_argument(
        "--status", nargs="+", type=to_path, metavar="DIR", help="print what is finished, running, failed and waiting"
    )
    mode.add_argument(
        "--work",
        nargs="+",
        type=to_path,
        metavar="DIR",
        help="train what no other process trains in these directories, then end",
    )
    mode.add_argument("--detach", action="store_true", help="with --executor slurm: submit the jobs, and return")
    mode.add_argument("--print-sbatch", action="store_true", help="begin the run and print the script of its jobs")
    modes.add_argument("--format", choices=FORMATS, help="with --report: print tables in this format; write nothing")
    modes.add_argument("--x", metavar="AXIS", help="for a study: draw accuracy against this axis, such as label_noise")
    modes.add_argument("--step", type=int, metavar="N", help="with --report: step of a study's tables and figure")
    for section, cls in SECTIONS.items():
        group = parser.add_argument_group(section, cls.__doc__)
        for f in fields(cls):
            add_option(group, cls, f, axis=f.name in AXES)
    return parser


FORMATS = ("latex", "markdown", "csv")


def parse_options(argv: list[str]) -> dict[str, Any]:
    """The options that a command line gives, by name. Raises ConfigError."""
    # The paper's program wrote some options with underscores: both spellings are accepted.
    words = [_with_dashes(word) if word.startswith("--") else word for word in argv]
    parser = build_parser()
    given, unknown = parser.parse_known_args(words)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        what = f"unknown option {unknown[0]}" if unknown[0].startswith("-") else f"unexpected argument {unknown[0]!r}"
        raise ConfigError(f"{what}{suggestion(unknown[0], flags)}")
    return vars(given)


def _with_dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value
