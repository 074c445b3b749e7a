"""The report of a study: tables, results.csv, the figure against an axis and the page."""

import csv
import re

import numpy as np
import pytest
from tiny import Grid, leave_result

from distill.cli import main
from distill.reporting.study import StudyResults, gains, settings_table, x_figure
from distill.store.rundir import RunDir
from distill.study import read_study

GRID = Grid()
NOISES = (0.0, 0.2, 0.4)
SHIFT = {"mse": 0.0, "ce": 0.1}


@pytest.fixture
def study(tmp_path):
    """A finished study of three rates of label noise and two losses; noise lowers all accuracies by its rate."""
    (tmp_path / "config.toml").write_text(
        '[data]\nlabel_noise = [0, 0.2, 0.4]\n[train]\nloss = ["mse", "ce"]\n'
        "[chain]\nalpha = [0, 0.6]\nseed = [1, 2, 3]\ndistillation_steps = 2\n"
    )
    from distill.configfile import to_toml

    for setting in read_study(tmp_path).settings:
        folder = setting.config.output
        for record in GRID.records():
            shift = SHIFT[setting.values["loss"]] - setting.values["label_noise"]
            leave_result(RunDir(folder), **record | {"test_acc": 0.4 + (record["test_acc"] + shift) / 4})
        (folder / "config.toml").write_text(to_toml(setting.config))
    return tmp_path


def expected(noise: float, loss: str, alpha: int | None, step: int = 2) -> float:
    accuracy = GRID.accuracy[:, alpha or 0, 0 if alpha is None else step].mean()
    return 0.4 + (accuracy + SHIFT[loss] - noise) / 4


def test_the_table_has_a_row_per_setting(study):
    table = settings_table(StudyResults.load(study))
    assert table.header == ["setting", "teacher", "alpha 0", "alpha 0.6"]
    assert [row[0] for row in table.rows] == [f"label noise {n:g}, loss {loss}" for n in NOISES for loss in SHIFT]
    for row, (noise, loss) in zip(table.rows, [(n, loss) for n in NOISES for loss in SHIFT], strict=True):
        for cell, alpha in zip(row[1:], (None, 0, 1), strict=True):
            assert cell.mean == pytest.approx(expected(noise, loss, alpha))
            assert cell.n == 3


def test_the_figure_has_a_panel_per_other_axis_and_a_line_per_arm(study):
    results = StudyResults.load(study)
    figure = x_figure(results, "label_noise")
    assert [axes.get_title() for axes in figure.axes] == ["loss mse", "loss ce"]
    for axes, loss in zip(figure.axes, SHIFT, strict=True):
        assert [each.get_label() for each in axes.containers] == ["teacher", "alpha = 0", "alpha = 0.6"]
        for container, alpha in zip(axes.containers, (None, 0, 1), strict=True):
            x, y = container.lines[0].get_data()
            np.testing.assert_allclose(
                np.array(x, float), np.array(NOISES) + 0.4 * 0.015 * (-1 if alpha is None else alpha), atol=1e-12
            )
            noise_0 = container.lines[0].texts_of_markers[0]
            assert noise_0.startswith(f"{container.get_label()}, label noise 0: {expected(0.0, loss, alpha):.4f} ± ")
            assert list(y) == pytest.approx([expected(noise, loss, alpha) for noise in NOISES])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "0.2", "0.4"]
    by_loss = x_figure(results, "loss")
    assert [axes.get_title() for axes in by_loss.axes[:3]] == ["label noise 0", "label noise 0.2", "label noise 0.4"]
    assert [label.get_text() for label in by_loss.axes[0].get_xticklabels()] == ["mse", "ce"]


