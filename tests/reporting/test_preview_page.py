"""The text and the figure of a preview, from twins on random points."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from distill.kernel.twin import ALPHAS, Forecast, forecast, make_twin
from distill.reporting.preview_page import Outcome, compare, figure, tables

STUDENTS = 2
TWINS = ("linear", "rbf", "images")


@pytest.fixture(scope="module")
def forecasts() -> list[Forecast]:
    """Three twins on 30 points of three classes, seen at 9 held-out points."""
    rng = np.random.default_rng(0)
    labels = np.eye(3)[np.arange(39) % 3]
    X = labels @ rng.normal(size=(3, 5)) + rng.normal(size=(39, 5))
    twins = [
        make_twin(kernel, X[:30], labels[:30], X[30:], labels[30:], name=name)
        for kernel, name in zip(("linear", "rbf", "rbf"), TWINS, strict=True)
    ]
    return [forecast(twin, STUDENTS) for twin in twins]


def text_of(forecasts: list[Forecast], outcomes: list[Outcome]) -> str:
    truth = forecasts[0].twin.true
    return tables("a title", 0.9 * truth + 0.1 / 3, truth, forecasts, outcomes)


def test_comparison_by_hand():
    expected = np.array([0.0, 0.1, -0.2, 0.3])
    observed = np.array([0.5, 0.2, 0.1, 0.4])
    correlation, share = compare(expected, observed)
    assert correlation == pytest.approx(np.corrcoef(expected, observed)[0, 1])
    assert share == pytest.approx(2 / 3)  # of those for which a change is expected
    assert np.isnan(compare(np.zeros(3), np.ones(3))).all()
    for constant in (np.array([0.1]), np.full(3, 0.1)):  # without a correlation
        assert np.isnan(compare(constant, 2 * constant)[0])
        assert compare(constant, 2 * constant)[1] == 1


def test_tables_have_the_numbers_of_the_forecast(forecasts):
    sections = text_of(forecasts, []).split("\n\n")
    assert len(sections) == 2 + 3 * len(TWINS) + 1
    network, *twins = sections[1].splitlines()[1:]
    assert network.split()[2] == "1.0000"  # accuracy
    for line, each in zip(twins, forecasts, strict=True):
        assert line.split()[0] == each.twin.name
        assert float(line.split()[3]) == pytest.approx(each.error[0, 0], abs=0.6e-4)
    _, _, *rows = sections[2].splitlines()  # the error of the first twin
    shown = [[float(cell.removesuffix("*")) for cell in row.split()] for row in rows]
    assert_allclose([row[0] for row in shown], [0, 0.2, 0.4, 0.6, 0.8, 1])
    assert_allclose([row[1:] for row in shown], forecasts[0].error[::4], atol=0.6e-4)
    best = [max(cell.count("*") for cell in column) for column in zip(*(row.split() for row in rows), strict=True)]
    assert best == [0] + [1] * (STUDENTS + 2)


def test_if_no_change_is_expected_the_text_says_so(forecasts):
    none = Outcome("1", np.ones(2), np.array([0.1, 0.2]), np.array([0.3, 0.1]), np.zeros((3, 2, 2)))
    last = text_of(forecasts, [none]).splitlines()[-1]
    assert last == "images: error: no change expected; accuracy: no change expected"


def test_the_figure_shows_the_forecast_and_the_outcome(forecasts):
    changes = np.arange(12.0).reshape(3, 2, 2)
    outcome = Outcome("0.3", np.full(2, 0.3), np.array([5.0, 6.0]), np.ones(2), changes)
    axes = figure("a title", forecasts, [outcome]).axes[:12]
    for i, each in enumerate(forecasts):
        columns = np.hstack([mesh.get_array() for mesh in axes[3 * i].collections])
        assert_allclose(columns.reshape(len(ALPHAS), -1), each.error)
        lines = {line.get_label(): line.get_ydata() for line in axes[3 * i + 2].lines}
        assert_array_equal(lines["greedy"], each.schedules["greedy"].alphas)
        points = {line.get_label(): line for line in axes[10].lines}[each.twin.name]
        assert_array_equal(points.get_xdata(), changes[i, 0])
        assert_array_equal(points.get_ydata(), [5, 6])


def test_without_students_the_figure_says_so(forecasts):
    texts = figure("a title", forecasts, []).axes[10].texts
    assert [text.get_text() for text in texts] == ["no students yet"]
