import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ROOT, contents

from distill.cli import main, parse
from distill.config import SECTION_OF, Config
from distill.configfile import to_toml
from distill.errors import ConfigError
from distill.store.rundir import RunDir
from distill.training.fit import Trainer
from distill.training.models import CifarResNet

DIGITS = shlex.split("""
--dataset digits --train-size 40 --test-size 40 --resnet 8 --width 2 --max-epochs 2 --batch-size 8 --lr 0.01
--distillation-steps 1 --device cpu --threads 1
""")


@pytest.fixture(autouse=True)
def signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def parse_config(words: list[str]) -> Config:
    return parse(words).config


def refusal(capsys, run: Path, *words: str) -> str:
    """The one line with which a command is refused, before it has made its run directory."""
    existed = run.exists()
    assert main([*words, "--output", str(run)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"self_distiller\.py: error: [^\n]+\n", said), said
    assert run.exists() == existed
    return said


# ------------------------------------------------------------------------------------------------------------ options

# For each field: what is typed after its name, the value it makes, and the options that it needs beside it.
TYPED = {
    "dataset": ("digits", "digits", ""),
    "data_dir": ("some_dir", "some_dir", ""),
    "image_size": ("8", 8, "--dataset imagefolder"),
    "train_size": ("100", 100, ""),
    "test_size": ("90", 90, ""),
    "val_size": ("80", 80, ""),
    "label_noise": ("0.25", 0.25, ""),
    "label_noise_kind": ("pairflip", "pairflip", ""),
    "augment": (False, False, ""),
    "resnet": ("20", 20, ""),
    "stem": ("cifar", "cifar", ""),
    "width": ("8", 8, "--resnet 20"),
    "pretrained": (True, True, ""),
    "network": ("my_nets:wide", "my_nets:wide", ""),
    "max_epochs": ("7", 7, ""),
    "batch_size": ("32", 32, ""),
    "loss": ("kl", "kl", ""),
    "temperature": ("4", 4.0, "--loss kl"),
    "reg": ("l2", "l2", ""),
    "reg_coef": ("1e-3", 1e-3, ""),
    "optimizer": ("sgd", "sgd", ""),
    "lr": ("1e-2", 1e-2, ""),
    "momentum": ("0.5", 0.5, "--optimizer sgd"),
    "weight_decay": ("5e-4", 5e-4, ""),
    "lr_schedule": ("cosine", "cosine", ""),
    "warmup_epochs": ("2", 2, ""),
    "precision": ("bf16", "bf16", ""),
    "deterministic": (True, True, ""),
    "compile": (True, True, ""),
    "graph": (False, False, ""),
    "fast_dev_run": (True, True, ""),
    "alpha": ("0 0.35 1 auto", (0.0, 0.35, 1.0, "auto"), "--val-size 10"),
    "alpha_schedule": ("0 0.35", ((0.0, 0.35),), ""),
    "seed": ("1 2 3", (1, 2, 3), ""),
    "distillation_steps": ("3", 3, ""),
    "teacher_select": ("best", "best", "--val-size 10"),
    "teacher_ckpt": ("some_model.pt", "some_model.pt", ""),
    "teacher_step": ("2", 2, "--teacher-ckpt model.pt"),
    "output": ("some_dir", "some_dir", ""),
    "device": ("cuda:1", "cuda:1", ""),
    "threads": ("3", 3, ""),
    "jobs": ("2", 2, ""),
}


def test_every_option_is_tried():
    assert TYPED.keys() == SECTION_OF.keys()


@pytest.mark.parametrize("spelling", ["-", "_"])
@pytest.mark.parametrize("name", TYPED)
def test_an_option_lands_in_its_field_in_both_spellings(name, spelling):
    typed, value, beside = TYPED[name]
    flag = name.replace("_", spelling)
    words = [f"--{flag}", *typed.split()] if isinstance(typed, str) else [f"--{'' if typed else f'no{spelling}'}{flag}"]
    found = getattr(getattr(parse_config([*words, *beside.split()]), SECTION_OF[name]), name)
    assert (found, type(found)) == (value, type(value))


def test_an_equals_sign_does_as_well():
    assert parse_config(["--max_epochs=7", "--data_dir=my_dir"]) == parse_config(
        ["--max-epochs", "7", "--data-dir", "my_dir"]
    )


def test_nothing_typed_is_the_papers_run():
    assert parse_config([]) == Config()


def test_the_papers_own_command():
    command = """--seed 1 --deterministic --max_epochs 75 --batch-size 16 --alpha 0.6 --distillation-steps 5
                 --resnet 50 --lr 1e-4"""
    config = parse_config(shlex.split(command))
    assert (config.chain.seed, config.chain.alpha, config.chain.distillation_steps) == ((1,), (0.6,), 5)
    assert (config.train.max_epochs, config.train.batch_size, config.train.lr) == (75, 16, 1e-4)
    assert (config.model.resnet, config.train.deterministic, config.data.dataset) == (50, True, "cifar10")


def test_the_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "c.toml").write_text("[train]\nlr = 0.5\nbatch_size = 64\n[data]\naugment = false\n")
    config = parse_config(["--config", str(tmp_path / "c.toml"), "--lr", "0.25", "--augment"])
    assert (config.train.lr, config.train.batch_size, config.data.augment) == (0.25, 64, True)


