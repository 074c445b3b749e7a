"""report.html: what it says, that it is self-contained, and that hostile names stay text."""

import os
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tiny import Grid, config, leave_result, source

import distill
from distill import cli
from distill.chains.model_training import EPOCH_COLUMNS, metrics_csv
from distill.configfile import to_toml
from distill.pages.svg import inline_svg
from distill.reporting.page import page, sentence, write_page
from distill.reporting.page_tables import confusion_table, models_table
from distill.reporting.plots import accuracy_figure
from distill.reporting.results import RunResults
from distill.reporting.status import model_states
from distill.store import claims
from distill.store.predictions import TestPredictions, write_predictions
from distill.store.results import columns
from distill.store.rundir import RunDir
from distill.store.tasks import tasks

GRID = Grid()
HOSTILE = "<script>alert(1)</script>"
pytestmark = pytest.mark.page


class Page(HTMLParser):
    """The text of a page, its elements with their attributes, and the ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with wrong labels, held-out images, an estimated alpha, and a class with a hostile name."""
    path = tmp_path_factory.mktemp("page") / "a run & more"
    data = source()
    options = {"label_noise": 0.25, "val_size": 6, "alpha": [0.3, "auto"], "distillation_steps": 1, "seed": [1, 2]}
    named = data.__class__(**vars(data) | {"classes": (HOSTILE, "bee", "cat")})
    distill.run(config(path, **options), source=named)
    return path


@pytest.fixture(scope="module")
def shown(run):
    return page([RunResults.load(run)], run)


def test_the_page_has_all_parts(shown):
    text = Page(shown).text
    for part in (
        *("Gain over the teacher", "Scores against step", "Alpha and step", "Learning curves", "Calibration"),
        *("Estimated alphas", "Wrong labels", "Classes", "Models", "Cost by step", "Origin"),
    ):
        assert part in text
    assert "Best by held-out images: " in text
    assert "chosen by the held-out images" in text or "the held-out images choose the teacher" in text
    assert "2 of 2" not in text
    assert "6 of 6 models are finished" in text
    assert "What is missing" not in text


def test_the_page_needs_nothing_from_anywhere(shown):
    found = Page(shown)
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            target = attributes.get(name) or ""
            assert not re.match(r"(?i)[a-z][a-z0-9+.-]*:|//", target) or target.startswith("data:"), (tag, target)
        assert tag != "link"
        assert not any(name.startswith("on") for name in attributes)
    assert "url(http" not in shown
    assert len(shown) < 500_000
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for identifier in re.findall(r"(?:href=\"|url\()#([\w-]+)", shown):
        assert identifier in ids


def test_hostile_names_are_text(shown):
    assert HOSTILE not in shown
    assert HOSTILE in Page(shown).text
    assert [tag for tag, _ in Page(shown).elements].count("script") == 1


def test_links_lead_into_the_folders_of_the_run(shown, run):
    from urllib.parse import unquote

    links = [a["href"] for tag, a in Page(shown).elements if tag == "a" and not (a["href"] or "").startswith("#")]
    assert links
    assert all((run / unquote(link)).is_dir() for link in links)


def test_the_markers_of_a_figure_have_their_values():
    svg = inline_svg(accuracy_figure(GRID.run()), "a label", "x")
    root = ET.fromstring(svg)
    titles = [title.text for title in root.iter("title")]
    assert f"alpha = 0.6, step 2: {GRID.accuracy[:, 1, 2].mean():.4f}" in [text.partition(" ±")[0] for text in titles]
    assert root.get("role") == "img"
    assert root.get("aria-label") == "a label"
    assert "test accuracy" in [text.text for text in root.iter("text")]
    colours = set(re.findall(r"(?:fill|stroke):([^;\"]+)", svg))
    assert {colour for colour in colours if colour.startswith("#")} == set()  # variables only


def test_a_matrix_of_many_classes_lists_the_most_frequent_confusions():
    matrix = np.zeros((30, 30), int)
    matrix[3, 5] = 7
    matrix[4, 4] = 100
    table = confusion_table(matrix, [f"class {i}" for i in range(30)], "Teacher")
    assert table.rows == [["class 3", "class 5", 7]]


