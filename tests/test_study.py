"""Studies: axes, settings and their folders, and what may be added to a directory."""

import tomllib
from pathlib import Path

import pytest
from tiny import DIGITS, refusal

from distill.cli import main, parse
from distill.configfile import to_toml
from distill.errors import ConfigError
from distill.study import GRID, Study, expand, extended, read_study

AXES = ["--label-noise", "0", "0.2", "--lr", "1e-3", "0.01"]


def study_of(words: list[str]) -> Study:
    return parse([*DIGITS, *words]).study


def begin(path: Path, *words: str) -> None:
    """Leave a study in ``path`` with a model of each setting begun."""
    study = study_of([*words, "--output", str(path)])
    for setting in study.settings:
        folder = setting.config.output / "seed_1/alpha_0.6/step_1"
        folder.mkdir(parents=True)
        (folder / "training_state.pt").touch()
        (setting.config.output / "config.toml").write_text(to_toml(setting.config))
    (path / "config.toml").write_text(study.toml())


def test_several_values_of_options_make_a_setting_each():
    study = study_of([*AXES, "--output", "here"])
    assert study.axes == {"label_noise": (0.0, 0.2), "lr": (0.001, 0.01)}
    assert [setting.config.output for setting in study.settings] == [
        Path(f"here/label_noise_{noise},lr_{lr}") for noise in ("0", "0.2") for lr in ("0.001", "0.01")
    ]
    for setting in study.settings:
        values = {"label_noise": setting.config.data.label_noise, "lr": setting.config.train.lr}
        assert setting.values == values
    assert study.settings[-1].title == "label noise 0.2, lr 0.01"


def test_one_value_on_the_command_line_is_no_axis():
    study = study_of(["--label-noise", "0.2"])
    assert study.axes == {}
    assert study.settings[0].config == parse([*DIGITS, "--label-noise", "0.2"]).config


def test_a_list_in_a_file_is_an_axis(tmp_path):
    (tmp_path / "c.toml").write_text("[data]\nlabel_noise = [0.2]\naugment = [true, false]\n")
    study = parse(["--config", str(tmp_path / "c.toml"), "--output", "x"]).study
    assert study.axes == {"label_noise": (0.2,), "augment": (True, False)}
    assert study.settings[1].config.output == Path("x/label_noise_0.2,augment_false")


def test_the_default_folder_is_named_for_the_lists():
    paths = {study_of(words).path for words in (AXES, AXES[:3], [*AXES, "--seed", "2"], [*AXES, "0.1"])}
    assert len(paths) == 4
    assert all(path.parent == Path("runs") and path.name.startswith("digits-resnet8-") for path in paths)


@pytest.mark.parametrize(
    "words", [AXES, ["--resnet", "8", "18"], ["--optimizer", "sgd", "adam"], ["--loss", "ce", "gce"]]
)
def test_a_written_study_makes_the_same_settings(tmp_path, words):
    """Options that follow from an axis, such as the stem of a ResNet, are left out of the file."""
    study = parse(["--dataset", "digits", *words, "--output", str(tmp_path)]).study
    (tmp_path / "config.toml").write_text(study.toml())
    assert read_study(tmp_path) == study


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lr 0.1 0.1", "lr has a value twice: 0.1 0.1"),
        ("--lr 0.1 1e-1", "lr has a value twice"),
        ("--loss ce ce", "loss has a value twice"),
        ("--loss gce gce:q=0.7", "two settings of the study are the same: loss gce and loss gce:q=0.7"),
        ("--lr 0.1 -1", "lr must be a number in [1e-30, 1e+38], not -1"),
        ("--resnet 8 9", "invalid choice: 9"),
        ("--resnet 8 18", "resnet 18: width is for the 6n+2 family"),
        ("--max-epochs 1 5 --warmup-epochs 3", "max epochs 1: warmup_epochs must be in [0, max_epochs)"),
        ("--dataset a:b ab", "dataset ab: dataset must be one of"),
        ("--dataset a:b-c a-b:c", "a:b-c and dataset a-b:c would have the same folder: dataset_a-b-c"),
        (f"--dataset {'a' * 201}:b c:d", "too many axes for the name of a folder: dataset_aaa"),
        ("--distillation-steps 1 2", "unexpected argument '2'"),
        ("--seed 1 2 --alpha 0 1 --lr 0.1 0.2 --distillation-steps 20000", "2 settings make up to 160,004 models"),
        ("--lr 0.1 --x lr", "--x is for a study"),
        ("--lr 0.1 0.2 --x alpha", "--x alpha: the axes of this study are lr"),
    ],
)
def test_bad_axes_are_refused_in_a_line(capsys, tmp_path, words, said):
    assert said in refusal(capsys, tmp_path / "run", *DIGITS, *words.split())


@pytest.mark.parametrize("text", ["lr = []", "lr = [[0.1]]", "lr = [0.1, true]", "distillation_steps = [1, 2]"])
def test_a_list_that_is_no_axis_is_refused(text):
    section = "chain" if "steps" in text else "train"
    with pytest.raises(ConfigError, match=r"needs at least one value|must be of type"):
        expand(tomllib.loads(f"[{section}]\n{text}"))


def test_yes_allows_a_large_grid():
    words = ["--seed", *map(str, range(400)), "--lr", *(str(i / 1000) for i in range(1, 201))]
    with pytest.raises(ConfigError, match="give --yes"):
        study_of(words)
    assert len(study_of([*words, "--yes"]).settings) == 200


