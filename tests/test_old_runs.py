"""Directories that version 0.1 (commit 2e86658) left: they are read, resumed, and keep their names.

tests/fixtures has three of them: an interrupted run, a previewed run, and the configuration of a run from Python.
"""

import csv
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import distill
from distill import config
from distill.cli import main
from distill.options import option
from distill.reporting.results import RunResults
from distill.reporting.run_report import report
from distill.store.rundir import RunDir

FIXTURES = Path(__file__).parent / "fixtures"
SECTIONS = {
    "data": distill.DataConfig,
    "model": distill.ModelConfig,
    "train": distill.TrainConfig,
    "chain": distill.ChainConfig,
    "run": distill.RunConfig,
}
# The commands of the two runs, as environment.json has them, without --output; the second without --alpha preview.
COMMON = (
    "--dataset digits --resnet 8 --width 2 --max-epochs 3 --batch-size 20 --train-size 120 --test-size 60 "
    "--val-size 60 --lr 1e-2 --threads 1 --device cpu"
)
INTERRUPTED = f"{COMMON} --label-noise 0.2 --alpha auto 0.3 --distillation-steps 1".split()
PREVIEWED = f"{COMMON} --distillation-steps 2".split()


@pytest.fixture
def interrupted(tmp_path) -> Path:
    """A run that was killed after the first epoch of its last model, the student at alpha 0.3."""
    return Path(shutil.copytree(FIXTURES / "run-2e86658", tmp_path / "run"))


@pytest.fixture
def previewed(tmp_path) -> Path:
    """A run of ``--alpha preview``: one teacher."""
    return Path(shutil.copytree(FIXTURES / "preview-2e86658", tmp_path / "previewed"))


def configuration(sections: dict[str, dict]) -> distill.Config:
    return distill.Config(**{name: SECTIONS[name](**values) for name, values in sections.items()})


# ---- reading


def test_results_are_read(interrupted):
    results = RunDir(interrupted).results()
    assert [(result.arm, result.step) for result in results] == [(None, 0), ("auto", 1), ("auto probe", 1)]
    assert results[0].test_acc == pytest.approx(4 / 60)
    assert results[1].teacher_kl == pytest.approx(0.02062, abs=1e-5)


@pytest.mark.page
def test_report_and_figures(interrupted):
    text = report(RunResults.load(interrupted))
    assert "0.0667" in text  # the teacher's test accuracy
    assert "0.289 ± 0.614" in text  # the estimated alpha
    for name in ("accuracy", "diagnostics", "reliability"):
        assert (interrupted / f"{name}.png").stat().st_size > 5000


def test_a_finished_model_is_loaded(interrupted):
    model = distill.load_model(interrupted / "seed_1" / "alpha_auto" / "step_1")
    assert model.classes == tuple("0123456789")


# ---- resuming


def numbers(file: Path) -> list[dict[str, float | str]]:
    """The rows of a results.csv, without ``seconds``: ``nan`` for an empty field."""
    with open(file, newline="", encoding="utf-8") as lines:
        return [
            {name: text if name == "arm" else float(text or "nan") for name, text in row.items() if name != "seconds"}
            for row in csv.DictReader(lines)
        ]


@pytest.mark.parametrize("how", ["--resume", "the same command"])
def test_an_interrupted_run_is_finished(interrupted, how):
    """The metrics are those of the old version, which resumed the same directory.

    On the machine that made the fixture the bits are the same, which tests/same_results.py checks. Elsewhere the last
    digits differ: by less than 1e-7 with each of five instruction sets, so 1e-3 leaves room for other machines.
    """
    before = {file: file.read_bytes() for file in interrupted.rglob("model.pt")}
    words = ["--resume", str(interrupted)] if how == "--resume" else [*INTERRUPTED, "--output", str(interrupted)]
    assert main(words) == 0
    for file, content in before.items():
        assert file.read_bytes() == content, "a finished model was trained again"
    assert not list(interrupted.rglob("training_state.pt"))
    with open(interrupted / "seed_1" / "alpha_0.3" / "step_1" / "metrics.csv", newline="", encoding="utf-8") as lines:
        epochs = list(csv.DictReader(lines))
    assert [row["epoch"] for row in epochs] == ["1", "2", "3"]
    # The first epoch is the old version's: another training of it would not last as long to the nanosecond.
    assert float(epochs[0]["seconds"]) == 0.18024302300000272
    found, expected = numbers(interrupted / "results.csv"), numbers(FIXTURES / "run-2e86658-resumed.csv")
    assert len(found) == len(expected) == 4
    for here, there in zip(found, expected, strict=True):
        for name, value in there.items():
            assert here[name] == (value if name == "arm" else pytest.approx(value, abs=1e-3, nan_ok=True)), name


