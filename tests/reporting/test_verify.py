"""--verify: what is whole, damaged, missing, strange and unfinished, and that nothing is written."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny import config, killed_at, source

import distill
from distill.cli import main
from distill.reporting.verify import verify

FIXTURES = Path(__file__).parents[1] / "fixtures"
OPTIONS = {"label_noise": 0.2, "val_size": 9, "alpha": ["auto", 0.3], "distillation_steps": 1, "seed": [1, 2]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("finished")
    distill.run(config(run, **OPTIONS), source=source())
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run of two seeds, each a teacher, a student at alpha 0.3, one at auto, and its probe."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(run: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}


def problems(run: Path) -> list[str]:
    """The lines about problems, without the path of the run."""
    text, whole = verify(run)
    *lines, summary = text.splitlines()
    assert whole == (not lines)
    assert summary.startswith(f"{run}: ")
    return [line.replace(f"{run}/", "") for line in lines]


def test_a_finished_run_is_whole_and_nothing_is_written(run, capsys):
    before = files(run)
    assert main(["--verify", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: models: 8 whole; no problems\n"
    assert files(run) == before


def flip(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    position = int(at * len(content))
    if b'"sha256"' in content[position - 8 : position + 8]:  # a broken name of the SHA-256 makes an old file of it
        position -= 20
    content[position] ^= 4
    file.write_bytes(content)


def cut(file: Path, at: float) -> None:
    content = file.read_bytes()
    end = int(at * len(content))
    if file.suffix == ".toml":  # at the end of a line, what is left may be the configuration of the same run
        end = content.index(b"= ", end) + 2
    file.write_bytes(content[:end])


def become_a_pipe(file: Path, at: float) -> None:
    file.unlink()
    os.mkfifo(file)


def nest(file: Path, at: float) -> None:
    file.write_bytes(b"[" * 100_000)


def misencode(file: Path, at: float) -> None:
    file.write_bytes(b"\xff\xfe" + file.read_bytes())


FILES = [
    *("config.toml", "data.sha256", "environment.json", "results.csv", "seed_1/labels.npz"),
    *(f"seed_1/step_0/{name}" for name in ("model.pt", "metrics.csv", "result.json")),
    *(
        f"seed_2/alpha_auto/step_1/probe/{name}"
        for name in ("model.pt", "metrics.csv", "result.json", "predictions.npz")
    ),
]


@pytest.mark.parametrize("damage", [cut, flip, become_a_pipe, nest, misencode])
@pytest.mark.parametrize("name", FILES)
def test_every_damaged_file_is_named(run, name, damage):
    for at in (0.0, 0.4, 0.9):
        shutil.copy(run / name, run / ".before")
        damage(run / name, at)
        found = problems(run)
        assert any(line.startswith("damaged: ") and name in line for line in found), found
        (run / name).unlink()
        shutil.move(run / ".before", run / name)


@pytest.mark.parametrize("name", [name for name in FILES if name != "config.toml"])
def test_every_missing_file_is_named(run, name):
    (run / name).unlink()
    assert any(line.startswith("missing: ") and name in line for line in problems(run))


@pytest.mark.parametrize("name", ["model.pt", "metrics.csv", "result.json", "predictions.npz"])
def test_files_exchanged_between_two_models_are_named(run, name):
    first, second = (run / f"seed_{seed}/step_0/{name}" for seed in (1, 2))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    found = problems(run)
    assert all(any(f"seed_{seed}/step_0/" in line for line in found) for seed in (1, 2)), found


def test_models_of_a_run_with_other_options_are_named(run, tmp_path):
    distill.run(config(tmp_path / "other", **OPTIONS | {"lr": 0.02}), source=source())
    shutil.rmtree(run / "seed_1")
    shutil.copytree(tmp_path / "other" / "seed_1", run / "seed_1")
    assert any("step_0/result.json is of a run with another train.lr" in line for line in problems(run))


@pytest.mark.parametrize(
    "edit",
    [{"test_acc": 0.99}, {"selected_epoch": 1}, {"parent": None}, {"test_acc": 0.99, "sha256": None}, {"epochs": "2"}],
)
def test_an_edited_record_is_named(run, edit):
    file = run / "seed_1/alpha_0.3/step_1/result.json"
    content = json.loads(file.read_text()) | edit
    file.write_text(json.dumps({name: value for name, value in content.items() if (name, value) != ("sha256", None)}))
    assert any("damaged: seed_1/alpha_0.3/step_1/result.json" in line for line in problems(run))


def test_strange_files_and_folders_are_named_and_not_read(run, capsys):
    shutil.copytree(run / "seed_1", run / "seed_1_backup")
    shutil.copytree(run / "seed_1/step_0", run / "seed_1/step_7")
    (run / "seed_2/notes.txt").touch()
    (run / ".hidden").touch()
    found = problems(run)
    assert [line.split(" is no ")[0] for line in found] == [
        *("strange: seed_1/step_7", "strange: seed_1_backup", "strange: seed_2/notes.txt")
    ]
    assert main(["--verify", str(run)]) == 1
    assert capsys.readouterr().out.endswith("models: 8 whole; 3 strange; 3 problems\n")


@pytest.mark.parametrize("file", ["training_state.pt", "choice.json", "model.pt", "result.json", "metrics.csv"])
@pytest.mark.parametrize("occurrence", [1, 2])
def test_an_unfinished_run_is_not_damaged(tmp_path, file, occurrence):
    with killed_at(file, occurrence):
        distill.run(config(tmp_path, **OPTIONS), source=source())
    text, whole = verify(tmp_path)
    assert whole, text
    assert "unfinished; no problems" in text


@pytest.mark.parametrize("damage", [cut, flip, nest])
@pytest.mark.parametrize("name", ["training_state.pt", "choice.json"])
def test_a_damaged_file_of_a_model_in_training_is_named(tmp_path, name, damage):
    with killed_at(name, 1):
        distill.run(config(tmp_path, **OPTIONS), source=source())
    (file,) = tmp_path.rglob(name)
    for at in range(20):  # some bytes of a zip file are padding
        damage(file, at / 20)
    assert any(line.startswith("damaged: ") and name in line for line in problems(tmp_path))


@pytest.mark.parametrize(("name", "states"), [("run", "3 whole, 1 unfinished"), ("preview", "1 whole")])
def test_runs_of_an_old_version_are_whole(name, states):
    text, whole = verify(FIXTURES / f"{name}-2e86658")
    assert whole, text
    assert f"models: {states} (" in text
    assert "by an older version, which recorded a SHA-256 of model.pt only" in text


def test_a_folder_that_holds_no_run_is_refused(tmp_path, capsys, run):
    assert main(["--verify", str(run), str(tmp_path)]) == 2
    assert "holds no run (no config.toml in it)" in capsys.readouterr().err