@pytest.mark.parametrize(
    ("x", "stem"), [([], "label_noise"), (["--x", "loss"], "loss"), (["--x", "label-noise"], "label_noise")]
)
def test_a_report_writes_results_figure_and_page(capsys, study, x, stem):
    assert main(["--report", str(study), *x]) == 0
    out = capsys.readouterr().out
    assert "label noise 0.4, loss ce" in out
    assert sorted(file.name for file in study.glob("accuracy_by_*")) == [
        f"accuracy_by_{stem}.{k}" for k in ("pdf", "png", "svg")
    ]
    with open(study / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 15
    assert {(row["label_noise"], row["loss"]) for row in rows} == {(str(n), loss) for n in NOISES for loss in SHIFT}
    page = (study / "report.html").read_text()
    assert "90 of 90 models are finished" in page
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", page)
    assert headings == [
        *(
            f"Against {axis.replace('_', ' ')}"
            for axis in sorted(("label_noise", "loss"), key=lambda each: each != stem)
        ),
        *("Gain over the teacher", "Settings", "Alpha and step", "Folders", "Origin"),
    ]
    assert len(re.findall(r"<p>label noise [^<]*, loss [^<]*: Best by held-out images: ", page)) == 6
    assert page.count("(step 0 is the teacher)</p>") == 6  # a map of alpha and step for each setting
    assert f"--config {study / 'config.toml'} --output NEW" in page
    assert 'href="label_noise_0%2Closs_mse/"' in page


@pytest.mark.page
@pytest.mark.parametrize("most", [12, 5])
def test_a_setting_has_a_page_unless_there_are_many(study, monkeypatch, most):
    pages = []
    monkeypatch.setattr("distill.reporting.study.draw", lambda *_: None)
    monkeypatch.setattr("distill.reporting.study.MOST_PAGES", most)
    monkeypatch.setattr("distill.reporting.study.write_page", lambda runs, file: pages.append(file) or file.touch())
    assert main(["--report", str(study)]) == 0
    expected = [setting.config.output / "report.html" for setting in read_study(study).settings]
    assert pages == (expected if most == 12 else [])
    assert ('href="label_noise_0%2Closs_mse/report.html"' in (study / "report.html").read_text()) == (most == 12)


def test_a_folder_that_cannot_be_written_to_is_named(capsys, study, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != study)
    assert main(["--report", str(study)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.endswith(f"error: {study} cannot be written to; give --output FILE for the page\n")


def test_gains_are_paired_within_each_setting(study):
    table = gains(StudyResults.load(study))
    assert [row[:3] for row in table.rows[:2]] == [["label noise 0, loss mse", f"alpha = {a}", 2] for a in ("0", "0.6")]
    assert len(table.rows) == 12
    assert table.rows[1][3] == pytest.approx(expected(0.0, "mse", 1) - expected(0.0, "mse", None))


def test_another_step_is_shown(study):
    table = settings_table(StudyResults.load(study, step=1))
    assert table.title.startswith("Test accuracy at step 1")
    assert table.rows[0][2].mean == pytest.approx(expected(0.0, "mse", 0, step=1))


def test_a_study_that_has_begun_nothing_reports_that(capsys, tmp_path):
    (tmp_path / "config.toml").write_text("[train]\nlr = [0.1, 0.2]\n")
    assert main(["--report", str(tmp_path)]) == 0
    assert "no model is finished yet" in capsys.readouterr().out
    assert main(["--verify", str(tmp_path)]) == 0
    assert main(["--report", str(tmp_path), "--format", "csv"]) == 2
    assert "no model is finished yet" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "markdown", "latex"])
def test_the_table_of_all_settings_has_other_formats(capsys, study, kind):
    before = sorted(study.rglob("*"))
    assert main(["--report", str(study), "--format", kind]) == 0
    out = capsys.readouterr().out
    assert "label noise 0.2" in out
    assert {"csv": "95 % from", "markdown": "95 % from", "latex": r"95 \% from"}[kind] in out
    assert sorted(study.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--x", "lr"], "--x lr: the axes of this study are label_noise, loss"),
        (["--x", "los"], "(did you mean loss?)"),
        (["--step", "3"], "has the steps 0 to 2"),
    ],
)
def test_a_wrong_axis_is_named(capsys, study, words, said):
    assert main(["--report", str(study), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_record_is_named_and_the_others_are_shown(capsys, study):
    file = study / "label_noise_0,loss_mse/seed_1/step_0/result.json"
    file.write_text(file.read_text()[:-20])
    assert main(["--report", str(study)]) == 2
    out, err = capsys.readouterr()
    assert str(file) in err
    assert "label noise 0, loss mse" in out
