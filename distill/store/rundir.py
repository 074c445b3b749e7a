"""The run directory: the folder of each model, the files of the run. Imports no torch.

While a model is trained, its folder holds ``training_state.pt``, a file that is replaced after every epoch. Then comes
model.pt, then result.json: a model is finished once its result.json exists. Before a student of an estimated alpha
begins, choice.json holds the estimate. Everything else is derived from these files.
"""

import csv
import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from distill.arms import PROBE, Estimated, arm_folder, students
from distill.config import GRID, Config
from distill.configfile import to_toml
from distill.errors import ConfigError
from distill.files import open_file, read_text, remove_leftovers, sha256, write_atomically, write_derived
from distill.program import complain
from distill.records import DamagedRecordError, digest_of_parts, write_json
from distill.store import claims
from distill.store.results import Result, columns, name_model, read_record, sort_key
from distill.study import read_study, with_held

STATE = "training_state.pt"
MOST_HASHED = 2**24  # bytes of a model.pt that is read whole whenever a run begins
_GRID = tuple(f"chain.{name}" for name in GRID)


def to_csv(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as the text of a CSV file, floats in full precision, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def results_csv(results: Iterable[Result]) -> str:
    """The text of results.csv."""
    return to_csv(columns(), [result.row() for result in results])


def read_metrics(folder: Path) -> list[dict[str, int | float | None]]:
    """The rows of a model's metrics.csv, one per epoch; empty fields are None.

    No rows if the file is missing or damaged: a model in training writes it from its training state.
    """
    try:
        lines = read_text(folder / "metrics.csv").splitlines()
        return [{name: _number(name, text) for name, text in row.items()} for row in csv.DictReader(lines)]
    except (OSError, ValueError, TypeError, csv.Error):
        return []


def _number(column: str, text: str) -> int | float | None:
    if text == "":
        return None
    return int(text) if column == "epoch" else float(text)


class Model(NamedTuple):
    """A model of a run: which one it is, and where it is."""

    folder: Path
    seed: int
    arm: str | None  # the name of the arm up to it; None: the teacher
    step: int

    @property
    def name(self) -> str:
        """The name in messages."""
        return name_model(self.seed, self.arm, self.step)


def is_finished(folder: Path) -> bool:
    """Whether the model of a folder is finished."""
    return os.path.exists(os.path.join(folder, "result.json"))  # faster than a Path, and asked of 10,000 models


def options_of_models(config: Config) -> dict[str, Any]:
    """The options that affect results, as read back from JSON, without the grid: a model's folder names its place."""
    options = {name: value for name, value in config.identity.items() if name not in _GRID}
    return json.loads(json.dumps(options))


def check_options(file: Path, recorded: dict[str, Any] | None, config: Config) -> None:
    """Raise ConfigError if the options that ``file`` records are not this run's. An old version recorded none."""
    here = options_of_models(config)
    there = here if recorded is None else {name: value for name, value in recorded.items() if name not in _GRID}
    differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if differing:
        raise DamagedRecordError(
            f"{file} is of a run with another {', '.join(differing)} than its config.toml: was one of the two edited "
            "or exchanged? Restore it, or delete the model's folder to retrain that model"
        )


@dataclass
class _Table:
    """The rows of results.csv as this process has last read them, so that each result.json is read once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    read: dict[Model, tuple[tuple[int, int], Result]] = field(default_factory=dict)
    due: float = 0.0  # when it may be written again


@lru_cache(maxsize=8)
def _table(run: Path) -> _Table:
    return _Table()


class RunDir:
    """The folder of one run."""

    def __init__(self, path: Path):
        self.path = path

    def model(self, seed: int, arm: str | None, step: int) -> Path:
        """The folder of one model. ``arm`` is the arm up to it, and None for the teacher that all arms share."""
        folder = self.path / f"seed_{seed}" if arm is None else self.arm(seed, arm)
        return folder / f"step_{step}"

    def arm(self, seed: int, arm: str) -> Path:
        """The folder of an arm of a seed."""
        return self.path / f"seed_{seed}" / arm_folder(arm)

    def labels(self, seed: int) -> Path:
        """The file that holds a seed's given labels, if they are corrupted."""
        return self.path / f"seed_{seed}" / "labels.npz"

    def digests(self, seed: int, corrupted: bool) -> dict[str, str | None]:
        """What a seed's models record of the images and of the labels, if they are corrupted."""
        labels = digest_of_parts(self.labels(seed)) if corrupted else None
        return {"data_sha256": self.recorded_data(), "labels_sha256": labels}

    def check_is_there(self) -> None:
        """Raise ConfigError if the run's folder was moved or deleted."""
        if not (self.path / "config.toml").exists():
            raise ConfigError(f"{self.path} is gone: the run was moved or deleted while it trained")

    def make_folder(self, folder: Path) -> None:
        """Make a folder inside the run's, but never the run's own, which the user may have moved or deleted meanwhile.

        Raises ConfigError, OSError.
        """
        self.check_is_there()
        path = self.path
        for name in folder.relative_to(self.path).parts:
            path = path / name
            _refuse_link(path)
            path.mkdir(exist_ok=True)

    def check_links(self, models: Iterable[Model]) -> None:
        """Raise ConfigError if the folder of a model, or one that it is in, is a symbolic link."""
        folders = {model.folder for model in models}
        while folders:
            for folder in folders:
                _refuse_link(folder)
            folders = {folder.parent for folder in folders} - {self.path}

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

    def is_finished(self, config: Config) -> bool:
        """Whether all models of a run are finished, as far as their folders show."""
        return all(each.folder.name == "probe" or is_finished(each.folder) for each in self.models(config))

    def config(self) -> Config:
        """The configuration of the run in this folder, as its output. Raises ConfigError if there is none."""
        study = read_study(self.path)
        if study.axes:
            folder = study.settings[0].config.output
            raise ConfigError(f"{self.path} holds a study of several runs: name one of its folders, such as {folder}")
        return study.settings[0].config

    def check_data(self, fingerprint: str) -> None:
        """Raise ConfigError if the run in this folder is on other data."""
        if self.recorded_data() not in (None, fingerprint):
            raise ConfigError(f"{self.path} holds a run on other images or labels than those found here")

    def recorded_data(self) -> str | None:
        """The fingerprint in data.sha256, None without the file. Raises OSError, DamagedRecordError."""
        file = self.path / "data.sha256"
        if not file.exists():
            return None
        with open_file(file) as opened:
            recorded = opened.read(100).decode(errors="replace").strip()
        if len(recorded) != 64 or not set(recorded) <= set("0123456789abcdef"):
            raise DamagedRecordError(f"{file} is damaged (it is no SHA-256); delete it if the images are the same")
        return recorded

    def begin(self, config: Config, fingerprint: str) -> None:
        """Make the folder, or continue in it. Raises ConfigError if it holds another run, or other data."""
        held = self.check(config, fingerprint)
        write_atomically(self.path / "config.toml", to_toml(held))
        write_atomically(self.path / "data.sha256", fingerprint + "\n")

    @property
    def is_worked_on(self) -> bool:
        """Whether a process trains a model of this run."""
        return any(name.startswith("seed_") for name in claims.holders(self.path))

    def check(self, config: Config, fingerprint: str) -> Config:
        """The configuration with the grid of the run that the folder holds, which another process may have extended.

        Raises ConfigError if the folder holds another run, or one on other data.
        """
        working = self.is_worked_on
        if not (self.path / "config.toml").exists() or not (working or any(self.path.glob("seed_*/**/*.pt"))):
            return config
        held = with_held(config, working)
        try:
            self.check_data(fingerprint)
        except DamagedRecordError:
            raise
        except ConfigError as error:
            raise ConfigError(f"{error}; choose another --output") from None
        return held

    def open(self) -> None:
        """Make the folder, unless it holds a run, and remove what dead processes left. Raises ConfigError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            strange = any(not entry.name.startswith(".") for entry in self.path.iterdir())
            if strange and not (self.path / "config.toml").exists():
                raise ConfigError(f"{self.path} is not empty and holds no run; choose another --output")
            _refuse_link(self.path / claims.WORK)
            (self.path / claims.WORK).mkdir(exist_ok=True)
            remove_leftovers(self.path)
            claims.remove_dead(self.path)
        except OSError as error:
            raise ConfigError(f"cannot write to {error.filename or self.path}: {error.strerror}") from None

    def results(self) -> list[Result]:
        """The result of every finished model, by seed, arm (the teacher first) and step."""
        return [Result.of(record) for record in self.records()]

    def records(self, config: Config | None = None) -> list[dict[str, Any]]:
        """The whole result.json of every finished model, by seed, arm (the teacher first) and step.

        Only the folders that the seeds, arms and steps of ``config`` name are read; it is config.toml by default.
        """
        config = self.config() if config is None else config
        found = [self.record(model, config) for model in self.models(config) if is_finished(model.folder)]
        return sorted(found, key=lambda record: sort_key(Result.of(record)))

    def record(self, model: Model, config: Config) -> dict[str, Any]:
        """The result.json of a finished model. Raises ConfigError if it is damaged, or is of another model or run."""
        record = read_record(model.folder)
        found = name_model(record["seed"], record["arm"], record["step"])
        if found != model.name:
            raise DamagedRecordError(
                f"{model.folder / 'result.json'} is of another model ({found}); delete its folder to retrain that model"
            )
        check_options(model.folder / "result.json", record.get("configuration"), config)
        return record

    def check_finished(self) -> None:
        """Raise ConfigError if a file of a finished model is damaged, or if the model is of other images.

        Of a large model.pt only the end is read here; it is verified before its model teaches. A metrics.csv that is
        damaged or lost is written again; an old version's result.json does not hold its text.
        """
        config = self.config()
        models = self.models(config)
        self.check_links(models)
        for model in models:
            if is_finished(model.folder):
                record = self.record(model, config)
                self.check_model_data(model, record)
                for name in ("model", "metrics"):
                    file = model.folder / f"{name}.{'pt' if name == 'model' else 'csv'}"
                    try:
                        _check_file(file, record.get(f"{name}_sha256"))
                    except (FileNotFoundError, DamagedRecordError) as error:
                        text = record.get(f"{name}_csv")
                        if text is not None:
                            write_derived(file, text)
                        elif isinstance(error, DamagedRecordError):
                            raise
                        else:
                            complain(f"note: {file} is missing; delete its folder to retrain that model")

    def check_model_data(self, model: Model, record: dict[str, Any]) -> None:
        """Raise DamagedRecordError if a finished model was trained on other images than data.sha256 names."""
        here = self.recorded_data()
        there = record.get("data_sha256")
        if None not in (here, there) and here != there:
            raise DamagedRecordError(
                f"{model.folder} was trained on other images or labels than those of {self.path / 'data.sha256'}: "
                "restore that file, or delete the model's folder to retrain that model"
            )

    def write_result(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the result.json that makes the model of ``folder`` a finished one, then results.csv with its row.

        If writing results.csv takes long, it is written less often and may lack the newest rows.
        """
        write_json(folder / "result.json", record)
        if time.monotonic() >= _table(self.path).due:
            self.write_results()

    def write_results(self) -> None:
        """Write results.csv from the finished models. Any number of processes may do so at the same time."""
        table = _table(self.path)
        started = time.monotonic()
        with table.lock:
            config = self.config()
            before = None
            while (finished := self._finished(config)) != before:  # another process may finish a model meanwhile
                before = finished
                for model, stamp in finished.items():
                    if table.read.get(model, (None, None))[0] != stamp:
                        table.read[model] = stamp, Result.of(self.record(model, config))
                results = sorted((table.read[model][1] for model in finished), key=sort_key)
                write_derived(self.path / "results.csv", results_csv(results))
                config = self.config()  # raises if the run was moved or deleted
            took = time.monotonic() - started
            table.due = time.monotonic() + (20 * took if took > 0.2 else 0)

    def _finished(self, config: Config) -> dict[Model, tuple[int, int]]:
        """The finished models, with the time and number of each result.json."""
        found = {}
        for model in self.models(config):
            with suppress(FileNotFoundError, NotADirectoryError):
                file = os.stat(model.folder / "result.json")
                found[model] = file.st_mtime_ns, file.st_ino
        return found


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a symbolic link, which may lead out of the run; replace it by its folder")


def _check_file(file: Path, recorded: str | None) -> None:
    """Raise DamagedRecordError if a file of a finished model is another than the recorded one, if any is recorded."""
    if recorded is None:
        return
    with open_file(file) as opened:
        large = opened.seek(0, io.SEEK_END) > MOST_HASHED
        whole = zipfile.is_zipfile(opened) if large else sha256(file) == recorded
    if not whole:
        remedy = "it to continue without it, or its folder" if file.name == "metrics.csv" else "its folder"
        raise DamagedRecordError(
            f"{file} is damaged (its SHA-256 is not the recorded one); delete {remedy} to retrain that model"
        )
