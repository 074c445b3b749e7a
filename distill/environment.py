"""The process and its environment: settings before torch is loaded, Matplotlib, ranks, cores, memory, commit."""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

SETTINGS = {
    # OpenMP's waiting threads spin for milliseconds before they sleep. With any other process on the cores that made a
    # ResNet-20 at batch 128 three times slower on 2 cores; alone, spinning gains nothing.
    "GOMP_SPINCOUNT": "20000",
    # CUDA has 8 queues for all streams by default: with more jobs, streams that share a queue wait for each other.
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
    # Python has a process that removes the semaphores of a program that was killed, and warns that it does.
    "PYTHONWARNINGS": "ignore:resource_tracker",
}


def set_environment() -> None:
    """Set the environment variables in ``SETTINGS``, except those that are set already.

    torch reads them when it is loaded and when CUDA is first used. Importing ``distill.running`` calls this.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def torchrun_rank() -> tuple[int, int]:
    """This process's rank among those that torchrun started, and their number; (0, 1) without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def available_cores() -> int:
    """The number of cores that this process may use; all cores if the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_matplotlib() -> None:
    """Import Matplotlib, which refuses to be imported if MPLBACKEND names a backend that is not installed here."""
    if "matplotlib" in sys.modules:
        return
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns about the user's settings and folders
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # as the import would have done


@contextmanager
def matplotlib_style(style: Mapping[Any, Any]) -> Iterator[None]:
    """Draw with Matplotlib's defaults and ``style``, whatever the user's settings are: a context, or a decorator."""
    load_matplotlib()
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as one for each character that the font lacks
        kept = ("backend", "interactive", "toolbar")  # they do not matter here, and setting them starts a backend
        defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith(kept)}
        matplotlib.rcParams.update(defaults)
        matplotlib.rcParams.update(style)
        yield


def available_memory() -> int | None:
    """Bytes that this process may still allocate, or None if the system does not tell.

    The smaller of the machine's free memory (``MemAvailable`` on Linux, otherwise all physical memory) and the
    remainder of the control group's limit.
    """
    room = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        room += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    except OSError:
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" in names:
            room.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        group = Path("/sys/fs/cgroup")
        room.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no control group, or "max": no limit
        pass
    return min(room, default=None)


@cache
def commit() -> str | None:
    """The commit of the program's source, with a + if it has been changed since; None outside a checkout."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # installed: a repository around it would be another one
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
