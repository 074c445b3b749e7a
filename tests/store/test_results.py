import json
import pickle
from dataclasses import replace

import pytest
from tiny import VALUES, leave_result

from distill.errors import ConfigError, UserError
from distill.store.results import REQUIRED, Result, columns, name_model, read_record, sort_key
from distill.store.rundir import RunDir


@pytest.mark.parametrize("content", [b"", b'{"seed": 1, "al', b"\xff\xfe"])
def test_a_damaged_result_is_refused_by_name(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        read_record(tmp_path)


def test_a_folder_without_a_result_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="holds no finished model"):
        read_record(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["{}", "[]", "null"])
def test_json_that_is_no_result_is_refused_by_name(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        read_record(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished teacher."""
    leave_result(RunDir(tmp_path))
    return RunDir(tmp_path).model(1, None, 0)


def edit(folder, without: str | None = None, **entries) -> None:
    """Set entries of a result.json, and take one out."""
    content = json.loads((folder / "result.json").read_text()) | entries
    content.pop(without, None)
    content.pop("sha256", None)  # else the edit would be detected
    (folder / "result.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", sorted(set(columns()) - REQUIRED))
def test_a_value_that_an_older_version_did_not_write_is_none(folder, name):
    edit(folder, without=name)
    result = Result.of(read_record(folder))
    assert getattr(result, name) is None
    assert result.test_acc == 0.5


@pytest.mark.parametrize("name", ["seed", "step", "arm", "test_acc", "model_sha256", "parent"])
def test_a_result_without_what_every_result_has_is_refused(folder, name):
    edit(folder, without=name)
    with pytest.raises(ConfigError, match=rf"result\.json is damaged \(it lacks {name}\)"):
        read_record(folder)


def test_entries_of_a_newer_version_are_ignored(folder):
    edit(folder, test_of_tomorrow=0.25)
    assert Result.of(read_record(folder)) == Result.of(VALUES)


def test_later_values_replace_earlier_ones_in_a_result():
    result = Result.of(VALUES, {"test_acc": 0.75})
    assert (result.test_acc, result.test_nll) == (0.75, 0.5)
    assert result.row() == VALUES | {"test_acc": 0.75}
    assert [*result.row()] == columns()


def test_a_metric_without_a_field_is_an_attribute():
    result = replace(Result.of(VALUES), extra={"margin": 0.25})
    assert result.margin == pickle.loads(pickle.dumps(result)).margin == 0.25
    assert result.row()["margin"] == 0.25
    with pytest.raises(AttributeError, match="a result has no colour"):
        result.colour  # noqa: B018


def test_results_are_sorted_whatever_their_arms_are_called():
    arms = [None, "1e-05", "0.2", "0.2-0.4", "auto", "top2"]
    results = [Result.of(VALUES, {"arm": arm}) for arm in arms]
    assert [result.arm for result in sorted(reversed(results), key=sort_key)] == arms


def test_a_model_is_named_by_seed_arm_and_step():
    assert name_model(1, "0.6", 2) == "seed 1, alpha 0.6, step 2"
    assert name_model(1, None, 0) == "seed 1, step 0"
