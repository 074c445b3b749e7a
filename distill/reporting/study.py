"""The report of a study: its results.csv, its tables, accuracy against an axis, and one page for all settings."""

from __future__ import annotations

import itertools
import math
import typing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.arms import arm_name, arm_title, sort_key
from distill.errors import ConfigError, suggestion
from distill.files import write_derived
from distill.pages.html import PAGE, Part, View, render_page, svg
from distill.pages.style import describe, draw, legend, line_style, new_figure, styled, thinned, thinned_words
from distill.pages.tables import FORMATS, Spread, Table, format_count, shaded
from distill.reporting.page import SCORES, missing, origin, write_page
from distill.reporting.page_tables import link
from distill.reporting.results import RunResults, metric_labels
from distill.reporting.run_report import check_writable, tables, write_output
from distill.reporting.run_tables import answer as run_answer
from distill.reporting.run_tables import gains_table
from distill.reporting.statistics import interval, spread
from distill.reporting.status import model_states
from distill.store.events import write_figure_events
from distill.store.results import columns
from distill.store.rundir import RunDir, is_finished, to_csv
from distill.study import Setting, Study, read_study, shown

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TABLES = 4  # settings whose own tables are printed
MOST_PANELS = 12
MOST_PAGES = 12  # settings that get a page of their own, each of which takes seconds
FOLDERS = "Each setting's page also has learning curves, classes and costs; --report FOLDER writes it."
SHIFT = 0.015  # of the axis, between the points of two arms
TEACHER: dict[str, Any] = {"color": "#808080", "marker": "x", "linestyle": "--"}


@dataclass(frozen=True)
class StudyResults:
    """The results of each setting of a study that has a finished model."""

    study: Study
    runs: list[tuple[Setting, RunResults]]
    step: int  # that tables and figures show

    @classmethod
    def load(cls, path: Path, step: int | None = None) -> StudyResults:
        """The results of the study in a folder, to be shown at a step, by default the last. Raises ConfigError."""
        study = read_study(path)
        chain = study.settings[0].config.chain
        last = chain.first_step + chain.distillation_steps
        step = last if step is None else step
        if not chain.first_step <= step <= last:
            raise ConfigError(f"--step {step}: {path} has the steps {chain.first_step} to {last}")
        begun = [each for each in study.settings if (each.config.output / "config.toml").exists()]
        loaded = [(setting, RunResults.load(setting.config.output)) for setting in begun]
        return cls(study, [(setting, run) for setting, run in loaded if run or run.problems], step)

    @cached_property
    def arms(self) -> list[str]:
        """The names of all arms with students."""
        return sorted({name for _, run in self.runs for arm in run.arms if (name := arm_name(arm))}, key=sort_key)

    @property
    def problems(self) -> list[str]:
        """A line for each model whose record cannot be read."""
        return [problem for _, run in self.runs for problem in run.problems]

    def values(self, run: RunResults, arm: str | None, metric: str = "test_acc") -> list[float]:
        """A metric of the seeds of a setting, of an arm at ``step`` or (None) of the teacher."""
        by_arm = run.by_arm(metric)
        steps = by_arm.get(arm, {}) if arm is not None else next(iter(by_arm.values()), {})
        return steps.get(run.chain.first_step if arm is None else self.step, [])


def choose_axis(study: Study, name: str | None) -> str:
    """The axis ``name`` or, by default, the one with the most values, numbers first. Raises ConfigError."""
    axes = study.axes
    if name is None:
        return max(axes, key=lambda each: (_is_numeric(axes[each]), len(axes[each])))
    name = name.replace("-", "_")
    if name not in axes:
        raise ConfigError(f"--x {name}: the axes of this study are {', '.join(axes)}{suggestion(name, axes)}")
    return name


