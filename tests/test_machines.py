"""machines.py: which settings are chosen, how pytest's output is read, and that the settings reach the tests."""

import os
import sys

import machines
import pytest


def test_settings_are_chosen_by_words():
    assert list(machines.selected(["mkl", "threads"])) == ["two threads", "MKL_ENABLE_INSTRUCTIONS=AVX2"]
    assert machines.selected([]) == machines.SETTINGS
    assert machines.selected(["nothing"]) == {}


@pytest.mark.parametrize(
    ("last_line", "numbers"),
    [
        ("12 passed in 3.45s", {"passed": 12}),
        ("1 failed, 12 passed, 2 skipped, 1 error in 61.00s (0:01:01)", dict(failed=1, passed=12, skipped=2, error=1)),
        ("no tests ran in 0.01s", {}),
    ],
)
def test_counts_are_read_from_the_last_line(last_line, numbers):
    assert machines.counts(f"5 passed, as a test printed\n{last_line}\n") == numbers


def write_test(folder, body):
    """A test file in a folder of its own, without this project's options."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(body)
    return ["-p", "no:cacheprovider", "-c", str(folder / "pytest.ini"), "-rf", str(folder / "test_it.py")]


def test_a_setting_reaches_the_tests_and_others_do_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    body = """
import os
def test_it():
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx2"
    assert "OPENBLAS_CORETYPE" not in os.environ
"""
    arguments = write_test(tmp_path, body)
    assert machines.run_suite("torch", sys.executable, {"ATEN_CPU_CAPABILITY": "avx2"}, arguments)
    assert capsys.readouterr().out.startswith("torch: 1 passed, 0 failed, 0 skipped, ")


def test_failed_tests_are_named(tmp_path, capsys):
    arguments = write_test(tmp_path, "def test_it():\n    assert False\n")
    assert not machines.run_suite("plain", sys.executable, {}, arguments)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("plain: 0 passed, 1 failed, 0 skipped, ")
    assert second.startswith("    FAILED ")
    assert "test_it" in second


def test_a_suite_that_does_not_start_fails_and_is_shown(tmp_path, capsys):
    assert not machines.run_suite("plain", sys.executable, {}, [*write_test(tmp_path, ""), "--bogus"])
    assert "--bogus" in capsys.readouterr().out


def test_the_number_of_threads_is_the_settings():
    expected = os.environ.get(machines.THREADS, "1")
    assert {os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {expected}


def test_an_unknown_setting_is_refused(capsys):
    with pytest.raises(SystemExit):
        machines.main(["--only", "nothing"])
    assert "no setting is named like nothing" in capsys.readouterr().err
