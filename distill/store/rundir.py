"""What a run leaves on disk: atomic writes, lineage, resume. Imports no torch, so that a report answers at once.

A model's folder holds ``training_state.pt`` while it is trained, one file replaced after every epoch; then model.pt,
then result.json, whose presence means that the model is finished; before a student of an estimated alpha is begun, its
choice.json. Everything else is derived from these.
"""

import csv
import io
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from distill.config import Config
from distill.configfile import read_config, to_toml
from distill.errors import ConfigError
from distill.files import write_atomically
from distill.store.results import Result, columns, read_record, sort_key


def write_json(path: Path, value) -> None:
    """Write JSON, floats in full precision."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    """Write rows as CSV, floats in full precision, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


class RunDir:
    """The folder of one run."""

    def __init__(self, path: Path):
        self.path = path

    def model(self, seed: int, arm: str | None, step: int) -> Path:
        """The folder of one model, ``arm`` being its chain up to it; the teacher, which all arms share, has none."""
        folder = self.path / f"seed_{seed}"
        return (folder if arm is None else folder / f"alpha_{arm}") / f"step_{step}"

    def open(self, config: Config, fingerprint: str) -> None:
        """Make the folder, or go on in it. Raises ConfigError where it holds another run, or other data."""
        self.check(config, fingerprint)
        write_atomically(self.path / "config.toml", to_toml(config))
        write_atomically(self.path / "data.sha256", fingerprint + "\n")

    def check(self, config: Config, fingerprint: str) -> None:
        """Raise ConfigError where the folder holds another run, or one on other data."""
        file, data = self.path / "config.toml", self.path / "data.sha256"
        if not file.exists() or not any(self.path.glob("seed_*/**/*.pt")):
            return
        held = read_config(file)
        # A run that has no student yet, because it was only previewed, may continue with other alphas.
        previewed = not any(self.path.glob("seed_*/alpha_*"))
        ignored = ("chain.alpha", "chain.alpha_schedule") if previewed else ()
        if differing := config.differences(held, ignored):
            raise ConfigError(f"{self.path} holds a run with other options: {differing}; choose another --output")
        if data.exists() and data.read_text().strip() != fingerprint:
            raise ConfigError(f"{self.path} holds a run on other images or labels; choose another --output")

    @contextmanager
    def lock(self):
        """Keep a second process out of the folder. Raises ConfigError where another one is at work."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            strange = any(not entry.name.startswith(".") for entry in self.path.iterdir())
            if strange and not (self.path / "config.toml").exists():
                raise ConfigError(f"{self.path} is not empty and holds no run; choose another --output")
            file = open(self.path / ".lock", "w")  # noqa: SIM115 - the with below closes it
        except OSError as error:
            raise ConfigError(f"cannot write to {self.path}: {error.strerror}") from None
        with file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass  # no such locks on Windows
            except OSError:
                raise ConfigError(f"another process is at work in {self.path}") from None
            yield

    def results(self) -> list[Result]:
        """The result of every finished model, by seed, arm (the teacher first) and step."""
        return [Result.of(record) for record in self.records()]

    def records(self) -> list[dict]:
        """The whole result.json of every finished model, by seed, arm (the teacher first) and step."""
        found = (read_record(file.parent) for file in self.path.glob("seed_*/**/result.json"))
        return sorted(found, key=lambda record: sort_key(Result.of(record)))

    def write_results(self, results: list[Result] | None = None) -> list[Result]:
        """Write results.csv anew from the finished models (read here unless they are given); return their results."""
        results = self.results() if results is None else results
        write_csv(self.path / "results.csv", columns(), [result.row() for result in results])
        return results

    def write_environment(self, **facts) -> None:
        """Add this process to environment.json: the command line, when it started, versions, device, commit."""
        started = {"started": now(), "finished": None, "command": sys.argv, "commit": _commit(), **facts}
        write_json(self.path / "environment.json", {"runs": [*self.environments(), started]})

    def environments(self) -> list[dict]:
        """What environment.json says of the processes that worked here; nothing where it is missing or damaged."""
        try:
            return list(json.loads((self.path / "environment.json").read_text(encoding="utf-8"))["runs"])
        except (OSError, ValueError, TypeError, LookupError):
            return []

    def write_finished(self) -> None:
        """Note in environment.json that the run is complete."""
        *before, last = self.environments()
        write_json(self.path / "environment.json", {"runs": [*before, last | {"finished": now()}]})


def now() -> str:
    """Local time, as 2026-01-31T23:59:59+0100."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _commit() -> str | None:
    """The commit of the program's source, with a + where it has been changed since; None outside a checkout."""
    here = Path(__file__).parents[1]
    if not (here / ".git").exists():  # installed: whatever repository lies around it is not ours
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
