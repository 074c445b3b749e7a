import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from test_rundir import FIGURES, leave_result

from distill.report import accuracy_figure, by_arm, draw_accuracy, report, spread, table
from distill.rundir import Result, RunDir

SEEDS, ALPHAS, STEPS = (1, 2, 3), (0.0, 0.6), (0, 1, 2)
ACCURACY = np.random.default_rng(0).random((len(SEEDS), len(ALPHAS), len(STEPS)))
ACCURACY[:, :, 0] = ACCURACY[:, :1, 0]  # the teacher is the same for every alpha


def grid(seeds=SEEDS) -> list[Result]:
    """The results that ACCURACY stands for, in no order."""
    results = [
        Result(
            **FIGURES | {"seed": seed, "alpha": alpha if step else None, "step": step, "test_acc": ACCURACY[i, j, k]}
        )
        for i, seed in enumerate(SEEDS)
        for j, alpha in enumerate(ALPHAS)
        for k, step in enumerate(STEPS)
        if seed in seeds and (step or not j)
    ]
    return [results[i] for i in np.random.default_rng(1).permutation(len(results))]


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


def test_the_table_has_means_and_sample_deviations():
    title, header, *lines = table(grid()).splitlines()
    assert "± standard deviation over 3 seeds" in title
    assert header.split() == ["step", "alpha", "0", "alpha", "0.6"]
    mean, sd = ACCURACY.mean(0), ACCURACY.std(0, ddof=1)
    for step, line in zip(STEPS, lines, strict=True):
        expected = [step, mean[0, step], sd[0, step], mean[1, step], sd[1, step]]
        np.testing.assert_allclose(numbers(line), expected, atol=0.5000001e-4)


def test_a_single_seed_has_no_deviation():
    title, _, *lines = table(grid(seeds=(2,))).splitlines()
    assert "±" not in title
    np.testing.assert_allclose([numbers(line)[1:] for line in lines], ACCURACY[1].T, atol=0.5000001e-4)


def test_what_is_not_finished_is_a_dash():
    results = [r for r in grid() if (r.alpha, r.step) != (0.6, 2)]
    assert table(results).splitlines()[-1].endswith(" -")


def test_the_columns_are_aligned():
    assert len({len(line) for line in table(grid()).splitlines()[1:]}) == 1


def test_a_teacher_alone_is_an_arm():
    assert by_arm([r for r in grid(seeds=(1,)) if r.step == 0]) == {None: {0: [ACCURACY[0, 0, 0]]}}


@pytest.mark.parametrize("values", [[0.25], [0.25, 0.5], [0.1, 0.7, 0.4]])
def test_spread_is_the_mean_and_the_sample_deviation(values):
    expected = (np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0)
    np.testing.assert_allclose(spread(values), expected, rtol=1e-12)


def test_the_figure_shows_the_results():
    (axes,) = accuracy_figure(grid()).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["alpha = 0", "alpha = 0.6"]
    for j, arm in enumerate(axes.containers):
        line, _, (bars,) = arm
        np.testing.assert_allclose(np.round(line.get_xdata(orig=False)), STEPS)
        np.testing.assert_allclose(line.get_ydata(orig=False), ACCURACY.mean(0)[j], rtol=1e-12)
        low, high = np.array(bars.get_segments())[:, :, 1].T
        np.testing.assert_allclose((high - low) / 2, ACCURACY.std(0, ddof=1)[j], rtol=1e-9)


def test_a_single_seed_is_drawn_without_bars():
    (axes,) = accuracy_figure(grid(seeds=(2,))).axes
    assert all(bars == () for _, _, bars in axes.containers)
    np.testing.assert_allclose([arm[0].get_ydata(orig=False) for arm in axes.containers], ACCURACY[1])


def test_the_figure_is_left_as_png_and_svg(tmp_path):
    draw_accuracy(grid(), tmp_path)
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert ET.parse(tmp_path / "accuracy.svg").getroot().tag.endswith("svg")
    assert {path.name for path in tmp_path.iterdir()} == {"accuracy.png", "accuracy.svg"}


def test_a_report_is_made_from_the_directory_alone(tmp_path):
    for result in grid():
        leave_result(RunDir(tmp_path), **vars(result))
    assert report(tmp_path) == table(grid())
    assert (tmp_path / "accuracy.svg").exists()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(grid())


def test_nothing_finished_is_nothing_to_report(tmp_path):
    assert report(tmp_path) == ""
    assert not (tmp_path / "accuracy.png").exists()
