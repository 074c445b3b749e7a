"""environment.json: an entry for each process that has worked in a run directory. Imports no torch."""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from distill.environment import commit
from distill.program import complain
from distill.records import DamagedRecordError, read_json, write_json
from distill.store import claims


def add_process(run: Path, **facts: str | int) -> None:
    """Add this process: the command line, when it started, versions, device, commit.

    A damaged file is replaced, with a note. Raises OSError, and ConfigError if the file cannot be read.
    """
    started = {"started": _now(), "finished": None, "command": sys.argv, "commit": commit(), **facts}
    started |= {"host": socket.gethostname(), "pid": os.getpid()}
    with claims.turn(run, "environment"):
        before = []
        try:
            before = read_processes(run)
        except FileNotFoundError:
            pass
        except DamagedRecordError as error:
            complain(f"note: {error}; a new one replaces it")
        write_json(run / "environment.json", {"runs": [*before, started]})


def processes(run: Path) -> list[dict[str, Any]]:
    """The entries; none if the file is missing or damaged. Raises ConfigError if it cannot be read."""
    try:
        return read_processes(run)
    except (FileNotFoundError, DamagedRecordError):
        return []


def read_processes(run: Path) -> list[dict[str, Any]]:
    """The entries. Raises FileNotFoundError; ConfigError if the file is damaged or cannot be read."""
    file = run / "environment.json"
    found = read_json(file).get("runs")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DamagedRecordError(f"{file} is damaged (its runs are no list of objects)")
    return found


def is_complete(run: Path) -> bool:
    """Whether the last process trained all that it was to train."""
    entries = processes(run)
    return bool(entries) and entries[-1].get("finished") is not None


def note_complete(run: Path) -> None:
    """Note that the run is complete."""
    with claims.turn(run, "environment"):
        if entries := processes(run):
            entries[-1]["finished"] = _now()
            write_json(run / "environment.json", {"runs": entries})


def _now() -> str:
    """Local time, as 2026-01-31T23:59:59+0100."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
