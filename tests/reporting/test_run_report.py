import re

import numpy as np
import pytest
from tiny import VALUES, Grid, config, leave_result, source

import distill
from distill.config import Config
from distill.errors import ConfigError
from distill.reporting.plots import FIGURES
from distill.reporting.results import RunResults
from distill.reporting.run_report import report, reports
from distill.reporting.run_tables import estimates, targets
from distill.store.rundir import RunDir

GRID = Grid()


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


def test_the_table_has_means_and_sample_deviations():
    title, header, *lines = GRID.run().table().text().splitlines()
    assert "± standard deviation over 3 seeds" in title
    assert header.split() == ["step", "alpha", "0", "alpha", "0.6"]
    mean = GRID.accuracy.mean(0)
    sd = GRID.accuracy.std(0, ddof=1)
    for step, line in zip(GRID.steps, lines, strict=True):
        expected = [step, mean[0, step], sd[0, step], mean[1, step], sd[1, step]]
        np.testing.assert_allclose(numbers(line), expected, atol=0.5000001e-4)


def test_a_single_seed_has_no_deviation():
    title, _, *lines = GRID.run(seeds=(2,)).table().text().splitlines()
    assert "±" not in title
    np.testing.assert_allclose([numbers(line)[1:] for line in lines], GRID.accuracy[1].T, atol=0.5000001e-4)


def test_what_is_not_finished_is_a_dash():
    records = [record for record in GRID.records() if (record["arm"], record["step"]) != ("0.6", 2)]
    assert RunResults(Config(chain=GRID.chain), records).table().text().splitlines()[-1].endswith(" -")


def test_the_columns_are_aligned():
    assert len({len(line) for line in GRID.run().table().text().splitlines()[1:]}) == 1


def test_a_report_is_made_from_the_directory_alone(tmp_path):
    for record in GRID.records():
        leave_result(RunDir(tmp_path), **record)
    (tmp_path / "config.toml").write_text("[chain]\nalpha = [0, 0.6]\nseed = [1, 2, 3]\ndistillation_steps = 2\n")
    table, lines = report(RunResults.load(tmp_path)).split("\n\n")
    assert table == GRID.run().table().text()
    assert lines.startswith("Best by held-out images")
    for name in FIGURES:
        assert (tmp_path / f"{name}.png").exists()
        assert (tmp_path / f"{name}.svg").exists()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(GRID.records())


@pytest.mark.parametrize("name", ["notes.html", "run/config.toml"])
def test_a_page_replaces_no_other_file(tmp_path, name):
    run = tmp_path / "run"
    distill.run(config(run, distillation_steps=0), source=source())
    file = tmp_path / name
    if not file.exists():
        file.write_text("mine")
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="is no page of this program: give another --output"):
        reports([RunResults.load(run)], file)
    assert file.read_bytes() == before
    for _ in range(2):  # its own page is replaced
        assert "the page is" in reports([RunResults.load(run)], tmp_path / "page.html")


def test_a_report_of_damaged_records_keeps_the_page(tmp_path):
    distill.run(config(tmp_path, distillation_steps=0), source=source())
    (tmp_path / "report.html").write_text("the page")
    (tmp_path / "seed_1/step_0/result.json").write_text("{")
    assert "no finished model can be read" in reports([RunResults.load(tmp_path)], None)
    assert (tmp_path / "report.html").read_text() == "the page"


def test_estimates_are_shown_with_their_outcomes():
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
    _, header, first, second = estimates(records).text().splitlines()
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
    assert estimates(records[1:3]).rows == []


def test_an_estimate_is_shown_without_its_probe():
    auto = {"alpha_star": 0.5, "standard_error": 0.1, "alpha": 0.5, "takes_probe": False}
    auto |= {"probe_val_brier": 0.25, "predicted_val_brier": 0.24, "val_brier": 0.26}
    record = {"seed": 1, "step": 1, "arm": "auto", "test_acc": 0.625, "auto": auto}
    assert estimates([record]).text().split()[-2:] == ["-", "0.6250"]


def test_targets_are_shown_by_arm_and_step_as_means_over_seeds():
    values = [("consensus", 0.9, 30), ("consensus", 0.7, 20), ("hard_0.5", 0.5, None), ("hard_auto probe", 0.1, None)]
    records = [
        VALUES | {"seed": i, "arm": arm, "step": 1, "target": {"kind": "", "right": right} | ({"kept": n} if n else {})}
        for i, (arm, right, n) in enumerate(values)
    ]
    table = targets(RunResults(Config(chain=GRID.chain), records))
    assert table.header == ["arm", "step", "right", "images"]
    assert table.rows == [["consensus", 1, pytest.approx(0.8), 25], ["hard, alpha = 0.5", 1, 0.5, None]]
    assert targets(GRID.run()).rows == []
