"""Command lines and files of options that nobody meant: exit status 0 or 2, at most one line, soon, no escape codes."""

import contextlib
import io
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distill import cli, preview
from distill.config import SECTION_OF
from distill.kernel.toy import options as toy
from distill.parser import build_parser
from distill.program import run_program, say

LONGEST = 1300  # characters of a line
SECONDS = 5.0


def parse_only(words: list[str]) -> int:
    say(str(cli.parse(words).config))
    return 0


def parse_toy_only(words: list[str]) -> int:
    say(str(toy.parse(words)))
    return 0


def parse_preview_only(words: list[str]) -> int:
    say(str(preview.build_parser().parse_args(words)))
    return 0


PROGRAMS = {"self_distiller": parse_only, "krr_toy": parse_toy_only, "preview": parse_preview_only}


def check(program: str, words: list[str]) -> str:
    """Run a program as far as its options are read; returns what it says on standard error."""
    out = io.TextIOWrapper(io.BytesIO(), "ascii")  # the poorest of encodings
    err = io.TextIOWrapper(io.BytesIO(), "ascii")
    start = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run_program(program, lambda: PROGRAMS[program](words))
        except SystemExit as end:  # --help
            status = end.code
    assert time.monotonic() - start < SECONDS
    said = err.buffer.getvalue().decode("ascii")
    assert status in (0, 2)
    assert said.count("\n") == (1 if status else 0), said
    assert len(said) < LONGEST
    assert all(c.isprintable() or c == "\n" for c in said + out.buffer.getvalue().decode("ascii"))
    return said


FLAGS = sorted({flag for action in build_parser()._actions for flag in action.option_strings})
TOY_FLAGS = sorted({flag for action in toy.parser()._actions for flag in action.option_strings})
HOSTILE = [
    *("", "-", "--", "-1e-3", "-inf", "nan", "1e400", "1e-400", "-0", ".5", "9" * 5001, "0x10", "٣", "1_0"),
    *("~", "~nobody/x", "a:b", "auto", "\x1b[31m", "\x00", "\udcff", "\u202e", "%s", "{0}", "@x", "=", "a=b", "\n"),
    "x" * 10**5,
]
values = st.sampled_from(HOSTILE) | st.text(max_size=8) | st.floats().map(repr) | st.integers().map(str)


def command_lines(flags: list[str]) -> st.SearchStrategy[list[str]]:
    word = st.sampled_from(flags) | values | st.tuples(st.sampled_from(flags), values).map("=".join)
    return st.lists(word, max_size=6)


# Every command line that ever failed.
FAILED = [
    ("self_distiller", ["--lr", "-1e-3"]),
    ("self_distiller", ["--lr", "-inf"]),
    ("self_distiller", ["--reg-coef", "1e39"]),
    ("self_distiller", ["--loss", "ce", "--temperature", "1e200"]),
    ("self_distiller", ["--jobs", "99999999999"]),
    ("self_distiller", ["--seed", "9" * 5001]),
    ("self_distiller", ["--seed", *map(str, range(20_000))]),
    ("self_distiller", ["--distillation-steps", "50000"]),
    ("self_distiller", ["--alpha", *(repr(i / 10**5) for i in range(10**5))]),
    ("self_distiller", ["--" + "x" * 10**6]),
    ("self_distiller", ["--data-dir", "d\udcff"]),
    ("self_distiller", ["--dataset", "\x1b[31m"]),
    ("self_distiller", ["--loss", "ce:" + "x" * 10**6]),
    ("self_distiller", ["--config", "\0"]),
    ("self_distiller", ["--config", ""]),
    ("self_distiller", ["--resume", "\0"]),
    ("self_distiller", ["--resume", "x" * 10**5]),
    ("self_distiller", ["--config", "x" * 10**5]),
    ("krr_toy", ["--alpha", "-1e-400", "-inf"]),
    ("krr_toy", ["--seed", "9" * 5001]),
    ("krr_toy", ["--alpha", *["0.1"] * 10**5]),
    ("krr_toy", ["--help"]),
    ("preview", ["--size", "9" * 5001, "x"]),
    ("preview", ["--seed", "-1", "x"]),
]


