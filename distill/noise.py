"""The kinds of label noise that ``--label-noise-kind`` names.

To add one, write its function and its line in ``NOISE_KINDS``. This module loads without NumPy, so that ``--help`` can
list the kinds at once.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill.errors import DataError, one_line
from distill.records import read_json

if typing.TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class TrueLabels:
    """The training labels of a whole data set, before corruption, and what the kinds of noise may need besides."""

    labels: np.ndarray  # (n,) int64 in [0, C)
    classes: tuple[str, ...]  # C names
    superclasses: tuple[int, ...] | None = None  # C numbers; None if the data have none
    human: np.ndarray | None = None  # (n,) int64 in [0, C), the labels that people gave; None if they were not read
    epsilon: float | None = None  # as --epsilon
    confusion: str | None = None  # as --confusion


@dataclass(frozen=True)
class NoiseKind:
    """Which wrong label an image gets if its label is corrupted.

    ``wrong_labels(true, rng)`` returns (n,) labels in [0, C): the wrong one, or the true one for images that this kind
    never corrupts. It raises DataError for data that it does not fit. ``rng`` is for this alone: all randomness comes
    from it, and the draws may depend on n and C only. Then an image's wrong label depends neither on which images are
    trained on nor on how many are corrupted.
    """

    wrong_labels: Callable[[TrueLabels, np.random.Generator], np.ndarray]
    help: str
    needs: str = ""  # an option of the section [data] that only this kind takes, and needs
    sets_rate: bool = False  # whether all wrong labels are given, so that there is no --label-noise


def symmetric(true: TrueLabels, rng: np.random.Generator) -> np.ndarray:
    """(n,): any other class, all equally likely."""
    classes = len(true.classes)
    return (true.labels + rng.integers(1, classes, len(true.labels))) % classes


def pairflip(true: TrueLabels, rng: np.random.Generator) -> np.ndarray:
    """(n,): the next class, and the first after the last."""
    return (true.labels + 1) % len(true.classes)


# The usual pairs of CIFAR-10 (Patrini et al. 2017, arXiv 1609.03683): true class to wrong class.
PAIRS = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}


def asymmetric(true: TrueLabels, rng: np.random.Generator) -> np.ndarray:
    """(n,): the class that ``PAIRS`` names; classes without a partner in the data stay true."""
    import numpy as np

    number = {name: c for c, name in enumerate(true.classes)}
    partner = [number.get(PAIRS.get(name, name), c) for c, name in enumerate(true.classes)]
    if partner == list(range(len(partner))):
        raise DataError(
            f"label_noise_kind asymmetric needs classes named as in CIFAR-10 ({', '.join(PAIRS)}); the data have none"
        )
    return np.array(partner)[true.labels]


def superclass(true: TrueLabels, rng: np.random.Generator) -> np.ndarray:
    """(n,): the next class of the same superclass, and its first after its last (Zhang & Sabuncu 2018)."""
    import numpy as np

    if true.superclasses is None:
        raise DataError("label_noise_kind superclass needs data with superclasses: the fine labels of cifar100")
    partner = np.empty(len(true.classes), np.int64)
    for group in set(true.superclasses):
        members = np.flatnonzero(np.array(true.superclasses) == group)
        partner[members] = np.roll(members, -1)
    return partner[true.labels]


def confusable(true: TrueLabels, rng: np.random.Generator) -> np.ndarray:
    """(n,): a wrong class in proportion to how often the model of ``confusion`` took this class for it."""
    import numpy as np

    share = rng.random(len(true.labels))
    wrong = true.labels.copy()
    for c, counts in enumerate(_confusions(true)):
        rows = np.flatnonzero(true.labels == c)
        if counts.any():  # a class that was never mistaken stays true
            wrong[rows] = np.searchsorted(counts.cumsum(), share[rows] * counts.sum(), side="right")
    return wrong


def _confusions(true: TrueLabels) -> np.ndarray:
    """(C, C) float64: how many test images of a class the finished model predicts as each other class."""
    import numpy as np

    file = Path(str(true.confusion), "result.json")
    classes = len(true.classes)
    try:
        record = read_json(file)
        if tuple(record["classes"]) != true.classes:
            raise ValueError(f"its model has other classes: {', '.join(map(str, record['classes']))}")
        counts = np.zeros((classes, classes))
        numbers = {str(c): c for c in range(classes)}
        for c, row in record["confusions"].items():
            for predicted, count in row.items():
                counts[numbers[c], numbers[predicted]] = count
        if np.diag(counts).any() or not counts.any() or not np.all((counts >= 0) & (counts < 2**53)):
            raise ValueError("it has no confusions")
        return counts
    except Exception as error:  # whatever the file holds
        reason = (
            f"it lacks {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or one_line(error)
        )
        raise DataError(
            f"{file} cannot be used ({reason}): --confusion needs the folder of a finished model on these classes"
        ) from None


def label_dp(true: TrueLabels, rng: np.random.Generator) -> np.ndarray:
    """(n,): K-randomised response: the true label with probability e^epsilon / (e^epsilon + K - 1), K classes.

    Otherwise any other class, all equally likely (Ghazi et al. 2021, arXiv 2102.06062).
    """
    import numpy as np

    assert true.epsilon is not None, "the configuration requires it"
    kept = 1 / (1 + (len(true.classes) - 1) * math.exp(-true.epsilon))
    return np.where(rng.random(len(true.labels)) < kept, true.labels, symmetric(true, rng))


def human(true: TrueLabels, rng: np.random.Generator) -> np.ndarray:
    """(n,): the labels that people gave (Wei et al. 2022, arXiv 2110.12088)."""
    if true.human is None:
        raise DataError("label_noise_kind human is for --dataset cifar10 and cifar100, whose images people labelled")
    return true.human


NOISE_KINDS: dict[str, NoiseKind] = {
    "symmetric": NoiseKind(symmetric, "any other class, all equally likely"),
    "pairflip": NoiseKind(pairflip, "the next class"),
    "asymmetric": NoiseKind(asymmetric, "the usual pairs of CIFAR-10 (truck to automobile, cat to dog, ...)"),
    "superclass": NoiseKind(superclass, "the next class of the same superclass (cifar100)"),
    "confusable": NoiseKind(confusable, "as the model of --confusion mistakes test images", needs="confusion"),
    "label-dp": NoiseKind(
        label_dp, "each label at random, by K-randomised response with --epsilon", needs="epsilon", sets_rate=True
    ),
    "human": NoiseKind(human, "CIFAR-10N and CIFAR-100N, as --human-labels says", needs="human_labels", sets_rate=True),
}
HUMAN_LABELS = {  # the keys in the files of CIFAR-10N and, the last, CIFAR-100N
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worst": "worse_label",
    "noisy": "noisy_label",
}
