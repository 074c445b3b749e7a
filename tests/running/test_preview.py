"""running/preview.py: the features of a trained teacher, what a chain did, and the page with both."""

import itertools
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from distill.chains import checkpoints
from distill.config import ChainConfig, TrainConfig
from distill.data import source as data
from distill.data.splits import Split
from distill.errors import ConfigError
from distill.kernel.twin import ALPHAS, make_twin
from distill.records import write_json
from distill.reporting.preview_page import Outcome
from distill.running import preview
from distill.running import run as sweep
from distill.running.preview import balanced_subset, features, outcomes_of, page, small
from distill.store.results import columns, read_record
from distill.store.rundir import RunDir
from distill.training.batches import ImageStore, make_image_store

STUDENTS = 2
TWINS = ("linear", "rbf", "images")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """A preview takes the device that is there; its numbers are compared with NumPy's here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished grid of two arms on arrays, 9 images of which are held out, with a second seed's teacher."""
    path = tmp_path_factory.mktemp("preview") / "run"
    options = {"val_size": 9, "alpha": (0.3, 1), "seed": (1, 2), "label_noise": 0.2, "distillation_steps": STUDENTS}
    sweep.run(tiny.config(path, **options), tiny.source())
    shutil.rmtree(path / "seed_2" / "alpha_0.3")
    shutil.rmtree(path / "seed_2" / "alpha_1")
    return path


@pytest.fixture
def own_run(run, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """No figure: drawing takes seconds."""
    monkeypatch.setattr(preview.preview_page, "figure", lambda *args: None)
    monkeypatch.setattr(preview, "draw", lambda *args: None)


def numbers(text: str, heading: str) -> list[list[str]]:
    """The rows of the table under a heading, as cells."""
    lines = text[text.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [line.split() for line in lines]


# ---- features


def network() -> nn.Module:
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(nn.BatchNorm2d(1), hidden, nn.Linear(7, 3))


def pool(n: int = 11) -> ImageStore:
    split = tiny.source()
    images, labels = split.train_images[:n], split.train_labels[:n]
    return make_image_store(Split(images, labels, labels, np.arange(n)), torch.device("cpu"))


def test_features_are_the_input_of_the_last_linear_layer(monkeypatch):
    monkeypatch.setattr("distill.training.predict.PASS_PIXELS", 64 * 4)  # four images a pass
    torch.manual_seed(0)
    model = checkpoints.models.Classifier(network(), torch.zeros(1), torch.ones(1)).train()
    found, logits = features(model, pool(), TrainConfig(batch_size=2))
    model.eval()
    with torch.no_grad():
        expected = model.network[:2](pool().images.float() / 255)
        # Float32 sums over 64 and 7 terms: a matrix product may order them by its number of rows, four or eleven.
        assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
        assert_allclose(logits.numpy(), model.network[2](expected).numpy(), rtol=1e-5, atol=1e-6)
    assert not model.network[2]._forward_pre_hooks


@pytest.mark.parametrize(
    "layers", [[nn.Flatten()], [nn.Conv2d(1, 3, 8), nn.Flatten()], [nn.Linear(8, 3), nn.Flatten()]]
)
def test_features_of_a_network_without_a_suitable_linear_layer_are_refused(layers):
    with pytest.raises(ConfigError, match="features"):
        features(nn.Sequential(*layers), as_floats(pool()), TrainConfig())


def as_floats(pool: ImageStore) -> ImageStore:
    return ImageStore(pool.images.float(), pool.labels, pool.device)


def test_balanced_subsets_are_balanced_and_nested():
    labels = np.repeat([4, 0, 9], [30, 20, 5])
    draw = [balanced_subset(labels, size, np.random.default_rng(0)) for size in (3, 15, 25, 1000)]
    assert [np.bincount(labels[rows], minlength=10)[[4, 0, 9]].tolist() for rows in draw] == [
        [1, 1, 1],
        [5, 5, 5],
        [10, 10, 5],
        [30, 20, 5],
    ]
    for smaller, larger in itertools.pairwise(draw):
        assert set(smaller) < set(larger)
        assert (np.diff(larger) > 0).all()
    other = balanced_subset(labels, 15, np.random.default_rng(1))
    assert set(other) != set(draw[1])


def test_small_averages_images_down_to_32_by_32_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 20), np.uint8)
    rows = small(images)
    assert rows.shape == (2, 3 * 32 * 20)
    assert_allclose(rows.reshape(2, 3, 32, 20), images.reshape(2, 3, 32, 2, 20).mean(3))
    assert_array_equal(small(images[:, :, :8, :8]), images[:, :, :8, :8].reshape(2, -1))


# ---- what a chain did


