"""named.py: ``package.module:function`` as the function, or an error of one line that says what is wrong."""

import os.path

import pytest

from distill.errors import ConfigError
from distill.named import named_object


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder on ``sys.path`` with modules that work and modules that do not; their names are this test's own."""
    (tmp_path / "named_good.py").write_text("number = 3\ndef double(x):\n    return 2 * x\n")
    (tmp_path / "named_raising.py").write_text("raise ValueError('first line\\nsecond line')\n")
    (tmp_path / "named_exiting.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "named_syntax.py").write_text("def f(:\n")
    (tmp_path / "named_package").mkdir()
    (tmp_path / "named_package" / "inner.py").write_text("import named_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_function_is_found_by_its_name(modules):
    assert named_object("os.path:join", "dataset") is os.path.join
    assert named_object("named_good:double", "network")(4) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("named_good", "is not of the form package.module:function"),
        ("named_good:", "is not of the form package.module:function"),
        (":double", "is not of the form package.module:function"),
        ("./named_good.py:double", "is not of the form package.module:function"),
        ("named_good:double:double", "is not of the form package.module:function"),
        ("named_not_there:double", r"cannot be imported \(ModuleNotFoundError: No module named 'named_not_there'\)"),
        ("named_package.inner:double", r"named_package.inner cannot be imported \(.*'named_not_there'\)"),
        ("named_raising:double", r"cannot be imported \(ValueError: first line second line\)"),
        ("named_exiting:double", r"cannot be imported \(SystemExit: 0\)"),
        ("named_syntax:double", r"cannot be imported \(SyntaxError: .*named_syntax.py, line 1\)"),
        ("named_good:treble", "named_good has no function treble"),
        ("named_good:number", "number is not a function but of type int"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error_of_one_line(modules, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        named_object(text, "dataset")
    assert str(caught.value).startswith("dataset ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
