"""The identity of a run: which options make another run, and where it is kept."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from tiny import config_of as config

from distill.config import SECTION_OF, Config

# An option, another value for it, and what both runs need so that it is legal.
OTHER_VALUES = {
    "dataset": ("digits", {}),
    "image_size": (16, {"dataset": "imagefolder"}),
    "train_size": (100, {}),
    "test_size": (100, {}),
    "val_size": (100, {}),
    "label_noise": (0.1, {}),
    "label_noise_kind": ("pairflip", {"label_noise": 0.1}),
    "epsilon": (2.0, {"label_noise_kind": "label-dp", "epsilon": 1.0}),
    "human_labels": ("worst", {"label_noise_kind": "human", "human_labels": "aggre"}),
    "confusion": ("there", {"label_noise_kind": "confusable", "confusion": "here"}),
    "labels": ("coarse", {"dataset": "cifar100"}),
    "augment": (False, {}),
    "resnet": (18, {}),
    "stem": ("cifar", {}),
    "width": (8, {"resnet": 20}),
    "pretrained": (True, {}),
    "network": ("my_nets:wide", {}),
    "classes": (("cat", "dog"), {}),
    "cutout": (4, {}),
    "label_smoothing": (0.1, {}),
    "clip_grad": (1.0, {}),
    "ema": (0.99, {}),
    "nesterov": (True, {"optimizer": "sgd"}),
    "sync_batchnorm": (True, {}),
    "max_epochs": (76, {}),
    "batch_size": (32, {}),
    "loss": ("ce", {}),
    "temperature": (2.0, {"loss": "kl"}),
    "reg": ("l2", {}),
    "reg_coef": (1e-3, {}),
    "optimizer": ("adamw", {}),
    "lr": (1.0000000001e-4, {}),
    "momentum": (0.8, {"optimizer": "sgd"}),
    "weight_decay": (1e-4, {}),
    "lr_schedule": ("cosine", {}),
    "warmup_epochs": (1, {}),
    "precision": ("bf16", {}),
    "deterministic": (True, {}),
    "compile": (True, {}),
    "fast_dev_run": (True, {}),
    "alpha": ((0.6, 1.0), {}),
    "target": (("hard",), {}),
    "alpha_range": ((-1, 2), {"alpha": "auto", "val_size": 10}),
    "student_init": ("same", {}),
    "alpha_schedule": ((0.6, 1.0), {"alpha": 0.5}),
    "seed": ((2,), {}),
    "distillation_steps": (4, {}),
    "teacher_select": ("best", {"val_size": 10}),
    "teacher_ckpt": ("other.pt", {"teacher_ckpt": "m.pt"}),
    "teacher_step": (1, {"teacher_ckpt": "m.pt"}),
}
WHERE = {
    "data_dir": "elsewhere",
    "cache_dir": "elsewhere",
    "data": "elsewhere.npz",
    "data_sha256": "0" * 64,
    "graph": False,
    "devices": "0,1",
    "executor": "slurm",
    "slurm_partition": "x1",
    "slurm_time": "x1",
    "slurm_gpus": "x1",
    "slurm_mem": "x1",
    "slurm_account": "x1",
    "slurm_qos": "x1",
    "slurm_setup": "x1",
    "slurm_cpus": 4,
    "slurm_array_parallelism": 8,
    "slurm_option": ["nice=5"],
    "output": "there",
    "device": "cuda:1",
    "threads": 3,
    "jobs": 2,
    "tensorboard": True,
    "yes": True,
}


def test_the_tables_of_this_test_name_every_field():
    assert OTHER_VALUES.keys() | WHERE.keys() == SECTION_OF.keys()


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_another_value_changes_the_identity(name):
    value, needs = OTHER_VALUES[name]
    one, other = config(**needs), config(**{**needs, name: value})
    assert one.digest != other.digest
    assert one.output != other.output
    assert one.differences(other).startswith(f"--{name.replace('_', '-')} ")


@pytest.mark.parametrize("name", WHERE)
def test_device_jobs_and_paths_do_not_change_the_identity(name):
    needs = {"dataset": "arrays", "data": "here.npz"} if name == "data" else {}
    one, other = config(**needs), config(**needs | {name: WHERE[name]})
    assert one != other
    assert one.digest == other.digest
    assert one.differences(other) == ""


@pytest.mark.parametrize(
    ("mine", "theirs", "text"),
    [
        ({"lr": 0.1}, {"lr": 0.2}, "--lr 0.1 instead of 0.2"),
        ({"val_size": 10}, {"val_size": 20}, "--val-size 10 instead of 20"),
        ({"alpha": [0, 0.35]}, {"alpha": 1}, "--alpha 0 0.35 instead of 1"),
        ({"seed": 12345678}, {"seed": 12345679}, "--seed 12345678 instead of 12345679"),
        ({"alpha": 0.6}, {"alpha": 0.6000001}, "--alpha 0.6 instead of 0.6000001"),
        ({"loss": "ce", "lr": 0.1}, {}, "--loss ce instead of mse, --lr 0.1 instead of 0.0001"),
    ],
)
def test_differences_name_the_options_and_both_values(mine, theirs, text):
    assert config(**mine).differences(config(**theirs)) == text


def test_the_run_directory_is_named_for_the_configuration():
    c = config(dataset="digits", resnet=8)
    assert c.output == Path(f"runs/digits-resnet8-{c.digest}")
    assert len(c.digest) == 8
    assert config(output="here").output == Path("here")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Config().train.lr = 1.0