def test_a_run_in_progress_says_what_is_missing(tmp_path):
    rundir = RunDir(tmp_path)
    (tmp_path / "config.toml").write_text("[chain]\nalpha = [0.3]\nseed = [1, 2]\ndistillation_steps = 1\n")
    empty = Page(page([RunResults.load(tmp_path)], tmp_path)).text
    assert "0 of 4 models are finished" in empty
    leave_result(rundir, test_acc=0.5, classes=["a"])
    (tmp_path / "seed_2/step_0").mkdir(parents=True)
    (tmp_path / "seed_2/step_0/training_state.pt").touch()
    text = Page(page([RunResults.load(tmp_path)], tmp_path)).text
    assert "1 of 4 models are finished" in text
    assert "What is missing" in text
    assert "3 models not finished: 1 interrupted, 2 waiting" in text
    assert "No student is finished yet" in text
    assert "seed 2 ◼ interrupted: step 0, epoch 1 of 75" in text
    assert "seed 1 waiting; seed 2 waiting" in text
    teacher, students, *_ = tasks(rundir.config())
    assert not teacher.unit.arms
    (tmp_path / claims.WORK).mkdir()
    claims.write_failure(tmp_path, students.claim, "loss is <b>NaN</b>")
    other = next(task for task in tasks(rundir.config()) if task.unit.seed == 2)
    with claims.claim(tmp_path, other.claim):
        run = RunResults.load(tmp_path)
        text = models_table(run, model_states(run.config), tmp_path).csv()
    assert "seed 1 ✗ failed: loss is <b>NaN</b>" in text
    assert "seed 2 ▶ running: step 0, epoch 1 of 75; " in text


