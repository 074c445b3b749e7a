"""The toy experiment's figures. Each function draws exactly the arrays it is given and returns the figure.

The colours come from cividis, whose lightness changes evenly: they can be told apart in grey print and by the
colour-blind.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from distill.kernel.arrays import FloatArray
from distill.kernel.linalg import Spectrum, decompose
from distill.kernel.mixing import alphas_to_weights, greedy_alphas, joint_weights, weights_to_alphas
from distill.kernel.spectral import DivergentChainError, diagonals, dual_coefficients, predict, sparsification_ratios
from distill.kernel.toy.data import Data, Fold, held_out_residuals, kernel_matrix, loss_map
from distill.kernel.toy.program import NamedChain, step_text
from distill.pages.style import describe

LIMIT_COLOUR = "0.1"
STAR: Any = {"color": "white", "markeredgecolor": "black", "markersize": 9, "linestyle": "none"}
MOST_CURVES = 6
MOST_COMPONENTS = 40  # of the spectrum
ALPHAS = np.round(np.arange(-1, 1.001, 0.05), 10)  # of the risk map
WIDE_ALPHAS = np.round(np.arange(-1.5, 1.501, 0.05), 10)  # of the valley beside the best alphas


def shades(count: int) -> FloatArray:
    """``count`` colours from light to dark."""
    return matplotlib.colormaps["cividis_r"](np.linspace(0.12, 1, count))


def step_name(step: float) -> str:
    return "limit" if step == math.inf else f"fit {int(step)}"


def describe_line(drawn: list[Line2D], x: str, y: str = "") -> None:
    """Give each marker of what ``plot`` returned its values; ``x`` and ``y`` name them."""
    (line,) = drawn
    pairs = [f"{x} {a:.4g}, {y}{b:.4g}" for a, b in np.asarray(line.get_xydata()) if math.isfinite(b)]
    describe(line, [f"{line.get_label()}: {pair}" for pair in pairs])


def distill_figure(
    data: Data, grid: FloatArray, curves: FloatArray, steps: Sequence[float], limit: FloatArray | None
) -> Figure:
    """The points, the fits of ``steps`` on ``grid`` (q,), the dashed limit, and the truth if it is known.

    curves (len(steps), q), limit (q,) or None if the chain diverges.
    """
    figure = Figure(figsize=(5.2, 3.4))
    axes = figure.add_subplot(xlabel="x", ylabel="f(x)")
    if data.x_truth is not None and data.truth is not None:
        truth = np.interp(grid, data.x_truth, data.truth)
        axes.plot(grid, truth, color="0.6", linewidth=3, alpha=0.5, label="truth")
    for curve, step, colour in zip(curves, steps, shades(len(steps)), strict=True):
        axes.plot(grid, curve, color=colour, linewidth=1.3, label=step_name(step))
    if limit is not None:
        axes.plot(grid, limit, color=LIMIT_COLOUR, linestyle="--", linewidth=1.3, label="limit")
    (points,) = axes.plot(data.x, data.y, "o", color="black", markersize=4, markerfacecolor="white", label="data")
    describe(points, [f"data: x {x:.4g}, y {y:.4g}" for x, y in zip(data.x, data.y, strict=True)])
    figure.legend(loc="outside right center", frameon=False)
    return figure


def diagonal_figure(B: FloatArray, steps: Sequence[float], limit: FloatArray | None) -> Figure:
    """Nested bars of the diagonal of B by step, the limit hatched. B (len(steps), n), limit (n,) or None."""
    figure, axes, k = _component_axes(B, "component k, from the largest eigenvalue", "diagonal of B")
    widths = np.linspace(0.92, 0.3, len(steps))
    for row, step, colour, width in zip(B, steps, shades(len(steps)), widths, strict=True):
        axes.bar(k, row[: len(k)], width=width, color=colour, label=step_name(step))
    if limit is not None:
        outline: dict[str, Any] = {"facecolor": "none", "edgecolor": LIMIT_COLOUR, "hatch": "////", "linewidth": 0.8}
        axes.bar(k, limit[: len(k)], width=0.92, label="limit", **outline)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def ratio_figure(R: FloatArray, steps: Sequence[float], limit: FloatArray | None) -> Figure:
    """R_k = B_k / B_(k+1) by step, the limit dashed. R (len(steps), n-1), limit (n-1,) or None."""
    figure, axes, k = _component_axes(R, "component k", r"$R_k = B_k\,/\,B_{k+1}$")
    size: dict[str, Any] = {"markersize": 3.5, "linewidth": 1.2}
    for row, step, colour in zip(R, steps, shades(len(steps)), strict=True):
        describe_line(axes.plot(k, row[: len(k)], "o-", color=colour, label=step_name(step), **size), "k")
    if limit is not None:
        style = {"color": LIMIT_COLOUR, "markerfacecolor": "white", "label": "limit"} | size
        describe_line(axes.plot(k, limit[: len(k)], "s--", **style), "k")
    figure.legend(loc="outside right center", frameon=False)
    return figure


def _component_axes(values: FloatArray, xlabel: str, ylabel: str) -> tuple[Figure, Axes, NDArray[np.int_]]:
    """A figure, its axes, and the components k that are shown of ``values`` (steps, n)."""
    figure = Figure(figsize=(5.2, 3.4))
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    k = np.arange(1, min(values.shape[1], MOST_COMPONENTS) + 1)
    if len(k) <= 20:
        axes.set_xticks(k)
    return figure, axes, k


def chain_drawing() -> Figure:
    """A drawing of the chain X, y -> f^(1) -> y^(1) -> f^(2) -> y^(2) -> ..."""
    figure = Figure(figsize=(7.2, 2.3))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.2), ylim=(0, 2.3))
    axes.set_axis_off()
    box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": "0.2"}
    fit = {**box, "facecolor": colors.to_hex(shades(6)[0])}
    stations = [
        (0.65, "$X,\\ y$", box),
        (1.85, "$f^{(1)}$", fit),
        (2.95, "$y^{(1)}$", box),
        (4.05, "$f^{(2)}$", fit),
        (5.15, "$y^{(2)}$", box),
        (6.25, "$f^{(3)}$", fit),
    ]
    texts = [axes.text(x, 1.0, label, ha="center", va="center", bbox=style) for x, label, style in stations]
    arrow = {"arrowstyle": "-|>", "color": "0.2", "shrinkA": 0, "shrinkB": 0}
    above = ["fit", "predict", r"fit, $1-\alpha$", "predict", r"fit, $1-\alpha$"]
    for (left, _, _), (right, _, _), label in zip(stations, stations[1:], above, strict=False):
        axes.annotate("", (right - 0.23, 1.0), (left + 0.26, 1.0), arrowprops=arrow)
        axes.text((left + right) / 2 + 0.02, 1.28, label, ha="center", va="center")
    axes.annotate("", (7.1, 1.0), (6.49, 1.0), arrowprops=arrow)
    axes.text(7.0, 1.28, r"$\cdots$", ha="center", va="center")
    for station in (stations[3], stations[5]):
        bend = {**arrow, "connectionstyle": "angle,angleA=0,angleB=90,rad=6", "linestyle": "-"}
        axes.annotate("", (station[0], 0.81), (0.65, 0.25), arrowprops=bend)
        axes.text(station[0] + 0.08, 0.5, r"$\alpha$", va="center")
    axes.plot([0.65, 0.65], [0.25, 0.81], color="0.2", linewidth=1)
    formula = r"every student is fitted to $\alpha\, y + (1-\alpha)\, y^{(\tau-1)}$"
    axes.text(3.6, 1.85, formula, ha="center", va="center")
    for text in texts:
        text.set_zorder(3)
    return figure


def risk_norm(risk: FloatArray) -> colors.Normalize:
    """A colour scale that is finest at the bottom of the valley; risks far above it take the last colour."""
    low = float(np.min(risk))
    return colors.PowerNorm(0.4, low, max(float(np.quantile(risk, 0.8)), low * 1.05), clip=True)


def colour_scale(figure: Figure, mesh: QuadMesh, norm: colors.Normalize, axes: Axes, label: str) -> None:
    ticks = norm.inverse(np.linspace(0, 1, 5))
    figure.colorbar(mesh, ax=axes, label=label, extend="max", ticks=ticks, format="%.3g")


def risk_map_figure(
    alphas: FloatArray,
    steps: Sequence[float],
    risk: FloatArray,
    loss_name: str,
    chosen: tuple[float, float] | None = None,
    chosen_by: str = "best",
) -> Figure:
    """Risk over alpha × step as a heat map, the limit in a separate column, one cell marked.

    risk (len(alphas), len(steps)), the last step the limit; cells with inf (no limit) are hatched. The marked cell is
    that of the alpha and step ``chosen``, or else of the least risk.
    """
    figure = Figure(figsize=(5.6, 4.2))
    axes = figure.add_subplot(xlabel="fit", ylabel=r"$\alpha$, weight of the ground truth")
    left = np.arange(len(steps)) + np.where(np.array(steps) == math.inf, 0.5, 0.0)  # a gap before the limit
    half = np.diff(alphas).mean() / 2
    edges = np.append(alphas - half, alphas[-1] + half)
    norm = risk_norm(risk[np.isfinite(risk)])
    for start, column in zip(left, np.ma.masked_invalid(risk).T, strict=True):
        mesh = axes.pcolormesh([start, start + 1], edges, column[:, None], norm=norm, cmap="cividis_r", rasterized=True)
        for alpha in alphas[np.ma.getmaskarray(column)]:
            cell = Rectangle((start, alpha - half), 1, 2 * half, facecolor="none", edgecolor="0.6", linewidth=0)
            cell.set_hatch("////")
            axes.add_patch(cell)
    row, best = divmod(int(np.argmin(risk)), len(steps))
    if chosen is not None:
        row, best = int(np.flatnonzero(alphas == chosen[0])[0]), list(steps).index(chosen[1])
    axes.add_patch(Rectangle((left[best], edges[row]), 1, 2 * half, facecolor="none", edgecolor="black", linewidth=1.5))
    name = f"{chosen_by}: {risk[row, best]:.5f} at {step_name(steps[best])}, $\\alpha$ = {alphas[row]:g}"
    (star,) = axes.plot(left[best] + 0.5, alphas[row], "*", label=name, **STAR)
    describe(star, [name.replace("$\\alpha$", "alpha")])
    axes.set_xticks(left + 0.5, [step_text(step) for step in steps])
    axes.axvline(left[-1] - 0.25, color="0.2", linestyle="--", linewidth=1)
    axes.text(left[-1] + 0.5, edges[-1] + half, "limit", ha="center", va="bottom")
    colour_scale(figure, mesh, norm, axes, loss_name)
    figure.legend(loc="outside lower center", frameon=False)
    return figure


def best_alpha_figure(folds: list[Fold], lam: float, k: int, loss_name: str) -> Figure:
    """The best alphas of up to k fits in closed form, the valley that a grid finds, and the losses they lead to."""
    R = held_out_residuals(folds, lam, k)
    greedy, greedy_risks = greedy_alphas(R)
    fits = np.arange(2, k + 1)
    figure = Figure(figsize=(9.6, 3.6))
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.35, 1, 1])
    _draw_valley(figure, left, R, greedy)
    joint_risks = []
    for fit, colour in zip(fits, shades(len(fits)), strict=True):
        weights, risk = joint_weights(R[:fit])
        try:
            schedule = weights_to_alphas(weights)
        except ValueError:  # the best weights exceed 1e15, and no chain has them in float64
            schedule = np.full(fit - 1, np.nan)
        joint_risks.append(risk)
        style: dict[str, Any] = {"color": colour, "markersize": 4, "linewidth": 1.2, "label": f"{fit} fits"}
        describe_line(middle.plot(fits[: fit - 1], schedule, "o-", **style), "fit", "alpha ")
    middle.set_yscale("symlog", linthresh=10)
    middle.set(title="Joint: all weights together")
    for axes in (left, middle):
        axes.set(xlabel="fit", ylabel=r"$\alpha$ of the fit", xticks=fits)
    risks = {
        "constant, best of the grid": loss_map(folds, lam, WIDE_ALPHAS, fits).min(axis=0),
        "greedy": greedy_risks[1:],
        "joint": joint_risks,
    }
    colours = shades(len(fits))[[0, len(fits) // 2, -1]]
    for (name, losses), marker, colour in zip(risks.items(), "sxo", colours, strict=True):
        style = {"color": colour, "markersize": 5, "linewidth": 1.2, "label": name}
        describe_line(right.plot(fits, losses, f"{marker}-", **style), "fits", "loss ")
    right.set(xlabel="number of fits", ylabel="loss", xticks=fits, title="What they gain")
    for axes, legend_columns in ((left, 2), (middle, 2), (right, 1)):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False, ncols=legend_columns)
    figure.supxlabel(f"loss: {loss_name}")
    return figure


def _draw_valley(figure: Figure, axes: Axes, R: FloatArray, greedy: FloatArray) -> None:
    """The loss of fits 2, ..., k by their alpha after ``greedy`` alphas (k-1,), for residuals R (k, points)."""
    valley = np.empty((len(WIDE_ALPHAS), len(greedy)))
    for i, j in np.ndindex(valley.shape):
        weights = alphas_to_weights([*greedy[:j], WIDE_ALPHAS[i]])
        valley[i, j] = np.mean((weights @ R[: j + 2]) ** 2)
    fits = np.arange(2, len(R) + 1)
    edges = [np.append(fits - 0.5, fits[-1] + 0.5), np.append(WIDE_ALPHAS - 0.025, WIDE_ALPHAS[-1] + 0.025)]
    norm = risk_norm(valley)
    mesh = axes.pcolormesh(*edges, valley, norm=norm, cmap="cividis_r", rasterized=True)
    lowest = WIDE_ALPHAS[np.argmin(valley, axis=0)]
    square = axes.plot(fits, lowest, "s", color="white", markeredgecolor="black", label="grid's minimum")
    cross = axes.plot(fits, greedy, "x", color="black", markeredgewidth=1.5, label="closed form")
    for line in (square, cross):
        describe_line(line, "fit", "alpha ")
    axes.set(title="Greedy: each fit after the best before it", ylim=edges[1][[0, -1]])
    colour_scale(figure, mesh, norm, axes, "loss")


def curve_grid(data: Data) -> FloatArray:
    """The 201 points at which fits to ``data`` are drawn."""
    margin = 0.5 if data.x[0] == data.x[-1] else 0.0
    return np.linspace(data.x[0] - margin, data.x[-1] + margin, 201)


def all_figures(
    data: Data,
    folds: list[Fold],
    loss_name: str,
    chains: list[NamedChain],
    steps: Sequence[float],
    args: argparse.Namespace,
) -> dict[str, Figure]:
    """Every figure of the program by name. ``steps`` are the table's, the limit last."""
    spectrum = folds[0].spectrum
    if len(spectrum.d) < len(data.y):  # the folds leave points out; the figures show the chain on all of them
        spectrum = decompose(kernel_matrix(args.kernel, data.x, data.x, args.gamma), overwrite=True)
    finite = np.array(steps[:-1])
    drawn = finite[np.unique(np.linspace(0, len(finite) - 1, MOST_CURVES).round().astype(int))]
    figures = {"self_distill": chain_drawing()}
    for chain in chains:
        figures |= _chain_figures(chain, spectrum, data, list(drawn), args)
    map_steps = [*drawn, math.inf]
    risk = loss_map(folds, args.lam, ALPHAS, map_steps)
    figures["risk_map"] = risk_map_figure(ALPHAS, map_steps, risk, loss_name)
    k = int(np.clip(steps[-2], 2, MOST_CURVES))
    figures["best_alpha"] = best_alpha_figure(folds, args.lam, k, loss_name)
    return figures


