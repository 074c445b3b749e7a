"""kernel/toy/figures.py: figures read back from their axes."""

import math

import matplotlib
import numpy as np
import pytest

from distill import krr
from distill.kernel.toy import data as toy_data
from distill.kernel.toy import figures as toy_figures
from distill.kernel.toy import program
from distill.kernel.toy.options import parse, set_toy_defaults
from distill.pages.style import FONT, rendered, styled

STEPS = [1, 2, 3, 4, 5, 6, math.inf]


@pytest.fixture(autouse=True)
def style():
    with styled():
        yield


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    return rng.uniform(0.1, 1, (3, 8)), rng.uniform(0.1, 1, 8)


@pytest.mark.page
@pytest.mark.parametrize("file_format", ["png", "pdf", "svg"])
def test_the_same_figure_is_the_same_bytes(file_format):
    files = {rendered(toy_figures.chain_drawing(), file_format, 40) for _ in range(2)}
    assert len(files) == 1


def test_distill_figure_draws_its_arrays(arrays):
    curves, limit = arrays
    grid = np.linspace(0, 1, 8)
    x = np.array([0.2, 0.6])
    y = np.array([1.0, -1.0])
    data = toy_data.Data(x, y, grid, -limit)
    axes = toy_figures.distill_figure(data, grid, curves, [1, 2, 9], limit).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    for name, values in {
        "fit 1": curves[0],
        "fit 9": curves[2],
        "limit": limit,
        "truth": -limit,
        "data": y,
    }.items():
        np.testing.assert_array_equal(lines[name].get_ydata(), values)
    assert lines["limit"].get_linestyle() == "--"
    assert len(lines) == 6
    without = toy_figures.distill_figure(toy_data.Data(x, y, None, None), grid, curves, [1, 2, 9], None)
    assert "limit" not in {line.get_label() for line in without.axes[0].lines}


def test_diagonal_figure_draws_nested_bars_and_a_hatched_limit(arrays):
    B, limit = arrays
    axes = toy_figures.diagonal_figure(B, [1, 2, 3], limit).axes[0]
    bars = {container.get_label(): container.patches for container in axes.containers}
    for name, values in zip(["fit 1", "fit 2", "fit 3", "limit"], [*B, limit], strict=True):
        np.testing.assert_array_equal([bar.get_height() for bar in bars[name]], values)
    widths = [bars[f"fit {i}"][0].get_width() for i in (1, 2, 3)]
    assert widths == sorted(widths, reverse=True)
    assert bars["limit"][0].get_hatch() == "////"
    assert bars["fit 1"][0].get_hatch() is None


def test_ratio_figure_draws_the_limit_only_if_it_exists(arrays):
    R, limit = arrays
    axes = toy_figures.ratio_figure(R, [1, 2, 3], limit).axes[0]
    for line, values in zip(axes.lines, [*R, limit], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "-", "--"]
    assert len(toy_figures.ratio_figure(R, [1, 2, 3], None).axes[0].lines) == 3


@pytest.fixture(scope="module")
def folds():
    return toy_data.make_folds(toy_data.toy(), "rbf", 80.0, 0)[0]


@pytest.fixture(scope="module")
def drawn(folds):
    """The figures of the program's default chains, by name."""
    args = parse([])
    set_toy_defaults(args)
    with styled():
        return toy_figures.all_figures(toy_data.toy(), folds, "a loss", program.DEFAULT_CHAINS, STEPS, args)


def test_bars_are_the_diagonals_of_the_chain(drawn, folds):
    bars = drawn["B_GT"].axes[0].containers
    heights = [[bar.get_height() for bar in bar_set] for bar_set in bars]
    np.testing.assert_allclose(heights, krr.diagonals(folds[0].spectrum.d, 0.2, 0.35, STEPS), rtol=1e-14)


def test_ratios_have_no_limit_without_ground_truth(drawn):
    """The chain's limit is 0 there."""
    assert "limit" not in {line.get_label() for line in drawn["Rk_no_GT"].axes[0].lines}
    assert "limit" in {line.get_label() for line in drawn["Rk_GT"].axes[0].lines}


def test_curves_are_the_fits_of_the_chain(drawn, folds):
    fits = drawn["distill_no_GT"].axes[0]
    at_points = next(line.get_ydata()[::20] for line in fits.lines if line.get_label() == "fit 6")
    B = krr.diagonals_by_recursion(folds[0].spectrum.d, 0.2, 0.0, 6)
    expected = krr.fitted_values(folds[0].spectrum, toy_data.toy().y, B)[5]
    np.testing.assert_allclose(at_points, expected, atol=1e-12)  # every twentieth point of the grid is a data point


def test_risk_map_shows_the_losses_of_chains(drawn, folds):
    risk = np.ma.concatenate([mesh.get_array() for mesh in drawn["risk_map"].axes[0].collections], axis=1)
    alphas = np.linspace(-1, 1, 41)
    np.testing.assert_allclose(risk[27], toy_data.chain_losses(folds, 0.2, alphas[27], STEPS), rtol=1e-9)
    assert np.ma.getmaskarray(risk)[0].tolist() == [False] * 6 + [True]  # alpha = -1 has no limit


def test_best_alphas_are_at_the_bottom_of_the_valley(drawn, folds):
    axes = drawn["best_alpha"].axes[0]
    valley = axes.collections[0].get_array()
    greedy = axes.lines[1].get_ydata()
    np.testing.assert_allclose(greedy[:2], [-0.62184, 0.33036], atol=5e-6)
    lowest = toy_figures.WIDE_ALPHAS[np.argmin(valley, axis=0)]
    assert (np.abs(lowest - greedy) <= 0.0251).all()  # half a step of the grid
    loss = toy_data.chain_losses(folds, 0.2, (greedy[0], toy_figures.WIDE_ALPHAS[40]), [3])
    assert valley[40, 1] == pytest.approx(loss[0], rel=1e-9)


def test_risk_map_marks_the_best_cell_and_the_limit():
    risk = np.array([[3.0, 2.0, np.inf], [3.0, 1.0, 4.0], [3.0, 2.5, 2.6]])
    axes = toy_figures.risk_map_figure(np.array([-0.1, 0.0, 0.1]), [1, 2, math.inf], risk, "loss").axes[0]
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert "1.00000 at fit 2" in star.get_label()
    assert star.get_ydata()[0] == 0.0
    assert star.get_xdata()[0] == axes.get_xticks()[1]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "∞"]
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert [(patch.get_x(), round(patch.get_y(), 3)) for patch in hatched] == [(2.5, -0.15)]


def test_every_figure_has_one_font_size():
    figure = toy_figures.risk_map_figure(np.array([0.0, 0.1]), [1, math.inf], np.array([[1.0, 2], [3, 4]]), "loss")
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
    assert {text.get_fontsize() for text in texts} == {FONT}
