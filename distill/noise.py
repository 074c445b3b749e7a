"""The kinds of label noise that ``--label-noise-kind`` names.

To add one, write its function and its line in ``NOISE_KINDS``. This module loads without NumPy, so that ``--help`` can
list the kinds at once.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass

if typing.TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class NoiseKind:
    """Which wrong label an image gets if its label is corrupted.

    ``wrong_labels(labels, classes, rng)`` takes the true labels (n,) int64 of a data set of ``classes`` classes and
    returns as many labels in [0, classes): the wrong one, or the true one for classes that this kind never corrupts.
    It raises DataError for data that it does not fit. ``rng`` is for this alone: all randomness comes from it, and the
    draws may depend on n and ``classes`` only. Then an image's wrong label depends neither on which images are trained
    on nor on how many are corrupted.
    """

    wrong_labels: Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
    help: str


def symmetric(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """(n,): any other class, all equally likely."""
    return (labels + rng.integers(1, classes, len(labels))) % classes


def pairflip(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """(n,): the next class, and the first after the last."""
    return (labels + 1) % classes


NOISE_KINDS: dict[str, NoiseKind] = {
    "symmetric": NoiseKind(symmetric, "any other class, all equally likely"),
    "pairflip": NoiseKind(pairflip, "the next class"),
}
