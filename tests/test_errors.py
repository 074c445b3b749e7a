"""distill.errors: one line that a terminal can show, and the nearest known name."""

import pytest

from distill.errors import LONGEST, ConfigError, one_line, printable, shown, suggestion


def test_one_line():
    assert one_line(ConfigError("first\n\tsecond")) == "first second"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_long_message_is_shortened_in_the_middle():
    said = one_line("unknown key " + 10**6 * "x" + ": delete it")
    assert len(said) < 250
    assert said.startswith("unknown key xxx")
    assert said.endswith("xxx: delete it")
    assert len(one_line("many words " * 10**5)) < LONGEST


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\rc", "a\nb\\rc"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("d\udcff", "d\\udcff"),
        ("Größe ± 0 日本", "Größe ± 0 日本"),
    ],
)
def test_no_text_controls_the_terminal(text, expected):
    assert printable(text) == expected


def test_what_python_does_not_print_is_shown_by_its_type():
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    assert shown(1) == "1"
    assert shown(16**10_000) == "a value of type int that is too large to print"
    assert shown(deep) == "a value of type list that is too large to print"


def test_the_nearest_name_is_suggested():
    assert suggestion("alpa", ["alpha", "seed"]) == " (did you mean alpha?)"
    assert suggestion("zzz", ["alpha", "seed"]) == ""


def test_an_error_of_the_system_names_its_file_without_a_number():
    assert one_line(FileNotFoundError(2, "No such file or directory", "runs/x")) == "runs/x: No such file or directory"
    assert one_line(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
    assert one_line(OSError("cannot read it")) == "cannot read it"