def _chain_figures(
    chain: NamedChain, spectrum: Spectrum, data: Data, steps: list[float], args: argparse.Namespace
) -> dict[str, Figure]:
    steps = [step for step in steps if _exists(spectrum, data.y, args.lam, chain.alpha, step)]
    n = len(steps)
    has_limit = _exists(spectrum, data.y, args.lam, chain.alpha, math.inf)
    drawn = [*steps, math.inf] if has_limit else steps
    grid = curve_grid(data)
    K_new = kernel_matrix(args.kernel, grid, data.x, args.gamma)
    curves = predict(K_new, dual_coefficients(spectrum, data.y, args.lam, chain.alpha, drawn))
    B = diagonals(spectrum.d, args.lam, chain.alpha, drawn)
    R = sparsification_ratios(B)
    # The limit of a chain without ground truth is 0, and 0/0 is not the limit of the ratios.
    ratios_have_limit = has_limit and bool(np.all(B[-1] > 0))
    return {
        f"distill_{chain.file_name}": distill_figure(data, grid, curves[:n], steps, curves[-1] if has_limit else None),
        f"B_{chain.file_name}": diagonal_figure(B[:n], steps, B[-1] if has_limit else None),
        f"Rk_{chain.file_name}": ratio_figure(R[:n], steps, R[-1] if ratios_have_limit else None),
    }


def _exists(spectrum: Spectrum, y: FloatArray, lam: float, alpha: ArrayLike, step: float) -> bool:
    """Whether the chain reaches ``step`` within float64's range, or has a limit."""
    try:
        dual_coefficients(spectrum, y, lam, alpha, step)
    except DivergentChainError:
        return False
    return True
