"""The verification of a run: its files against what its records say. It reads every file and writes none."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.config import Config
from distill.errors import ConfigError
from distill.files import read_text, sha256
from distill.pages.style import UNDATED
from distill.records import DamagedRecordError, digest_of_parts, read_json
from distill.reporting.plots import FIGURES
from distill.store.events import EVENTS
from distill.store.predictions import PREDICTIONS
from distill.store.processes import is_complete, read_processes
from distill.store.results import Result, check_estimate, columns
from distill.store.rundir import STATE, Model, RunDir, is_finished, results_csv

PICTURES = {f"{name}.{kind}" for name in FIGURES for kind in UNDATED}
RUN_FILES = {EVENTS, "config.toml", "environment.json", "data.sha256", "results.csv", "report.html", *PICTURES}
SEED_FILES = {"labels.npz", *(f"preview.{kind}" for kind in UNDATED)}
MODEL_FILES = {"model.pt", "result.json", "metrics.csv", STATE, "choice.json", PREDICTIONS, EVENTS}

Key = tuple[str, str, str]  # seed, arm and step of a model, as results.csv has them


def verify(path: Path) -> tuple[str, bool]:
    """A line for each problem of a run and one that sums up, and whether there is no problem.

    A run may be in progress: what is not finished is no problem. Raises ConfigError if the folder holds no run.
    """
    if not (path / "config.toml").exists():
        raise ConfigError(f"{path} holds no run (no config.toml in it)")
    found = _Verification(path)
    with found.reporting("damaged"):
        found.verify(RunDir(path).config())
    return "\n".join([*found.problems, found.summary()]), not found.problems


class _Verification:
    """The problems of one run, and how many models are in which state."""

    def __init__(self, path: Path) -> None:
        self.run = RunDir(path)
        self.problems: list[str] = []
        self.models: Counter[str] = Counter()  # by state
        self.strange = 0
        self.records: dict[Path, dict[str, Any]] = {}  # of finished models, by folder

    def verify(self, config: Config) -> None:
        """Verify all files. ``config`` is the run's."""
        listed = self._listed()  # before the models are read: a run in progress may finish some meanwhile
        models = self.run.models(config)
        for model in models:
            before = len(self.problems)
            state = self._verify_model(model, config, listed)
            self.models["damaged" if state != "missing" and len(self.problems) > before else state] += 1
        for model in models:
            if model.folder in self.records and model.arm is not None:
                self._verify_parent(model, {each.folder for each in models})
        for seed in config.chain.seed:
            with self.reporting("damaged"):
                self._verify_labels(seed)
        self._verify_links(models)
        self._verify_run_files(listed, models)
        self._find_strange(self.run.path, _expected(self.run.path, models))

    @contextmanager
    def reporting(self, state: str) -> Iterator[None]:
        """Turn an error of a file into a problem."""
        try:
            yield
        except FileNotFoundError as error:
            self.problems.append(f"missing: {error.filename}")
        except OSError as error:
            self.problems.append(f"{state}: {error.filename} cannot be read ({error.strerror})")
        except ConfigError as error:
            self.problems.append(f"{state}: {error}")

    def summary(self) -> str:
        """The states of the models and the number of problems, on one line."""
        old = sum("metrics_sha256" not in record for record in self.records.values())
        parts = [f"{count} {state}" for state, count in self.models.items() if count]
        line = f"{self.run.path}: {'models: ' if parts else ''}{', '.join(parts)}"
        if old:
            line += f" ({old} by an older version, which recorded a SHA-256 of model.pt only)"
        if self.strange:
            line += f"; {self.strange} strange"
        problems = len(self.problems)
        return f"{line}; {problems or 'no'} problem{'' if problems == 1 else 's'}"

    def _listed(self) -> dict[Key, dict[str, str]]:
        """The rows of results.csv, by model."""
        file = self.run.path / "results.csv"
        rows = {}
        try:
            for row in csv.DictReader(read_text(file).splitlines()):
                if None in row or None in row.values() or not row.keys() <= {*columns()}:
                    raise ValueError
                rows[row["seed"], row["arm"], row["step"]] = row
        except FileNotFoundError:
            if is_complete(self.run.path):
                self.problems.append(f"missing: {file}; --report writes it again")
        except (OSError, ValueError, KeyError, csv.Error):
            self._report_results_csv()
        return rows

    def _report_results_csv(self) -> None:
        file = self.run.path / "results.csv"
        self.problems.append(f"damaged: {file} does not hold what the models' result.json do; --report writes it again")

    def _verify_model(self, model: Model, config: Config, listed: dict[Key, dict[str, str]]) -> str:
        """Verify a model's files. Returns its state if they are in order: whole, unfinished or missing."""
        folder = model.folder
        if not is_finished(folder):
            if (str(model.seed), model.arm or "", str(model.step)) in listed:
                self._report_missing(folder)
                return "missing"
            self._verify_if_there(folder / STATE, digest_of_parts)
            self._verify_if_there(folder / "choice.json", lambda file: check_estimate(read_json(file), file))
            return "unfinished"
        with self.reporting("damaged"):
            record = self.run.record(model, config)
            self.records[folder] = record
            self.run.check_model_data(model, record)
            with self.reporting("damaged"):
                _verify_sha256(folder / "model.pt", record["model_sha256"])
            with self.reporting("damaged"):
                _verify_sha256(folder / "metrics.csv", record.get("metrics_sha256"))
            with self.reporting("damaged"):
                _verify_sha256(folder / PREDICTIONS, record.get("predictions_sha256"))
        return "whole"

    def _verify_if_there(self, file: Path, verify: Callable[[Path], object]) -> None:
        if file.exists():
            before = len(self.problems)
            with self.reporting("damaged"):
                verify(file)
            if not file.exists():  # it was finished meanwhile
                del self.problems[before:]

    def _verify_parent(self, model: Model, folders: set[Path]) -> None:
        """Compare a student's record with the model that taught it."""
        parent = self.records[model.folder]["parent"] or {"path": "nothing", "sha256": ""}
        teacher = self.run.path / parent["path"]
        if teacher not in folders:
            self.problems.append(
                f"damaged: {model.folder} was taught by {parent['path']}, which is no model of this run"
            )
        elif not is_finished(teacher):
            self._report_missing(teacher)
        elif teacher in self.records and self.records[teacher]["model_sha256"] != parent["sha256"]:
            self.problems.append(f"damaged: {model.folder} was taught by another model than that in {teacher}")

    def _report_missing(self, folder: Path) -> None:
        problem = f"missing: {folder / 'result.json'}, though this model was finished"
        if problem not in self.problems:
            self.problems.append(problem)

    def _verify_labels(self, seed: int) -> None:
        """Compare a seed's labels.npz with what its models were trained on."""
        file = self.run.labels(seed)
        folder = self.run.path / f"seed_{seed}"
        records = [record for path, record in self.records.items() if path.is_relative_to(folder)]
        recorded = {record["labels_sha256"] for record in records if "labels_sha256" in record}
        if not file.exists() and recorded <= {None}:
            return
        if recorded and recorded != {digest_of_parts(file)}:
            raise DamagedRecordError(f"{file} does not hold the labels that the models of seed {seed} were trained on")

    def _verify_links(self, models: list[Model]) -> None:
        """Report the folders of models that are symbolic links: no command trains there."""
        for folder in sorted(_expected(self.run.path, models)):
            if folder.is_symlink() and folder != self.run.path:
                self.strange += 1
                self.problems.append(f"strange: {folder} is a symbolic link, which no run makes")

    def _verify_run_files(self, listed: dict[Key, dict[str, str]], models: list[Model]) -> None:
        path = self.run.path
        with self.reporting("damaged"):
            if self.run.recorded_data() is None:
                self.problems.append(f"missing: {path / 'data.sha256'}")
        with self.reporting("damaged"):
            if not read_processes(self.run.path):
                raise DamagedRecordError(f"{path / 'environment.json'} is damaged (it names no process)")
        if "damaged" in self.models or any("results.csv" in problem for problem in self.problems):
            return
        written = {}
        results = [Result.of(record) for record in self.records.values()]
        for row in csv.DictReader(results_csv(results).splitlines()):
            written[row["seed"], row["arm"], row["step"]] = row
        # A column that was added later is not in the file of an older version.
        wrong = any(
            key not in written or any(written[key][name] != text for name, text in row.items())
            for key, row in listed.items()
        )
        if wrong or (is_complete(self.run.path) and listed.keys() != written.keys()):
            self._report_results_csv()

    def _find_strange(self, folder: Path, expected: dict[Path, set[str]]) -> None:
        """Report what no run leaves in a folder. Hidden entries are not looked at."""
        for entry in sorted(folder.iterdir()):
            if entry in expected and entry.is_dir():
                self._find_strange(entry, expected)
            elif not entry.name.startswith(".") and (entry.name not in expected[folder] or entry.is_dir()):
                self.strange += 1
                kind = "folder" if entry.is_dir() else "file"
                self.problems.append(f"strange: {entry} is no {kind} of this run, which does not read it")


def _verify_sha256(file: Path, recorded: str | None) -> None:
    if recorded is not None and sha256(file) != recorded:
        raise DamagedRecordError(f"{file} is not the file that was written (its SHA-256 is another)")


def _expected(path: Path, models: list[Model]) -> dict[Path, set[str]]:
    """The folders of a run, each with the names of the files that may be in it."""
    expected: dict[Path, set[str]] = {path: RUN_FILES}
    for model in models:
        expected[model.folder] = MODEL_FILES
        expected[path / f"seed_{model.seed}"] = SEED_FILES
        expected.setdefault(model.folder.parent, set())
    return expected
