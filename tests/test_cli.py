"""The command line: options, files of options, modes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import DIGITS, ROOT, contents, refusal

import distill
from distill.cli import main, parse
from distill.config import SECTION_OF, Config
from distill.configfile import to_toml


@pytest.fixture(autouse=True)
def signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def parse_config(words: list[str]) -> Config:
    return parse(words).config


# For each field: what is typed after its name, the value it makes, and the options that it needs beside it.
TYPED = {
    "devices": ("0,1", "0,1", ""),
    "executor": ("slurm", "slurm", ""),
    "slurm_partition": ("x1", "x1", "--executor slurm"),
    "slurm_time": ("x1", "x1", "--executor slurm"),
    "slurm_gpus": ("x1", "x1", "--executor slurm"),
    "slurm_mem": ("x1", "x1", "--executor slurm"),
    "slurm_account": ("x1", "x1", "--executor slurm"),
    "slurm_qos": ("x1", "x1", "--executor slurm"),
    "slurm_setup": ("x1", "x1", "--executor slurm"),
    "slurm_cpus": ("4", 4, "--executor slurm"),
    "slurm_array_parallelism": ("8", 8, "--executor slurm"),
    "slurm_option": ("nice=5 hold=1", ("nice=5", "hold=1"), "--executor slurm"),
    "dataset": ("digits", "digits", ""),
    "data_dir": ("some_dir", "some_dir", ""),
    "image_size": ("8", 8, "--dataset imagefolder"),
    "train_size": ("100", 100, ""),
    "test_size": ("90", 90, ""),
    "val_size": ("80", 80, ""),
    "label_noise": ("0.25", 0.25, ""),
    "label_noise_kind": ("pairflip", "pairflip", "--label-noise 0"),
    "epsilon": ("1.5", 1.5, "--label-noise-kind label-dp"),
    "human_labels": ("worst", "worst", "--label-noise-kind human"),
    "confusion": ("some_run", "some_run", "--label-noise-kind confusable --label-noise 0.1"),
    "labels": ("coarse", "coarse", "--dataset cifar100"),
    "data_sha256": ("0" * 64, "0" * 64, ""),
    "augment": (False, False, ""),
    "tensorboard": (True, True, ""),
    "resnet": ("20", 20, ""),
    "stem": ("cifar", "cifar", ""),
    "width": ("8", 8, "--resnet 20"),
    "pretrained": (True, True, ""),
    "network": ("my_nets:wide", "my_nets:wide", ""),
    "cache_dir": ("kept", "kept", ""),
    "data": ("x.npz", "x.npz", "--dataset arrays"),
    "classes": ("cat dog", ("cat", "dog"), ""),
    "cutout": ("4", 4, ""),
    "label_smoothing": ("0.1", 0.1, ""),
    "clip_grad": ("2", 2.0, ""),
    "ema": ("0.99", 0.99, ""),
    "nesterov": (True, True, "--optimizer sgd"),
    "sync_batchnorm": (True, True, ""),
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
    "target": ("soft hard", ("soft", "hard"), ""),
    "alpha_range": ("-2 2", (-2.0, 2.0), "--alpha auto --val-size 10"),
    "student_init": ("teacher", "teacher", ""),
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
    "yes": (True, True, ""),
}


def test_every_option_is_tried():
    assert TYPED.keys() == SECTION_OF.keys()


@pytest.mark.parametrize("spelling", ["-", "_"])
@pytest.mark.parametrize("name", TYPED)
def test_both_spellings_of_an_option_set_its_field(name, spelling):
    typed, value, beside = TYPED[name]
    flag = name.replace("_", spelling)
    words = [f"--{flag}", *typed.split()] if isinstance(typed, str) else [f"--{'' if typed else f'no{spelling}'}{flag}"]
    found = getattr(getattr(parse_config([*words, *beside.split()]), SECTION_OF[name]), name)
    assert (found, type(found)) == (value, type(value))


def test_an_option_may_have_an_equals_sign():
    assert parse_config(["--max_epochs=7", "--data_dir=my_dir"]) == parse_config(
        ["--max-epochs", "7", "--data-dir", "my_dir"]
    )


def test_without_options_it_is_the_papers_run():
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


def test_a_file_may_have_options_for_another_command(tmp_path):
    (tmp_path / "c.toml").write_text("[run]\nslurm_time = '9'\n[data]\nlabel_noise_kind = 'pairflip'\n")
    parse_config(["--config", str(tmp_path / "c.toml")])
    parse_config(["--config", str(tmp_path / "c.toml"), "--executor", "slurm", "--slurm-mem", "1G"])


def test_a_written_configuration_runs_again(tmp_path):
    config = parse_config([*DIGITS, "--alpha", "0", "1", "--seed", "4"])
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert parse_config(["--config", str(tmp_path / "config.toml")]) == config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--max-epoch 3", "unknown option --max-epoch (did you mean --max-epochs?)"),
        ("--disstillation_steps 3", "did you mean --distillation-steps?"),
        ("--alpha 1.2 --loss ce", "alpha 1.2 is outside [0, 1], which needs --loss mse"),
        ("--alpha -0.1 --loss ce", "alpha -0.1 is outside [0, 1], which needs --loss mse"),
        ("--alpha 101", "alpha must be a number in [-100, 100], not 101"),
        ("--alpha nan", "alpha must be a number in [-100, 100], not nan"),
        ("--alpha 0.5 inf", "alpha must be a number in [-100, 100], not inf"),
        ("--alpha half", "preview value: 'half'"),
        ("--alpha", "--alpha"),
        ("--alpha 0.5 0.5", "alpha has a value twice"),
        ("--seed -1", "seed must be a whole number from 0 to 9223372036854775807, not -1"),
        ("--resnet 51", "--resnet"),
        ("--max-epochs 2.5", "--max-epochs: invalid int value: '2.5'"),
        ("--lr 0", "lr must be a number in [1e-30, 1e+38]"),
        ("--lr nan", "lr must be a number in [1e-30, 1e+38]"),
        ("--label-noise 2", "label_noise must be a number in [0, 1]"),
        ("--teacher-select best", "--val-size"),
        ("--teacher-step 2", "--teacher-ckpt"),
        ("--device gpu", "device must be auto, cpu, cuda"),
        ("--slurm-time x --slurm-partition q", "--slurm-time is for --executor slurm, which is not given"),
        ("--slurm-option a=b --executor local", "--slurm-option is for --executor slurm"),
        ("--reg none --reg-coef 0.1", "--reg-coef is for --reg norm or l2, not none"),
        ("--label-noise-kind pairflip", "--label-noise-kind pairflip needs --label-noise"),
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
    listed = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    assert {f"--{name.replace('_', '-')}" for name in SECTION_OF} | {"--config", "--resume", "--no-augment"} <= listed


@pytest.mark.parametrize("words", [["--help"], ["--alpha", "200"]])
def test_what_needs_no_torch_imports_none(words):
    program = (
        "import sys\nfrom distill.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: sys.exit(len({'torch', 'numpy', 'matplotlib'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program, *words]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def test_a_run_writes_table_and_files_and_nothing_on_stderr(capsys, tmp_path):
    assert main([*DIGITS, "--output", str(tmp_path / "run"), "--alpha", "0", "1", "--seed", "1", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\r" not in out
    assert "\x1b" not in out
    assert len(re.findall(r": seed \d(?:, alpha \d)?, step \d, test accuracy 0\.\d{4}", out, re.MULTILINE)) == 6
    assert re.search(r"^ +0 +0\.\d{4} ± 0\.\d{4} +0\.\d{4} ± 0\.\d{4}$", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith(f"everything is in {tmp_path / 'run'}{os.sep}")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.toml", "environment.json", "results.csv", "accuracy.png", "accuracy.svg", "seed_1"} <= files
    (session,) = json.loads((tmp_path / "run" / "environment.json").read_text())["runs"]
    assert session["finished"]


def test_resume_continues_the_run(capsys, tmp_path):
    run = tmp_path / "run"
    assert main([*DIGITS, "--output", str(run)]) == 0
    before = contents(run)
    assert main(["--resume", str(run)]) == 0
    assert contents(run) == before


def test_resume_refuses_options_that_change_results(capsys, tmp_path):
    assert main([*DIGITS, "--output", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["--resume", str(tmp_path), "--lr", "0.5"]) == 2
    assert "--lr 0.5 instead of 0.01" in capsys.readouterr().err
    assert parse_config(["--resume", str(tmp_path), "--seed", "2"]).chain.seed == (1, 2)


def test_resume_accepts_another_device_and_number_of_jobs(tmp_path):
    assert main([*DIGITS, "--output", str(tmp_path)]) == 0
    config = parse_config(["--resume", str(tmp_path), "--jobs", "2", "--threads", "3"])
    assert (config.run.jobs, config.run.threads, config.output) == (2, 3, tmp_path)


# -------------------------------------------------------------------------------------------------------------- modes


def test_the_modes_exclude_one_another(capsys, tmp_path):
    assert "not allowed with argument" in refusal(capsys, tmp_path / "run", *DIGITS, "--estimate", "--preview")


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("", "train"),
        ("--estimate", "estimate"),
        ("--preview --val-size 9", "preview"),
        ("--alpha preview --val-size 9", "preview"),
        ("--alpha preview --val-size 9 --estimate", "estimate"),
        ("--report somewhere elsewhere", "report"),
    ],
)
def test_the_mode_of_a_command(words, mode):
    assert parse(words.split()).mode == mode


def test_a_preview_needs_held_out_images(capsys, tmp_path):
    assert "--preview needs held-out images" in refusal(capsys, tmp_path / "run", *DIGITS, "--preview")


def test_a_preview_trains_the_teacher_and_the_run_continues_in_the_same_directory(capsys, tmp_path):
    words = [*DIGITS, "--output", str(tmp_path / "run"), "--val-size", "40", "--alpha", "0.3"]
    assert main([*words, "--preview"]) == 0
    assert "Kernel twin of" in capsys.readouterr().out
    before = (tmp_path / "run/seed_1/step_0/model.pt").read_bytes()
    assert not list(tmp_path.rglob("alpha_*"))
    assert main(words) == 0
    assert "change against the teacher" in capsys.readouterr().out  # the page now shows the outcome too
    assert (tmp_path / "run/seed_1/step_0/model.pt").read_bytes() == before
    assert (tmp_path / "run/seed_1/alpha_0.3/step_1/model.pt").exists()


def test_a_report_prints_the_tables_and_draws_the_figures_again(capsys, tmp_path):
    run = tmp_path / "run"
    assert main([*DIGITS, "--output", str(run)]) == 0
    table = capsys.readouterr().out.split("\n\n")[1]
    drawn = (run / "accuracy.png").read_bytes()
    (run / "accuracy.png").unlink()
    assert main(["--report", str(run)]) == 0
    assert table in capsys.readouterr().out
    assert (run / "accuracy.png").read_bytes() == drawn


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--report {run}", "holds no run (no config.toml in it)"),
        ("--report {run} --lr 0.1", "leave other options out"),
        ("--report {run} --resume {run}", "leave other options out"),
    ],
)
def test_a_report_that_cannot_be_made_is_one_line(capsys, tmp_path, words, said):
    assert main(words.format(run=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ own network and data

OWN_MODULE = """
import numpy as np
from torch import nn
import distill

