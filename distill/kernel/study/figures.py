"""The figures of a study, drawn from its arrays."""

import math
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from distill.kernel.arrays import FloatArray
from distill.kernel.study.results import TEST, Study
from distill.kernel.toy.figures import STAR, colour_scale, describe_line, risk_map_figure, risk_norm, shades, step_name

# Okabe & Ito's palette, which colour-blind readers can distinguish.
TEACHER: dict[str, Any] = {"color": "black", "linestyle": "-", "label": "teacher"}
PURE: dict[str, Any] = {"color": "#E69F00", "linestyle": "--", "label": "student, α = 0"}
MIXED: dict[str, Any] = {"color": "#0072B2", "linestyle": "-", "label": "student, best α"}
MIXING: dict[str, Any] = {"color": "#009E73", "linestyle": ":", "marker": "o", "markersize": 3, "label": "best 1 - α"}
MOST_VALUES = 2000  # of a curve; more cannot be told apart


def all_figures(study: Study) -> dict[str, Figure]:
    """Every figure by name."""
    grid = study.grid
    j = int(np.flatnonzero(grid.lams == study.best.lam)[0])
    chosen = (study.best.alpha, study.best.step)
    label = f"{study.problem.loss}, {study.judged_by}"
    risk_map = (grid.alphas, grid.steps, study.shown[:, j], label, chosen, f"chosen by {study.chosen_by}")
    return {
        "lambda": lambda_figure(study),
        "risk_map": risk_map_figure(*risk_map),
        "lambda_map": lambda_map_figure(study, label),
        "spectrum": spectrum_figure(study),
    }


def lambda_figure(study: Study) -> Figure:
    """Risk against lambda of the teacher and of its first student, and the student's best alpha below."""
    figure = Figure(figsize=(4.2 * len(study.curves), 4.6))
    lams = study.grid.lams
    panels = figure.subplots(2, len(study.curves), sharex=True, sharey="row", squeeze=False, height_ratios=[2, 1])
    for (upper, lower), curves in zip(panels.T, study.curves, strict=True):
        for risks, style in ((curves.teacher, TEACHER), (curves.pure, PURE), (curves.mixed, MIXED)):
            describe_line(upper.plot(lams, risks, marker=".", markersize=3, linewidth=1.4, **style), "λ")
        i = int(np.argmin(curves.teacher))
        upper.plot(lams[i], curves.teacher[i], "v", color="black", markersize=5)
        by_others = curves.judged_by == TEST
        upper.set_title(f"risk by {curves.judged_by}" + rf", $\alpha$ by {study.chosen_by}" * by_others)
        low = min(curves.teacher.min(), curves.mixed.min())
        high = max(curves.teacher.max(), curves.mixed.max())
        upper.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        lower.axhline(0, color="0.6", linewidth=0.8)
        describe_line(lower.plot(lams, 1 - curves.alpha, **MIXING), "λ")
        lower.set(xlabel=r"$\lambda$", xscale="log")
        lower.set_yscale("symlog", linthresh=1)
    panels[0, 0].set_ylabel(study.problem.loss)
    panels[1, 0].set_ylabel(r"best $1-\alpha$")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def lambda_map_figure(study: Study, label: str) -> Figure:
    """Risk over lambda and alpha at the step that was chosen, with the chosen cell marked."""
    grid = study.grid
    s = grid.steps.index(study.best.step)
    figure = Figure(figsize=(5.6, 4.2))
    axes = figure.add_subplot(xlabel=r"$\lambda$", ylabel=r"$\alpha$, weight of the ground truth", xscale="log")
    values = np.ma.masked_invalid(study.shown[:, :, s])
    norm: Normalize = risk_norm(values.compressed())
    order = np.argsort(grid.lams)
    cells: dict[str, Any] = {"norm": norm, "cmap": "cividis_r", "rasterized": True}
    mesh = axes.pcolormesh(_edges(np.log(grid.lams[order]), np.exp), _edges(grid.alphas), values[:, order], **cells)
    name = f"chosen by {study.chosen_by}: " + rf"$\alpha$ = {study.best.alpha:g}, $\lambda$ = {study.best.lam:.3g}"
    describe_line(axes.plot(study.best.lam, study.best.alpha, "*", label=name, **STAR), "λ", "α ")
    axes.set_title(step_name(study.best.step))
    colour_scale(figure, mesh, norm, axes, label)
    figure.legend(loc="outside lower center", frameon=False)
    return figure


def _edges(centres: FloatArray, scale: Any = lambda x: x) -> FloatArray:
    """The edges of cells around ``centres``, in rising order."""
    if len(centres) == 1:
        return scale(centres[0] + np.array([-0.5, 0.5]))
    middle = (centres[1:] + centres[:-1]) / 2
    return scale(np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]]))


def spectrum_figure(study: Study) -> Figure:
    """The eigenvalues, and the degrees of freedom of the chosen alpha's chain against lambda."""
    figure = Figure(figsize=(8.4, 3.4))
    left, right = figure.subplots(1, 2)
    d = study.route.chain.d
    shown = np.unique(np.geomspace(1, len(d), min(len(d), MOST_VALUES)).astype(int))
    left.plot(shown, np.maximum(d[shown - 1], d[0] * 1e-17), color="black", linewidth=1.2)
    left.axhline(study.best.lam, color="#0072B2", linestyle="--", linewidth=1, label=r"chosen $\lambda$")
    left.set(xlabel="component k", ylabel="eigenvalue", xscale="log", yscale="log")
    left.legend(frameon=False)
    grid = study.grid
    i = int(np.flatnonzero(grid.alphas == study.best.alpha)[0])
    freedom = study.maps["freedom"][i]
    steps = [s for s in range(len(grid.steps)) if np.isfinite(freedom[:, s]).all()]
    for s, colour in zip(steps, shades(len(steps)), strict=True):
        style = "--" if grid.steps[s] == math.inf else "-"
        look = {"color": colour, "linewidth": 1.2, "marker": ".", "markersize": 3, "label": step_name(grid.steps[s])}
        describe_line(right.plot(grid.lams, freedom[:, s], style, **look), "λ")
    right.set(xlabel=r"$\lambda$", ylabel="degrees of freedom", xscale="log")
    right.set_yscale("symlog", linthresh=1)  # those of an alpha below 0 may be negative
    right.set_title(rf"$\alpha$ = {study.best.alpha:g}")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure
