"""Three figures of what the closed forms say: redrawn labels, spiked data, and predictive variance.

    python -m studies.theory [--output DIR]

docs/kernel.md explains them. The functions are in ``distill.krr``, and tests check them by simulation.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

from distill import krr
from distill.files import write_atomically
from distill.kernel.toy.data import sinusoid
from distill.kernel.toy.figures import shades, step_name
from distill.pages.style import rendered, styled

GOLDEN = (1 + math.sqrt(5)) / 2
FEATURES = 60
SPIKES = (30.0, 10.0, 3.0)  # variances along the first axes; 1 along the others
SIGNALS = (0.2, 1.0, 0.2)  # of the coefficients along the first axes; BULK along the others
BULK = 0.01
MOST_FITS = 5
Array = np.ndarray[Any, np.dtype[np.float64]]


def fresh_labels_figure() -> Figure:
    """The variance by the share of real labels, without a bias and on the toy's sinusoid with one."""
    figure = Figure(figsize=(9.6, 3.4))
    left, middle, right = figure.subplots(1, 3)
    alphas = np.linspace(0.02, 1, 99)
    steps = [2, 3, 5, math.inf]
    for step, colour in zip(steps, shades(len(steps)), strict=True):
        variances = [krr.fresh_label_variances([1.0], 0, alpha, step, teacher_noise=1)[0, 0] for alpha in alphas]
        left.plot(alphas, variances, color=colour, label=step_name(step))
    left.axvline(1 / GOLDEN, color="0.1", linestyle="--", linewidth=1, label="1/golden ratio")
    left.set(title="An interpolant (A = 1)", ylabel="variance / noise", ylim=(0.5, 1.6))
    points = np.linspace(0, 1, 40)
    truth = sinusoid(points)
    spectrum = krr.decompose(krr.rbf(80)(points[:, None], points[:, None]))
    squares = (spectrum.V.T @ truth) ** 2
    for axes, synthetic, name in ((middle, 0.25, "teacher's labels with noise"), (right, 0.0, "without noise")):
        for lam, colour in zip((0.02, 0.1, 0.5, 2.0), shades(4), strict=True):
            risks = [_redrawn_risk(spectrum.d, squares, lam, alpha, synthetic) for alpha in alphas]
            axes.plot(alphas, risks, color=colour, label=f"$\\lambda$ = {lam:g}")
            axes.plot(alphas[np.argmin(risks)], np.min(risks), "o", color=colour, markersize=4)
        axes.axvline(1 / GOLDEN, color="0.1", linestyle="--", linewidth=1)
        axes.set(title=f"Kernel ridge, limit, {name}", ylabel="risk at the training points", yscale="log")
    for axes in (left, middle, right):
        axes.set_xlabel(r"$\alpha$, share of the real labels")
    _legends(left, middle, right)
    return figure


def _redrawn_risk(d: Array, squares: Array, lam: float, alpha: float, synthetic: float) -> float:
    """The limit's squared bias and variance, for labels with noise of variance 0.25."""
    B = krr.limit_diagonal(d, lam, alpha)
    v = krr.fresh_label_variances(d, lam, alpha, math.inf, noise=0.25, teacher_noise=synthetic)[0]
    return float(((1 - B) ** 2 * squares + v).mean())


def spikes_figure() -> Figure:
    """How far the best chain is above the floor, by the number of its students and of the spikes."""
    figure = Figure(figsize=(7.2, 3.4))
    figures = figure.subplots(1, 2, sharey=True)
    for axes, n, name in zip(figures, (None, 3000), ("the covariance itself", "a sample of 3,000 points"), strict=True):
        for s, colour in enumerate(shades(len(SPIKES) + 1)):
            excess = np.maximum(excess_risks(s, n), 1e-13)
            axes.plot(range(MOST_FITS), excess, "o-", color=colour, markersize=4, label=f"{s} spike{'s' * (s != 1)}")
        axes.set(title=f"{FEATURES} features, {name}", xlabel="students", yscale="log", xticks=range(MOST_FITS))
    figures[0].set_ylabel("(risk of the best chain) / floor $-$ 1")
    _legends(*figures)
    return figure


