"""config.py: what is refused, what is resolved, and that a configuration survives being written down."""

import math
import tomllib
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.arms import Estimated, Fixed, arm_name
from distill.config import CIFAR_RESNETS, SECTION_OF, SECTIONS, TORCHVISION_RESNETS, Config
from distill.configfile import from_dict, read_toml, to_toml
from distill.errors import ConfigError, nearest

SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


def config(**options) -> Config:
    """A Config from options by name, whatever their section."""
    sections: dict[str, dict] = {}
    for name, value in options.items():
        sections.setdefault(SECTION_OF[name], {})[name] = value
    return from_dict(sections)


# ----------------------------------------------------------------------------------------------------- what is refused

nan, inf = math.nan, math.inf
ILLEGAL = [
    ({"alpha": 1.01}, "alpha must be a number in [0, 1], not 1.01"),
    ({"alpha": -0.1}, "alpha must be"),
    ({"alpha": nan}, "alpha must be"),
    ({"alpha": [0.5, 2.0]}, "alpha must be"),
    ({"alpha": []}, "alpha needs at least one value"),
    ({"alpha": [0.5, 1, 0.5]}, "alpha has a value twice: 0.5 1.0 0.5"),
    ({"alpha": "half"}, "chain.alpha must be of type float or auto or preview, not 'half'"),
    ({"alpha_schedule": ["preview"], "val_size": 9}, "chain.alpha_schedule must be of type float or auto, not"),
    ({"alpha_schedule": [[0.2], []]}, "alpha_schedule needs at least one value"),
    ({"alpha_schedule": [0.2, 1.2]}, "alpha must be a number in [0, 1], not 1.2"),
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
    ({"seed": -1}, "seed must be at least 0"),
    ({"seed": 1.5}, "chain.seed must be of type int"),
    ({"seed": [1, 1]}, "seed has a value twice"),
    ({"distillation_steps": -1}, "distillation_steps must be at least 0"),
    ({"teacher_select": "best"}, "teacher_select best needs held-out images: give --val-size"),
    ({"teacher_select": "worst"}, "teacher_select must be one of last, best, not worst"),
    ({"teacher_step": 2}, "teacher_step needs --teacher-ckpt FILE"),
    ({"teacher_ckpt": "m.pt", "teacher_step": -1}, "teacher_step must be at least 0"),
    ({"teacher_ckpt": "m.pt", "distillation_steps": 0}, "at least one distillation step"),
    (
        {"dataset": "mnist"},
        "dataset must be one of cifar10, cifar100, digits, imagefolder or package.module:function, not ",
    ),
    ({"dataset": "imagefolder", "image_size": 0}, "image_size must be at least 1"),
    ({"dataset": "cifar10", "image_size": 32}, "image_size is for --dataset imagefolder"),
    ({"train_size": 0}, "train_size must be at least 1"),
    ({"test_size": -5}, "test_size must be at least 1"),
    ({"val_size": -1}, "val_size must be at least 0"),
    ({"label_noise": 1.2}, "label_noise must be in [0, 1]"),
    ({"label_noise": nan}, "label_noise must be in [0, 1]"),
    ({"label_noise_kind": "uniform"}, "label_noise_kind must be one of symmetric, pairflip"),
    ({"augment": 1}, "data.augment must be of type bool"),
    ({"resnet": 19}, "resnet must be one of 8, 14, 18, 20, 32, 34, 44, 50, 56, 101, 110, not 19"),
    ({"resnet": 20, "stem": "imagenet"}, "resnet 20 has a CIFAR stem"),
    ({"resnet": 20, "pretrained": True}, "no pretrained weights for resnet 20"),
    ({"resnet": 20, "width": 0}, "width must be at least 1"),
    ({"resnet": 50, "width": 16}, "width is for the 6n+2 family"),
    ({"resnet": 50, "stem": "small"}, "stem must be one of imagenet, cifar"),
    ({"network": "wide"}, "network must be package.module:function, not wide"),
    ({"network": "nets:wide", "width": 4}, "width is for the ResNets; leave it out with --network"),
    ({"network": "nets:wide", "pretrained": True}, "pretrained is for the ResNets"),
    ({"max_epochs": 0}, "max_epochs must be at least 1"),
    ({"max_epochs": 7.0}, "train.max_epochs must be of type int"),
    ({"max_epochs": True}, "train.max_epochs must be of type int"),
    ({"batch_size": 1}, "batch_size must be at least 2 (batch normalisation)"),
    ({"loss": "hinge"}, "loss must be one of mse, ce, kl"),
    ({"loss": "mse", "temperature": 2.0}, "temperature is for --loss "),
    ({"loss": "kl", "temperature": 0.0}, "temperature must be a positive number"),
    ({"reg": "l1"}, "reg must be one of norm, l2, none"),
    ({"reg_coef": -1e-4}, "reg_coef must be a number >= 0"),
    ({"reg_coef": nan}, "reg_coef must be a number >= 0"),
    ({"optimizer": "lion"}, "optimizer must be one of adam, adamw, sgd"),
    ({"lr": 0.0}, "lr must be a positive number"),
    ({"lr": inf}, "lr must be a positive number"),
    ({"lr": nan}, "lr must be a positive number"),
    ({"lr": "1e-4"}, "train.lr must be of type float, not '1e-4'"),
    ({"momentum": 0.9}, "momentum is for --optimizer sgd, not adam"),
    ({"optimizer": "sgd", "momentum": 1.0}, "momentum must be in [0, 1)"),
    ({"weight_decay": inf}, "weight_decay must be a number >= 0"),
    ({"lr_schedule": "step"}, "lr_schedule must be one of constant, cosine, onecycle"),
    ({"lr_schedule": "onecycle", "warmup_epochs": 1}, "onecycle has a warm-up of its own"),
    ({"warmup_epochs": 75}, "warmup_epochs must be in [0, max_epochs)"),
    ({"warmup_epochs": -1}, "warmup_epochs must be in [0, max_epochs)"),
    ({"precision": "fp16"}, "precision must be one of fp32, tf32, bf16"),
    ({"device": "gpu"}, "device must be auto, cpu, cuda, cuda:<i> or mps, not gpu"),
    ({"device": "cuda:"}, "device must be"),
    ({"device": "cuda:one"}, "device must be"),
    ({"device": "cpu:0"}, "device must be"),
    ({"threads": 0}, "threads must be 1 to 1024"),
    ({"jobs": 0}, "jobs must be at least 1"),
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


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"max_epoch": 3}}, "unknown key train.max_epoch (did you mean max_epochs?)"),
        ({"train": {"learning-rate": 3}}, "unknown key train.learning-rate"),
        ({"data": {"label_nosie": 0.1}}, "unknown key data.label_nosie (did you mean label_noise?)"),
        ({"data": {"alpha": 0.1}}, "unknown key data.alpha (it belongs in [chain])"),
        ({"training": {"lr": 0.1}}, "unknown section [training] (did you mean train?)"),
        ({"lr": 0.1}, "unknown section [lr]"),
        ({"train": 0.1}, "train must be a section"),
    ],
)
def test_unknown_keys_name_the_nearest(sections, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(sections)
    assert message in str(caught.value)


def test_nothing_near_is_no_suggestion():
    assert nearest("zzz", ["alpha", "seed"]) == ""


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Config().train.lr = 1.0


# ---------------------------------------------------------------------------------------------------- what is resolved


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


def test_whole_numbers_are_taken_for_fractions():
    c = config(alpha=[0, 1], lr=1, label_noise=0)
    assert c.chain.alpha == (0.0, 1.0)
    assert {type(value) for value in (*c.chain.alpha, c.train.lr, c.data.label_noise)} == {float}


def test_one_value_is_taken_for_a_list():
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


# -------------------------------------------------------------------------------------------------------- identity

# An option, another value for it, and what both runs need so that it is legal.
OTHER_VALUES = {
    "dataset": ("digits", {}),
    "image_size": (16, {"dataset": "imagefolder"}),
    "train_size": (100, {}),
    "test_size": (100, {}),
    "val_size": (100, {}),
    "label_noise": (0.1, {}),
    "label_noise_kind": ("pairflip", {"label_noise": 0.1}),
    "augment": (False, {}),
    "resnet": (18, {}),
    "stem": ("cifar", {}),
    "width": (8, {"resnet": 20}),
    "pretrained": (True, {}),
    "network": ("my_nets:wide", {}),
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
    "alpha_schedule": ((0.6, 1.0), {"alpha": 0.5}),
    "seed": ((2,), {}),
    "distillation_steps": (4, {}),
    "teacher_select": ("best", {"val_size": 10}),
    "teacher_ckpt": ("other.pt", {"teacher_ckpt": "m.pt"}),
    "teacher_step": (1, {"teacher_ckpt": "m.pt"}),
}
WHERE = {"data_dir": "elsewhere", "graph": False, "output": "there", "device": "cuda:1", "threads": 3, "jobs": 2}


def test_the_tables_of_this_test_name_every_field():
    assert OTHER_VALUES.keys() | WHERE.keys() == SECTION_OF.keys()


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_another_value_is_another_run(name):
    value, needs = OTHER_VALUES[name]
    one, other = config(**needs), config(**{**needs, name: value})
    assert one.digest != other.digest
    assert one.output != other.output
    assert one.differences(other).startswith(f"--{name.replace('_', '-')} ")


@pytest.mark.parametrize("name", WHERE)
def test_where_the_work_is_done_does_not_make_another_run(name):
    one, other = Config(), config(**{name: WHERE[name]})
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


# -------------------------------------------------------------------------------------------------------------- TOML

positive = st.floats(0, 1e6, exclude_min=True)
unit = st.floats(0, 1)
names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=20)
several = {"min_size": 1, "max_size": 4, "unique": True}