def test_other_options_are_refused(interrupted, capsys):
    assert main([*INTERRUPTED, "--lr", "0.02", "--output", str(interrupted)]) == 2
    assert "--lr 0.02 instead of 0.01" in capsys.readouterr().err


def test_a_previewed_run_is_continued(previewed):
    teacher = previewed / "seed_1" / "step_0" / "model.pt"
    before = teacher.read_bytes()
    assert main([*PREVIEWED, "--alpha", "0.5", "--output", str(previewed)]) == 0
    assert teacher.read_bytes() == before
    assert [(result.arm, result.step) for result in RunDir(previewed).results()] == [(None, 0), ("0.5", 1), ("0.5", 2)]


# ---- names: the literals were computed by the old version

NAMES: dict[str, dict[str, dict]] = {
    "cifar10-resnet50-46997dc8": {},
    "cifar10-resnet50-9bf8a0ee": {"train": {"deterministic": True}},
    "cifar10-resnet50-da24afb9": {"chain": {"alpha": (0, 0.35, 0.6), "seed": (1, 2, 3)}},
    "cifar10-resnet50-fca08d12": {"chain": {"alpha": "auto"}, "data": {"val_size": 5000}},
    "cifar10-resnet50-598d4779": {"chain": {"alpha_schedule": ((0.2, 0.4, 0.6), (0.2, 0.9))}},
    "cifar10-resnet50-3a8b6f1b": {"chain": {"alpha": "preview"}, "data": {"val_size": 5000}},
    "digits-resnet8-29c0d293": {
        "data": {"dataset": "digits", "label_noise": 0.4, "label_noise_kind": "pairflip"},
        "model": {"resnet": 8, "width": 4},
    },
    "cifar10-resnet18-b75746d2": {
        "model": {"resnet": 18, "stem": "cifar"},
        "train": {
            **{"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4},
            **{"lr_schedule": "cosine", "warmup_epochs": 5},
        },
    },
    "cifar10-resnet50-bc23906d": {"train": {"loss": "kl", "temperature": 4, "reg": "none", "precision": "bf16"}},
    "imagefolder-resnet50-43573d31": {
        "data": {"dataset": "imagefolder", "image_size": 64, "train_size": 500, "augment": False}
    },
    "cifar10-resnet50-d3aa6768": {
        "chain": {"teacher_select": "best"},
        "data": {"val_size": 100},
        "train": {"fast_dev_run": True},
    },
    "cifar10-resnet18-1f54ec5d": {"model": {"resnet": 18, "pretrained": True}, "train": {"compile": True}},
    "cifar10-resnet50-be5f74d7": {"chain": {"teacher_ckpt": "teacher/model.pt", "teacher_step": 2}},
}


@pytest.mark.parametrize("name", NAMES)
def test_default_directories_keep_their_names(name):
    assert configuration(NAMES[name]).output == Path("runs") / name


def test_options_without_influence_on_results_are_not_in_the_name():
    elsewhere = {
        "data": {"data_dir": "elsewhere"},
        "train": {"graph": False},
        "run": {"device": "cpu", "threads": 2, "jobs": 2},
    }
    assert configuration(elsewhere).output == Path("runs/cifar10-resnet50-46997dc8")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("run-2e86658", "digits-resnet8-b1bb359a"),
        ("preview-2e86658", "digits-resnet8-c8a72618"),
        ("python-2e86658", "custom-resnet0-5dd9bbd0"),
    ],
)
def test_written_configurations_keep_their_names(folder, name):
    sections = tomllib.loads((FIXTURES / folder / "config.toml").read_text())
    assert configuration(sections).output == Path("runs") / name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("quickstart", "digits-resnet8-9e8faf8c"),
        ("modern", "cifar10-resnet18-4c3c99ed"),
        ("paper", "cifar10-resnet50-9bf8a0ee"),
    ],
)
def test_the_configurations_of_the_repository_keep_their_names(file, name):
    sections = tomllib.loads((FIXTURES.parents[1] / "configs" / f"{file}.toml").read_text())
    sections.get("run", {}).pop("output", None)
    assert configuration(sections).output == Path("runs") / name


def test_a_new_option_renames_no_directory(monkeypatch):
    """An option that is added with a default: only a run that sets it to another value gets a new name."""

    @dataclass(frozen=True)
    class LongerSection(distill.TrainConfig):
        patience: int = option(7, "an option of a later version")

    monkeypatch.setitem(config.SECTIONS, "train", LongerSection)
    monkeypatch.setitem(SECTIONS, "train", LongerSection)
    for name, sections in NAMES.items():
        assert configuration({"train": {}, **sections}).output == Path("runs") / name
    changed = configuration({"train": {"patience": 8}})
    assert changed.output != Path("runs/cifar10-resnet50-46997dc8")
    assert configuration({"train": {}}).differences(changed) == "--patience 7 instead of 8"
