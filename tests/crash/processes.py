"""Processes of the program under test: new interpreters, or forks of this one, which has imported torch already.

A fork writes figures without laying them out or drawing them, which takes longer than all else, and its workers are
forks too.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.crash.inject import sitecustomize as injection

ROOT = Path(__file__).resolve().parents[2]
INJECT = Path(injection.__file__).parent
NOT_DRAWN = b'<svg width="1pt" height="1pt">a figure that a fork did not draw</svg>'  # report.html takes it, too
SECONDS = 300.0  # after which a program hangs


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its exit status (minus the signal that killed it), and what it printed."""

    status: int | None  # None: it did not end
    out: str
    err: str
    calls: list[str]  # the counted calls: process, call and path
    orphans: list[int]  # processes of it that were still there seconds later


def preload() -> None:
    """Import what the programs import, also later on, so that a fork has it."""
    for name in (
        *("distill.cli", "distill.kernel.toy.program", "distill.kernel.toy.figures", "distill.running.run"),
        *("distill.reporting.run_report", "distill.reporting.plots", "matplotlib.backends.backend_svg"),
        *("sklearn.datasets", "torch._dynamo"),  # torch's optimisers import the last one
    ):
        importlib.import_module(name)


def run_program(words: list[str], folder: Path, fault: str, forked: bool, kill_after: float | None = None) -> Outcome:
    """Run a program, a script of the checkout and its options, with a fault in its file operations in ``folder``.

    ``kill_after``: kill it and its workers after so many seconds.
    """
    trace = folder.with_name(f"{folder.name}.trace")
    logs = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    for file in (trace, *logs):
        file.write_bytes(b"")
    settings = {"CRASH_INSIDE": str(folder), "CRASH_TRACE": str(trace), "CRASH_FAULT": fault, "MPLBACKEND": "Agg"}
    settings |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    started = time.monotonic()
    pid = (_fork if forked else _start)(words, settings, logs)
    status = None
    while status is None and time.monotonic() < started + SECONDS:
        time.sleep(0.005)
        if kill_after is not None and time.monotonic() > started + kill_after:
            with suppress(ProcessLookupError):  # a fork makes its group first
                os.killpg(pid, signal.SIGKILL)
                kill_after = None
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
    orphans = _end_group(pid)
    if status is None:
        os.waitpid(pid, 0)
    calls = [line.strip() for line in trace.read_text(errors="replace").splitlines()]
    out, err = (log.read_text(errors="replace") for log in logs)
    return Outcome(status, out, err, calls, orphans)


def _start(words: list[str], settings: dict[str, str], logs: list[Path]) -> int:
    """Start a new interpreter in a process group of its own; its process id."""
    environment = os.environ | settings | {"PYTHONPATH": str(INJECT)}
    with open(logs[0], "wb") as out, open(logs[1], "wb") as err:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=out, stderr=err, start_new_session=True
        )
    process.returncode = 0  # it is waited for by its number
    return process.pid


def _fork(words: list[str], settings: dict[str, str], logs: list[Path]) -> int:
    """Fork this process into a process group of its own; its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        for number, log in enumerate(logs, start=1):
            handle = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(handle, number)
            os.close(handle)
        os.environ.update(settings)
        sys.argv = list(words)
        injection.install(settings["CRASH_INSIDE"], settings["CRASH_TRACE"], settings["CRASH_FAULT"])
        status = _main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _main(words: list[str]) -> int:
    import multiprocessing

    from matplotlib.figure import Figure

    from distill import cli
    from distill.kernel.toy import program

    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork
    Figure.draw_without_rendering = lambda figure: None
    Figure.savefig = lambda figure, file, **options: file.write(NOT_DRAWN)
    return {"self_distiller.py": cli.main, "krr_toy.py": program.main}[words[0]](words[1:])


def _end_group(group: int) -> list[int]:
    """Wait for a group's processes to end; return those that do not in a few seconds, and kill them."""
    until = time.monotonic() + 5
    while (members := _members(group)) and time.monotonic() < until:
        time.sleep(0.02)
    for member in members:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    return members


def _members(group: int) -> list[int]:
    """The live processes of a group (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(member_of) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found