def test_a_written_configuration_runs_again(tmp_path):
    config = parse_config([*DIGITS, "--alpha", "0", "1", "--seed", "4"])
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert parse_config(["--config", str(tmp_path / "config.toml")]) == config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--max-epoch 3", "unknown option --max-epoch (did you mean --max-epochs?)"),
        ("--disstillation_steps 3", "did you mean --distillation-steps?"),
        ("--alpha 1.2", "alpha must be a number in [0, 1], not 1.2"),
        ("--alpha -0.1", "alpha must be a number in [0, 1], not -0.1"),
        ("--alpha nan", "alpha must be a number in [0, 1], not nan"),
        ("--alpha 0.5 inf", "alpha must be a number in [0, 1], not inf"),
        ("--alpha half", "--alpha: invalid float or auto or preview value: 'half'"),
        ("--alpha", "--alpha"),
        ("--alpha 0.5 0.5", "alpha has a value twice"),
        ("--seed -1", "seed must be at least 0, not -1"),
        ("--resnet 51", "--resnet"),
        ("--max-epochs 2.5", "--max-epochs: invalid int value: '2.5'"),
        ("--lr 0", "lr must be a positive number"),
        ("--lr nan", "lr must be a positive number"),
        ("--label-noise 2", "label_noise must be in [0, 1]"),
        ("--teacher-select best", "--val-size"),
        ("--teacher-step 2", "--teacher-ckpt"),
        ("--device gpu", "device must be auto, cpu, cuda"),
        ("--config missing.toml", "missing.toml: no such file"),
        ("--resume missing", "missing holds no run to resume"),
        ("--resume a --config b", "leave --config out"),
    ],
)
def test_a_bad_command_line_is_one_line(tmp_path, capsys, words, said):
    assert said in refusal(capsys, tmp_path / "run", *words.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nlearning_rate = 1", "unknown key train.learning_rate"),
        ("[train]\nmax_epoch = 1", "did you mean max_epochs?"),
        ("[train]\nalpha = 1", "it belongs in [chain]"),
        ("[trian]\nlr = 1", "did you mean train?"),
        ("[train]\nlr = '1e-4'", "train.lr must be of type float"),
        ("[train", "c.toml"),
    ],
)
def test_a_bad_file_of_options_is_one_line(tmp_path, capsys, text, said):
    (tmp_path / "c.toml").write_text(text)
    assert said in refusal(capsys, tmp_path / "run", "--config", str(tmp_path / "c.toml"))


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    listed = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {f"--{name.replace('_', '-')}" for name in SECTION_OF} | {"--config", "--resume", "--no-augment"} <= listed