@pytest.mark.parametrize("how", ["--resume", "--output"])
@pytest.mark.parametrize(
    ("held", "given", "expected"),
    [
        ("--alpha 0.6", "--alpha 0.3", {"alpha": (0.6, 0.3)}),
        ("--alpha 0.6 0.3", "--alpha 0.3", {"alpha": (0.6, 0.3)}),
        ("--alpha 0.6", "--seed 2 3", {"alpha": (0.6,), "seed": (1, 2, 3)}),
        ("--seed 1 2", "--distillation-steps 3", {"seed": (1, 2), "distillation_steps": 3}),
        ("--distillation-steps 2", "--distillation-steps 1", {"distillation_steps": 2}),
        ("--alpha 0.6", "--alpha-schedule 0.2", {"alpha": (0.6,), "alpha_schedule": ((0.2,),)}),
        ("--alpha 0.6", "--target consensus", {"target": ("soft", "consensus"), "alpha": (0.6,)}),
        ("--lr 0.01 0.1", "--lr 0.2", {"lr": (0.01, 0.1, 0.2)}),
        ("--lr 0.01 0.1", "--lr 0.1 --seed 4", {"lr": (0.01, 0.1), "seed": (1, 4)}),
        (" ".join(AXES), "--label-noise 0.4", {"label_noise": (0.0, 0.2, 0.4), "lr": (0.001, 0.01)}),
    ],
)
def test_values_are_added_to_those_of_a_directory(tmp_path, how, held, given, expected):
    begin(tmp_path, *held.split())
    words = ["--resume", str(tmp_path)] if how == "--resume" else [*DIGITS, "--output", str(tmp_path)]
    study = parse([*words, *given.split()]).study
    if "--distillation-steps" not in given and "--distillation-steps" not in held:
        expected = expected | {"distillation_steps": 1}
    found = {name: getattr(study.settings[0].config.chain, name) for name in GRID} | study.axes
    assert {name: found[name] for name in expected} == expected
    assert study.path == tmp_path
    assert study.axes.keys() == read_study(tmp_path).axes.keys()


@pytest.mark.parametrize(
    ("held", "given", "said"),
    [
        ("--alpha 0.6", "--lr 0.5", "--lr 0.5 instead of 0.01"),
        ("--alpha 0.6", "--lr 0.5 0.6", "holds a run with --lr 0.01 alone, which cannot become an axis"),
        ("--lr 0.5 0.6", "--label-noise 0 0.2", "holds a run with --label-noise 0 alone"),
        ("--lr 0.5 0.6", "--label-noise 0.2", "--label-noise 0.2 instead of 0"),
        ("--target consensus", "--alpha 0.5", "target consensus takes no alpha"),
        ("--alpha 0.6", "--alpha 0.2 --loss ce", "--loss ce instead of mse"),
        ("--alpha 0.6", "--alpha auto", "alpha auto needs held-out images"),
        ("--alpha 0.6", "--alpha 0.3 0.3", "alpha has a value twice: 0.3 0.3"),
        ("--lr 0.5 0.6", "--lr 0.7 0.7", "lr has a value twice: 0.7 0.7"),
    ],
)
def test_what_cannot_be_combined_is_named(capsys, tmp_path, held, given, said):
    begin(tmp_path, *held.split())
    before = (tmp_path / "config.toml").read_bytes()
    assert main(["--resume", str(tmp_path), *given.split()]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert (tmp_path / "config.toml").read_bytes() == before


def test_arms_of_a_preview_are_replaced(tmp_path):
    begin(tmp_path, "--alpha", "0.6")
    for state in list(tmp_path.rglob("alpha_0.6/*/*.pt")):
        (tmp_path / "seed_1/step_0").mkdir()
        state.rename(tmp_path / "seed_1/step_0/training_state.pt")
        state.parent.rmdir()
        state.parent.parent.rmdir()
    assert parse(["--resume", str(tmp_path), "--alpha", "0", "1"]).config.chain.alpha == (0.0, 1.0)


def test_a_new_value_brings_the_defaults_that_follow_from_it(tmp_path):
    study = expand({"model": {"resnet": [8, 20]}, "run": {"output": str(tmp_path)}})
    (tmp_path / "config.toml").write_text(study.toml())
    again = extended(tmp_path, {"model": {"resnet": 18}, "run": {"output": str(tmp_path)}}, resumes=True)
    found = [(setting.config.model.resnet, setting.config.model.width) for setting in again.settings]
    assert found == [(8, 16), (20, 16), (18, None)]


def test_a_study_is_no_run(tmp_path, capsys):
    begin(tmp_path, *AXES)
    assert main(["--report", str(tmp_path / "label_noise_0,lr_0.001")]) == 0
    from distill.store.rundir import RunDir

    with pytest.raises(ConfigError, match="holds a study of several runs: name one of its folders"):
        RunDir(tmp_path).config()


@pytest.mark.parametrize("file", ["config.toml", "result.json"])
def test_a_directory_of_a_newer_version_is_refused(capsys, tmp_path, file):
    assert main([*DIGITS, "--output", str(tmp_path)]) == 0
    changed = tmp_path / file if file == "config.toml" else tmp_path / "seed_1/step_0" / file
    text = changed.read_text()
    if file == "config.toml":
        text = text.partition("\n")[2]  # without its SHA-256
    changed.write_text(text.replace("format = 1", "format = 2").replace('"format": 1', '"format": 2'))
    if file == "result.json":
        import json

        from distill.records import write_json

        content = json.loads(changed.read_text())
        del content["sha256"]
        write_json(changed, content)
    capsys.readouterr()
    assert main(["--resume", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"{changed}: written by a newer version of this program (format 2; this one reads 1)" in err
