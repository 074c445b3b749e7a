"""The five sections: what is refused, and which defaults depend on other options."""

import math
from dataclasses import fields

import numpy as np
import pytest
from tiny import config_of as config

from distill.arms import Estimated, Fixed, arm_name
from distill.config import SECTION_OF, SECTIONS, Config
from distill.configfile import from_dict
from distill.errors import ConfigError
from distill.options import field_type

nan, inf = math.nan, math.inf
ILLEGAL = [
    ({"alpha": 1.01, "loss": "gce"}, "alpha 1.01 is outside [0, 1], which needs --loss mse"),
    ({"alpha": -100.1}, "alpha must be a number in [-100, 100]"),
    ({"alpha": nan}, "alpha must be"),
    ({"alpha": [0.5, inf]}, "alpha must be"),
    ({"alpha": []}, "alpha needs at least one value"),
    ({"alpha": [0.5, 1, 0.5]}, "alpha has a value twice: 0.5 1.0 0.5"),
    ({"alpha": "half"}, "chain.alpha must be of type float or auto"),
    ({"alpha_schedule": ["preview"], "val_size": 9}, "chain.alpha_schedule must be of type float or auto"),
    ({"alpha_schedule": [[0.2], []]}, "alpha_schedule needs at least one value"),
    ({"alpha_schedule": [0.2, 120]}, "alpha_schedule must be a number in [-100, 100], not 120.0"),
    ({"alpha_schedule": [0.2] * 4, "distillation_steps": 3}, "alpha_schedule has 4 alphas for 3 students"),
    ({"alpha_schedule": [[0.2, 0.4], [0.2, 0.4, 0.4]]}, "two chains of the grid are the same: alpha 0.2-0.4"),
    ({"alpha": [0.1, 0.2], "alpha_schedule": [0.2, 0.2]}, "two chains of the grid are the same: alpha 0.2"),
    ({"alpha": "auto"}, "alpha auto needs held-out images: give --val-size"),
    ({"alpha_schedule": [0.2, "auto"]}, "alpha auto needs held-out images: give --val-size"),
    ({"alpha": "preview"}, "alpha preview needs held-out images: give --val-size"),
    ({"alpha": ["preview", 0.3], "val_size": 9}, "alpha preview trains no student and must be the only alpha"),
    (
        {"alpha": "auto", "val_size": 9, "teacher_ckpt": "m.pt", "teacher_step": 1},
        "alpha auto needs the teacher of step 0",
    ),
    (
        {"alpha": "preview", "val_size": 9, "teacher_ckpt": "m.pt", "teacher_step": 1},
        "alpha preview needs the teacher of step 0",
    ),
    ({"alpha": True}, "chain.alpha must be of type float"),
    ({"seed": -1}, "seed must be a whole number from 0 to "),
    ({"seed": 1.5}, "chain.seed must be of type int"),
    ({"seed": [1, 1]}, "seed has a value twice"),
    ({"distillation_steps": -1}, "distillation_steps must be a whole number from 0 to "),
    ({"teacher_select": "best"}, "teacher_select best needs held-out images: give --val-size"),
    ({"teacher_select": "worst"}, "teacher_select must be one of last, best, not worst"),
    ({"jobs": "auto", "executor": "slurm"}, "--jobs auto: give a number with --executor slurm"),
    ({"slurm_option": ["job-name=x"]}, "slurm_option job-name and array are set by the program"),
    ({"slurm_option": ["nice=5", "arr=0-9"]}, "slurm_option job-name and array are set by the program"),
    ({"teacher_step": 2}, "teacher_step needs --teacher-ckpt FILE"),
    ({"teacher_ckpt": "m.pt", "teacher_step": -1}, "teacher_step must be a whole number from 0 to "),
    ({"teacher_ckpt": "m.pt", "distillation_steps": 0}, "at least one distillation step"),
    (
        {"dataset": "mnist"},
        "dataset must be one of cifar10, cifar100, digits, imagefolder, arrays, features or package.module:function, ",
    ),
    ({"data_sha256": "abc"}, "data_sha256 must be 64 hexadecimal digits"),
    ({"dataset": "imagefolder", "image_size": 0}, "image_size must be a whole number from 1 to "),
    ({"dataset": "cifar10", "image_size": 32}, "image_size is for --dataset imagefolder"),
    ({"train_size": 0}, "train_size must be a whole number from 1 to "),
    ({"test_size": -5}, "test_size must be a whole number from 1 to "),
    ({"val_size": -1}, "val_size must be a whole number from 0 to "),
    ({"label_noise": 1.2}, "label_noise must be a number in [0, 1]"),
    ({"label_noise": nan}, "label_noise must be a number in [0, 1]"),
    ({"label_noise_kind": "uniform"}, "label_noise_kind must be one of symmetric, pairflip"),
    ({"label_noise_kind": "label-dp"}, "label_noise_kind label-dp needs --epsilon"),
    ({"label_noise_kind": "human"}, "label_noise_kind human needs --human-labels"),
    ({"label_noise_kind": "confusable", "label_noise": 0.4}, "label_noise_kind confusable needs --confusion"),
    ({"label_noise_kind": "label-dp", "epsilon": 0}, "epsilon must be a number in [1e-30, 1e+38]"),
    ({"label_noise_kind": "label-dp", "epsilon": nan}, "epsilon must be a number in [1e-30, 1e+38]"),
    ({"label_noise_kind": "label-dp", "epsilon": 1, "label_noise": 0.1}, "has its own rate: leave --label-noise out"),
    ({"epsilon": 1}, "epsilon is for --label-noise-kind label-dp"),
    ({"label_noise_kind": "label-dp", "epsilon": 1, "human_labels": "worst"}, "human_labels is for --label-noise-kind"),
    ({"label_noise_kind": "human", "human_labels": "best"}, "human_labels must be one of aggre, random1"),
    ({"labels": "coarse"}, "labels coarse is for cifar100, not cifar10"),
    ({"augment": 1}, "data.augment must be of type bool"),
    ({"resnet": 19}, "resnet must be one of 8, 14, 18, 20, 32, 34, 44, 50, 56, 101, 110, not 19"),
    ({"resnet": 20, "stem": "imagenet"}, "resnet 20 has a CIFAR stem"),
    ({"resnet": 20, "pretrained": True}, "no pretrained weights for resnet 20"),
    ({"resnet": 20, "width": 0}, "width must be a whole number from 1 to "),
    ({"resnet": 50, "width": 16}, "width is for the 6n+2 family"),
    ({"resnet": 50, "stem": "small"}, "stem must be one of imagenet, cifar"),
    (
        {"network": "wide"},
        "network must be wrn-D-K, linear, mlp, torchvision:NAME or package.module:function, not wide",
    ),
    ({"network": "wrn-28"}, "network must be wrn-D-K"),
    ({"network": "wrn-29-10"}, "the depth of wrn-D-K must be 10, 16, 22, 28, ..., and K at least 1"),
    ({"network": "wrn-4-10"}, "the depth of wrn-D-K must be 10"),
    ({"network": "wrn-28-0"}, "and K at least 1"),
    ({"network": "wrn-16-4", "stem": "cifar"}, "stem is for the ResNets"),
    ({"network": "torchvision:alexnet", "width": 8}, "width is for the ResNets"),
    ({"cutout": 4, "augment": False}, "cutout is a part of the augmentation; leave --no-augment out"),
    ({"dataset": "arrays"}, "dataset arrays needs --data FILE"),
    ({"dataset": "features", "data": "x.npz"}, "dataset features holds vectors: give --network linear"),
    ({"dataset": "features", "data": "x.npz", "network": "linear", "cutout": 2}, "cutout is for images"),
    ({"data": "x.npz"}, "data is for --dataset arrays, features"),
    ({"classes": ["cat"]}, "classes must be two or more different names, not cat"),
    ({"classes": ["cat", "cat"]}, "classes must be two or more different names"),
    ({"network": "mlp-0"}, "a hidden layer needs at least one unit"),
    ({"cutout": -1}, "cutout must be a whole number from 0 to "),
    ({"label_smoothing": 1.0}, "label_smoothing must be a number in [0, 1)"),
    ({"clip_grad": 0}, "clip_grad must be a number in [1e-30, 1e+38]"),
    ({"ema": 1}, "ema must be a number in [0, 1)"),
    ({"nesterov": True}, "nesterov needs --optimizer sgd with a --momentum that is not 0"),
    ({"nesterov": True, "optimizer": "sgd", "momentum": 0}, "nesterov needs --optimizer sgd"),
    ({"network": "nets:wide", "resnet": 8}, "resnet is for the ResNets; leave it out with --network"),
    ({"network": "nets:wide", "resnet": 50}, "resnet is for the ResNets; leave it out with --network"),
    ({"network": "nets:wide", "width": 4}, "width is for the ResNets; leave it out with --network"),
    ({"network": "nets:wide", "pretrained": True}, "pretrained is for the ResNets"),
    ({"max_epochs": 0}, "max_epochs must be a whole number from 1 to "),
    ({"max_epochs": 7.0}, "train.max_epochs must be of type int"),
    ({"max_epochs": True}, "train.max_epochs must be of type int"),
    ({"batch_size": 1}, "batch_size must be a whole number from 2 to "),
    ({"loss": "hinge"}, "loss must be one of mse, ce, kl"),
    ({"loss": "mse", "temperature": 2.0}, "temperature is for --loss "),
    ({"loss": "kl", "temperature": 0.0}, "temperature must be a number in [1e-06, 1e+06]"),
    ({"loss": "ce", "temperature": 1e-300}, "temperature must be a number in [1e-06, 1e+06], not 1e-300"),
    ({"loss": "gce:q=1e-300"}, "q must be in [1e-9, 1], not 1e-300"),
    ({"lr": 1e-300}, "lr must be a number in [1e-30, 1e+38]"),
    ({"reg_coef": 1e38}, "reg_coef must be a number in [0, 1e+18]"),
    ({"weight_decay": 1e38}, "weight_decay must be a number in [0, 1e+18]"),
    ({"reg": "l1"}, "reg must be one of norm, l2, none"),
    ({"reg_coef": -1e-4}, "reg_coef must be a number in [0, 1e+18]"),
    ({"reg_coef": nan}, "reg_coef must be a number in [0, 1e+18]"),
    ({"optimizer": "lion"}, "optimizer must be one of adam, adamw, sgd"),
    ({"lr": 0.0}, "lr must be a number in [1e-30, 1e+38]"),
    ({"lr": inf}, "lr must be a number in [1e-30, 1e+38]"),
    ({"lr": nan}, "lr must be a number in [1e-30, 1e+38]"),
    ({"lr": "1e-4"}, "train.lr must be of type float, not '1e-4'"),
    ({"momentum": 0.9}, "momentum is for --optimizer sgd, not adam"),
    ({"optimizer": "sgd", "momentum": 1.0}, "momentum must be a number in [0, 1)"),
    ({"weight_decay": inf}, "weight_decay must be a number in [0, 1e+18]"),
    ({"lr_schedule": "step"}, "lr_schedule must be one of constant, cosine, onecycle"),
    ({"lr_schedule": "onecycle", "warmup_epochs": 1}, "onecycle has its own warm-up"),
    ({"warmup_epochs": 75}, "warmup_epochs must be in [0, max_epochs)"),
    ({"warmup_epochs": -1}, "warmup_epochs must be a whole number from 0 to "),
    ({"precision": "fp16"}, "precision must be one of fp32, tf32, bf16"),
    ({"device": "gpu"}, "device must be auto, cpu, cuda, cuda:<i> or mps, not gpu"),
    ({"device": "cuda:"}, "device must be"),
    ({"device": "cuda:one"}, "device must be"),
    ({"device": "cpu:0"}, "device must be"),
    ({"threads": 0}, "threads must be a whole number from 1 to 1024"),
    ({"output": ""}, "run.output must not be empty"),
    ({"teacher_ckpt": ""}, "chain.teacher_ckpt must not be empty"),
    ({"jobs": 0}, "jobs must be a whole number from 1 to "),
]


