import os
import re
import subprocess
import sys

import pytest
from ranks_tools import environment_of
from tiny import ROOT

from distill.environment import SETTINGS, available_cores, available_memory, ranks_here, set_environment, torchrun_rank
from distill.errors import ConfigError


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


def test_free_memory_is_less_under_a_limit(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, -1))
    assert available_memory() == 0


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


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"RANK": None}, "RANK is not set: start with torchrun, or unset TORCHELASTIC_RUN_ID"),
        ({"RANK": "x"}, "RANK is 'x', not an integer from 0"),
        ({"RANK": "2"}, "RANK is 2, not below WORLD_SIZE 2"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', not an integer from 1"),
        ({"LOCAL_RANK": "²"}, "LOCAL_RANK is '²', not"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0', not an integer from 1"),
        ({"MASTER_PORT": "9" * 5000}, "MASTER_PORT is '999"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
    ],
)
def test_variables_that_torchrun_has_not_set_so_are_named(monkeypatch, changed, reason):
    for name, value in (environment_of(1, 2, 29500) | changed).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        torchrun_rank()


def test_ranks_on_this_machine_are_those_of_torchrun(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "x")
    assert ranks_here() == 1
    for name, value in environment_of(1, 2, 29500).items():
        monkeypatch.setenv(name, value)
    assert (torchrun_rank(), ranks_here()) == ((1, 2), 2)