def leave(run: Path, folder: str, parent: str | None, alpha: float | None) -> None:
    record = dict.fromkeys(columns(), 0.5)
    record["epochs"] = 2
    record["arm"] = folder.split("alpha_")[1].split("/")[0] if "alpha_" in folder else None
    record |= {"seed": 1, "alpha": alpha, "step": int(folder[-1]), "parent": parent and {"path": parent, "sha256": ""}}
    (run / folder).mkdir(parents=True)
    write_json(run / folder / "result.json", record | {"model_sha256": "", "classes": [], "channels": 1, "model": {}})


def outcomes_at(run: Path, alphas: tuple, schedules: tuple = ()) -> list[Outcome]:
    """Of seed 1 in a run directory, without twins."""
    chain = ChainConfig(alpha=alphas, alpha_schedule=schedules, distillation_steps=2)
    teacher = SimpleNamespace(chain=chain, rundir=RunDir(run), seed=1, folder=run / "seed_1/step_0")
    return outcomes_of(teacher, [])


def test_outcomes_cover_the_finished_part_of_each_chain(tmp_path):
    leave(tmp_path, "seed_1/step_0", None, None)
    leave(tmp_path, "seed_1/alpha_0.2/step_1", "seed_1/step_0", 0.2)
    leave(tmp_path, "seed_1/alpha_0.2/step_2", "seed_1/alpha_0.2/step_1", 0.2)
    leave(tmp_path, "seed_1/alpha_0.2-0.4/step_2", "seed_1/alpha_0.2/step_1", 0.4)
    leave(tmp_path, "seed_1/alpha_auto/step_1", "seed_1/step_0", 0.17)
    leave(tmp_path, "seed_1/alpha_0.5/step_2", "seed_1/alpha_0.5/step_1", 0.5)  # its teacher was deleted
    leave(tmp_path, "seed_2/alpha_0.9/step_1", "seed_2/step_0", 0.9)
    outcomes = outcomes_at(tmp_path, (0.2, 0.5, 0.9, "auto"), ((0.2, 0.8), (0.2, 0.4), (0.2, 0.6)))
    assert {each.label: each.alphas.tolist() for each in outcomes} == {
        "0.2": [0.2, 0.2],
        "auto": [0.17],
        "0.2-0.4": [0.2, 0.4],
    }
    assert len(outcomes) == 3


def test_a_model_without_held_out_scores_is_refused(tmp_path):
    leave(tmp_path, "seed_1/step_0", None, None)
    file = tmp_path / "seed_1/step_0/result.json"
    record = json.loads(file.read_text())
    del record["val_brier"], record["sha256"]
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="lacks the scores on the held-out images"):
        preview.score(file.parent)


def test_a_teacher_alone_has_no_outcome(tmp_path):
    leave(tmp_path, "seed_1/step_0", None, None)
    assert outcomes_at(tmp_path, (0.2,)) == []


def test_outcomes_equal_the_models_scores_on_the_held_out_images(run):
    teacher = preview._Teacher(preview._experiment(run, tiny.source(), None), run, 1)
    folder = run / "seed_1/alpha_0.3/step_2"
    p = preview.load_model(folder)(torch.from_numpy(teacher.data.val.images)).softmax(1).detach().numpy()
    error = ((p - teacher.held_out_true) ** 2).sum(1).mean()
    accuracy = (p.argmax(1) == teacher.data.val.true_labels).mean()
    assert_allclose(preview.score(folder), (error, accuracy), rtol=1e-5)


# ---- the page