@pytest.mark.parametrize("words", [["--help"], ["--alpha", "2"]])
def test_what_needs_no_torch_imports_none(words):
    program = (
        "import sys\nfrom distill.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: sys.exit(len({'torch', 'numpy', 'matplotlib'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program, *words]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


# ----------------------------------------------------------------------------------------------------- what is missing


@pytest.fixture
def images(tiny_imagefolder, tmp_path) -> Path:
    """An image folder of one's own to damage."""
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


def whole_module(file):
    torch.save(CifarResNet(8, 2, 1, 10), file)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (wider, "of another architecture: conv1.weight is (4, 1, 3, 3) there and (2, 1, 3, 3) here"),
        (of_another_depth, "of another architecture"),
        (optimiser, "holds no model weights"),
        (whole_module, "no checkpoint"),
        (lambda file: file.write_text("a poem"), "no checkpoint"),
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


def test_a_directory_in_which_another_process_works(capsys, tmp_path):
    with RunDir(tmp_path).lock():
        assert "another process is at work" in refusal(capsys, tmp_path, *DIGITS)


def test_out_of_memory_names_the_batch_size(capsys, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2.00 GiB")

    monkeypatch.setattr(Trainer, "update", full)
    tmp_path.joinpath("run").mkdir()
    said = refusal(capsys, tmp_path / "run", *DIGITS)
    assert "out of memory on --device cpu at batch size 8" in said
    assert not list(tmp_path.rglob("*.pt"))


def test_a_bug_is_not_hidden(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "update", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        main([*DIGITS, "--output", str(tmp_path)])


def test_a_loss_that_is_not_finite(capsys, tmp_path):
    tmp_path.joinpath("run").mkdir()
    said = refusal(capsys, tmp_path / "run", *DIGITS, "--lr", "1e38", "--optimizer", "sgd")
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


# ------------------------------------------------------------------------------------------------------- a whole run


def test_a_run_ends_with_its_table_its_files_and_silence_on_standard_error(capsys, tmp_path):
    assert main([*DIGITS, "--output", str(tmp_path / "run"), "--alpha", "0", "1", "--seed", "1", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\r" not in out
    assert "\x1b" not in out
    assert len(re.findall(r"^seed \d(?:, alpha \d)?, step \d: test accuracy 0\.\d{4}", out, re.MULTILINE)) == 6
    assert re.search(r"^ +0 +0\.\d{4} ± 0\.\d{4} +0\.\d{4} ± 0\.\d{4}$", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith(f"everything is in {tmp_path / 'run'}{os.sep}")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.toml", "environment.json", "results.csv", "accuracy.png", "accuracy.svg", "seed_1"} <= files
    (session,) = json.loads((tmp_path / "run" / "environment.json").read_text())["runs"]
    assert session["finished"]


def test_resume_goes_on_with_the_run_as_it_is(capsys, tmp_path):
    run = tmp_path / "run"
    assert main([*DIGITS, "--output", str(run)]) == 0
    before = contents(run)
    assert main(["--resume", str(run)]) == 0
    assert contents(run) == before


def test_resume_takes_no_other_options_for_the_result(capsys, tmp_path):
    assert main([*DIGITS, "--output", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["--resume", str(tmp_path), "--lr", "0.5"]) == 2
    assert "--lr 0.5 instead of 0.01" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        parse_config(["--resume", str(tmp_path), "--seed", "2"])


def test_resume_takes_another_place_to_work(tmp_path):
    assert main([*DIGITS, "--output", str(tmp_path)]) == 0
    config = parse_config(["--resume", str(tmp_path), "--jobs", "2", "--threads", "3"])
    assert (config.run.jobs, config.run.threads, config.output) == (2, 3, tmp_path)
