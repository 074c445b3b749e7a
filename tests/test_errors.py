"""distill.errors: one line, and the nearest known name."""

from distill.errors import ConfigError, nearest, one_line


def test_one_line():
    assert one_line(ConfigError("first\n\tsecond")) == "first second"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_the_nearest_name_is_suggested():
    assert nearest("alpa", ["alpha", "seed"]) == " (did you mean alpha?)"
    assert nearest("zzz", ["alpha", "seed"]) == ""
