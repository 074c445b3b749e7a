"""The command ``python -m distill.preview``."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from tiny import ROOT

from distill import preview
from distill.configfile import to_toml
from distill.running import run as sweep


def refusal(capsys, *argv: str | Path) -> str:
    """The error, one line, of a command with exit status 2."""
    assert preview.main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("distill.preview: error: ")
    assert err.count("\n") == 1
    return err


def digits(folder: Path, **options) -> Path:
    """The configuration of a run on digits, with no model in it."""
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(tiny.config(folder, dataset="digits", **options)))
    return folder


def test_no_run(capsys, tmp_path):
    assert "holds no run" in refusal(capsys, tmp_path / "none")


def test_no_held_out_images(capsys, tmp_path):
    assert "--val-size" in refusal(capsys, digits(tmp_path / "run"))


def test_a_chain_that_begins_later(capsys, tmp_path):
    run = digits(tmp_path / "run", val_size=50, teacher_ckpt="m.pt", teacher_step=2)
    assert "begins at step 2" in refusal(capsys, run)


def test_no_teacher_and_no_such_seed(capsys, tmp_path):
    run = digits(tmp_path / "run", val_size=50)
    assert "no finished teacher" in refusal(capsys, run)
    assert "has no seed 7; it has 1" in refusal(capsys, run, "--seed", "7")


@pytest.mark.parametrize(
    "words", [["--lam", "0"], ["--lam", "nan"], ["--size", "0"], ["--size", "1"], ["--size", "x"], ["--nonsense"]]
)
def test_bad_options(capsys, tmp_path, words):
    assert words[0] in refusal(capsys, tmp_path, *words)


def test_too_little_memory(capsys, tmp_path, monkeypatch):
    def full(*args, **options):
        raise MemoryError("n = 9 needs 3 arrays")

    monkeypatch.setattr("distill.running.preview.page", full)
    assert "lower --size" in refusal(capsys, tmp_path)


@pytest.mark.slow
def test_the_command_on_a_run_from_the_command_line(tmp_path):
    config = tiny.config(tmp_path / "run", dataset="digits", train_size=60, val_size=50, test_size=20, alpha=0.3)
    sweep.run(config)
    words = [sys.executable, "-m", "distill.preview", str(tmp_path / "run"), "--size", "50"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "of 50 training images, 50 held-out images" in done.stdout
    assert done.stderr == ""
