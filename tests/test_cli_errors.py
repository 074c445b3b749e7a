"""What a user can do wrong: each is one line, exit status 2, and nothing half-written."""

import math
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tiny import DIGITS, contents, refusal

from distill.cli import main
from distill.config import Config, DataConfig
from distill.configfile import to_toml
from distill.training.fit import Trainer
from distill.training.models import CifarResNet


@pytest.fixture(autouse=True)
def signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def images(tiny_imagefolder, tmp_path) -> Path:
    """A copy of the image folder, which tests may damage."""
    return shutil.copytree(tiny_imagefolder, tmp_path / "images", ignore=shutil.ignore_patterns(".*"))


def folder_refusal(capsys, images: Path) -> str:
    words = ["--dataset", "imagefolder", "--data-dir", str(images), "--resnet", "8", "--width", "2", "--device", "cpu"]
    assert main([*words, "--output", str(images.parent / "run")]) == 2
    note, *error = capsys.readouterr().err.splitlines()
    if not note.startswith("reading "):
        error = [note, *error]
    assert len(error) == 1
    assert error[0].startswith("self_distiller.py: error: ")
    assert not (images.parent / "run").exists()
    return error[0]


def test_a_missing_data_set(capsys, tmp_path):
    assert str(tmp_path / "nowhere") in folder_refusal(capsys, tmp_path / "nowhere")


def test_an_empty_data_set(capsys, tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "test").mkdir()
    assert str(tmp_path / "images" / "train") in folder_refusal(capsys, tmp_path / "images")


def test_a_data_folder_without_test_images(capsys, images):
    (images / "test").rename(images / "tset")
    assert f"no folder {images / 'test'}" in folder_refusal(capsys, images)


def test_an_image_that_cannot_be_read(capsys, images):
    bad = sorted((images / "train" / "dog").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:60])
    assert f"{bad} cannot be read as an image" in folder_refusal(capsys, images)


def test_a_damaged_batch_of_cifar(capsys, tiny_cifar10, tmp_path):
    folder = shutil.copytree(tiny_cifar10, tmp_path / "data") / "cifar-10-batches-py"
    (folder / "data_batch_2").write_bytes((folder / "data_batch_2").read_bytes()[:1000])
    said = refusal(capsys, tmp_path / "run", "--data-dir", str(tmp_path / "data"), "--device", "cpu")
    assert str(folder / "data_batch_2") in said