@pytest.mark.parametrize(
    ("options", "message"), ILLEGAL, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_illegal_options_are_refused_in_one_line(options, message):
    with pytest.raises(ConfigError) as caught:
        config(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_section_refuses_on_construction_too():
    """A configuration made in Python meets the same checks as one from a file."""
    for section, name, value in (
        ("data", "label_noise", 2.0),
        ("model", "width", 16),
        ("train", "lr", -1.0),
        ("chain", "alpha", (nan,)),
        ("run", "device", "tpu"),
    ):
        with pytest.raises(ConfigError):
            SECTIONS[section](**{name: value})


def test_the_defaults_are_the_papers_settings():
    c = Config()
    assert (c.data.dataset, c.data.augment, c.data.label_noise) == ("cifar10", True, 0)
    assert (c.model.resnet, c.model.stem, c.model.pretrained) == (50, "imagenet", False)
    assert (c.train.max_epochs, c.train.batch_size, c.train.optimizer, c.train.lr) == (75, 16, "adam", 1e-4)
    assert (c.train.loss, c.train.reg, c.train.reg_coef, c.train.weight_decay) == ("mse", "norm", 1e-4, 0)
    assert (c.chain.alpha, c.chain.distillation_steps, c.chain.teacher_select) == ((0.6,), 5, "last")
    assert from_dict({}) == c


def test_defaults_that_depend_on_another_option_are_resolved():
    assert config(resnet=20).model.width == 16
    assert config(resnet=20).model.stem == "cifar"
    assert config(resnet=18).model.width is None
    assert config(optimizer="sgd").train.momentum == 0.9
    assert config(optimizer="sgd", momentum=0.0).train.momentum == 0.0
    assert config(optimizer="adam").train.momentum is None
    assert config(teacher_ckpt="m.pt").chain.teacher_step == 0


@pytest.mark.parametrize(
    ("given", "spelled_out"), [({"resnet": 20}, {"width": 16}), ({"resnet": 18}, {"stem": "imagenet"})]
)
def test_a_default_spelled_out_is_the_same_run(given, spelled_out):
    assert config(**given) == config(**given, **spelled_out)
    assert config(**given).digest == config(**given, **spelled_out).digest


def test_integers_are_accepted_as_floats():
    c = config(alpha=[0, 1], lr=1, label_noise=0)
    assert c.chain.alpha == (0.0, 1.0)
    assert {type(value) for value in (*c.chain.alpha, c.train.lr, c.data.label_noise)} == {float}


def test_one_value_is_accepted_as_a_list():
    assert config(alpha=0.3, seed=7).chain.alpha == (0.3,)
    assert config(alpha=0.3, seed=7).chain.seed == (7,)


def test_a_development_run_has_one_epoch():
    assert config(max_epochs=9).train.epochs == 9
    assert config(max_epochs=9, fast_dev_run=True).train.epochs == 1


def test_the_first_step_is_the_given_teachers():
    assert Config().chain.first_step == 0
    assert config(teacher_ckpt="m.pt", teacher_step=3).chain.first_step == 3


def test_every_field_has_a_line_of_help():
    for section, cls in SECTIONS.items():
        for f in fields(cls):
            assert f.metadata["help"].strip(), f"{section}.{f.name}"


def test_an_arm_has_an_alpha_for_each_student_and_the_last_repeats():
    chain = config(alpha=[0.1, "auto"], alpha_schedule=[[0.2, 0.4], [1]], distillation_steps=3, val_size=5).chain
    assert chain.arms == (
        *((Fixed(0.1),) * 3, (Estimated(),) * 3),
        *((Fixed(0.2), Fixed(0.4), Fixed(0.4)), (Fixed(1.0),) * 3),
    )
    assert chain.estimates_alpha


def test_a_schedule_stands_alone_without_an_alpha():
    chain = config(alpha_schedule=[0.2, 0.4], distillation_steps=2).chain
    assert (chain.alpha, chain.alpha_schedule, chain.arms) == ((), ((0.2, 0.4),), ((Fixed(0.2), Fixed(0.4)),))


@pytest.mark.parametrize("options", [{"distillation_steps": 0}, {"alpha": "preview", "val_size": 5}])
def test_without_students_there_is_no_arm(options):
    assert config(**options).chain.arms == ()


def test_minus_zero_is_zero():
    assert [arm_name(arm) for arm in config(alpha=-0.0).chain.arms] == ["0"]


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("alpha", np.array([0.25, 0.5]), (0.25, 0.5)),
        ("alpha", np.float32(0.25), (0.25,)),
        ("alpha_schedule", np.array([[0.25, 0.5]]), ((0.25, 0.5),)),
        ("alpha_schedule", [np.array([0.25, 0.5])], ((0.25, 0.5),)),
        ("seed", [np.int64(3), 4], (3, 4)),
        ("seed", range(3), (0, 1, 2)),
        ("lr", np.float64(0.5), 0.5),
        ("lr", np.int32(2), 2.0),
        ("augment", np.bool_(False), False),
    ],
)
def test_numbers_and_arrays_of_numpy_are_taken(name, given, taken):
    section = SECTION_OF[name]
    found = getattr(getattr(config(**{name: given}), section), name)
    assert repr(found) == repr(taken)  # types too: they are written as TOML


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"seed": range(20_000)}, "20,000 seeds make up to 120,000 models"),
        ({"alpha": np.linspace(0, 1, 10**5)}, "100,000 alphas and 5 steps make more than 100,000 models of one seed"),
    ],
    ids=["seeds", "alphas"],
)
def test_a_grid_too_large_to_be_meant_is_refused_with_its_size(options, size):
    with pytest.raises(ConfigError, match=size):
        config(**options)


@pytest.mark.parametrize("name", ["data_dir", "teacher_ckpt", "output"])
def test_the_home_folder_is_expanded(monkeypatch, name):
    monkeypatch.setenv("HOME", "/somewhere")
    assert getattr(getattr(config(**{name: "~/x"}), SECTION_OF[name]), name) == "/somewhere/x"


def test_every_number_has_a_range():
    for section, cls in SECTIONS.items():
        for f in fields(cls):
            if field_type(cls, f.name)[0] in (int, float):
                assert f.metadata["within"] or f.metadata["choices"], f"{section}.{f.name}"