@pytest.mark.page
def test_a_page_from_end_to_end(run):
    before = tiny.contents(run)
    text = page(run, source=tiny.source())
    assert "seed 1: 8 features of 32 training images, 9 held-out images" in text
    for name in TWINS:
        table = numbers(text, f"{name}: held-out error")
        assert [row[0] for row in table] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        assert all(len(row) == 1 + STUDENTS + 2 for row in table)
        assert [row[0] for row in numbers(text, f"{name}: best alphas")] == ["1", "2"]
    outcome = numbers(text, "change against the teacher")[:4]
    assert [row[:3] for row in outcome] == [["0.3", "1", "0.3"], ["0.3", "2", "0.3"], ["1", "1", "1"], ["1", "2", "1"]]
    for label, step, _, error, *expected, accuracy, _, _, _ in outcome:
        record = [read_record(run / "seed_1" / name) for name in (f"alpha_{label}/step_{step}", "step_0")]
        assert float(error) == pytest.approx(3 * (record[0]["val_loss"] - record[1]["val_loss"]), abs=0.6e-4)
        assert float(accuracy) == pytest.approx(record[0]["val_acc"] - record[1]["val_acc"], abs=0.6e-4)
        assert label != "1" or [float(change) for change in expected] == [0, 0, 0]
    assert (run / "seed_1/preview.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert ET.parse(run / "seed_1/preview.svg").getroot().tag.endswith("svg")
    after = tiny.contents(run)
    assert after.keys() - before.keys() == {f"seed_1/preview.{kind}" for kind in ("pdf", "png", "svg")}
    assert {name: after[name] for name in before} == before


def test_the_linear_twin_is_fitted_to_the_teachers_features(run):
    """One figure of the page by the long way: the model, its features, a ridge regression."""
    teacher = preview._Teacher(preview._experiment(run, tiny.source(), None), run, 1)
    model, train, val = teacher.model, teacher.data.train, teacher.data.val
    with torch.no_grad():
        inner = [
            model.network.blocks(model.network.bn1(model.network.conv1(scaled)).relu()).mean((2, 3)).double().numpy()
            for images in (train.images, val.images)
            for scaled in [(torch.from_numpy(images).float() / 255 - model.mean) / model.std]
        ]
    sd = inner[0].std(0)
    X, Z = ((part - inner[0].mean(0)) / np.where(sd > 0, sd, 1) for part in inner)
    Y, T = np.eye(3)[train.labels], np.eye(3)[val.true_labels]
    assert (train.labels != train.true_labels).any()
    coefficients = np.linalg.solve(X.T @ X / 8 + 0.7 * np.eye(8), X.T @ (Y - Y.mean(0)) / 8)
    predicted = Y.mean(0) + Z @ coefficients
    linear, *_ = preview.preview(teacher.inputs(2000), STUDENTS, lam=0.7)
    assert_allclose(linear.error[0, 0], ((predicted - T) ** 2).sum(1).mean(), rtol=1e-4)  # features are float32
    assert_allclose(linear.accuracy[0, 0], (predicted.argmax(1) == T.argmax(1)).mean())


def test_the_twin_on_images_fits_the_labels_as_the_teacher_does(run):
    inputs = preview._Teacher(preview._experiment(run, tiny.source(), None), run, 1).inputs(2000)
    *_, images = preview.preview(inputs, STUDENTS)
    expected = make_twin(
        "rbf", inputs.images, inputs.given, inputs.held_out_images, inputs.held_out_true, teacher_outputs=inputs.fitted
    )
    assert images.twin.lam == expected.lam
    # Not bit for bit: products of one step may be summed in another order than those of several.
    assert_allclose(images.error[:, 0], expected.score(1, [0])[0][0], rtol=1e-12)
    assert len(images.error) == len(ALPHAS)
    sure = make_twin(
        "rbf", inputs.images, inputs.given, inputs.held_out_images, inputs.held_out_true, teacher_outputs=inputs.given
    )
    assert sure.lam < images.twin.lam


def test_before_any_student_there_is_no_outcome(run, undrawn):
    text = page(run, 2, source=tiny.source())
    assert "seed 2" in text
    assert "change against the teacher" not in text


def test_a_network_and_images_from_python(tmp_path, undrawn):
    config = tiny.config(tmp_path / "run", val_size=9, alpha=0.3, distillation_steps=1, loss="ce")
    sweep.run(config, tiny.source(), network)
    text = page(tmp_path / "run", source=tiny.source(), network=network)
    assert "7 features of 32 training images" in text
    assert len(numbers(text, "change against the teacher")) == 1 + len(TWINS)
    with pytest.raises(ConfigError, match="network came from Python"):
        page(tmp_path / "run", source=tiny.source())


def test_size_and_lam_reach_the_twin(run, undrawn):
    assert "of 2 training images" in page(run, 2, size=2, source=tiny.source())
    text = page(run, 2, size=12, lam=0.25, source=tiny.source())
    assert "of 12 training images" in text
    first = numbers(text, "step 0   lam")
    assert [row[:2] for row in first] == [[name, "0.25"] for name in TWINS]


def test_the_test_images_change_nothing(own_run, undrawn):
    expected = page(own_run, source=tiny.source())
    source = tiny.source()
    other = data.from_arrays(
        source.train_images[:, 0],
        source.train_labels,
        255 - source.test_images[:, 0],
        source.test_labels[::-1],
        classes=source.classes,
    )
    (own_run / "data.sha256").unlink()
    assert page(own_run, source=other) == expected


# ---- errors


def test_images_from_python(run):
    with pytest.raises(ConfigError, match=r"images came from Python: call distill.preview.page\(run, source=..., "):
        page(run)


def test_a_preview_on_other_images_is_refused(run):
    with pytest.raises(ConfigError, match="other images"):
        page(run, source=tiny.source(seed=1))


def test_a_preview_of_a_changed_teacher_is_refused(own_run):
    with open(own_run / "seed_1/step_0/model.pt", "ab") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match=r"model\.pt"):
        page(own_run, source=tiny.source())
