"""Configurations as dictionaries and TOML: errors by name, and round trips."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import config_of as config

from distill.config import CIFAR_RESNETS, TORCHVISION_RESNETS
from distill.configfile import from_dict, read_toml, to_toml
from distill.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


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
