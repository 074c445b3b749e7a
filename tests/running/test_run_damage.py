"""distill.run in a directory with damaged, exchanged, edited, strange or vanished files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import config, contents, killed_at, source

import distill
from distill.cli import main
from distill.errors import UserError
from distill.records import write_json
from distill.reporting.verify import verify
from distill.training.listener import Listener

OPTIONS = {"label_noise": 0.2, "val_size": 9, "alpha": ["auto", 0.3], "distillation_steps": 1, "seed": [1, 2]}


def train(run: Path, **options) -> list:
    return distill.run(config(run, **OPTIONS | options), source=source())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run finished, and killed in the training of seed 1's student, and when its alpha was chosen."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "finished")
    for name, file, occurrence in (("begun", "metrics.csv", 5), ("chosen", "choice.json", 1)):
        with killed_at(file, occurrence):
            train(folder / name)
    return folder


def without_environment(run: Path) -> dict:
    return {name: content for name, content in contents(run).items() if name != "environment.json"}


def damaged(content: bytes) -> dict[str, bytes]:
    """Damaged contents of a file, by what was done: cut at several lengths, a bit flipped, something else."""
    cuts = {f"cut {n}/3": content[: len(content) * n // 3] for n in range(3)}
    flips = {}
    for n in range(3):
        at = len(content) * n // 3
        flips[f"flip {n}/3"] = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
    return cuts | flips | {"nested": b"[" * 100_000, "encoding": b"\xff\xfe" + content, "object": b"{}"}


FILES = {
    "finished": ["data.sha256", "environment.json", "results.csv", "seed_1/labels.npz"]
    + [f"seed_1/{folder}/{file}" for folder in ("step_0", "alpha_0.3/step_1") for file in ("model.pt", "result.json")]
    + ["seed_2/step_0/metrics.csv"],
    "begun": ["seed_1/alpha_0.3/step_1/training_state.pt", "seed_1/alpha_0.3/step_1/metrics.csv"],
    "chosen": ["seed_1/alpha_auto/step_1/choice.json"],
}


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
def test_damage_is_refused_by_name_or_repaired(runs, tmp_path, name, file):
    """Never a traceback, and never another result."""
    whole = without_environment(runs / "finished")
    run = tmp_path / "run"
    for what, content in damaged((runs / name / file).read_bytes()).items():
        shutil.copytree(runs / name, run)
        (run / file).write_bytes(content)
        said = ""
        try:
            train(run)
        except UserError as error:
            said = str(error)
        if said:
            assert Path(file).name in said or "other images" in said, what
            assert "\n" not in said
        else:
            assert without_environment(run) == whole, what
            assert verify(run)[1]
        shutil.rmtree(run)


@pytest.mark.parametrize(
    "file",
    [
        *("results.csv", "environment.json", "seed_1/labels.npz", "seed_1/step_0/metrics.csv"),
        *("seed_1/step_0/result.json", "seed_1/alpha_auto/step_1/probe/result.json"),
    ],
)
def test_a_lost_file_that_follows_from_others_is_written_again(runs, tmp_path, file):
    run = Path(shutil.copytree(runs / "finished", tmp_path / "run"))
    (run / file).unlink()
    train(run)
    assert without_environment(run) == without_environment(runs / "finished")


@pytest.mark.parametrize("file", ["model.pt", "result.json"])
def test_a_file_of_another_model_is_refused(runs, tmp_path, file):
    run = Path(shutil.copytree(runs / "finished", tmp_path / "run"))
    shutil.copy(run / "seed_2/step_0" / file, run / "seed_1/step_0" / file)
    with pytest.raises(UserError, match=rf"seed_1/step_0/{file} is .*delete .*its folder to retrain"):
        train(run)


def test_the_training_state_of_another_model_is_refused(tmp_path):
    with killed_at("training_state.pt", 1):
        train(tmp_path / "one", seed=1)
    with killed_at("training_state.pt", 1):
        train(tmp_path / "two", seed=2)
    shutil.copy(tmp_path / "two/seed_2/step_0/training_state.pt", tmp_path / "one/seed_1/step_0/training_state.pt")
    with pytest.raises(UserError, match=r"training_state.pt is of another model \(seed 2, step 0\); delete it"):
        train(tmp_path / "one", seed=1)


@pytest.mark.parametrize("name", ["finished", "begun"])
def test_options_that_were_edited_in_config_toml_are_refused(runs, tmp_path, name, capsys):
    run = Path(shutil.copytree(runs / name, tmp_path / "run"))
    text = (run / "config.toml").read_text().replace("lr = 0.01", "lr = 0.02")
    (run / "config.toml").write_text(text)
    with pytest.raises(UserError, match=r"config\.toml is damaged or was edited .* delete its first line"):
        train(run, lr=0.02)
    (run / "config.toml").write_text(text.partition("\n")[2])
    with pytest.raises(UserError, match=r"another train\.lr than its config\.toml"):
        train(run, lr=0.02)


@pytest.mark.parametrize(
    "edit",
    [
        {"takes_probe": "x"},
        {"takes_probe": True, "alpha": 0.5},
        {"alpha": 1.5},
        {"alpha": "0.5"},
        {"alpha_star": None, "takes_probe": False},
        {"probe_sha256": "0" * 64},
    ],
)
def test_an_estimate_that_cannot_be_is_refused(runs, tmp_path, edit):
    run = Path(shutil.copytree(runs / "chosen", tmp_path / "run"))
    file = run / "seed_1/alpha_auto/step_1/choice.json"
    write_json(file, json.loads(file.read_text()) | edit)
    with pytest.raises(UserError, match=r"choice\.json is .*; delete it to estimate alpha again"):
        train(run)


def test_a_copy_of_a_folder_changes_no_result(runs, tmp_path):
    run = Path(shutil.copytree(runs / "finished", tmp_path / "run"))
    shutil.copytree(run / "seed_1", run / "seed_1_backup")
    shutil.copytree(run / "seed_1", run / "seed_3")
    assert len(train(run)) == 8
    assert (run / "results.csv").read_bytes() == (runs / "finished" / "results.csv").read_bytes()


# ---- labels


def test_the_labels_on_record_are_those_of_the_run_that_trains(tmp_path):
    """A first command that was killed before it trained anything leaves its labels; the second has others."""
    with killed_at("labels.npz", 1):
        train(tmp_path, label_noise=0.2)
    train(tmp_path, label_noise=0.4)
    with np.load(tmp_path / "seed_1" / "labels.npz") as record:
        assert record["corrupted"].mean() == pytest.approx(0.4, abs=0.02)
    assert verify(tmp_path)[1]


def test_labels_of_an_earlier_command_do_not_stay_beside_clean_ones(tmp_path):
    with killed_at("labels.npz", 1):
        train(tmp_path, label_noise=0.2)
    train(tmp_path, label_noise=0.0)
    assert not (tmp_path / "seed_1" / "labels.npz").exists()


def test_labels_that_compress_are_not_read(runs, tmp_path):
    run = Path(shutil.copytree(runs / "finished", tmp_path / "run"))
    np.savez_compressed(run / "seed_1" / "labels.npz", given=np.zeros(10**7))
    with pytest.raises(UserError, match=r"labels\.npz does not hold the labels .*delete it"):
        train(run)


@pytest.mark.parametrize("record", ["kept", "deleted"])
def test_models_are_not_trained_on_other_labels_than_their_teacher(tmp_path, record):
    digits = {"dataset": "digits", "train_size": 40, "test_size": 40, "distillation_steps": 0}
    for seed in (1, 2):
        distill.run(config(tmp_path / f"model_{seed}", seed=seed, **digits))
    confusion = Path(shutil.copytree(tmp_path / "model_1/seed_1/step_0", tmp_path / "confusion"))
    noise = {"label_noise": 0.3, "label_noise_kind": "confusable", "confusion": str(confusion)}
    distill.run(config(tmp_path / "run", **digits, **noise))
    shutil.copytree(tmp_path / "model_2/seed_2/step_0", confusion, dirs_exist_ok=True)
    if record == "deleted":
        (tmp_path / "run/seed_1/labels.npz").unlink()
    with pytest.raises(UserError, match=r"step_0 was trained on other labels .*--confusion \S+confusion has changed"):
        distill.run(config(tmp_path / "run", **digits | {"distillation_steps": 1}, **noise))


def test_a_strange_labels_file_is_not_what_a_model_was_trained_on(tmp_path):
    train(tmp_path, label_noise=0.0, seed=1)
    (tmp_path / "seed_1" / "labels.npz").write_bytes(b"PK")
    train(tmp_path, label_noise=0.0, seed=1, alpha=["auto", 0.3, 0.5])
    record = json.loads((tmp_path / "seed_1/alpha_0.5/step_1/result.json").read_text())
    assert record["labels_sha256"] is None
    assert "labels.npz is damaged" in verify(tmp_path)[0]


# ---- links


@pytest.mark.parametrize("link", [".work", "seed_1", "seed_1/step_0", ".work/environment.claim"])
def test_a_link_in_the_place_of_a_folder_or_a_claim_is_refused(runs, tmp_path, link):
    run = Path(shutil.copytree(runs / "finished", tmp_path / "run"))
    if (run / link).exists():
        shutil.move(run / link, tmp_path / "outside")
    (run / link).symlink_to(tmp_path / "outside")
    before = contents(tmp_path / "outside") if (tmp_path / "outside").exists() else None
    with pytest.raises((UserError, OSError), match="symbolic link"):
        train(run)
    assert before is None or contents(tmp_path / "outside") == before
    if link.startswith("seed"):
        assert f"strange: {run / link} is a symbolic link" in verify(run)[0]


# ---- config.toml


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_a_torn_config_toml_is_refused(runs, tmp_path, kept):
    run = Path(shutil.copytree(runs / "finished", tmp_path / "run"))
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text[: int(kept * len(text))])
    with pytest.raises(UserError, match=r"config\.toml is damaged"):
        train(run)
    assert "config.toml is damaged" in verify(run)[0]


# ---- a directory that goes away


class At(Listener):
    """Does something at the end of the first epoch."""

    def __init__(self, do):
        self.do = do

    def end_epoch(self, name, row):
        do, self.do = self.do, lambda: None
        do()


def emptied(run: Path) -> None:
    run.rename(run.with_name("moved"))
    run.mkdir()


def moved(run):
    run.rename(run.with_name("moved"))


@pytest.mark.parametrize(("goes", "jobs"), [(shutil.rmtree, 1), (moved, 1), (moved, 2), (emptied, 1)])
def test_a_run_whose_directory_goes_away_stops_and_never_makes_it_again(tmp_path, goes, jobs, capsys, monkeypatch):
    run = tmp_path / "run"
    options = {"dataset": "digits", "train_size": 40, "test_size": 40, "seed": 1, "max_epochs": 3, "jobs": jobs}
    with pytest.raises((UserError, OSError)) as error:
        distill.run(config(run, **options), listener=At(lambda: goes(run)))
    assert "\n" not in str(error.value)
    assert not run.exists() or [*run.iterdir()] == []
    if (tmp_path / "moved").exists() and jobs == 1:
        assert main(["--resume", str(tmp_path / "moved")]) == 0
        assert verify(tmp_path / "moved")[1]


# ---- a given teacher


def test_a_given_teacher_may_be_moved_once_the_run_has_copied_it(tmp_path):
    distill.run(config(tmp_path / "first", distillation_steps=0), source=source())
    given = tmp_path / "teacher.pt"
    shutil.copy(tmp_path / "first/seed_1/step_0/model.pt", given)
    run = tmp_path / "run"
    with killed_at("training_state.pt", 1):
        distill.run(config(run, teacher_ckpt=str(given)), source=source())
    given.rename(tmp_path / "elsewhere.pt")
    assert len(distill.run(config(run, teacher_ckpt=str(given)), source=source())) == 3
    assert verify(run)[1]


@pytest.mark.parametrize("nest", [{"net": None}, {"model": {"state_dict": None}}, {"epoch": 3, "ema": None}])
def test_a_given_teacher_may_be_in_a_checkpoint_of_another_program(tmp_path, nest):
    distill.run(config(tmp_path / "first", distillation_steps=0), source=source())
    state = torch.load(tmp_path / "first/seed_1/step_0/model.pt", weights_only=True)

    def filled(value):
        if isinstance(value, dict):
            return {name: filled(inner) for name, inner in value.items()}
        return state if value is None else value

    torch.save(filled(nest), tmp_path / "teacher.pt")
    results = distill.run(config(tmp_path / "run", teacher_ckpt=str(tmp_path / "teacher.pt")), source=source())
    assert results[0].test_acc == distill.load_run(tmp_path / "first").results[0].test_acc


def test_a_training_state_of_the_wrong_shape_is_refused(tmp_path):
    with killed_at("training_state.pt", 1):
        train(tmp_path, teacher_select="best")
    file = tmp_path / "seed_1/step_0/training_state.pt"
    whole = torch.load(file, weights_only=True)
    for edit in (
        *({name: None} for name in whole if name != "configuration"),
        *({"rows": rows} for rows in ([], [{}], [{"epoch": 1}], [whole["rows"][0] | {"val_acc": "x"}])),
        *({"best": best} for best in ({}, {"mean": torch.zeros(3)})),
    ):
        torch.save(whole | edit, file)
        with pytest.raises(UserError, match=r"training_state\.pt|begun with another teacher") as error:
            train(tmp_path, teacher_select="best")
        assert "\n" not in str(error.value)
    assert os.path.exists(file)