def test_a_download_that_cannot_be_had(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    said = refusal(capsys, tmp_path / "run", "--data-dir", str(tmp_path / "data"), "--device", "cpu")
    assert "cannot download http://127.0.0.1:9/" in said
    assert f"put cifar-10-python.tar.gz into {tmp_path / 'data'} by hand" in said
    assert "--dataset digits" in said


def test_a_run_directory_among_the_images(capsys, tiny_imagefolder):
    options = ["--dataset", "imagefolder", "--data-dir", str(tiny_imagefolder), "--device", "cpu"]
    said = refusal(capsys, tiny_imagefolder / "train" / "run", *options)
    assert "is inside the image folder" in said
    assert "choose another --output" in said


def test_a_run_directory_beside_class_folders(capsys, tmp_path):
    for name in ("cat", "val"):  # a class may have the name of a part
        (tmp_path / name).mkdir()
    options = ["--dataset", "imagefolder", "--data-dir", str(tmp_path), "--device", "cpu"]
    assert "is inside the image folder" in refusal(capsys, tmp_path / "run", *options)


def test_a_data_folder_that_is_not_here(capsys, tmp_path, monkeypatch):
    options = Config(data=DataConfig(dataset="cifar10", data_dir="data"))
    (tmp_path / "config.toml").write_text(to_toml(options))
    monkeypatch.chdir(tmp_path)
    assert main(["--resume", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        f"the data folder data of {tmp_path} is not here: go where the run began, or give --data-dir\n"
    )


def test_fewer_images_than_a_batch(capsys, tmp_path):
    said = refusal(capsys, tmp_path / "run", *DIGITS, "--batch-size", "64")
    assert "40 training images are fewer than a batch of 64" in said


def test_a_subset_larger_than_the_data(capsys, tmp_path):
    assert "--train-size" in refusal(capsys, tmp_path / "run", *DIGITS, "--train-size", "5000")


def test_no_cuda(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "--device cuda: no CUDA device here" in refusal(capsys, tmp_path / "run", *DIGITS, "--device", "cuda")


def wider(file):
    torch.save(CifarResNet(8, 4, 1, 10).state_dict(), file)


def of_another_depth(file):
    torch.save(CifarResNet(14, 2, 1, 10).state_dict(), file)


def optimiser(file):
    torch.save({"state": {}, "param_groups": []}, file)


def elsewhere(file):
    torch.save({"weird": CifarResNet(8, 2, 1, 10).state_dict(), "epoch": 3}, file)


def not_finite(file):
    network = CifarResNet(8, 2, 1, 10)
    torch.nn.init.constant_(network.conv1.weight, math.nan)
    torch.save(network.state_dict(), file)


def whole_module(file):
    torch.save(CifarResNet(8, 2, 1, 10), file)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (elsewhere, "does not hold model parameters (a dictionary of tensors by name); it holds weird, epoch"),
        (not_finite, "its predictions for the first images are not finite"),
        (wider, "of another architecture: conv1.weight is (4, 1, 3, 3) in the file and (2, 1, 3, 3) here"),
        (of_another_depth, "of another architecture"),
        (optimiser, "does not hold model parameters"),
        (whole_module, "not a checkpoint"),
        (lambda file: file.write_text("a poem"), "not a checkpoint"),
        (lambda file: file.mkdir(), "cannot be read (Is a directory)"),
        (lambda file: None, "no such file"),
    ],
)
def test_a_teacher_that_does_not_fit(capsys, tmp_path, make, said):
    make(tmp_path / "teacher.pt")
    line = refusal(capsys, tmp_path / "run", *DIGITS, "--teacher-ckpt", str(tmp_path / "teacher.pt"))
    assert str(tmp_path / "teacher.pt") in line
    assert said in line


def test_a_directory_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert f"cannot write to {tmp_path / 'file' / 'run'}" in refusal(capsys, tmp_path / "file" / "run", *DIGITS)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_without_write_permission(capsys, tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    assert f"cannot write to {tmp_path / 'run'}: Permission denied" in refusal(capsys, tmp_path / "run", *DIGITS)


def test_a_directory_of_another_run(capsys, tmp_path):
    run = tmp_path / "run"
    assert main([*DIGITS, "--output", str(run)]) == 0
    before = contents(run)
    capsys.readouterr()
    said = refusal(capsys, run, *DIGITS, "--lr", "0.5", "--no-augment")
    assert "--lr 0.5 instead of 0.01" in said
    assert "augment" in said
    assert contents(run) == before


def test_a_directory_of_something_else(capsys, tmp_path):
    (tmp_path / "thesis.tex").touch()
    assert "is not empty and holds no run" in refusal(capsys, tmp_path, *DIGITS)


def test_out_of_memory_names_the_batch_size(capsys, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2.00 GiB")

    monkeypatch.setattr(Trainer, "update", full)
    assert main([*DIGITS, "--output", str(tmp_path / "run")]) == 1
    said = capsys.readouterr()
    assert "seed 1, teacher: out of memory on --device cpu at batch size 8" in said.err
    assert "no model is finished yet" in said.out
    assert not list(tmp_path.rglob("*.pt"))


def test_a_bug_is_not_hidden(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "update", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        main([*DIGITS, "--output", str(tmp_path)])


def test_a_loss_that_is_not_finite(capsys, tmp_path):
    assert main([*DIGITS, "--output", str(tmp_path), "--lr", "1e38", "--optimizer", "sgd"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"seed 1, step 0, epoch 1: the loss is not finite at update \d; try a smaller --lr", said)


def test_a_full_disk_is_one_line_and_the_run_goes_on(capsys, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = [*DIGITS, "--width", "8", "--output", str(tmp_path / "run")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # bytes; a training state takes more
    try:
        status = main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = capsys.readouterr().err
    assert status == 2
    assert re.fullmatch(r"self_distiller\.py: error: [^\n]*File too large[^\n]*\n", said)
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("*.pt"))
    assert main(words) == 0
    assert main([*words[:-1], str(tmp_path / "whole")]) == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
