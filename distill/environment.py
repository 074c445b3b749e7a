"""The process and its environment: settings before torch is loaded, Matplotlib, ranks, cores, memory, commit."""

import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from distill.errors import ConfigError, shown

SETTINGS = {
    # OpenMP's waiting threads spin for milliseconds before they sleep. With any other process on the cores that made a
    # ResNet-20 at batch 128 three times slower on 2 cores; alone, spinning gains nothing.
    "GOMP_SPINCOUNT": "20000",
    # CUDA has 8 queues for all streams by default: with more jobs, streams that share a queue wait for each other.
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
    # Python has a process that removes the semaphores of a program that was killed, and warns that it does.
    "PYTHONWARNINGS": "ignore:resource_tracker",
}
# The numbers that torchrun gives a rank, and the least value of each.
TORCHRUN_NUMBERS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 1}


def set_environment() -> None:
    """Set the environment variables in ``SETTINGS``, except those that are set already.

    torch reads them when it is loaded and when CUDA is first used. Importing ``distill.running`` calls this.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def torchrun_rank() -> tuple[int, int]:
    """This process's rank among those that torchrun started, and their number; (0, 1) without torchrun.

    Raises ConfigError if only some of torchrun's variables are set, such as those that another program left.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    rank, size, *_ = [_torchrun_number(name, low) for name, low in TORCHRUN_NUMBERS.items()]
    if rank >= size:
        _refuse_torchrun(f"RANK is {rank}, not below WORLD_SIZE {size}")
    if not os.environ.get("MASTER_ADDR"):
        _refuse_torchrun("MASTER_ADDR is not set")
    return rank, size


def ranks_here() -> int:
    """The number of torchrun's ranks on this machine; 1 without torchrun. Raises ConfigError as ``torchrun_rank``."""
    torchrun_rank()
    return int(os.environ["LOCAL_WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def _torchrun_number(name: str, low: int) -> int:
    text = os.environ.get(name)
    if text is None:
        _refuse_torchrun(f"{name} is not set")
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) < low:
        _refuse_torchrun(f"{name} is {shown(text)}, not an integer from {low}")
    return int(text)


def _refuse_torchrun(reason: str) -> NoReturn:
    advice = "start with torchrun, or unset TORCHELASTIC_RUN_ID, which says that torchrun started this process"
    raise ConfigError(f"{reason}: {advice}")


def available_cores() -> int:
    """The number of cores that this process may use; all cores if the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_matplotlib() -> None:
    """Import Matplotlib without two variables of the user's that its import may not survive.

    MPLBACKEND may name a backend that is not installed here, and MATPLOTLIBRC a device, which would be read for ever.
    """
    if "matplotlib" in sys.modules:
        return
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns about the user's settings and folders
    backend = os.environ.get("MPLBACKEND")
    settings = os.environ.get("MATPLOTLIBRC", "")
    names = ["MPLBACKEND", *([] if os.path.isfile(settings) or os.path.isdir(settings) else ["MATPLOTLIBRC"])]
    left_out = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        import matplotlib
    finally:
        os.environ.update(left_out)
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

    The smallest of the machine's free memory (``MemAvailable`` on Linux, otherwise all physical memory) and the
    remainders of the control group's limit and of ``ulimit -v``.
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
    with suppress(ImportError, OSError):  # Windows; no /proc
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit >= 0:  # -1: no limit
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            room.append(max(0, limit - used))
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
