"""TensorBoard's event files: what they hold, and that nothing is in them twice after a resume."""

import sys

import pytest
from tiny import DIGITS, config, killed_at, refusal, source

import distill
from distill.chains import estimated_alpha
from distill.reporting.plots import FIGURES
from distill.reporting.run_report import report
from distill.store.events import EVENTS
from distill.store.rundir import RunDir, read_metrics

EPOCHS = 2


def read(folder):
    """All events of a folder, by TensorBoard's own reader."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    return accumulator.EventAccumulator(str(folder), size_guidance=everything).Reload()


def scalars(folder, name):
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("tensorboard")
    path = tmp_path_factory.mktemp("events") / "run"
    return distill.run(config(path, tensorboard=True, distillation_steps=1, max_epochs=EPOCHS), source=source())


def test_every_model_has_its_epochs_its_options_and_its_final_metrics(run):
    from tensorboard.plugins.hparams import plugin_data_pb2

    for model, record in zip(RunDir(run.path).models(run.config), run.records, strict=True):
        rows = read_metrics(model.folder)
        for name in ("train_loss", "train_acc", "lr"):
            assert scalars(model.folder, name) == [(row["epoch"], pytest.approx(row[name])) for row in rows]
        assert scalars(model.folder, "final/test_acc") == [(EPOCHS, pytest.approx(record["test_acc"]))]
        metadata = read(model.folder).SummaryMetadata("_hparams_/session_start_info")
        content = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
        options = content.session_start_info.hparams
        assert options["step"].number_value == model.step
        assert options["train.lr"].number_value == 0.01
        assert ("alpha" in options) == (model.arm is not None)


@pytest.mark.page
def test_the_figures_are_in_the_runs_own_file(run):
    report(run)
    before = (run.path / EVENTS).read_bytes()
    report(run)
    assert (run.path / EVENTS).read_bytes() == before
    found = read(run.path)
    assert sorted(found.Tags()["images"]) == sorted(FIGURES)
    assert found.Images("accuracy")[0].encoded_image_string == (run.path / "accuracy.png").read_bytes()


@pytest.mark.parametrize(("file", "occurrence"), [("training_state.pt", 2), ("metrics.csv", 3), ("result.json", 1)])
def test_nothing_is_twice_after_a_resume(tmp_path, file, occurrence):
    pytest.importorskip("tensorboard")
    options = config(tmp_path / "run", tensorboard=True, distillation_steps=1, max_epochs=EPOCHS)
    with killed_at(file, occurrence):
        distill.run(options, source=source())
    torn = next((tmp_path / "run").rglob(EVENTS))
    torn.write_bytes(torn.read_bytes()[:-5])
    for model in RunDir(distill.run(options, source=source()).path).models(options):
        assert [step for step, _ in scalars(model.folder, "train_loss")] == list(range(1, EPOCHS + 1))
        assert len(scalars(model.folder, "final/test_acc")) == 1


def test_a_file_that_tensorboard_reads_is_extended_in_place(run):
    file = RunDir(run.path).models(run.config)[0].folder / EVENTS
    whole, inode = file.read_bytes(), file.stat().st_ino
    file.write_bytes(whole[: len(whole) // 2])
    distill.run(run.config, source=source())
    assert (file.read_bytes(), file.stat().st_ino) == (whole, inode)


def test_a_finished_run_gets_its_event_files_later(tmp_path):
    pytest.importorskip("tensorboard")
    options = {"distillation_steps": 0, "max_epochs": EPOCHS}
    distill.run(config(tmp_path / "run", **options), source=source())
    assert not list((tmp_path / "run").rglob(EVENTS))
    distill.run(config(tmp_path / "run", **options, tensorboard=True), source=source())
    assert len(scalars(tmp_path / "run/seed_1/step_0", "train_loss")) == EPOCHS


def test_without_tensorboard_it_is_one_line_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.plugins.hparams.summary_v2", None)
    said = refusal(capsys, tmp_path / "run", *DIGITS, "--tensorboard")
    assert "--tensorboard needs the package tensorboard" in said


def test_a_probe_that_becomes_the_student_has_the_final_metrics_of_one(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    choice = estimated_alpha.Choice(0.1, 0.2, 0.0, True, 0.5, 0.4)
    monkeypatch.setattr(estimated_alpha, "choose", lambda *_: choice)
    options = {"distillation_steps": 1, "alpha": "auto", "val_size": 6, "tensorboard": True}
    distill.run(config(tmp_path / "run", **options), source=source())
    folder = tmp_path / "run/seed_1/alpha_auto/step_1"
    assert len(scalars(folder, "final/test_acc")) == len(scalars(folder / "probe", "final/test_acc")) == 1
