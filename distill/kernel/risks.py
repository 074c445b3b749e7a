"""Risks of predictions at points with known targets, and of many combinations of a few predictions."""

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from distill.kernel.arrays import FloatArray, as_floats


class Risk(Protocol):
    """The risk of predictions at q points."""

    def __call__(self, prediction: FloatArray) -> float:
        """The risk of one ``prediction`` (q[, m])."""

    def in_span(self, powers: FloatArray, combinations: FloatArray) -> FloatArray:
        """The risks (alphas, steps) of ``combinations`` (alphas, steps, k) of ``powers`` (k, q[, m])."""


def make_risk(loss: str, target: FloatArray, offset: ArrayLike = 0.0) -> Risk:
    """The risk for ``loss`` "squared" or "zero_one", of predictions to which ``offset`` is added. Raises ValueError."""
    offset = as_floats("offset", offset, 0, 1)
    if offset.shape not in ((), target.shape[1:]):
        raise ValueError(f"offset must be a number or of shape {target.shape[1:]}, not {offset.shape}")
    if not isinstance(loss, str) or loss not in ("squared", "zero_one"):
        raise ValueError("loss must be 'squared' or 'zero_one'")
    if loss == "squared":
        return SquaredError(target - offset)
    if target.ndim != 2 or target.shape[1] < 2:
        raise ValueError(f"loss='zero_one' needs targets (q, m) with m >= 2 classes, not {target.shape}")
    return ZeroOne(target, offset)


class SquaredError:
    """The mean squared error against ``target`` (q[, m])."""

    def __init__(self, target: FloatArray):
        self.target = target

    def __call__(self, prediction: FloatArray) -> float:
        with np.errstate(over="ignore"):
            return float(np.mean((prediction - self.target) ** 2))

    def in_span(self, powers: FloatArray, combinations: FloatArray) -> FloatArray:
        """As in ``Risk``, at k² operations a combination, whatever q is.

        A triangle T with ‖t - sum_j c_j P_j‖ = ‖T (1, -c)‖ replaces target and predictions.
        """
        differences = np.concatenate([np.ones((*combinations.shape[:-1], 1)), -combinations], axis=-1)
        with np.errstate(over="ignore", invalid="ignore"):
            T = _triangle(np.stack([self.target.ravel(), *powers.reshape(len(powers), -1)]))
            return ((differences @ T.T) ** 2).sum(axis=-1) / self.target.size


class ZeroOne:
    """The share of points whose largest output, the first of several equal ones, is not that of ``target`` (q, m)."""

    def __init__(self, target: FloatArray, offset: FloatArray):
        self.label = target.argmax(axis=1)
        self.offset = offset

    def __call__(self, prediction: FloatArray) -> float:
        return float(self.in_span(prediction[None], np.ones((1, 1, 1)))[0, 0])

    def in_span(self, powers: FloatArray, combinations: FloatArray) -> FloatArray:
        """As in ``Risk``."""
        flat = powers.reshape(len(powers), -1)
        risks = np.empty(combinations.shape[:-1])
        for row, weights in zip(risks, combinations, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                outputs = (weights @ flat).reshape(len(weights), *powers.shape[1:]) + self.offset  # (steps, q, m)
            wrong = (outputs.argmax(axis=2) != self.label).mean(axis=1)
            row[:] = np.where(np.isfinite(outputs).all(axis=(1, 2)), wrong, np.inf)
        return risks


def _triangle(rows: FloatArray) -> FloatArray:
    """The upper triangle T (k, k) with ‖sum_j a_j rows_j‖ = ‖T a‖ for every a (k,), for ``rows`` (k, q).

    Modified Gram-Schmidt, whose T is as accurate as Householder's. Not by LAPACK, because waking its threads
    for a matrix this small takes ten times as long as the arithmetic.
    """
    rows = rows.copy()
    T = np.zeros((len(rows), len(rows)))
    for j, row in enumerate(rows):
        T[j, j] = np.sqrt(np.einsum("q,q", row, row))
        if T[j, j] > 0:
            row /= T[j, j]
            T[j, j + 1 :] = np.einsum("q,kq->k", row, rows[j + 1 :])
            rows[j + 1 :] -= T[j, j + 1 :, None] * row
    return T
