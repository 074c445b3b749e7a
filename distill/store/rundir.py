"""The run directory: the folder of each model, the files of the run, the lock. Imports no torch.

While a model is trained, its folder holds ``training_state.pt``, a file that is replaced after every epoch. Then comes
model.pt, then result.json: a model is finished once its result.json exists. Before a student of an estimated alpha
begins, choice.json holds the estimate. Everything else is derived from these files.
"""

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from distill.arms import PROBE, Estimated, students
from distill.config import Config
from distill.configfile import read_config, to_toml
from distill.errors import ConfigError
from distill.files import read_text, write_atomically
from distill.store.results import Result, columns, read_record, sort_key


def write_json(path: Path, value: Any) -> None:
    """Write JSON, floats in full precision."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, floats in full precision, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


class Model(NamedTuple):
    """A model of a run: which one it is, and where it is."""

    folder: Path
    seed: int
    arm: str | None  # the name of the arm up to it; None: the teacher
    step: int


class RunDir:
    """The folder of one run."""

    def __init__(self, path: Path):
        self.path = path

    def model(self, seed: int, arm: str | None, step: int) -> Path:
        """The folder of one model. ``arm`` is the arm up to it, and None for the teacher that all arms share."""
        folder = self.path / f"seed_{seed}"
        if arm is not None:
            folder = folder / f"alpha_{arm}"
        return folder / f"step_{step}"

    def models(self, config: Config) -> list[Model]:
        """All models of a run, finished or not: teachers before students, a probe before its student."""
        first = config.chain.first_step
        found = []
        for seed in config.chain.seed:
            found.append(Model(self.model(seed, None, first), seed, None, first))
            for student in students(config.chain.arms):
                step = first + student.position
                folder = self.model(seed, student.arm, step)
                if isinstance(student.target, Estimated):
                    found.append(Model(folder / "probe", seed, f"{student.arm}{PROBE}", step))
                found.append(Model(folder, seed, student.arm, step))
        return found

    def config(self) -> Config:
        """The configuration of the run in this folder, as its output. Raises ConfigError if there is none."""
        file = self.path / "config.toml"
        if not file.exists():
            raise ConfigError(f"{self.path} holds no run (no config.toml in it)")
        config = read_config(file)
        return replace(config, run=replace(config.run, output=str(self.path)))

    def check_data(self, fingerprint: str) -> None:
        """Raise ConfigError if the run in this folder is on other data."""
        file = self.path / "data.sha256"
        if file.exists() and read_text(file).strip() != fingerprint:
            raise ConfigError(f"{self.path} holds a run on other images or labels than those found here")

    def begin(self, config: Config, fingerprint: str) -> None:
        """Make the folder, or continue in it. Raises ConfigError if it holds another run, or other data."""
        self.check(config, fingerprint)
        write_atomically(self.path / "config.toml", to_toml(config))
        write_atomically(self.path / "data.sha256", fingerprint + "\n")

    def check(self, config: Config, fingerprint: str) -> None:
        """Raise ConfigError if the folder holds another run, or one on other data."""
        file = self.path / "config.toml"
        if not file.exists() or not any(self.path.glob("seed_*/**/*.pt")):
            return
        held = read_config(file)
        # A run that has no student yet, because it was only previewed, may continue with other alphas.
        previewed = not any(self.path.glob("seed_*/alpha_*"))
        ignored = ("chain.alpha", "chain.alpha_schedule") if previewed else ()
        if differing := config.differences(held, ignored):
            raise ConfigError(f"{self.path} holds a run with other options: {differing}; choose another --output")
        try:
            self.check_data(fingerprint)
        except ConfigError as error:
            raise ConfigError(f"{error}; choose another --output") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run out of the folder. Raises ConfigError if another process works in it."""
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
                _flock(file, wait=False)
            except OSError:
                raise ConfigError(f"another process is at work in {self.path}") from None
            yield

    def results(self) -> list[Result]:
        """The result of every finished model, by seed, arm (the teacher first) and step."""
        return [Result.of(record) for record in self.records()]

    def records(self) -> list[dict[str, Any]]:
        """The whole result.json of every finished model, by seed, arm (the teacher first) and step."""
        found = (read_record(file.parent) for file in self.path.glob("seed_*/**/result.json"))
        return sorted(found, key=lambda record: sort_key(Result.of(record)))

    def write_result(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the result.json that makes the model of ``folder`` a finished one, then results.csv with its row."""
        write_json(folder / "result.json", record)
        self.write_results()

    def write_results(self) -> list[Result]:
        """Write results.csv from the finished models and return their results. Concurrent calls take turns."""
        with open(self.path / ".results.lock", "w") as file:
            _flock(file, wait=True)
            results = self.results()
            write_csv(self.path / "results.csv", columns(), [result.row() for result in results])
        return results

    def write_environment(self, **facts: str | int) -> None:
        """Add this process to environment.json: the command line, when it started, versions, device, commit."""
        started = {"started": now(), "finished": None, "command": sys.argv, "commit": _commit(), **facts}
        write_json(self.path / "environment.json", {"runs": [*self.environments(), started]})

    def environments(self) -> list[dict[str, Any]]:
        """The entries of environment.json, one for each process; none if the file is missing or damaged."""
        try:
            return list(json.loads(read_text(self.path / "environment.json"))["runs"])
        except (OSError, ValueError, TypeError, LookupError):
            return []

    def write_finished(self) -> None:
        """Note in environment.json that the run is complete."""
        *before, last = self.environments()
        write_json(self.path / "environment.json", {"runs": [*before, last | {"finished": now()}]})


def _flock(file: IO[str], wait: bool) -> None:
    """Lock an open file until it is closed. Raises OSError if another has the lock and this one does not wait."""
    try:
        import fcntl
    except ImportError:
        return  # no such locks on Windows
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def now() -> str:
    """Local time, as 2026-01-31T23:59:59+0100."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _commit() -> str | None:
    """The commit of the program's source, with a + if it has been changed since; None outside a checkout."""
    checkout = Path(__file__).parents[2]
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
