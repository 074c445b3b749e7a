"""Randomness as a function of (seed, purpose, step, epoch): no generator state is carried or saved.

Therefore a resumed run equals an uninterrupted one, any step can be run again alone, and the arms of a grid share
their draws, so that differences between them are paired. NumPy draws everything on the CPU, except what only torch
itself can draw.
"""

import threading

import numpy as np

# Appending is safe; reordering or removing changes every result.
PURPOSES = ("split", "val", "subset", "noise", "init", "epoch", "update", "bootstrap", "preview")

# Hold this lock while seeding torch's global generators and drawing from them: chains that are trained side by side in
# threads share them.
RNG_LOCK = threading.Lock()


def _sequence(seed: int, purpose: str, step: int, epoch: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose), step, epoch))


def generator(seed: int, purpose: str, step: int = 0, epoch: int = 0) -> np.random.Generator:
    """The NumPy generator for one purpose. ``seed``, ``step`` and ``epoch`` are integers >= 0."""
    return np.random.default_rng(_sequence(seed, purpose, step, epoch))


def torch_seed(seed: int, purpose: str, step: int = 0, epoch: int = 0) -> int:
    """A seed in [0, 2**63) for ``torch.manual_seed``, for draws of torch itself (initial weights, dropout)."""
    return int(_sequence(seed, purpose, step, epoch).generate_state(1, np.uint64)[0] >> np.uint64(1))
