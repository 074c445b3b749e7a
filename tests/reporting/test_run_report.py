import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from tiny import FIGURES, leave_result

from distill import metrics
from distill.config import ChainConfig
from distill.reporting.plots import accuracy_figure, by_arm, diagnostics_figure, reliability_figure, spread
from distill.reporting.run_report import estimates, report, table
from distill.store.results import Result
from distill.store.rundir import RunDir

SEEDS, ALPHAS, STEPS = (1, 2, 3), (0.0, 0.6), (0, 1, 2)
CHAIN = ChainConfig(alpha=ALPHAS, distillation_steps=2)
ACCURACY = np.random.default_rng(0).random((len(SEEDS), len(ALPHAS), len(STEPS)))
ACCURACY[:, :, 0] = ACCURACY[:, :1, 0]  # the teacher is the same for every alpha


def grid(seeds=SEEDS) -> list[Result]:
    """The results that ACCURACY stands for, in no order."""
    results = [
        Result.of(FIGURES, {"seed": seed, "arm": arm if step else None, "step": step, "test_acc": ACCURACY[i, j, k]})
        for i, seed in enumerate(SEEDS)
        for j, arm in enumerate(("0", "0.6"))
        for k, step in enumerate(STEPS)
        if seed in seeds and (step or not j)
    ]
    return [results[i] for i in np.random.default_rng(1).permutation(len(results))]


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


def test_the_table_has_means_and_sample_deviations():
    title, header, *lines = table(grid(), CHAIN).splitlines()
    assert "± standard deviation over 3 seeds" in title
    assert header.split() == ["step", "alpha", "0", "alpha", "0.6"]
    mean, sd = ACCURACY.mean(0), ACCURACY.std(0, ddof=1)
    for step, line in zip(STEPS, lines, strict=True):
        expected = [step, mean[0, step], sd[0, step], mean[1, step], sd[1, step]]
        np.testing.assert_allclose(numbers(line), expected, atol=0.5000001e-4)


def test_a_single_seed_has_no_deviation():
    title, _, *lines = table(grid(seeds=(2,)), CHAIN).splitlines()
    assert "±" not in title
    np.testing.assert_allclose([numbers(line)[1:] for line in lines], ACCURACY[1].T, atol=0.5000001e-4)


def test_what_is_not_finished_is_a_dash():
    results = [r for r in grid() if (r.arm, r.step) != ("0.6", 2)]
    assert table(results, CHAIN).splitlines()[-1].endswith(" -")


def test_the_columns_are_aligned():
    assert len({len(line) for line in table(grid(), CHAIN).splitlines()[1:]}) == 1


def test_a_teacher_alone_is_an_arm():
    chain = ChainConfig(distillation_steps=0)
    assert by_arm([r for r in grid(seeds=(1,)) if r.step == 0], chain) == {"teacher": {0: [ACCURACY[0, 0, 0]]}}


@pytest.mark.parametrize("values", [[0.25], [0.25, 0.5], [0.1, 0.7, 0.4]])
def test_spread_is_the_mean_and_the_sample_deviation(values):
    expected = (np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0)
    np.testing.assert_allclose(spread(values), expected, rtol=1e-12)


def test_the_figure_shows_the_results():
    (axes,) = accuracy_figure(grid(), CHAIN).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["alpha = 0", "alpha = 0.6"]
    for j, arm in enumerate(axes.containers):
        line, _, (bars,) = arm
        np.testing.assert_allclose(np.round(line.get_xdata(orig=False)), STEPS)
        np.testing.assert_allclose(line.get_ydata(orig=False), ACCURACY.mean(0)[j], rtol=1e-12)
        low, high = np.array(bars.get_segments())[:, :, 1].T
        np.testing.assert_allclose((high - low) / 2, ACCURACY.std(0, ddof=1)[j], rtol=1e-9)


def test_a_single_seed_is_drawn_without_bars():
    (axes,) = accuracy_figure(grid(seeds=(2,)), CHAIN).axes
    assert all(bars == () for _, _, bars in axes.containers)
    np.testing.assert_allclose([arm[0].get_ydata(orig=False) for arm in axes.containers], ACCURACY[1])


def leave_grid(path):
    for result in grid():
        leave_result(RunDir(path), **result.row())
    (path / "config.toml").write_text("[chain]\nalpha = [0, 0.6]\ndistillation_steps = 2\n")


