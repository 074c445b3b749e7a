import os
import subprocess
import sys

import pytest
from tiny import ROOT

from distill.environment import SETTINGS, available_cores, set_environment


def variables_after(program: str, **given: str) -> dict[str, str]:
    """The variables in SETTINGS, in a new process that starts with those ``given`` and runs ``program``."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | given
    program += f"\nimport os\nprint(*(os.environ.get(name, 'unset') for name in {list(SETTINGS)}))"
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return dict(zip(SETTINGS, out.stdout.splitlines()[-1].split(), strict=True))


def test_variables_that_are_set_are_kept(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    set_environment()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"


def test_the_library_sets_them_before_torch_is_loaded():
    program = """
import sys, distill, distill.environment
setting = distill.environment.set_environment
def checked():
    assert "torch" not in sys.modules
    setting()
distill.environment.set_environment = checked
distill.run
assert "torch" in sys.modules
"""
    assert variables_after(program) == SETTINGS


def test_importing_the_package_alone_sets_nothing():
    assert set(variables_after("import distill, distill.config").values()) == {"unset"}


def test_the_program_sets_them():
    program = """
from distill import cli
cli.main(["--alpha", "2"])
"""
    assert variables_after(program, GOMP_SPINCOUNT="5") == SETTINGS | {"GOMP_SPINCOUNT": "5"}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8})
    assert available_cores() == 3


def test_cores_without_affinity_are_all(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
