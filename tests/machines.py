"""Run the test suite as other machines would: other instruction sets, thread counts and the oldest packages.

    python tests/machines.py                               # every setting with the packages installed here
    python tests/machines.py --only MKL threads            # settings whose name contains one of these words
    python tests/machines.py --oldest                      # only with the packages of constraints-oldest.txt
    python tests/machines.py -- -k kernel -m slow          # pytest gets what follows --

Prints one line per setting: the number of passed and failed tests and the seconds, then the names of failed tests.
Exit status 1 if any test failed. Each setting takes as long as the whole suite does.

An environment variable can only turn instructions off. What the processor lacks, no setting shows.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints-oldest.txt"
THREADS = "TEST_THREADS"  # read by conftest.py

SETTINGS: dict[str, dict[str, str]] = {
    "as it is, one thread": {},
    "two threads": {THREADS: "2"},
    "ATEN_CPU_CAPABILITY=default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATEN_CPU_CAPABILITY=avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ONEDNN_MAX_CPU_ISA=SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "ONEDNN_MAX_CPU_ISA=AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "OPENBLAS_CORETYPE=Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "OPENBLAS_CORETYPE=SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "MKL_ENABLE_INSTRUCTIONS=AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "AVX2 throughout": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
NOT_INHERITED = {THREADS, *(name for variables in SETTINGS.values() for name in variables)}


def selected(words: Iterable[str]) -> dict[str, dict[str, str]]:
    """The settings whose names contain any of ``words``, ignoring case; all of them if there are no words."""
    words = [word.lower() for word in words]
    return {name: value for name, value in SETTINGS.items() if not words or any(word in name.lower() for word in words)}


def counts(output: str) -> dict[str, int]:
    """The counts in pytest's last line: ``2 failed, 10 passed in 3.4s`` as ``{"failed": 2, "passed": 10}``."""
    lines = output.strip().splitlines() or [""]
    found = re.findall(r"(\d+) (passed|failed|error|skipped|xfailed|xpassed)", lines[-1])
    return {kind: int(number) for number, kind in found}


def run_suite(name: str, python: Path | str, variables: dict[str, str], arguments: list[str]) -> bool:
    """Run pytest once in the checkout, print one line and the failed tests; returns whether all passed."""
    environment = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
    started = time.monotonic()
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", *arguments],
        cwd=ROOT,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    numbers = counts(done.stdout)
    failed = numbers.get("failed", 0) + numbers.get("error", 0)
    print(
        f"{name}: {numbers.get('passed', 0)} passed, {failed} failed, {numbers.get('skipped', 0)} skipped, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            print(f"    {line}", flush=True)
    if done.returncode != 0 and not failed:  # it did not get as far as a summary
        print(done.stdout, flush=True)
    return done.returncode == 0


def oldest_environment(folder: Path) -> Path:
    """The Python of a virtual environment with the oldest packages, made in ``folder`` if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS)]
        subprocess.run([*install, "setuptools"], check=True)
        subprocess.run([*install, "--no-build-isolation", f"{ROOT}[test]"], check=True)
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "self-distiller"], check=True)
    return python


def main(argv: list[str] | None = None) -> int:
    """Run the chosen settings; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="settings whose name contains a word")
    parser.add_argument("--oldest", action="store_true", help="run once, with the packages of constraints-oldest.txt")
    parser.add_argument("--environment", type=Path, help="keep or reuse the oldest packages in this folder")
    parser.add_argument("arguments", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args(argv)
    if options.oldest:
        with tempfile.TemporaryDirectory() as temporary:
            python = oldest_environment(options.environment or Path(temporary) / "oldest")
            return 0 if run_suite("oldest packages", python, {}, options.arguments) else 1
    chosen = selected(options.only)
    if not chosen:
        parser.error(f"no setting is named like {' '.join(options.only)}; there are: {'; '.join(SETTINGS)}")
    passed = [run_suite(name, sys.executable, variables, options.arguments) for name, variables in chosen.items()]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
