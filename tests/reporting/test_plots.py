"""The figures of a run show its numbers."""

import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from tiny import DIAGRAM, VALUES, Grid

from distill import metrics
from distill.config import ChainConfig, Config, DataConfig
from distill.pages.style import MOST_ARMS
from distill.reporting.comparison import gains_figure, names
from distill.reporting.plots import MARKERS, _draw_curve, accuracy_figure, diagnostics_figure, reliability_figure
from distill.reporting.results import RunResults

GRID = Grid()


def test_without_students_the_teacher_is_the_only_arm():
    records = [record for record in GRID.records(seeds=(1,)) if record["step"] == 0]
    assert RunResults(Config(chain=ChainConfig(distillation_steps=0)), records).by_arm() == {
        None: {0: [GRID.accuracy[0, 0, 0]]}
    }


def test_chains_that_begin_alike_show_the_models_they_share():
    chain = ChainConfig(alpha=0.6, alpha_schedule=((0.6, 0.1),), distillation_steps=2)
    fork = VALUES | {"arm": "0.6-0.1", "step": 2, "test_acc": 0.125}
    teacher, first, second = GRID.accuracy[0, 1]
    assert RunResults(Config(chain=chain), [*GRID.records(seeds=(1,)), fork]).by_arm() == {
        "0.6": {0: [teacher], 1: [first], 2: [second]},
        "0.6-0.1": {0: [teacher], 1: [first], 2: [0.125]},
    }


def test_the_figure_shows_means_and_paired_gains():
    left, right = accuracy_figure(GRID.run()).axes
    (legend,) = left.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["alpha = 0", "alpha = 0.6"]
    assert legend.get_title().get_text() == "bars of the gain: 95 % intervals (t, 3 seeds)"
    for j, line in enumerate(left.lines):
        np.testing.assert_array_equal(line.get_xdata(orig=False), GRID.steps)
        np.testing.assert_allclose(line.get_ydata(orig=False), GRID.accuracy.mean(0)[j], rtol=1e-12)
    for j, (line, _, (bars,)) in enumerate(right.containers):
        gains = GRID.accuracy[:, j, 1:] - GRID.accuracy[:, j, :1]
        np.testing.assert_array_equal(np.round(line.get_xdata(orig=False)), GRID.steps[1:])
        np.testing.assert_allclose(line.get_ydata(orig=False), gains.mean(0), rtol=1e-9)
        low, high = np.array(bars.get_segments())[:, :, 1].T
        t = scipy.stats.ttest_1samp(gains, 0).confidence_interval()
        np.testing.assert_allclose([low, high], [t.low, t.high], rtol=1e-9)


def test_a_single_seed_is_drawn_without_bars():
    left, right = accuracy_figure(GRID.run(seeds=(2,))).axes
    assert all(bars == () for _, _, bars in right.containers)
    assert left.figure.legends[0].get_title().get_text().endswith("(one seed: no interval)")
    np.testing.assert_allclose([line.get_ydata(orig=False) for line in left.lines], GRID.accuracy[1])


def test_diagnostics_have_a_panel_for_every_metric_there_is():
    figure = diagnostics_figure(GRID.run())
    panels = titles(figure)
    assert panels == [metric.label for metric in metrics.METRICS if metric.label is not None]
    clean = [record | {"memorised": None, "recovered": None} for record in GRID.records()]
    left = [panel for panel in panels if panel not in ("wrong labels memorised", "wrong labels recovered")]
    assert len(left) == len(panels) - 2
    assert titles(diagnostics_figure(RunResults(Config(chain=GRID.chain), clean))) == left
    (axes,) = (axes for axes in figure.axes if axes.get_title() == "test accuracy")
    mean, sd = GRID.accuracy.mean(0)[1], GRID.accuracy.std(0, ddof=1)[1]
    np.testing.assert_allclose(axes.lines[1].get_ydata(orig=False), mean)
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [(mean - sd).min(), (mean + sd).max()])


def titles(figure) -> list[str]:
    """The titles of the panels; places without a panel show nothing."""
    return [axes.get_title() for axes in figure.axes if axes.axison]


