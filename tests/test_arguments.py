"""distill.arguments: numbers in a range, negative ones too, and paths."""

from pathlib import Path

import pytest

from distill.arguments import OneLineParser, Range, number, to_path
from distill.errors import ConfigError


def parser() -> OneLineParser:
    made = OneLineParser("program")
    made.add_argument("--size", type=number(int, Range(1, 9)))
    made.add_argument("--lam", type=number(float, Range(0.0, 1e9, without="low")), nargs="+")
    made.add_argument("--to", type=to_path)
    return made


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        *(("--size", value, "a whole number from 1 to 9") for value in ("0", "10", "1.5", "9" * 5001, "-3", "")),
        *(("--lam", value, "a number in (0, 1e+09]") for value in ("0", "inf", "nan", "-inf", "-1e-3", "-.5", "x")),
    ],
    ids=lambda text: text[:30],
)
@pytest.mark.parametrize("sign", [" ", "="])
def test_what_is_out_of_range_is_refused_by_name(option, value, said, sign):
    words = [option, value] if sign == " " else [f"{option}={value}"]
    with pytest.raises(ConfigError) as caught:
        parser().parse_args(words)
    assert f"argument {option}: must be {said}, not '{value}'" in str(caught.value)


def test_numbers_in_range_are_taken():
    args = parser().parse_args(["--size", "3", "--lam", "1e-9", "1e9"])
    assert (args.size, args.lam) == (3, [1e-9, 1e9])


def test_an_option_that_begins_like_a_negative_number_is_none(capsys):
    with pytest.raises(ConfigError, match="unrecognized arguments: -x"):
        parser().parse_args(["-x"])


def test_the_home_folder_is_expanded_behind_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert parser().parse_args(["--to=~/x"]).to == Path("/somewhere/x")


def test_an_empty_path_is_not_the_working_directory():
    with pytest.raises(ConfigError, match="argument --to: must not be empty"):
        parser().parse_args(["--to="])


@pytest.mark.parametrize(("without", "low", "high"), [("", True, True), ("low", False, True), ("high", True, False)])
def test_the_ends_of_a_range(without, low, high):
    for value, inside in ((0.0, low), (0.5, True), (1.0, high), (float("nan"), False)):
        if inside:
            Range(0.0, 1.0, without).check("x", value)
        else:
            with pytest.raises(ConfigError, match="x must be a number in"):
                Range(0.0, 1.0, without).check("x", value)
