"""Command-line options of the benchmarks. A wrong one is one line on standard error, and exit status 2."""

import argparse
from typing import NoReturn

import torch

from distill.config import CIFAR_RESNETS, TORCHVISION_RESNETS, RunConfig
from distill.errors import UserError
from distill.program import refuse
from distill.training.device import pick_device

DEPTHS = (*TORCHVISION_RESNETS, *CIFAR_RESNETS)


class Parser(argparse.ArgumentParser):
    """An argument parser for ``python -m benchmarks.<module>``, whose docstring is the help text."""

    def __init__(self, module: str, text: str):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"benchmarks.{module}", description=text, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise SystemExit(refuse(self.prog, f"{message}; --help names the options"))


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text}")
    return int(text)


def device(text: str) -> torch.device:
    """An argparse type: a device that this machine has."""
    try:
        return pick_device(RunConfig(device=text).device)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def cuda(text: str) -> torch.device:
    """An argparse type: a CUDA device that this machine has, with its number."""
    found = device(text)
    if found.type != "cuda":
        raise argparse.ArgumentTypeError(f"{text}: this benchmark is for CUDA devices")
    return torch.device("cuda", found.index or 0)