def test_arms_keep_their_colours_and_runs_are_named_by_what_differs():
    chain = ChainConfig(alpha=(0.6,), distillation_steps=2)
    part = [record for record in GRID.records() if record["arm"] != "0"]
    runs = [GRID.run(), RunResults(Config(chain=chain), part)]
    for run, noise in zip(runs, (0.0, 0.4), strict=True):
        run.config = Config(data=DataConfig(label_noise=noise), chain=run.chain)
    figure = gains_figure(runs)
    first, second, third, fourth = figure.axes
    assert first.containers[1].lines[0].get_color() == second.containers[0].lines[0].get_color()
    assert first.get_ylim() == second.get_ylim()
    assert third.get_xlim() == fourth.get_xlim()
    assert all(tick == round(tick) for tick in third.get_xticks())
    assert [first.get_title(), second.get_title()] == ["label noise 0", "label noise 0.4"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["alpha = 0", "alpha = 0.6"]


def test_runs_that_differ_much_are_named_by_what_tells_them_apart():
    runs = []
    for dataset, noise in (("digits", 0.0), ("digits", 0.4), ("cifar10", 0.0), ("cifar10", 0.4)):
        other = {"train_size": 100, "val_size": 10, "test_size": 50} if dataset == "digits" else {}
        run = GRID.run()
        run.config = Config(data=DataConfig(dataset=dataset, label_noise=noise, **other), chain=run.chain)
        runs.append(run)
    assert names(runs) == [
        "data digits, label noise 0",
        "data digits, label noise 0.4",
        "data cifar10, label noise 0",
        "data cifar10, label noise 0.4",
    ]


def test_runs_of_several_seeds_are_named_in_words():
    runs = [GRID.run(), GRID.run()]
    runs[1].config = Config(chain=ChainConfig(seed=(1, 2)))
    assert names(runs)[1].startswith("seed 1 2")


def one_arm(steps: int) -> RunResults:
    chain = ChainConfig(alpha=0.6, distillation_steps=steps)
    records = [VALUES | {"arm": "0.6" if k else None, "step": k, "reliability": DIAGRAM} for k in range(steps + 1)]
    return RunResults(Config(chain=chain), records)


def test_the_teacher_alone_has_a_whole_step_and_no_panel_of_gains():
    (axes,) = accuracy_figure(one_arm(0)).axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [0]


def test_a_legend_has_the_columns_that_its_figure_has_room_for():
    figure = reliability_figure(one_arm(6))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_figures_show_as_many_arms_as_colours_and_dashes_tell_apart():
    alphas = [i / 100 for i in range(30)]
    records = [VALUES | {"arm": None, "step": 0, "reliability": DIAGRAM}]
    records += [VALUES | {"arm": f"{a:g}", "step": 1, "test_acc": a, "reliability": DIAGRAM} for a in alphas]
    run = RunResults(Config(chain=ChainConfig(alpha=tuple(alphas), distillation_steps=1)), records)
    left, right = accuracy_figure(run).axes
    ends = [line.get_ydata(orig=False)[-1] for line in left.lines]
    assert len(ends) == MOST_ARMS == len({(line.get_color(), line.get_linestyle()) for line in left.lines})
    assert (ends[0], ends[-1]) == (0, 0.29)
    assert set(np.diff(ends).round(2)) == {0.02, 0.03}
    assert len(right.containers) == len(gains_figure([run]).axes[0].containers) == MOST_ARMS
    panels = [axes.get_title() for axes in reliability_figure(run).axes if axes.get_title()]
    assert panels == [text.get_text() for text in left.figure.legends[0].get_texts()]
    assert left.figure.legends[0].get_title().get_text().startswith("14 of 30 arms; bars")


def test_a_band_of_scores_does_not_go_below_zero():
    records = [VALUES | {"seed": seed, "test_ece": value} for seed, value in ((1, 0.0), (2, 0.0), (3, 0.3))]
    figure = diagnostics_figure(RunResults(Config(chain=ChainConfig(distillation_steps=0)), records), ["test_ece"])
    assert figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].min() == 0


def test_a_few_markers_of_a_learning_curve_have_their_values():
    axes = Figure().subplots()
    line = _draw_curve(axes, [i / 100 for i in range(75)], "black", "step 1, training loss")
    assert 2 < len(line.texts_of_markers) <= MARKERS
    assert line.texts_of_markers[-1] == "step 1, training loss 0.7400, epoch 75"
    assert len(line.get_markevery()) == len(line.texts_of_markers)


def test_reliability_pools_the_seeds_and_leaves_small_bins_out():
    one = {"count": [9, 10, 0], "confidence": [2.0, 5.0, 0.0], "correct": [1, 4, 0]}
    two = {"count": [0, 10, 1], "confidence": [0.0, 7.0, 0.9], "correct": [0, 9, 1]}
    records = [VALUES | {"reliability": diagram} for diagram in (one, two)]
    records.append(VALUES)  # of a version without the diagram
    axes, shares = reliability_figure(RunResults(Config(chain=ChainConfig(distillation_steps=0)), records)).axes
    _, line = axes.get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([12 / 20], [13 / 20])
    np.testing.assert_allclose(shares.patches[0].get_data().values, np.array([9, 20, 1]) / 30)