def options(**optional) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=optional)


def joined(*parts: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    return st.tuples(*parts).map(lambda found: {name: value for part in found for name, value in part.items()})


data_options = joined(
    st.one_of(
        st.fixed_dictionaries({"dataset": st.sampled_from(["cifar10", "cifar100", "digits", "package:function"])}),
        st.fixed_dictionaries({"dataset": st.just("imagefolder")}, optional={"image_size": st.integers(1, 300)}),
    ),
    options(
        data_dir=names,
        train_size=st.integers(1, 50_000),
        test_size=st.integers(1, 10_000),
        label_noise=unit,
        label_noise_kind=st.sampled_from(["symmetric", "pairflip"]),
        augment=st.booleans(),
    ),
    st.fixed_dictionaries({"val_size": st.integers(1, 1000)}),
)
model_options = st.one_of(
    st.fixed_dictionaries({"resnet": st.sampled_from(CIFAR_RESNETS)}, optional={"width": st.integers(1, 64)}),
    st.fixed_dictionaries(
        {"resnet": st.sampled_from(TORCHVISION_RESNETS)},
        optional={"stem": st.sampled_from(["imagenet", "cifar"]), "pretrained": st.booleans()},
    ),
    st.just({"network": "package.module:function"}),
)
train_options = joined(
    options(
        max_epochs=st.integers(3, 200),
        batch_size=st.integers(2, 4096),
        reg=st.sampled_from(["norm", "l2", "none"]),
        reg_coef=unit,
        lr=positive,
        weight_decay=unit,
        precision=st.sampled_from(["fp32", "tf32", "bf16"]),
        deterministic=st.booleans(),
        fast_dev_run=st.booleans(),
    ),
    st.one_of(
        st.just({"loss": "mse"}),
        st.fixed_dictionaries({"loss": st.sampled_from(["ce", "kl"])}, optional={"temperature": positive}),
    ),
    st.one_of(
        st.fixed_dictionaries({"optimizer": st.sampled_from(["adam", "adamw"])}),
        st.fixed_dictionaries({"optimizer": st.just("sgd")}, optional={"momentum": st.floats(0, 0.999)}),
    ),
    st.one_of(
        st.just({"lr_schedule": "onecycle"}),
        options(lr_schedule=st.sampled_from(["constant", "cosine"]), warmup_epochs=st.integers(0, 2)),
    ),
)
chain_options = joined(
    options(
        alpha=st.lists(unit, **several) | st.just("auto") | st.just(["auto", 0.5]),
        seed=st.lists(st.integers(0, 2**40), **several),
        distillation_steps=st.integers(2, 9),
        teacher_select=st.sampled_from(["last", "best"]),
    ),
    st.one_of(
        st.just({}),
        st.fixed_dictionaries({"teacher_ckpt": names}, optional={"teacher_step": st.just(0)}),
        st.fixed_dictionaries({"alpha_schedule": st.sampled_from([[0.123], [["auto", 0.123], [0.123, 0.4]]])}),
    ),
)
run_options = options(
    output=names,
    device=st.sampled_from(["auto", "cpu", "cuda", "cuda:3", "mps"]),
    threads=st.integers(1, 64),
    jobs=st.integers(1, 8),
)
configs = st.fixed_dictionaries(
    {}, optional={"data": data_options, "model": model_options, "train": train_options, "run": run_options}
).flatmap(
    lambda given: chain_options.map(
        lambda chain: given | {"data": given.get("data", {"val_size": 1})} | {"chain": chain}
    )
)


@settings(max_examples=60)
@given(configs)
def test_a_configuration_survives_being_written_and_read(sections):
    written = from_dict(sections)
    read = from_dict(tomllib.loads(to_toml(written)))
    assert read == replace(written, run=replace(written.run, output=None))
    assert read.digest == written.digest


def test_a_written_configuration_spells_out_its_defaults():
    written = tomllib.loads(to_toml(config(resnet=20, optimizer="sgd")))
    assert written["model"] == {"resnet": 20, "stem": "cifar", "width": 16, "pretrained": False}
    assert written["train"]["momentum"] == 0.9
    assert written["train"]["lr"] == 1e-4


def test_a_written_configuration_does_not_name_its_directory():
    """Run again from elsewhere, it must not write over the run it came from."""
    assert "output" not in tomllib.loads(to_toml(config(output="here")))["run"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads(path):
    from_dict(read_toml(path))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_opens_with_source_command_result_and_cost(path):
    head = path.read_text().partition("[")[0]
    assert all(f"\n# {word} " in head for word in ("Source", "Command", "Result", "Cost"))
    assert f"python self_distiller.py --config configs/{path.name}\n" in head


def test_there_are_shipped_configurations():
    assert {"quickstart"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("content", [b"[train\n", b"lr = \n", b"\xff\xfe", b"[train]\nlr = 1\nlr = 2\n"])
def test_a_file_that_is_no_toml_is_one_line(tmp_path, content):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml: ") as caught:
        read_toml(tmp_path / "bad.toml")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        read_toml(tmp_path / "none.toml")


# ----------------------------------------------------------------------------------------------------------- schedules


def test_an_arm_has_a_weight_for_each_student_and_the_last_repeats():
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


def test_minus_zero_has_no_name_of_its_own():
    assert [arm_name(arm) for arm in config(alpha=-0.0).chain.arms] == ["0"]