def _is_numeric(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def report(results: StudyResults, x: str | None = None, output: Path | None = None) -> str:
    """Write results.csv, the figure and the page of a study, and a page of each setting unless there are many.

    Return its tables. With ``output``, write the page of the study alone. Raises ConfigError.
    """
    path = results.study.path
    x = choose_axis(results.study, x)
    if output is not None:
        write_output(output, page(results, output.absolute().parent, x))
        return f"{tables_of(results)}\n\nthe page is {output}"
    runs = [run for _, run in results.runs if len(results.runs) <= MOST_PAGES]
    check_writable([path, *(run.path for run in runs)])
    write_results(results)
    for run in runs:
        write_page([run], run.path / PAGE)
    if results.runs:
        draw(path / f"accuracy_by_{x}", x_figure, results, x)
        if results.study.settings[0].config.run.tensorboard:
            write_figure_events(RunDir(path), [f"accuracy_by_{x}"])
    written = write_derived(path / PAGE, page(results, path, x))
    return tables_of(results) + (f"\n\nthe page is {path / PAGE}" if written else "")


def write_results(results: StudyResults) -> None:
    """Write the study's results.csv: the rows of every setting, with a column for each axis."""
    rows = [setting.values | result.row() for setting, run in results.runs for result in run]
    write_derived(results.study.path / "results.csv", to_csv([*results.study.axes, *columns()], rows))


def tables_of(results: StudyResults) -> str:
    """The tables of a few settings, and the one of all."""
    if not results.runs:
        return f"{results.study.path}: no model is finished yet"
    few = [f"{setting.title}\n{tables(run)}" for setting, run in results.runs if len(results.runs) <= MOST_TABLES]
    return "\n\n".join([*few, settings_table(results).text()])


def formatted(results: StudyResults, kind: str) -> str:
    """The tables of all settings in a format of ``FORMATS``. Raises ConfigError if no model is finished."""
    if not any(run for _, run in results.runs):
        raise ConfigError(f"{results.study.path}: no model is finished yet")
    return "\n\n".join(FORMATS[kind](table) for table in (settings_table(results), gains(results)) if table.rows)


def settings_table(results: StudyResults, metric: str = "test_acc") -> Table:
    """A metric at a step, means and deviations over seeds: a row per setting, a column per arm."""
    rows = []
    for setting, run in results.runs:
        cells = [results.values(run, arm, metric) for arm in (None, *results.arms)]
        rows.append([setting.title, *(Spread(*spread(values), len(values)) if values else None for values in cells)])
    header = ["setting", "teacher", *(arm_title(arm).replace(" =", "") for arm in results.arms)]
    label = metric_labels()[metric]
    title = f"{label[0].upper()}{label[1:]} at step {results.step}, mean ± standard deviation over seeds"
    return Table(title, header, rows)


def gains(results: StudyResults) -> Table:
    """The gains over the teacher at a step, a row per setting and arm; corrected by Holm's method in each setting."""
    found = {setting.title: gains_table(run.paired(step=results.step)) for setting, run in results.runs}
    titles = dict.fromkeys(table.title for table in found.values() if table.rows)
    rows = [[name, *row] for name, table in found.items() for row in table.rows]
    return Table(f"In each setting: {'; '.join(titles)}", ["setting", *gains_table([]).header], rows)


@styled()
def x_figure(results: StudyResults, x: str) -> Figure:
    """Test accuracy at a step against an axis, with 95 % intervals over seeds: a line per arm.

    The other axes make the panels, of which the first ``MOST_PANELS`` are drawn.
    """
    arms = thinned(results.arms)
    panels: dict[str, list[tuple[Any, RunResults]]] = {}
    for setting, run in results.runs:
        rest = {name: value for name, value in setting.values.items() if name != x}
        panels.setdefault(Setting(rest, setting.config).title, []).append((setting.values[x], run))
    number = min(len(panels), MOST_PANELS)
    columns = min(number, 4)
    rows = math.ceil(number / columns)
    figure = new_figure(max(4.5, 2.6 * columns), 1.0 + 2.4 * rows)
    drawn = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, (title, points) in zip(drawn, panels.items(), strict=False):
        axes.set_title(title, parse_math=False, wrap=True)
        axes.grid(alpha=0.3)
        for i, arm in enumerate((None, *arms)):
            style = TEACHER if arm is None else line_style(i - 1)
            _draw_line(axes, results, x, points, arm, style, i - len(arms) / 2)
        _set_axis(axes, results.study.axes[x])
    for i, axes in enumerate(drawn):
        axes.set(xlabel=x.replace("_", " ") if i + columns >= number else "")
        if i >= number:
            axes.set_axis_off()
    low, high = drawn[0].get_ylim()
    drawn[0].set_ylim(max(low, -0.02), min(high, 1.02))  # an interval of few seeds may exceed what an accuracy can be
    drawn[0].set_ylabel(f"{metric_labels()['test_acc']}, step {results.step}")
    handles, names = drawn[0].get_legend_handles_labels()
    several = any(len(run.seeds) > 1 for _, run in results.runs)
    bars = "bars: 95 % intervals over seeds" if several else ""
    legend(figure, handles, names, thinned_words(results.arms), bars)
    return figure


def _draw_line(
    axes: Axes,
    results: StudyResults,
    x: str,
    points: list[tuple[Any, RunResults]],
    arm: str | None,
    style: dict[str, Any],
    place: float,
) -> None:
    """Draw an arm's points, ``place`` times ``SHIFT`` beside their values, so that bars do not overlap."""
    values = results.study.axes[x]
    found = [(value, results.values(run, arm)) for value, run in points]
    at = [value if _is_numeric(values) else values.index(value) for value, accuracies in found if accuracies]
    means = [interval(accuracies) for _, accuracies in found if accuracies]
    halves = [0.0 if math.isnan(half) else half for _, half in means]
    order = sorted(range(len(at)), key=at.__getitem__)
    line = {} if _is_numeric(values) else {"linestyle": "none"}  # nothing is between two words
    drawn = axes.errorbar(
        [_shifted(at[i], values, SHIFT * place) for i in order],
        [means[i][0] for i in order],
        [halves[i] for i in order] if any(halves) else None,
        markersize=4,
        elinewidth=0.8,
        label=arm_title(arm),
        **(style | line),
    )
    shown_at = [shown(value) for value, accuracies in found if accuracies]
    texts = [f"{shown_at[i]}: {means[i][0]:.4f}" + f" ± {halves[i]:.4f}" * (halves[i] > 0) for i in order]
    describe(drawn.lines[0], [f"{arm_title(arm)}, {x.replace('_', ' ')} {text}" for text in texts])


def _is_logarithmic(values: tuple[Any, ...]) -> bool:
    return _is_numeric(values) and min(values) > 0 and max(values) >= 30 * min(values)


def _shifted(at: float, values: tuple[Any, ...], by: float) -> float:
    """A place on an axis of ``values``, moved by a share of the axis."""
    if _is_logarithmic(values):
        return at * (max(values) / min(values)) ** by
    return at + by * (max(values) - min(values) if _is_numeric(values) else len(values) - 1)


def _set_axis(axes: Axes, values: tuple[Any, ...]) -> None:
    """The scale and ticks of an axis: logarithmic if its numbers span decades, names for what is no number."""
    if not _is_numeric(values):
        axes.set_xticks(range(len(values)), [shown(value) for value in values])
    elif _is_logarithmic(values):
        axes.set_xscale("log")
    elif min((b - a for a, b in itertools.pairwise(sorted(values))), default=1) > (max(values) - min(values)) / 10:
        axes.set_xticks(values, [shown(value) for value in values])


def page(results: StudyResults, base: Path, x: str) -> str:
    """The page of a study, as HTML; ``base`` is the folder that its links begin in."""
    lines = [
        f"{setting.title}: {line}" for setting, run in results.runs for line in missing(run, model_states(run.config))
    ]
    waiting = len(results.study.settings) - len(results.runs)
    lines += [f"{format_count(waiting, 'setting')} without a finished model"] if waiting else []
    parts = [Part("What is missing", lines=lines)] if lines else []
    others = ", a panel per value of the other axes" if len(results.study.axes) > 1 else ""
    for i, axis in enumerate(sorted(results.study.axes, key=lambda name: name != x) if results.runs else ()):
        name = axis.replace("_", " ")
        label = f"Test accuracy at step {results.step} against {name}{others}"
        parts.append(Part(f"Against {name}", figures=[svg(x_figure(results, axis), label, f"x{i}")]))
    runs = [run for _, run in results.runs]
    maps = [_map(setting, run) for setting, run in results.runs[:MOST_PANELS] if run]
    parts += [
        Part("Gain over the teacher", tables=[gains(results)], sorts=True),
        Part("Settings", tables=[shaded(settings_table(results, metric)) for metric in SCORES], sorts=True),
        Part(
            "Alpha and step",
            f"{len(maps)} of {len(runs)} settings." if len(maps) < len(runs) else "",
            tables=maps,
            sorts=True,
        ),
        Part("Folders", FOLDERS, tables=[_folders(results, base)]),
        origin(runs, results.study.path),
    ]
    return render_page(f"{results.study.path}", [View("study", sentence(results), answer(results), parts)])


def sentence(results: StudyResults) -> str:
    """What was run, in one sentence."""
    config = results.study.settings[0].config
    axes = "; ".join(
        f"{name.replace('_', ' ')} {', '.join(map(shown, values))}" for name, values in results.study.axes.items()
    )
    steps = config.chain.distillation_steps
    configs = [setting.config for setting in results.study.settings]
    folders = [model.folder for each in configs for model in RunDir(each.output).models(each)]
    whole = [folder for folder in folders if folder.name != "probe"]
    finished = sum(is_finished(folder) for folder in whole)
    return (
        f"{config.model.name} on {config.data.dataset}: {len(results.study.settings)} settings ({axes}), alpha "
        f"{', '.join(results.arms) or 'none'}, seed {' '.join(map(str, config.chain.seed))}, "
        f"{format_count(steps, 'student')} each; {finished:,} of {len(whole):,} models are finished."
    )


def answer(results: StudyResults) -> list[str]:
    """The answer of each of the first settings, which are not compared: some are harder than others."""
    return [f"{setting.title}: {'. '.join(run_answer(run))}" for setting, run in results.runs[:MOST_PANELS]]


def _map(setting: Setting, run: RunResults) -> Table:
    """Test accuracy by arm and step of a setting."""
    table = shaded(run.table(index="arm", columns="step"))
    return replace(table, title=f"{setting.title}: {table.title}")


def _folders(results: StudyResults, base: Path) -> Table:
    """The settings with links to their pages, as far as these are written, and folders."""
    rows = []
    for setting, run in results.runs:
        file = run.path / PAGE
        pages = [link(file, base, "page")] if file.exists() else None
        rows.append([setting.title, len(run), pages, [link(run.path, base, run.path.name)]])
    return Table("The runs of the study", ["setting", "finished models", "page", "folder"], rows)
