"""Randomness as a function of (seed, purpose, step, epoch): no generator state is carried or saved.

A resumed run therefore equals an uninterrupted one, any step can be run again alone, and the arms of a grid
share their draws, so that differences between them are paired. Everything is drawn on the CPU with NumPy.
"""

import threading

import numpy as np

# Appending is safe; reordering or removing changes every result.
PURPOSES = ("split", "val", "subset", "noise", "init", "epoch", "update", "bootstrap", "preview")

# Held while torch's own generators are seeded and drawn from: they belong to the whole process, and chains that are
# trained side by side in threads must not draw from each other's.
ONE_AT_A_TIME = threading.Lock()


def _sequence(seed: int, purpose: str, step: int, epoch: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose), step, epoch))


def generator(seed: int, purpose: str, step: int = 0, epoch: int = 0) -> np.random.Generator:
    """The NumPy generator for one purpose. ``seed``, ``step`` and ``epoch`` are integers >= 0."""
    return np.random.default_rng(_sequence(seed, purpose, step, epoch))


def torch_seed(seed: int, purpose: str, step: int = 0, epoch: int = 0) -> int:
    """A seed in [0, 2**63) for ``torch.manual_seed``, for what torch itself draws (initial weights, dropout)."""
    return int(_sequence(seed, purpose, step, epoch).generate_state(1, np.uint64)[0] >> np.uint64(1))
