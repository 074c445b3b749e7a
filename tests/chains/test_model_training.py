"""One model of a chain: which epoch is kept, labels on record, damaged files."""

import json

import numpy as np
import pytest
import torch
from tiny import config, contents, killed_at, rows, source

import distill
from distill.chains import model_training
from distill.chains.checkpoints import read_tensors
from distill.data.source import from_arrays
from distill.errors import UserError
from distill.training.batches import make_image_store
from distill.training.listener import Listener

TEACHER = "seed_1/step_0"
STUDENT = "seed_1/alpha_0.3/step_1"


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


BEST = {"teacher_select": "best", "val_size": 9, "max_epochs": 6, "lr": 0.1, "distillation_steps": 1}


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    run = tmp_path_factory.mktemp("selected")
    distill.run(config(run, **BEST), source=source())
    return run


def test_best_is_the_first_of_the_epochs_most_accurate_on_the_held_out_images(selected):
    early = 0
    for model in (TEACHER, STUDENT):
        record = json.loads((selected / model / "result.json").read_text())
        accuracies = [float(row["val_acc"]) for row in rows(selected / model / "metrics.csv")]
        assert record["selected_epoch"] == 1 + accuracies.index(max(accuracies))
        assert record["val_acc"] == max(accuracies)
        early += record["selected_epoch"] < BEST["max_epochs"]
    assert early, "this setting must select an epoch before the last, or it tests nothing"


def test_best_keeps_the_weights_of_that_epoch(selected, tmp_path):
    epoch = json.loads((selected / TEACHER / "result.json").read_text())["selected_epoch"]
    assert epoch < BEST["max_epochs"]
    distill.run(config(tmp_path, **BEST | {"teacher_select": "last", "max_epochs": epoch}), source=source())
    assert (tmp_path / TEACHER / "model.pt").read_bytes() == (selected / TEACHER / "model.pt").read_bytes()


def test_selection_never_looks_at_the_test_images(selected, tmp_path):
    data = source()
    other = from_arrays(
        data.train_images, data.train_labels, 255 - data.test_images, np.roll(data.test_labels, 1), data.classes
    )
    distill.run(config(tmp_path, **BEST), source=other)
    for model in (TEACHER, STUDENT):
        assert (tmp_path / model / "model.pt").read_bytes() == (selected / model / "model.pt").read_bytes()


def test_the_best_epoch_survives_an_interruption(selected, tmp_path):
    with killed_at(model_training.STATE, 4):
        distill.run(config(tmp_path, **BEST), source=source())
    distill.run(config(tmp_path, **BEST), source=source())
    assert contents(tmp_path) == contents(selected)


@pytest.mark.parametrize("batch_size", [8, 16])  # two batches of 16 are more than there are test images
def test_a_development_run_is_two_batches_of_everything(tmp_path, monkeypatch, batch_size):
    batches = []
    monkeypatch.setattr(Listener, "advance", lambda self, images: batches.append(images))
    c = config(tmp_path, fast_dev_run=True, max_epochs=9, batch_size=batch_size, distillation_steps=1)
    results = distill.run(c, source=source())
    assert batches == [batch_size] * 4
    assert [r.epochs for r in results] == [1, 1]


def test_corrupted_labels_are_recorded(tmp_path):
    data = source()
    distill.run(config(tmp_path, label_noise=0.25, train_size=36, distillation_steps=0), source=data)
    record = np.load(tmp_path / "seed_1" / "labels.npz")
    assert record["index"].shape == (36,)
    assert record["corrupted"].sum() == 9
    np.testing.assert_array_equal(record["true"], data.train_labels[record["index"]])
    np.testing.assert_array_equal(record["given"] != record["true"], record["corrupted"])


def test_recorded_labels_are_those_of_the_training(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "distill.chains.session.make_image_store",
        lambda split, device: seen.setdefault(len(split), make_image_store(split, device)),
    )
    distill.run(config(tmp_path, label_noise=0.25, distillation_steps=0), source=source())
    np.testing.assert_array_equal(np.load(tmp_path / "seed_1" / "labels.npz")["given"], seen[41].labels.numpy())


def test_clean_labels_are_not_recorded(finished):
    assert not (finished / "seed_1" / "labels.npz").exists()


def begun(run):
    """A run that ended within the first student, its teacher finished."""
    with killed_at(model_training.STATE, 3):
        distill.run(config(run), source=source())
    assert (run / TEACHER / "result.json").exists()
    assert (run / STUDENT / model_training.STATE).exists()


def cut(file):
    content = file.read_bytes()
    middle = len(content) // 2
    if file.suffix == ".toml":  # at the end of a line, what is left may be another configuration
        middle = content.index(b"= ", middle) + 2
    file.write_bytes(content[:middle])


def change(file):
    content, middle = file.read_bytes(), file.stat().st_size // 2
    file.write_bytes(content[:middle] + bytes(b ^ 1 for b in content[middle : middle + 200]) + content[middle + 200 :])


def empty(file):
    file.write_bytes(b"")


def of_another_kind(file):
    torch.save({"weight": torch.zeros(2)}, file)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *((f"{TEACHER}/model.pt", damage) for damage in (cut, change, empty, of_another_kind)),
        *((f"{TEACHER}/result.json", damage) for damage in (cut, empty)),
        *((f"{STUDENT}/training_state.pt", damage) for damage in (cut, change, empty, of_another_kind)),
        ("config.toml", cut),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path, file, damage):
    begun(tmp_path)
    damage(tmp_path / file)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*.pt")}
    with pytest.raises(UserError) as error:
        distill.run(config(tmp_path), source=source())
    assert str(tmp_path / file) in str(error.value)
    assert "\n" not in str(error.value)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*.pt")} == before


def test_a_lost_teacher_is_reported(tmp_path):
    begun(tmp_path)
    (tmp_path / TEACHER / "model.pt").unlink()
    with pytest.raises(UserError, match=r"step_0/model\.pt"):
        distill.run(config(tmp_path), source=source())


@pytest.mark.parametrize("damage", [cut, change, empty])
def test_load_model_refuses_a_damaged_file(tmp_path, damage):
    distill.run(config(tmp_path, distillation_steps=0), source=source())
    damage(tmp_path / TEACHER / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt"):
        distill.load_model(tmp_path / TEACHER)


def test_reading_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match=r"trap\.pt"):
        read_tensors(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()
