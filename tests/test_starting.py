"""Programs that are stopped at any moment after their start."""

import signal
from pathlib import Path

import pytest
from interrupts import PROGRAMS, interrupt

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_modules_are_loaded_is_a_line(tmp_path, program):
    for delay in (0.1, 0.15, 0.2):
        wrong = interrupt(program, tmp_path / "run", delay, [(0, signal.SIGINT), (0.001, signal.SIGINT)], group=False)
        assert wrong is None


@pytest.mark.parametrize(("delay", "group"), [(4, False), (6, True)])
def test_two_interrupts_of_a_run_with_workers(tmp_path, delay, group):
    signals = [(0.0, signal.SIGINT), (0.0005, signal.SIGINT)]
    assert interrupt("self_distiller", tmp_path / "run", delay, signals, group) is None
