"""What must hold after a fault, and after the same command has then run to its end. Each check returns complaints."""

import hashlib
import json
import os
import re
import signal
from pathlib import Path

from tests.crash.inject.sitecustomize import READ
from tests.crash.processes import NOT_DRAWN, Outcome

FINISHED = ("result.json", "model.pt")
ENDS = {".png": b"IEND\xaeB`\x82", ".svg": b"</svg>\n", ".pdf": b"%%EOF\n", ".html": b"</html>"}
Stamp = tuple[str, int]


def finished_models(out: Path) -> dict[str, Stamp]:
    """The files of finished models: the SHA-256 of each, and when it was written."""
    found = {}
    for record in sorted(out.rglob("result.json")):
        for name in FINISHED:
            file = record.with_name(name)
            if file.exists():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                found[str(file.relative_to(out))] = digest, file.stat().st_mtime_ns
    return found


def half_written(out: Path) -> list[str]:
    """Finished models that are not whole, and tables and figures that are torn."""
    found = []
    for file in sorted(out.rglob("result.json")):
        try:
            record = json.loads(file.read_text())
            digest = hashlib.sha256(file.with_name("model.pt").read_bytes()).hexdigest()
            if record["model_sha256"] != digest:
                found.append(f"{file.relative_to(out)} names another model.pt")
        except (ValueError, OSError, KeyError) as error:
            found.append(f"{file.relative_to(out)}: {error!r}")
    for file in sorted(out.rglob("*.csv")):
        lines = file.read_text().split("\n")
        if lines[-1] != "" or len({line.count(",") for line in lines[:-1]}) != 1:
            found.append(f"{file.relative_to(out)} is torn")
    for file in sorted(out.rglob("*")):
        end = ENDS.get(file.suffix)
        if end is not None and not file.name.startswith(".") and not file.read_bytes().endswith((NOT_DRAWN, end)):
            found.append(f"{file.relative_to(out)} is torn")
    return found


def how_it_ended(fault: str, outcome: Outcome, workers: bool, before: frozenset[str] = frozenset()) -> list[str]:
    """Whether a disturbed program ended as it should. ``before``: the files that were there when it began."""
    found = [f"process {process} outlives it" for process in outcome.orphans]
    if outcome.status is None:
        return [*found, "it hangs"]
    if "Traceback" in outcome.out + outcome.err:
        found.append(f"traceback: {outcome.err.strip().splitlines()[-1][:200]}")
    action, _, count = fault.partition(":")
    errors = [line for line in outcome.err.splitlines() if re.match(r"\w+\.py: error: ", line)]
    if action.isupper():  # an error of the disk: one line, or a note about a file that is derived
        calls = [*outcome.calls, *["main none -"] * int(count)]
        _, call, path = calls[int(count) - 1].split(maxsplit=2)
        # Without a note only if nothing is lost: the folder was there before, progress was read, or what a killed
        # process left could not be removed, or a claim could not be made or removed, which the next process notices.
        left = path.endswith(".tmp") and path in before
        harmless = left or call in ("mkdir", READ, "none") or "/.work/" in path
        noted = re.search("^note: ", outcome.err, re.MULTILINE)
        if outcome.status == 0 and not harmless and not noted:
            found.append("it ends with 0 and does not mention the error")
        if outcome.status != 0 and (outcome.status != 2 or len(errors) != 1):
            found.append(f"status {outcome.status}, {len(errors)} lines of error: {outcome.err.strip()[-200:]!r}")
    elif action in ("worker", "kill") and workers:
        failed = outcome.status == 1 and "could not be trained; run the same command" in outcome.err
        if not failed and (outcome.status not in (0, 2, -signal.SIGKILL) or (outcome.status == 2 and len(errors) != 1)):
            found.append(f"status {outcome.status}, {len(errors)} lines of error: {outcome.err.strip()[-200:]!r}")
    elif outcome.status not in (0, -signal.SIGKILL):
        found.append(f"status {outcome.status}: {outcome.err.strip()[-200:]!r}")
    return found


def trained_again(before: dict[str, Stamp], after: dict[str, Stamp]) -> list[str]:
    """Files of finished models that were written again."""
    return [f"{name} was written again" for name, stamp in before.items() if after.get(name) != stamp]


def files(out: Path) -> set[str]:
    """All files and folders, hidden ones too."""
    return {
        str(Path(folder, name).relative_to(out)) for folder, *names in os.walk(out) for kind in names for name in kind
    }


def differences(whole: dict[str, object], parts: dict[str, object], there: set[str], here: set[str]) -> list[str]:
    """Contents and names that differ from those of the undisturbed run."""
    found = [f"{name} is a stray file" for name in sorted(here - there)]
    found += [f"{name} is missing" for name in sorted(there - here)]
    found += [f"{name} differs" for name in sorted(whole) if name in here and whole[name] != parts.get(name)]
    return found