def test_a_report_is_made_from_the_directory_alone(tmp_path):
    leave_grid(tmp_path)
    assert report(tmp_path) == table(grid(), CHAIN)
    for name in ("accuracy", "diagnostics", "reliability"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert ET.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(grid())


def test_chains_that_begin_alike_show_the_models_they_share():
    chain = ChainConfig(alpha=0.6, alpha_schedule=((0.6, 0.1),), distillation_steps=2)
    fork = Result.of(FIGURES, {"arm": "0.6-0.1", "step": 2, "test_acc": 0.125})
    arms = by_arm([*grid(seeds=(1,)), fork], chain)
    assert arms == {
        "0.6": {k: [ACCURACY[0, 1, k]] for k in STEPS} | {0: [ACCURACY[0, 0, 0]]},
        "0.6-0.1": {0: [ACCURACY[0, 0, 0]], 1: [ACCURACY[0, 1, 1]], 2: [0.125]},
    }


def test_diagnostics_have_a_panel_for_every_figure_there_is():
    panels = [axes.get_title() for axes in diagnostics_figure(grid(), CHAIN).axes]
    assert panels == [metric.label for metric in metrics.METRICS if metric.label is not None]
    clean = [replace(result, memorised=None, recovered=None) for result in grid()]
    assert [axes.get_title() for axes in diagnostics_figure(clean, CHAIN).axes] == panels[:-2]
    (axes,) = (a for a in diagnostics_figure(grid(), CHAIN).axes if a.get_title() == "test accuracy")
    np.testing.assert_allclose(axes.containers[1][0].get_ydata(orig=False), ACCURACY.mean(0)[1])


def test_reliability_pools_the_seeds_and_leaves_small_bins_out():
    one = {"count": [9, 10, 0], "confidence": [2.0, 5.0, 0.0], "correct": [1, 4, 0]}
    two = {"count": [0, 10, 1], "confidence": [0.0, 7.0, 0.9], "correct": [0, 9, 1]}
    records = [{"arm": None, "step": 0, "reliability": diagram} for diagram in (one, two)]
    (axes,) = reliability_figure(records, ChainConfig(distillation_steps=0)).axes
    _, line = axes.get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([12 / 20], [13 / 20])


def test_estimates_are_told_beside_what_came_of_them():
    model = {"seed": 1, "step": 1, "test_acc": 0.5}
    auto = {"alpha_star": -0.0123, "standard_error": 0.05, "alpha": 0.0, "takes_probe": True}
    auto |= {"probe_val_brier": 0.25, "predicted_val_brier": 0.24, "val_brier": 0.26}
    free = auto | {"alpha_star": None, "standard_error": None, "alpha": 0.75, "takes_probe": False}
    records = [
        model | {"arm": "auto", "auto": auto, "test_acc": 0.625},
        model | {"arm": "auto probe"},
        model | {"arm": "0.3"},
        model | {"arm": "auto", "step": 2, "auto": free},
        model | {"arm": "auto probe", "step": 2},
    ]
    _, header, first, second = estimates(records).splitlines()
    words = [re.split(r" {2,}", line.strip()) for line in (first, second)]
    assert words[0] == [
        "1",
        "1",
        "auto",
        "-0.012 ± 0.050",
        "the probe",
        "0.2500",
        "0.2400",
        "0.2600",
        "0.5000",
        "0.6250",
    ]
    assert words[1] == ["1", "2", "auto", "any", "0.750", "0.2500", "0.2400", "0.2600", "0.5000", "0.5000"]
    assert len(header) == len(first) == len(second)
    assert estimates(records[1:3]) == ""


def test_an_estimate_is_told_of_where_its_probe_is_gone():
    auto = {"alpha_star": 0.5, "standard_error": 0.1, "alpha": 0.5, "takes_probe": False}
    auto |= {"probe_val_brier": 0.25, "predicted_val_brier": 0.24, "val_brier": 0.26}
    record = {"seed": 1, "step": 1, "arm": "auto", "test_acc": 0.625, "auto": auto}
    assert estimates([record]).split()[-2:] == ["-", "0.6250"]


def test_nothing_finished_is_nothing_to_report(tmp_path):
    assert report(tmp_path) == ""
    assert not (tmp_path / "accuracy.png").exists()
