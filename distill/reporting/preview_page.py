"""A preview as tables and as a figure. Imports no torch."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from distill.files import write_atomically
from distill.kernel.twin import ALPHAS, Forecast, Schedule, scores
from distill.reporting.plots import COLOURS, MARKERS
from distill.reporting.run_report import aligned

SHOWN = range(0, len(ALPHAS), 4)  # of the map's alphas, in tables: 0, 0.2, ..., 1
LINES = ("-", "--", ":")
FONT = 8  # points, everywhere
STYLE = {
    **{name: FONT for name in ("font.size", "axes.titlesize", "axes.labelsize", "figure.titlesize", "legend.fontsize")},
    "legend.title_fontsize": FONT,
    **{"xtick.labelsize": FONT, "ytick.labelsize": FONT, "legend.frameon": False, "svg.hashsalt": "preview"},
    **{"axes.spines.top": False, "axes.spines.right": False},
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """An arm's weights, and its changes against the teacher in held-out squared error and accuracy, each (students,).

    ``expected``: the same two changes as each twin expects them of these weights, (twins, 2, students).
    """

    label: str
    alphas: np.ndarray
    error: np.ndarray
    accuracy: np.ndarray
    expected: np.ndarray


def accord(expected, observed) -> tuple[float, float]:
    """Pearson's correlation of changes, and the share that has the sign expected, where a change is expected at all.

    At alpha = 1 none is. NaN where nothing can be said.
    """
    moved = np.abs(expected) > 1e-12
    if not moved.any():
        return np.nan, np.nan
    share = (np.sign(expected) == np.sign(observed))[moved].mean()
    varies = np.ptp(expected) > 0 and np.ptp(observed) > 0
    return float(np.corrcoef(expected, observed)[0, 1]) if varies else np.nan, float(share)


# ---- tables


def tables(title: str, seen, forecasts: list[Forecast], outcomes: list[Outcome]) -> str:
    """All that a preview (of ``preview.TwinInputs``) says, as text."""
    parts = [
        f"Kernel twin of {title}, {len(seen.truth):,} held-out images\n"
        "error: squared error against the true label, summed over classes; step 0 is the teacher",
        _first_fits(seen, forecasts),
    ]
    for each in forecasts:
        parts += [_map(each, "error", each.error, np.min), _map(each, "accuracy", each.accuracy, np.max)]
        parts.append(_schedules(each))
    parts.append(_freedom(forecasts))
    if outcomes:
        parts.append(_side_by_side(outcomes, [each.twin.name for each in forecasts]))
    return "\n\n".join(parts)


def _first_fits(seen, forecasts: list[Forecast]) -> str:
    error, accuracy = scores(seen.predicted, seen.truth)
    rows = [["step 0", "lam", "df", "error", "accuracy", "names the network's class"]]
    rows.append(["network", "", "", f"{error:.4f}", f"{accuracy:.4f}", ""])
    named = seen.predicted.argmax(1)
    for each in forecasts:
        share = (each.twin.predict(1, [0])[0].argmax(1) == named).mean()
        figures = [f"{each.error[0, 0]:.4f}", f"{each.accuracy[0, 0]:.4f}", f"{share:.4f}"]
        rows.append([each.twin.name, f"{each.twin.lam:.3g}", f"{each.freedom[0, 0]:.1f}", *figures])
    return aligned(rows)


def _heading(steps: np.ndarray) -> list[str]:
    return ["∞" if step == np.inf else f"step {step:.0f}" for step in steps]


def _map(each: Forecast, what: str, values: np.ndarray, best) -> str:
    rows = [["alpha", *(f"{name} " for name in _heading(each.steps))]]
    stars = best(values[SHOWN], axis=0)
    for i in SHOWN:
        cells = (f"{v:.4f}{'*' if v == star else ' '}" for v, star in zip(values[i], stars, strict=True))
        rows.append([f"{ALPHAS[i]:g}", *cells])
    return f"{each.twin.name}: held-out {what} of a constant alpha (* best of its column)\n{aligned(rows)}"


def _schedules(each: Forecast) -> str:
    rows = [["step", *(cell for name in each.schedules for cell in (f"{name} alpha", "error", "acc."))]]
    for step in range(1, len(each.steps) - 1):
        row = [str(step)]
        for schedule in each.schedules.values():
            row += [_weight(schedule, step - 1), f"{schedule.error[step]:.4f}", f"{schedule.accuracy[step]:.4f}"]
        rows.append(row)
    return f"{each.twin.name}: best weights in [0, 1] (before clipping); joint is for the last step\n{aligned(rows)}"


def _weight(schedule: Schedule, i: int) -> str:
    clipped = schedule.free is not None and schedule.free[i] != schedule.alphas[i]
    return f"{schedule.alphas[i]:.3f}" + (f" ({schedule.free[i]:.2f})" if clipped else "")


def _freedom(forecasts: list[Forecast]) -> str:
    rows = [["twin", "alpha", *_heading(forecasts[0].steps)]]
    for each in forecasts:
        for i in (0, len(ALPHAS) // 2, len(ALPHAS) - 1):
            rows.append([each.twin.name, f"{ALPHAS[i]:g}", *(f"{value:.1f}" for value in each.freedom[i])])
    return f"effective degrees of freedom\n{aligned(rows)}"


def _side_by_side(outcomes: list[Outcome], names: list[str]) -> str:
    rows = [["arm", "step", "alpha", "error", *names, "accuracy", *names]]
    for arm in outcomes:
        for k, alpha in enumerate(arm.alphas):
            error, accuracy = [arm.error[k], *arm.expected[:, 0, k]], [arm.accuracy[k], *arm.expected[:, 1, k]]
            rows.append([arm.label, str(k + 1), f"{alpha:.3g}", *(f"{change:+.4f}" for change in error + accuracy)])
    lines = ["change against the teacher: as observed, and as each twin expects it", aligned(rows)]
    for i, name in enumerate(names):
        said = (_said(what, *accord(*_pairs(outcomes, i, j))) for j, what in enumerate(("error", "accuracy")))
        lines.append(f"{name}: {'; '.join(said)}")
    return "\n".join(lines)


def _said(what: str, correlation: float, share: float) -> str:
    if np.isnan(share):
        return f"{what}: no change expected"
    shown = "-" if np.isnan(correlation) else f"{correlation:+.2f}"
    return f"{what}: correlation {shown}, as expected up or down in {share:.0%}"


def _pairs(outcomes: list[Outcome], twin: int, what: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected and observed changes in error (0) or accuracy (1) of all students."""
    expected = np.concatenate([arm.expected[twin, what] for arm in outcomes])
    return expected, np.concatenate([(arm.error, arm.accuracy)[what] for arm in outcomes])