def excess_risks(s: int, n: int | None) -> Array:
    """The relative excess of the best chain over the best filter, (MOST_FITS,), for ``s`` spikes.

    From n points, or without n from the covariance itself, whose bulk is one eigenvalue.
    """
    variances = np.r_[SPIKES[:s], np.ones(FEATURES - s)]
    signals = np.r_[SIGNALS[:s], np.full(FEATURES - s, BULK)]
    gram = np.diag(300 * variances)
    if n is not None:
        X = np.random.default_rng(0).standard_normal((n, FEATURES)) * np.sqrt(variances)
        gram = X.T @ X
    spectrum = krr.decompose(gram)
    risk = krr.filter_risk(spectrum, np.diag(variances), np.diag(signals), noise=1.0)
    floor = risk.best()[1]

    def excess(log_lam: float, fits: int) -> float:
        return FEATURES * krr.joint_weights(risk.residuals(spectrum.d, math.exp(log_lam), fits))[1] / floor

    out = []
    grid = np.linspace(0, 14, 141)
    for fits in range(1, MOST_FITS + 1):
        values = [excess(log_lam, fits) for log_lam in grid]
        near = grid[np.argmin(values)]
        best = minimize_scalar(excess, args=(fits,), bounds=(near - 0.1, near + 0.1), options={"xatol": 1e-9})
        out.append(min(best.fun, *values))
    return np.array(out)


def predictive_variance_figure() -> Figure:
    """A Gaussian process's chain with its own variance, and the variance by step for three ways to distil."""
    figure = Figure(figsize=(9.6, 3.4))
    panels = figure.subplots(1, 3)
    rng = np.random.default_rng(3)
    x = np.sort(rng.random(12)) * 0.7
    grid = np.linspace(0, 1, 201)
    kernel = krr.rbf(40)
    everything = np.r_[x, grid][:, None]
    prior = kernel(everything, everything) + 1e-9 * np.eye(213)
    f = np.linalg.cholesky(prior) @ rng.standard_normal(213)
    lam = 0.05
    y = f[:12] + math.sqrt(lam) * rng.standard_normal(12)
    spectrum = krr.decompose(prior[:12, :12])
    K_new = prior[12:, :12]
    steps = [1, 3, 10]
    for axes, alpha in zip(panels, (0.0, 0.35), strict=False):
        fits = krr.predict(K_new, krr.dual_coefficients(spectrum, y, lam, alpha, steps))
        deviations = np.sqrt(krr.predictive_variances(spectrum, K_new, np.ones(201), lam, alpha, steps))
        axes.plot(grid, f[12:], color="0.6", linewidth=3, alpha=0.5, label="truth")
        for fit, deviation, step, colour in zip(fits, deviations, steps, shades(len(steps)), strict=True):
            axes.plot(grid, fit, color=colour, linewidth=1.3, label=step_name(step))
            axes.plot(grid, np.array([fit - 2 * deviation, fit + 2 * deviation]).T, "--", color=colour, linewidth=0.9)
        axes.plot(x, y, "o", color="black", markersize=4, markerfacecolor="white", label="data")
        axes.set(title=f"Mean ± 2 deviations, $\\alpha$ = {alpha:g}", xlabel="x")
    last = panels[2]
    fits = np.arange(1, 11)
    for alpha, colour, marker in zip((0.0, 0.35, 0.7), shades(3), "os^", strict=True):
        variances = krr.predictive_variances(spectrum, K_new, np.ones(201), lam, alpha, fits)
        last.plot(
            fits, variances.mean(axis=1), f"{marker}-", color=colour, markersize=4, label=f"$\\alpha$ = {alpha:g}"
        )
    claimed = [krr.predictive_variances(spectrum, K_new, np.ones(201), lam / t, 1, 1).mean() for t in fits]
    last.plot(fits, claimed, "x--", color="0.1", markersize=4, label="posterior as prior: claimed")
    last.axhline(claimed[0], color="0.1", linewidth=1, linestyle=":", label="posterior of the first fit")
    last.set(title="Mean over x", xlabel="fit", ylabel="variance", xticks=fits)
    _legends(*panels)
    return figure


def _legends(*panels: Axes) -> None:
    for axes in panels:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False, ncols=2)


FIGURES = {
    "fresh_labels": fresh_labels_figure,
    "spikes": spikes_figure,
    "predictive_variance": predictive_variance_figure,
}


def main(words: list[str] | None = None) -> None:
    """Draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("figures"), metavar="DIR", help="(default: %(default)s)")
    folder = parser.parse_args(words).output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with styled():
            for name, figure in FIGURES.items():
                write_atomically(folder / f"{name}.png", rendered(figure(), "png"))
    except OSError as error:
        parser.error(f"--output: {error}")


if __name__ == "__main__":
    main()