def test_several_runs_are_side_by_side(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("distill.reporting.page.parts", lambda *_: [])  # those of one run
    output = tmp_path / "both.html"
    assert cli.main(["--report", str(run), str(run), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "2 runs side by side" in Page(text).text
    assert capsys.readouterr().out.endswith(f"the page is {output}\n")
    assert not (run / "accuracy.png").exists()  # with --output nothing else is written


def test_runs_on_other_data_are_refused_by_name(run, tmp_path, capsys):
    other = tmp_path / "other"
    distill.run(config(other, distillation_steps=0, max_epochs=1), source=source(seed=1))
    assert cli.main(["--report", str(run), str(other)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{run} (custom) and {other} (custom) are on different data" in error


def test_a_damaged_record_is_named_and_the_others_are_shown(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("distill.reporting.run_report.FIGURES", {})
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = copy / "seed_2/alpha_0.3/step_1/result.json"
    file.write_text("{")
    results = (copy / "results.csv").read_bytes()
    assert cli.main(["--report", str(copy)]) == 2
    out, err = capsys.readouterr()
    assert "Test accuracy" in out
    assert err.count("\n") == 1
    assert str(file) in err
    assert "seed 2 ✗ damaged" in (copy / "report.html").read_text(encoding="utf-8")
    assert (copy / "results.csv").read_bytes() == results


def test_a_page_that_fails_is_a_note(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("distill.reporting.page.page", lambda *_: "")
    assert not write_page([RunResults.load(run)], tmp_path / "no" / "report.html")
    assert capsys.readouterr().err.startswith(f"note: no page {tmp_path / 'no' / 'report.html'} (")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--report", "FOLDER"], "holds no run (no config.toml in it)"),
        (["--format", "csv"], "--format is for the tables of --report"),
        (["--verify", "FOLDER", "--format", "csv"], "--format is for the tables of --report"),
        (["--report", "FOLDER", "--lr", "1"], "leave other options out"),
        (["--report", "FOLDER", "--format", "pdf"], "invalid choice"),
        (["--report", "FOLDER", "--format", "csv", "--output", "x.csv"], "--output is for the page"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, what):
    assert cli.main([str(tmp_path) if word == "FOLDER" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert what in error


def test_the_page_of_an_output_that_cannot_be_written_is_one_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("distill.reporting.run_report.page", lambda *_: "")
    assert cli.main(["--report", str(run), "--output", str(tmp_path / "no" / "x.html")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith(f"--output {tmp_path / 'no' / 'x.html'}: Its folder does not exist\n")


@pytest.mark.parametrize("several", [False, True])
def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_drawn(
    run, tmp_path, capsys, monkeypatch, several
):
    before = sorted(run.rglob("*"))
    locked = run.parent if several else run
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != locked and access(path, mode))
    assert cli.main(["--report", *[str(run)] * (1 + several)]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.endswith(f"error: {locked} cannot be written to; give --output FILE for the page\n")
    assert sorted(run.rglob("*")) == before


def test_a_page_that_was_not_written_is_not_announced(run, capsys, monkeypatch):
    monkeypatch.setattr("distill.reporting.run_report.FIGURES", {})
    monkeypatch.setattr("distill.reporting.run_report.write_page", lambda *_: False)
    assert cli.main(["--report", str(run)]) == 0
    assert "the page is" not in capsys.readouterr().out


def test_the_page_of_a_large_grid_is_small(tmp_path):
    """Four alphas, six steps, five seeds, 300 epochs, ten classes."""
    options = {"alpha": [0, 0.3, 0.6, 1], "seed": [1, 2, 3, 4, 5], "distillation_steps": 6, "val_size": 10}
    options_of_run = config(tmp_path, **options, max_epochs=300)
    (tmp_path / "config.toml").write_text(to_toml(options_of_run))
    run = RunDir(tmp_path)
    rng = np.random.default_rng(0)
    for model in run.models(options_of_run):
        values = {name: rng.random() for name in columns() if name not in ("seed", "alpha", "step", "arm", "epochs")}
        leave_result(run, **values, seed=model.seed, arm=model.arm, step=model.step, classes=[*"abcdefghij"])
        rows = [dict(zip(EPOCH_COLUMNS, (epoch, *rng.random(9)), strict=True)) for epoch in range(1, 301)]
        (model.folder / "metrics.csv").write_text(metrics_csv(rows))
        labels = np.arange(100, dtype=np.int32) % 10
        probabilities = rng.dirichlet(np.ones(10), 100)
        predicted = probabilities.argmax(1).astype(np.int32)
        write_predictions(model.folder, TestPredictions(probabilities.astype(np.float16), predicted, labels))
    text = page([RunResults.load(tmp_path)], tmp_path)
    assert "125 of 125 models are finished" in Page(text).text
    assert {"Learning curves", "Classes"} <= set(re.findall(r"<h2[^>]*>([^<]*)", text))
    assert len(text.encode()) < 500_000, len(text.encode())


def test_a_run_shows_itself_in_a_notebook(run):
    html = distill.load_run(run)._repr_html_()
    assert "<table" in html
    assert 'src="data:image/svg+xml;base64,' in html
    assert Page(html).text.count("alpha 0.3") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_noise": 0.125}, "40 training images, 12.5 % symmetric label noise"),
        ({"label_noise_kind": "label-dp", "epsilon": 2}, "label-dp label noise with epsilon 2.0"),
        ({"label_noise_kind": "human", "human_labels": "worst"}, "human label noise with human labels worst"),
        ({"distillation_steps": 1, "alpha": [0, 0.5]}, "alpha 0, 0.5 with 1 student each, seed 1"),
        ({"target": ["hard"]}, "targets hard_0.3 with 2 students each"),
        ({"distillation_steps": 0}, "the teacher alone"),
    ],
)
def test_the_first_sentence(tmp_path, options, words):
    (tmp_path / "config.toml").write_text(to_toml(config(tmp_path, train_size=40, **options)))
    assert words in sentence(RunResults.load(tmp_path))


def test_runs_without_students_are_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.reporting.page.parts", lambda *_: [])
    for name in ("one", "two"):
        rundir = RunDir(tmp_path / name)
        rundir.path.mkdir()
        (rundir.path / "config.toml").write_text(to_toml(config(rundir.path, distillation_steps=0, val_size=5)))
        leave_result(rundir, test_acc=0.5)
    text = Page(page([RunResults.load(tmp_path / name) for name in ("one", "two")], tmp_path)).text
    assert text.count("There are no students: only teachers are trained") == 4


def test_the_parts_of_runs_side_by_side_have_names_of_their_own(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(to_toml(config(tmp_path / name)))
    elements = Page(page([RunResults.load(tmp_path / name) for name in ("one", "two")], tmp_path)).elements
    names = [attributes["aria-label"] for tag, attributes in elements if tag == "section"]
    assert len(set(names)) == len(names) > 2
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    assert {"#r1", "#r2"} <= set(links)


def test_the_page_of_one_seed_says_that_it_has_no_interval_over_seeds(tmp_path):
    rundir = RunDir(tmp_path)
    (tmp_path / "config.toml").write_text(to_toml(config(tmp_path, distillation_steps=0, seed=[1, 2])))
    leave_result(rundir, test_acc=0.5, classes=["a"])
    text = page([RunResults.load(tmp_path)], tmp_path)
    assert "standard deviation" not in Page(text).text
    for seed in (1, 2):
        (tmp_path / f"seed_{seed}").mkdir(exist_ok=True)
        (tmp_path / f"seed_{seed}/preview.svg").write_text("<svg/>")
    leave_result(rundir, seed=2, test_acc=0.5, classes=["a"])
    assert "the other seeds' forecasts" in Page(page([RunResults.load(tmp_path)], tmp_path)).text
