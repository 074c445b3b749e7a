"""distill.arguments: one line for every error of the user's."""

import pytest

from distill.arguments import OneLineParser, positive, program_name, refuse
from distill.errors import ConfigError


def parser() -> OneLineParser:
    made = OneLineParser("program")
    made.add_argument("--size", type=positive(int))
    made.add_argument("--lam", type=positive(float))
    return made


@pytest.mark.parametrize("words", [["--size", "0"], ["--size", "1.5"], ["--lam", "inf"], ["--lam", "nan"]])
def test_what_is_not_positive_is_refused_by_name(words):
    with pytest.raises(ConfigError, match=rf"argument {words[0]}: invalid positive \w+ value: '{words[1]}'"):
        parser().parse_args(words)


def test_positive_numbers_are_taken():
    args = parser().parse_args(["--size", "3", "--lam", "1e-9"])
    assert (args.size, args.lam) == (3, 1e-9)


@pytest.mark.parametrize(
    ("typed", "name"), [("/usr/bin/self-distiller", "self-distiller"), ("x/self_distiller.py", "self_distiller.py")]
)
def test_the_name_that_was_typed(monkeypatch, typed, name):
    monkeypatch.setattr("sys.argv", [typed])
    assert program_name("self_distiller.py", "self-distiller") == name


def test_another_program_s_name_is_not_taken(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/pytest"])
    assert program_name("self_distiller.py", "self-distiller") == "self_distiller.py"


def test_a_message_of_several_lines_becomes_one(capsys):
    assert refuse("program", ValueError("first\n  second")) == 2
    assert capsys.readouterr().err == "program: error: first second\n"
