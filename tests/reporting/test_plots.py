"""The figures of a run show its numbers."""

import numpy as np
from tiny import VALUES, Grid

from distill import metrics
from distill.config import ChainConfig
from distill.reporting.plots import Run, accuracy_figure, by_arm, diagnostics_figure, reliability_figure

GRID = Grid()


def test_without_students_the_teacher_is_the_only_arm():
    records = [record for record in GRID.records(seeds=(1,)) if record["step"] == 0]
    assert by_arm(Run(ChainConfig(distillation_steps=0), records)) == {None: {0: [GRID.accuracy[0, 0, 0]]}}


def test_chains_that_begin_alike_show_the_models_they_share():
    chain = ChainConfig(alpha=0.6, alpha_schedule=((0.6, 0.1),), distillation_steps=2)
    fork = VALUES | {"arm": "0.6-0.1", "step": 2, "test_acc": 0.125}
    teacher, first, second = GRID.accuracy[0, 1]
    assert by_arm(Run(chain, [*GRID.records(seeds=(1,)), fork])) == {
        "0.6": {0: [teacher], 1: [first], 2: [second]},
        "0.6-0.1": {0: [teacher], 1: [first], 2: [0.125]},
    }


def test_the_figure_shows_the_results():
    (axes,) = accuracy_figure(GRID.run()).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["alpha = 0", "alpha = 0.6"]
    for j, arm in enumerate(axes.containers):
        line, _, (bars,) = arm
        np.testing.assert_allclose(np.round(line.get_xdata(orig=False)), GRID.steps)
        np.testing.assert_allclose(line.get_ydata(orig=False), GRID.accuracy.mean(0)[j], rtol=1e-12)
        low, high = np.array(bars.get_segments())[:, :, 1].T
        np.testing.assert_allclose((high - low) / 2, GRID.accuracy.std(0, ddof=1)[j], rtol=1e-9)


def test_a_single_seed_is_drawn_without_bars():
    (axes,) = accuracy_figure(GRID.run(seeds=(2,))).axes
    assert all(bars == () for _, _, bars in axes.containers)
    np.testing.assert_allclose([arm[0].get_ydata(orig=False) for arm in axes.containers], GRID.accuracy[1])


def test_diagnostics_have_a_panel_for_every_metric_there_is():
    figure = diagnostics_figure(GRID.run())
    panels = [axes.get_title() for axes in figure.axes]
    assert panels == [metric.label for metric in metrics.METRICS if metric.label is not None]
    clean = [record | {"memorised": None, "recovered": None} for record in GRID.records()]
    left = [panel for panel in panels if panel not in ("wrong labels memorised", "wrong labels recovered")]
    assert len(left) == len(panels) - 2
    assert [axes.get_title() for axes in diagnostics_figure(Run(GRID.chain, clean)).axes] == left
    (axes,) = (axes for axes in figure.axes if axes.get_title() == "test accuracy")
    np.testing.assert_allclose(axes.containers[1][0].get_ydata(orig=False), GRID.accuracy.mean(0)[1])


def test_reliability_pools_the_seeds_and_leaves_small_bins_out():
    one = {"count": [9, 10, 0], "confidence": [2.0, 5.0, 0.0], "correct": [1, 4, 0]}
    two = {"count": [0, 10, 1], "confidence": [0.0, 7.0, 0.9], "correct": [0, 9, 1]}
    records = [{"arm": None, "step": 0, "reliability": diagram} for diagram in (one, two)]
    records.append({"arm": None, "step": 0})  # of a version without the diagram
    (axes,) = reliability_figure(Run(ChainConfig(distillation_steps=0), records)).axes
    _, line = axes.get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([12 / 20], [13 / 20])
