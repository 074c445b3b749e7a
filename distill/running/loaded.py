"""A run read from its directory, with its models. Loads torch only for a model."""

from __future__ import annotations

import typing
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from distill.options import require_type
from distill.reporting.results import RunResults

if typing.TYPE_CHECKING:
    from torch import nn

    from distill.training.models import Classifier


class LoadedRun(RunResults):
    """The results of a run, and its models."""

    def model(
        self, seed: int, arm: float | str | None, step: int, network: Callable[[], nn.Module] | None = None
    ) -> Classifier:
        """A finished model as ``distill.load_model`` gives it; ``arm`` is None for the teacher. Raises ConfigError."""
        from distill.chains.checkpoints import load_model

        return load_model(self.folder(seed, arm, step), network)

    def _repr_html_(self) -> str:
        """What a notebook displays: the table and the accuracy figure."""
        from distill.reporting.page import summary

        return summary(self)


def load_run(path: str | PathLike[str]) -> LoadedRun:
    """The run in a directory, finished or not: a list of its results with tables, intervals and models.

    Models whose records are damaged are left out, and named in ``problems``. Raises ConfigError for a directory that
    holds no run.
    """
    require_type("path", path, (str, PathLike), "a path")
    return LoadedRun.load(Path(path))