@pytest.mark.parametrize(
    ("program", "words"), FAILED, ids=lambda value: str(value)[:40].encode("unicode_escape").decode()
)
def test_what_once_failed(program, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(program, words)
    assert not list(tmp_path.iterdir())


quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(command_lines(FLAGS))
def test_any_command_line_of_the_training_program(words):
    check("self_distiller", [word for word in words if word not in ("--resume", "--report")])


@quick
@given(command_lines(TOY_FLAGS))
def test_any_command_line_of_the_toy(words):
    check("krr_toy", words)


@quick
@given(command_lines(["--seed", "--size", "--lam", "--help"]))
def test_any_command_line_of_the_preview(words):
    check("preview", words)


# ---------------------------------------------------------------------------------------------- files of options

NAMES = [f"{section}.{name}" for name, section in SECTION_OF.items()]
LITERALS = [
    *("1", "-1", "0.5", "1e400", "-inf", "nan", "true", '"auto"', '""', "[]", "[[]]", "[[[1]]]", "{}", "{a = 1}"),
    *("9" * 5001, "0x" + "f" * 10**4, "1979-05-27", "07:32:00", "1979-13-99", '"\\u0000"', '"\\u001b[31m"', '"~"'),
    *("'''\n\n'''", "[1, 'a']", "[" * 1000 + "]" * 1000, "[" * 90 + "]" * 90, "[0.1, 0.1]", "[nan, nan]", "[-0.0, 0]"),
]
literals = st.sampled_from(LITERALS) | st.floats().map(repr) | st.integers().map(str)
names = st.sampled_from([*NAMES, "train", "chain", "x", '"\x1b[31m"', '"' + "k" * 1000 + '"', "train.lr.x", '""'])
lines = st.one_of(
    st.tuples(names, literals).map(" = ".join),
    st.sampled_from(
        ["[train]", "[[train]]", "[train.lr]", "[chain]", "[data]\n[data]", "[", "]", "#", "\ufeff", "\r", "="]
    ),
    st.text(max_size=10),
)


def check_file(content: bytes, *words: str) -> str:
    path = Path(check_file.folder) / "c.toml"
    path.write_bytes(content)
    return check("self_distiller", ["--config", str(path), *words])


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    check_file.folder = tmp_path_factory.mktemp("files")


FAILED_FILES = [
    b"\xef\xbb\xbf[train]\nlr = 0.1",
    b"train = 3",
    b"[[train]]\nlr = 0.1",
    b"x = " + b"[" * 1000 + b"]" * 1000,
    b"[train]\nlr = " + b"9" * 5001,
    b"[train]\nlr = 0x" + b"f" * 5001,
    b"[train]\nmax_epochs = 0x" + b"f" * 5001,
    b"[chain]\nseed = [" + b", ".join(b"%d" % i for i in range(20_000)) + b"]",
    b"[chain]\nalpha = [" + b", ".join(b"%.5f" % (i / 10**5) for i in range(10**5)) + b"]",
    b'[data]\n"\\u001b[31m" = 1',
    b'[data]\n"' + b"k" * 10**5 + b'" = 1',
    b'[data]\ndata_dir = "a\\u0000b"',
    b"[data]\ndata_dir = 'd\xff'",
    b"x" * 2_000_000,
    b"[train]\nlr = 1979-13-99",
    b"[train]\n" + b"lr." * 20_000 + b"x = 1",
    b"[" + b"a." * 20_000 + b"x]",
    b"x = " + b"{a = " * 1000 + b"1" + b"}" * 1000,
]


@pytest.mark.parametrize("content", FAILED_FILES, ids=lambda content: repr(content[:30]))
@pytest.mark.parametrize("words", [(), ("--lr", "0.1", "--seed", "3")])
def test_a_file_that_once_failed(content, words):
    check_file(content, *words)


@quick
@given(st.lists(lines, max_size=5).map("\n".join), st.sampled_from([(), ("--lr", "0.1"), ("--alpha", "0.1")]))
@example("[train]\nlr = 1e-3", ())
def test_any_file_of_options(text, words):
    check_file(text.encode(errors="surrogateescape"), *words)


@quick
@given(st.binary(max_size=40))
def test_any_bytes_as_a_file_of_options(content):
    check_file(content)