# ---- the figure


def draw(stem: Path, title: str, forecasts: list[Forecast], outcomes: list[Outcome]) -> None:
    """Leave ``figure`` as stem.png and stem.svg."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        drawn = figure(title, forecasts, outcomes)
        for kind, undated in (("png", {"Software": None}), ("svg", {"Date": None})):
            content = BytesIO()
            drawn.savefig(content, format=kind, dpi=150, metadata=undated)
            write_atomically(stem.with_suffix(f".{kind}"), content.getvalue())


def figure(title: str, forecasts: list[Forecast], outcomes: list[Outcome]):
    """A row per twin (error, accuracy, best weights), then degrees of freedom and outcomes: a Matplotlib Figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = Figure(figsize=(9.6, 2.55 * (len(forecasts) + 1)), layout="constrained")
    FigureCanvasAgg(drawn)
    drawn.suptitle(f"Kernel twin of {title}")
    axes = drawn.subplots(len(forecasts) + 1, 3)
    for row, each in zip(axes, forecasts, strict=False):
        _draw_map(row[0], each, each.error, "held-out squared error", lower_is_better=True)
        _draw_map(row[1], each, each.accuracy, "held-out accuracy", lower_is_better=False)
        _draw_weights(row[2], each)
    _draw_freedom(axes[-1, 0], forecasts)
    for j, what in enumerate(("squared error", "accuracy")):
        _draw_outcome(axes[-1, 1 + j], j, what, [each.twin.name for each in forecasts], outcomes)
    keys = [
        Line2D(
            [], [], color=COLOURS[i], marker=MARKERS[i], markersize=5, markerfacecolor=_fill(i), label=each.twin.name
        )
        for i, each in enumerate(forecasts)
    ]
    drawn.legend(handles=keys, loc="outside lower center", ncols=len(keys), title="twins, in the last row")
    return drawn


