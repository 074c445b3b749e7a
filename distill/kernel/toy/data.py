"""The toy experiment's data and losses: the sinusoid, a reader of CSV files, kernels, folds.

The data are those of Mobahi, Farajtabar & Bartlett (NeurIPS 2020), with the noise that Borup & Andersen drew.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.errors import DataError
from distill.kernel import spectral
from distill.kernel.arguments import check_nonsingular
from distill.kernel.arrays import FloatArray, check_overflow
from distill.kernel.kernels import RADIAL
from distill.kernel.linalg import Spectrum, decompose, require_memory
from distill.kernel.mixing import AUTO_FITS, auto_schedule
from distill.kernel.solvers import risk_map
from distill.kernel.spectral import DivergentChainError, predict
from distill.kernel.table import Table

MOST_LEFT_OUT = 200  # points: leaving one out decomposes the kernel of the others; of more, a fraction is held out
HELD_OUT_FRACTION = 0.2

# fmt: off
Y = np.array([
    0.38476636465198066, 1.2333967683416893, 1.33232242218057, 0.69201594888895180, -0.29756145531871736,
    -0.24189291901377769, -0.7964485769175675, -0.9616480167034174, -0.49672509509916934, -0.3469066003991437,
    0.5589512650600734,
])
# fmt: on
X_TRUTH = np.arange(101) / 100


@dataclass(frozen=True)
class Data:
    """Points to fit, and the ground truth to judge a fit by. All arrays are float64.

    x, y (n,): the points, in rising x. x_truth, truth (q,): points at which the truth is known, or None.
    """

    x: FloatArray
    y: FloatArray
    x_truth: FloatArray | None
    truth: FloatArray | None


def sinusoid(x: FloatArray) -> FloatArray:
    """sin(2 pi x), the toy's truth."""
    return np.sin(2 * np.pi * x)


def toy() -> Data:
    """The eleven points of the papers, and the truth at 0, 0.01, ..., 1."""
    return Data(np.arange(11) / 10, Y, X_TRUTH, sinusoid(X_TRUTH))


def draw(n: int, sigma: float, seed: int) -> Data:
    """n points of the sinusoid, evenly spaced on [0, 1], with normal noise of standard deviation sigma.

    Raises MatrixTooLargeError.
    """
    require_memory(n, arrays=3)  # before the points are made: n may be mistyped
    x = np.linspace(0, 1, n)
    noise = np.random.default_rng(seed).normal(scale=sigma, size=n)
    return Data(x, sinusoid(x) + noise, X_TRUTH, sinusoid(X_TRUTH))


def from_table(table: Table, target: str | None) -> Data:
    """Points from a table with one input column, a target column, and optionally truth, the truth at the input.

    Raises DataError.
    """
    y_name = table.target(target)
    (x_name,) = table.inputs(y_name)
    names = [x_name, y_name, *(["truth"] if "truth" in table.names else [])]
    values = np.array(sorted(table.numbers(names).tolist())).T
    x = values[0]
    return Data(x, values[1], x, values[2]) if len(values) == 3 else Data(x, values[1], None, None)


def load(args: argparse.Namespace, table: Table | None) -> Data:
    """The points that the options name; ``table`` is the CSV file's, if there is one. Raises DataError."""
    if table is not None:
        return from_table(table, args.target)
    if args.n is None and args.noise is None and args.seed is None:
        return toy()
    return draw(args.n or 11, 0.5 if args.noise is None else args.noise, args.seed or 0)


def kernel_matrix(name: str, x: FloatArray, z: FloatArray, gamma: float) -> FloatArray:
    """k(x_i, z_j), (q, n) float64, of points x (q,) and z (n,). An entry that overflows is inf or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        if name == "linear":
            return x[:, None] * z
        if name == "polynomial":
            return (gamma * x[:, None] * z + 1) ** 3
        return RADIAL[name](np.abs(x[:, None] - z), gamma)


@dataclass(frozen=True)
class Fold:
    """A chain's training points and the points that judge it: a spectrum and y (n,); K_new (q, n), target (q,)."""

    spectrum: Spectrum
    y: FloatArray
    K_new: FloatArray
    target: FloatArray


def make_folds(data: Data, kernel: str, gamma: float, seed: int) -> tuple[list[Fold], str]:
    """The folds on which chains on ``data`` are judged, and the name of the loss.

    One fold judged by the truth if it is known. Otherwise points are left out: each in turn, with a separate chain on
    all the others, which is exact leave-one-out (a chain of ridge fits has no shortcut by the smoother's
    diagonal), or for more than MOST_LEFT_OUT points a fifth of them, drawn with ``seed``. Raises DataError for a
    single point without truth.
    """

    def fold(train: NDArray[np.int_], x_new: FloatArray, target: FloatArray) -> Fold:
        x = data.x[train]
        require_memory(len(x), arrays=3)
        spectrum = decompose(kernel_matrix(kernel, x, x, gamma), overwrite=True)
        return Fold(spectrum, data.y[train], kernel_matrix(kernel, x_new, x, gamma), target)

    n = len(data.x)
    if data.x_truth is not None and data.truth is not None:
        name = f"mean squared error against the truth at {len(data.truth)} points"
        return [fold(np.arange(n), data.x_truth, data.truth)], name
    if n < 2:
        raise DataError("a fit to one point cannot be judged without the truth: add a truth column, or more points")
    if n <= MOST_LEFT_OUT:
        name = f"leave-one-out mean squared error over {n} points"
        groups = list(np.arange(n)[:, None])
    else:
        count = round(HELD_OUT_FRACTION * n)
        name = f"held-out mean squared error on {count} of {n} points (seed {seed})"
        groups = [np.random.default_rng(seed).permutation(n)[:count]]
    return [fold(np.setdiff1d(np.arange(n), group), data.x[group], data.y[group]) for group in groups], name


def chain_losses(folds: list[Fold], lam: float, alpha: ArrayLike, steps: Sequence[float]) -> FloatArray:
    """The loss of one chain at each of ``steps``, (len(steps),); inf if it diverges. alpha as in ``distill.krr``.

    Raises SingularKernelError for a lam below the rounding of K, and NotFiniteError for an overflow.
    """
    for fold in folds:
        check_nonsingular(fold.spectrum.d, lam)
    squares = np.zeros(len(steps))
    for i, step in enumerate(steps):
        try:
            for fold in folds:
                c = spectral.dual_coefficients(fold.spectrum, fold.y, lam, alpha, step)
                with np.errstate(over="ignore", invalid="ignore"):
                    prediction = spectral.times(fold.K_new, c)[0]
                    squares[i] += ((prediction - fold.target) ** 2).sum()
        except DivergentChainError:
            squares[i] = math.inf
    if np.all(spectral.always_converges(alpha)):
        check_overflow("the losses", squares)
    squares[np.isnan(squares)] = math.inf
    return squares / sum(len(fold.target) for fold in folds)


def loss_map(folds: list[Fold], lam: float, alphas: ArrayLike, steps: ArrayLike) -> FloatArray:
    """The loss of every alpha (constant along its chain) at every step, (len(alphas), len(steps))."""
    maps = [risk_map(fold.spectrum, fold.y, fold.K_new, fold.target, alphas, lam, steps)[:, 0] for fold in folds]
    sizes = [len(fold.target) for fold in folds]
    return np.average(maps, axis=0, weights=sizes)


def held_out_residuals(folds: list[Fold], lam: float, k: int) -> FloatArray:
    """target - (prediction of A^j y), j = 1..k, over all folds: (k, points), for the best alphas."""
    residuals = []
    for fold in folds:
        powers = spectral.power_coefficients(fold.spectrum, fold.y, lam, k)
        residuals.append(fold.target - predict(fold.K_new, powers))
    return np.concatenate(residuals, axis=1)


def best_schedule(folds: list[Fold], lam: float) -> FloatArray:
    """The greedy best alphas of fits 2, 3, ... against the targets in ``folds``, as in krr.auto_schedule."""
    return auto_schedule(held_out_residuals(folds, lam, AUTO_FITS))
