"""The benchmarks' options: a bad one is one line, and exit 2."""

import argparse

from distill.config import CIFAR_RESNETS, TORCHVISION_RESNETS, RunConfig
from distill.errors import UserError

DEPTHS = (*TORCHVISION_RESNETS, *CIFAR_RESNETS)


class Parser(argparse.ArgumentParser):
    """For the module of this name, whose text is its help."""

    def __init__(self, module: str, text: str):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"benchmarks.{module}", description=text, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}; --help names the options\n")


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text}")
    return int(text)


def device(text: str):
    """A torch.device that is there."""
    from distill.training.engine import pick_device

    try:
        return pick_device(RunConfig(device=text).device)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def cuda(text: str):
    """A CUDA device that is there, with its number."""
    import torch

    if (found := device(text)).type != "cuda":
        raise argparse.ArgumentTypeError(f"{text}: this benchmark is for CUDA devices")
    return torch.device("cuda", found.index or 0)