def _step_ticks(axes, steps, at) -> None:
    every = max(1, (len(steps) + 6) // 8)
    shown = [i for i, step in enumerate(steps) if step == np.inf or i % every == 0]
    axes.set_xticks([at[i] for i in shown], ["∞" if steps[i] == np.inf else f"{steps[i]:.0f}" for i in shown])
    axes.set_xlabel("step")


def _draw_map(axes, each: Forecast, values, what: str, *, lower_is_better: bool) -> None:
    """Values (alphas, steps) as colours, light for good, the best after the teacher starred, the limit apart."""
    # Near alpha = 0 the limit is so bad that it would take all the colours: the worst cells share the last one.
    ends = (values.min(), np.quantile(values, 0.9)) if lower_is_better else (np.quantile(values, 0.1), values.max())
    half = (ALPHAS[1] - ALPHAS[0]) / 2
    edges = np.append(ALPHAS - half, ALPHAS[-1] + half)
    at = _positions(each.steps)
    for x, column in zip(at, values.T, strict=True):
        mesh = axes.pcolormesh(
            [x - 0.5, x + 0.5],
            edges,
            column[:, None],
            vmin=ends[0],
            vmax=max(ends[1], ends[0] + 1e-9),
            cmap="cividis_r" if lower_is_better else "cividis",
            rasterized=True,
        )
    students = values[:, 1:] if lower_is_better else -values[:, 1:]
    row, column = np.unravel_index(np.argmin(students), students.shape)
    axes.plot(at[column + 1], ALPHAS[row], "*", color="white", markeredgecolor="black", markersize=9, clip_on=False)
    where = "the limit" if each.steps[column + 1] == np.inf else f"step {each.steps[column + 1]:.0f}"
    axes.set_title(
        f"{each.twin.name}: {what}\nstep 0: {values[0, 0]:.3f}, best: {values[row, column + 1]:.3f} at {where}, "
        f"alpha {ALPHAS[row]:g}"
    )
    axes.set(ylabel="alpha", ylim=(edges[0], edges[-1]))
    _step_ticks(axes, each.steps, at)
    clipped = values.max() > ends[1] if lower_is_better else values.min() < ends[0]
    axes.figure.colorbar(mesh, ax=axes, extend=("max" if lower_is_better else "min") if clipped else "neither")


def _draw_weights(axes, each: Forecast) -> None:
    steps = each.steps[1:-1]
    for i, (name, schedule) in enumerate(each.schedules.items()):
        look = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": (8, 5.5, 3)[i]}  # still seen where they agree
        axes.plot(steps, schedule.alphas, LINES[i], label=name, clip_on=False, **look)
    axes.set(title=f"{each.twin.name}: best weights in [0, 1]", ylabel="alpha", yticks=np.linspace(0, 1, 6))
    axes.set_ylim(-0.05, 1.75)  # room for the legend above the weights
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    _step_ticks(axes, steps, steps)


def _draw_freedom(axes, forecasts: list[Forecast]) -> None:
    from matplotlib.lines import Line2D

    at = _positions(forecasts[0].steps)
    for i, each in enumerate(forecasts):
        for line, k in zip(LINES, (len(ALPHAS) - 1, len(ALPHAS) // 2, 0), strict=True):
            look = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4, "markerfacecolor": _fill(i)}
            axes.plot(at[:-1], each.freedom[k, :-1], line, label=f"{ALPHAS[k]:g}", **look)
            axes.plot(at[-1:], each.freedom[k, -1:], **look)
    axes.set(title="effective degrees of freedom", yscale="log")
    axes.grid(alpha=0.3)
    keys = [Line2D([], [], color="0.2", linestyle=line) for line in LINES]
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** 0.2)  # room for the legend
    axes.legend(keys, ["alpha 1", "0.5", "0"], loc="upper center", ncols=3)
    _step_ticks(axes, forecasts[0].steps, at)


def _positions(steps: np.ndarray) -> np.ndarray:
    """Where steps are drawn: the limit, which is last, stands apart."""
    return np.arange(len(steps)) + np.where(steps == np.inf, 0.3, 0.0)


def _fill(i: int) -> str:
    return COLOURS[i] if i == 0 else "none"  # so that points on points are still seen


def _draw_outcome(axes, j: int, what: str, names: list[str], outcomes: list[Outcome]) -> None:
    axes.set_title(f"change in held-out {what} against\nthe teacher (dashed: as expected)")
    if not outcomes:
        axes.text(0.5, 0.5, "no students yet", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.axline((0, 0), slope=1, color="0.5", linewidth=0.8, linestyle="--")
    for i, name in enumerate(names):
        look = {"color": COLOURS[i], "markersize": 5, "markerfacecolor": _fill(i)}
        axes.plot(*_pairs(outcomes, i, j), MARKERS[i], label=name, **look)
    axes.set(xlabel="expected by the twin", ylabel="observed")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.3)
