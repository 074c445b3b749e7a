"""distill.errors: one line, and a suggestion for a mistyped name."""

from distill.errors import ConfigError, one_line, suggestion


def test_one_line():
    assert one_line(ConfigError("first\n\tsecond")) == "first second"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_the_nearest_name_is_suggested():
    assert suggestion("alpa", ["alpha", "seed"]) == " (did you mean alpha?)"
    assert suggestion("zzz", ["alpha", "seed"]) == ""