def network(channels, classes):
    layers = nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)
    return nn.Sequential(*layers)

def data(folder):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8), np.uint8), np.arange(60) % 3
    return distill.from_arrays(images[:40], labels[:40], images[40:], labels[40:])

def no_network(channels, classes):
    return "a network"
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> Path:
    """A user's module in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    (tmp_path / "own_module.py").write_text(OWN_MODULE)
    return tmp_path


OWN = ["--network", "own_module:network", "--dataset", "own_module:data", *["--max-epochs", "2", "--batch-size", "8"]]
OWN += ["--distillation-steps", "1", "--device", "cpu", "--threads", "1", "--alpha", "0", "1"]


def test_custom_network_and_data_work_with_jobs_and_resume(own_module, capsys):
    assert main([*OWN, "--output", "one"]) == 0
    assert main([*OWN, "--output", "two", "--jobs", "2"]) == 0
    (own_module / "two/seed_1/alpha_1/step_1/result.json").unlink()
    assert main(["--resume", "two"]) == 0
    assert "own_module:network" in capsys.readouterr().out
    one, two = contents(own_module / "one"), contents(own_module / "two")
    assert {name: value for name, value in one.items() if name.endswith((".pt", ".csv"))} == {
        name: value for name, value in two.items() if name.endswith((".pt", ".csv"))
    }
    model = distill.load_model("one/seed_1/alpha_1/step_1")
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_the_default_directory_has_the_functions_names():
    assert re.fullmatch(r"runs/data-network-[0-9a-f]{8}", str(parse_config(OWN).output))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("no_such_module:f", "no_such_module"),
        ("own_module:none", "none"),
        ("own_module:no_network", "returned a str, not a torch.nn.Module"),
        ("own_module:data", "failed"),
    ],
)
def test_a_failing_custom_network_is_one_line(own_module, capsys, network, said):
    assert said in refusal(capsys, own_module / "run", *OWN, "--network", network)
