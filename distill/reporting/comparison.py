"""Several runs side by side: what differs between their options, and their gains in one figure."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from distill.arms import arm_name, arm_title, sort_key
from distill.errors import ConfigError
from distill.pages.style import legend, line_style, new_figure, styled, thinned, thinned_words
from distill.reporting.plots import draw_gains
from distill.reporting.results import RunResults, metric_labels
from distill.store.rundir import RunDir
from distill.study import shown

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_OPTIONS = 4  # in the name of a run
SHORT = {"data.label_noise": "label noise", "data.dataset": "data", "data.data_dir": "folder"}


def check_same_data(runs: Sequence[RunResults]) -> None:
    """Raise ConfigError if runs are on different images or labels, as their data.sha256 say."""
    first = runs[0]
    for run in runs[1:]:
        here, there = (RunDir(each.path).recorded_data() for each in (first, run))
        if None not in (here, there) and here != there:
            names = [f"{each.path} ({each.config.data.dataset})" for each in (first, run)]
            raise ConfigError(f"{' and '.join(names)} are on different data: report them one by one")


def names(runs: Sequence[RunResults]) -> list[str]:
    """A name for each run: the options that differ, such as ``label noise 0.4``, or else its folder's name.

    Of more than ``MOST_OPTIONS`` options, those that tell the runs apart.
    """
    options = [run.config.identity for run in runs]
    differing = [
        name
        for name in dict.fromkeys(name for each in options for name in each)
        if not name.startswith("chain.alpha") and len({str(each.get(name)) for each in options}) > 1
    ]
    if len(differing) > MOST_OPTIONS:
        differing = _distinguishing(differing, options)
    found = []
    for run, each in zip(runs, options, strict=True):
        words = [_words(name, each[name]) for name in differing if each.get(name) is not None]
        found.append(", ".join(words) or run.path.name)
    folders = [str(run.path) for run in runs]
    return found if len(set(found)) == len(found) else folders


def _distinguishing(names: Sequence[str], options: Sequence[dict[str, Any]]) -> list[str]:
    """The first of some options that tell apart as many runs as all of them do."""
    chosen: list[str] = []
    groups = 1
    for name in names:
        now = len({str([each.get(other) for other in [*chosen, name]]) for each in options})
        if now > groups:
            chosen.append(name)
            groups = now
    return chosen


def _words(name: str, value: Any) -> str:
    """``label noise 0.4``, ``seed 1 2 3``."""
    values = " ".join(map(shown, value if isinstance(value, tuple) else (value,)))
    return f"{SHORT.get(name, name.partition('.')[2].replace('_', ' '))} {values}"


@styled()
def gains_figure(runs: Sequence[RunResults], metrics: Sequence[str] = ("test_acc", "test_brier")) -> Figure:
    """Paired changes from the teacher against step with 95 % intervals: a column per run, a row per metric.

    An arm has the same colour in all panels; the panels of a row share their axis.
    """
    from matplotlib.lines import Line2D

    arms = sorted({arm_name(arm) for run in runs for arm in run.arms}, key=sort_key)
    order = thinned(arms)
    figure = new_figure(max(4, 2.6 * len(runs)), 0.6 + 2.5 * len(metrics))
    panels = figure.subplots(len(metrics), len(runs), squeeze=False, sharex=True, sharey="row")
    for column, (run, name) in enumerate(zip(runs, names(runs), strict=True)):
        for axes, metric in zip(panels[:, column], metrics, strict=True):
            draw_gains(axes, run, metric, order)
        panels[0, column].set_title(name, parse_math=False, wrap=True)
        panels[-1, column].set_xlabel("step")
    for axes, metric in zip(panels[:, 0], metrics, strict=True):
        axes.set_ylabel(f"change of the {metric_labels()[metric]}")
    keys = [Line2D([], [], markersize=4, **line_style(i)) for i in range(len(order))]
    legend(figure, keys, [arm_title(arm) for arm in order], thinned_words(arms))
    return figure
