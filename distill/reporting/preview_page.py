"""A preview as tables and as a figure. Imports no torch."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.kernel.twin import ALPHAS, Forecast, Schedule, scores
from distill.pages.style import COLOURS, LINES, MARKERS, new_figure, styled
from distill.pages.tables import aligned

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

TABLE_ALPHAS = range(0, len(ALPHAS), 4)  # positions of the alphas in tables: 0, 0.2, ..., 1
CURVE_ALPHAS = (len(ALPHAS) - 1, len(ALPHAS) // 2, 0)  # positions of 1, 0.5 and 0
NO_CHANGE = 1e-12  # an expected change below this is rounding


@dataclass(frozen=True, eq=False)
class Outcome:
    """An arm's alphas, and the changes of held-out squared error and accuracy from the teacher, each (students,).

    ``expected`` (twins, 2, students) holds the two changes that each twin forecasts for these alphas.
    """

    label: str
    alphas: Array
    error: Array
    accuracy: Array
    expected: Array


def compare(expected: Array, observed: Array) -> tuple[float, float]:
    """Pearson's correlation of changes (students,), and the share of observed changes with the expected sign.

    The share excludes students for which no change is expected (alpha = 1). Each is NaN if it is undefined.
    """
    changes = np.abs(expected) > NO_CHANGE
    if not changes.any():
        return np.nan, np.nan
    share = (np.sign(expected) == np.sign(observed))[changes].mean()
    varies = np.ptp(expected) > 0 and np.ptp(observed) > 0
    return float(np.corrcoef(expected, observed)[0, 1]) if varies else np.nan, float(share)


def tables(
    title: str, predicted: Array, truth: Array, forecasts: Sequence[Forecast], outcomes: Sequence[Outcome]
) -> str:
    """The text of a preview.

    ``predicted`` and ``truth``: the teacher's probabilities and the true labels, one-hot, of the held-out images, each
    (q, classes).
    """
    parts = [
        f"Kernel twin of {title}, {len(truth):,} held-out images\n"
        "error: squared error against the true label, summed over classes; step 0 is the teacher",
        _teacher_table(predicted, truth, forecasts),
    ]
    for forecast in forecasts:
        parts.append(_alpha_step_table(forecast, "error", forecast.error, np.min))
        parts.append(_alpha_step_table(forecast, "accuracy", forecast.accuracy, np.max))
        parts.append(_schedule_table(forecast))
    parts.append(_freedom_table(forecasts))
    if outcomes:
        parts.append(_outcome_table(outcomes, [forecast.twin.name for forecast in forecasts]))
    return "\n\n".join(parts)


def _teacher_table(predicted: Array, truth: Array, forecasts: Sequence[Forecast]) -> str:
    error, accuracy = scores(predicted, truth)
    rows = [["step 0", "lam", "df", "error", "accuracy", "agrees with the network"]]
    rows.append(["network", "", "", f"{error:.4f}", f"{accuracy:.4f}", ""])
    classes = predicted.argmax(1)
    for forecast in forecasts:
        twin = forecast.twin
        agreement = (twin.predict(1, [0])[0].argmax(1) == classes).mean()
        metrics = [f"{forecast.error[0, 0]:.4f}", f"{forecast.accuracy[0, 0]:.4f}", f"{agreement:.4f}"]
        rows.append([twin.name, f"{twin.lam:.3g}", f"{forecast.freedom[0, 0]:.1f}", *metrics])
    return aligned(rows)


def _step_names(steps: Array) -> list[str]:
    return ["∞" if step == np.inf else f"step {step:.0f}" for step in steps]


def _alpha_step_table(forecast: Forecast, metric: str, values: Array, best: Callable[..., Array]) -> str:
    rows = [["alpha", *(f"{name} " for name in _step_names(forecast.steps))]]
    stars = best(values[TABLE_ALPHAS], axis=0)
    for i in TABLE_ALPHAS:
        cells = (f"{v:.4f}{'*' if v == star else ' '}" for v, star in zip(values[i], stars, strict=True))
        rows.append([f"{ALPHAS[i]:g}", *cells])
    return f"{forecast.twin.name}: held-out {metric} of a constant alpha (* best of its column)\n{aligned(rows)}"


def _schedule_table(forecast: Forecast) -> str:
    rows = [["step", *(cell for name in forecast.schedules for cell in (f"{name} alpha", "error", "acc."))]]
    for step in range(1, len(forecast.steps) - 1):
        row = [str(step)]
        for schedule in forecast.schedules.values():
            row += [_format_alpha(schedule, step - 1), f"{schedule.error[step]:.4f}", f"{schedule.accuracy[step]:.4f}"]
        rows.append(row)
    heading = f"{forecast.twin.name}: best alphas in [0, 1] (before clipping); joint is for the last step"
    return f"{heading}\n{aligned(rows)}"


def _format_alpha(schedule: Schedule, i: int) -> str:
    if schedule.unclipped is None or schedule.unclipped[i] == schedule.alphas[i]:
        return f"{schedule.alphas[i]:.3f}"
    return f"{schedule.alphas[i]:.3f} ({schedule.unclipped[i]:.2f})"


def _freedom_table(forecasts: Sequence[Forecast]) -> str:
    rows = [["twin", "alpha", *_step_names(forecasts[0].steps)]]
    for forecast in forecasts:
        for i in reversed(CURVE_ALPHAS):
            rows.append([forecast.twin.name, f"{ALPHAS[i]:g}", *(f"{value:.1f}" for value in forecast.freedom[i])])
    return f"effective degrees of freedom\n{aligned(rows)}"


def _outcome_table(outcomes: Sequence[Outcome], names: Sequence[str]) -> str:
    rows = [["arm", "step", "alpha", "error", *names, "accuracy", *names]]
    for outcome in outcomes:
        for k, alpha in enumerate(outcome.alphas):
            changes = [outcome.error[k], *outcome.expected[:, 0, k], outcome.accuracy[k], *outcome.expected[:, 1, k]]
            rows.append([outcome.label, str(k + 1), f"{alpha:.3g}", *(f"{change:+.4f}" for change in changes)])
    lines = ["change against the teacher: as observed, and as each twin expects it", aligned(rows)]
    for i, name in enumerate(names):
        words = [_format_comparison(what, *_pairs(outcomes, i, j)) for j, what in enumerate(("error", "accuracy"))]
        lines.append(f"{name}: {'; '.join(words)}")
    return "\n".join(lines)


def _format_comparison(metric: str, expected: Array, observed: Array) -> str:
    correlation, share = compare(expected, observed)
    if np.isnan(share):
        return f"{metric}: no change expected"
    shown = "-" if np.isnan(correlation) else f"{correlation:+.2f}"
    return f"{metric}: correlation {shown}, as expected up or down in {share:.0%}"


def _pairs(outcomes: Sequence[Outcome], twin: int, metric: int) -> tuple[Array, Array]:
    """Expected and observed changes in error (``metric`` 0) or accuracy (1) of all students."""
    expected = np.concatenate([outcome.expected[twin, metric] for outcome in outcomes])
    return expected, np.concatenate([(outcome.error, outcome.accuracy)[metric] for outcome in outcomes])


@styled()
def figure(title: str, forecasts: Sequence[Forecast], outcomes: Sequence[Outcome]) -> Figure:
    """A row per twin (error, accuracy, best alphas), then degrees of freedom and outcomes."""
    from matplotlib.lines import Line2D

    drawing = new_figure(9.6, 2.55 * (len(forecasts) + 1))
    drawing.suptitle(f"Kernel twin of {title}", parse_math=False)  # a path may have dollar signs
    axes = drawing.subplots(len(forecasts) + 1, 3)
    for row, forecast in zip(axes, forecasts, strict=False):
        _draw_map(row[0], forecast, forecast.error, "held-out squared error", lower_is_better=True)
        _draw_map(row[1], forecast, forecast.accuracy, "held-out accuracy", lower_is_better=False)
        _draw_alphas(row[2], forecast)
    names = [forecast.twin.name for forecast in forecasts]
    _draw_freedom(axes[-1, 0], forecasts)
    for j, metric in enumerate(("squared error", "accuracy")):
        _draw_outcome(axes[-1, 1 + j], j, metric, names, outcomes)
    keys = [Line2D([], [], markersize=5, label=name, **_twin_style(i)) for i, name in enumerate(names)]
    drawing.legend(handles=keys, loc="outside lower center", ncols=len(keys), title="twins, in the last row")
    return drawing


def _twin_style(i: int) -> dict[str, Any]:
    """Colour and marker of a twin. All but the first are hollow, so that overlapping points stay visible."""
    return {"color": COLOURS[i], "marker": MARKERS[i], "markerfacecolor": COLOURS[i] if i == 0 else "none"}


def _positions(steps: Array) -> Array:
    """Horizontal positions of steps, with a gap before the limit, which is last."""
    return np.arange(len(steps), dtype=np.float64) + np.where(steps == np.inf, 0.3, 0.0)


def _step_ticks(axes: Axes, steps: Array, at: Array) -> None:
    every = max(1, (len(steps) + 6) // 8)
    shown = [i for i, step in enumerate(steps) if step == np.inf or i % every == 0]
    axes.set_xticks([at[i] for i in shown], ["∞" if steps[i] == np.inf else f"{steps[i]:.0f}" for i in shown])
    axes.set_xlabel("step")


def _draw_map(axes: Axes, forecast: Forecast, values: Array, metric: str, *, lower_is_better: bool) -> None:
    """Values (alphas, steps) as colours, light for good, with a star at the best student and a gap before the limit."""
    # Near alpha = 0 the limit is so bad that it would use up the colour scale, so the worst cells share one colour.
    ends = (values.min(), np.quantile(values, 0.9)) if lower_is_better else (np.quantile(values, 0.1), values.max())
    half = (ALPHAS[1] - ALPHAS[0]) / 2
    edges = np.append(ALPHAS - half, ALPHAS[-1] + half)
    at = _positions(forecast.steps)
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
    best, step = np.unravel_index(np.argmin(students), students.shape)
    axes.plot(at[step + 1], ALPHAS[best], "*", color="white", markeredgecolor="black", markersize=9, clip_on=False)
    where = "the limit" if forecast.steps[step + 1] == np.inf else f"step {forecast.steps[step + 1]:.0f}"
    axes.set_title(
        f"{forecast.twin.name}: {metric}\nstep 0: {values[0, 0]:.3f}, best: {values[best, step + 1]:.3f} at {where}, "
        f"alpha {ALPHAS[best]:g}"
    )
    axes.set(ylabel="alpha", ylim=(edges[0], edges[-1]))
    _step_ticks(axes, forecast.steps, at)
    clipped = values.max() > ends[1] if lower_is_better else values.min() < ends[0]
    beyond = "max" if lower_is_better else "min"
    axes.figure.colorbar(mesh, ax=axes, extend=beyond if clipped else "neither")


def _draw_alphas(axes: Axes, forecast: Forecast) -> None:
    steps = forecast.steps[1:-1]
    sizes = (8, 5.5, 3)  # so that equal alphas do not hide each other
    for i, (name, schedule) in enumerate(forecast.schedules.items()):
        style: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": sizes[i]}
        axes.plot(steps, schedule.alphas, LINES[i], label=name, clip_on=False, **style)
    axes.set(title=f"{forecast.twin.name}: best alphas in [0, 1]", ylabel="alpha", yticks=np.linspace(0, 1, 6))
    axes.set_ylim(-0.05, 1.75)  # room for the legend above the alphas
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    _step_ticks(axes, steps, steps)


def _draw_freedom(axes: Axes, forecasts: Sequence[Forecast]) -> None:
    from matplotlib.lines import Line2D

    at = _positions(forecasts[0].steps)
    for i, forecast in enumerate(forecasts):
        for line, k in zip(LINES, CURVE_ALPHAS, strict=True):
            freedom = forecast.freedom[k]
            axes.plot(at[:-1], freedom[:-1], line, label=f"{ALPHAS[k]:g}", markersize=4, **_twin_style(i))
            axes.plot(at[-1:], freedom[-1:], markersize=4, **_twin_style(i))
    axes.set(title="effective degrees of freedom", yscale="log")
    axes.grid(alpha=0.3)
    keys = [Line2D([], [], color="0.2", linestyle=line) for line in LINES]
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** 0.2)  # room for the legend
    axes.legend(keys, ["alpha 1", "0.5", "0"], loc="upper center", ncols=3)
    _step_ticks(axes, forecasts[0].steps, at)


def _draw_outcome(axes: Axes, j: int, metric: str, names: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    axes.set_title(f"change in held-out {metric} against\nthe teacher (dashed: as expected)")
    if not outcomes:
        axes.text(0.5, 0.5, "no students yet", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.axline((0, 0), slope=1, color="0.5", linewidth=0.8, linestyle="--")
    for i, name in enumerate(names):
        axes.plot(*_pairs(outcomes, i, j), linestyle="none", label=name, markersize=5, **_twin_style(i))
    axes.set(xlabel="expected by the twin", ylabel="observed")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.3)
