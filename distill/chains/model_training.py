"""Training of one model of a chain, teacher or student: its state on disk, and the finished model."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill import metrics
from distill.arms import Fixed, Target
from distill.chains.checkpoints import read_tensors, write_tensors
from distill.chains.session import Session
from distill.config import Config
from distill.configfile import FORMAT
from distill.errors import ConfigError, TrainingError
from distill.files import sha256, write_derived
from distill.randomness import RNG_LOCK, torch_seed
from distill.records import DamagedRecordError
from distill.store import claims
from distill.store.events import write_model_events
from distill.store.predictions import PREDICTIONS, TestPredictions, write_predictions
from distill.store.results import Result, name_model, read_record
from distill.store.rundir import STATE, Model, RunDir, check_options, is_finished, options_of_models, to_csv
from distill.training import augment
from distill.training.fit import NotFiniteLossError, Trainer
from distill.training.listener import Listener
from distill.training.models import Classifier

EPOCH_COLUMNS = (
    *("epoch", "lr", "train_loss", "train_truth_loss", "train_teacher_loss", "train_reg", "train_acc"),
    *("val_loss", "val_acc", "seconds"),
)


class FinishedModel:
    """A finished model on disk. Its parameters are read when they are first needed."""

    def __init__(self, session: Session, folder: Path) -> None:
        record = read_record(folder)
        self.session = session
        self.folder = folder
        self.result: Result = Result.of(record)
        self.sha256: str = record["model_sha256"]
        self.parent: dict[str, str] = record["parent"] or {}

    @cached_property
    def model(self) -> nn.Module:
        """The model on the device, frozen and in eval mode. Raises ConfigError if model.pt changed or disappeared."""
        return self.session.load(self.folder / "model.pt", self.sha256, self.result.step)

    @cached_property
    def test_logits(self) -> Tensor:
        """(n, classes) float32 on the test split."""
        return self.session.predict(self.model, self.session.test)

    @cached_property
    def train_logits(self) -> Tensor:
        """(n, classes) float32 on the training images, not augmented."""
        return self.session.predict(self.model, self.session.train)

    @cached_property
    def val_logits(self) -> Tensor:
        """(n, classes) float32 on the held-out images."""
        assert self.session.val is not None, "the configuration holds images out"
        return self.session.predict(self.model, self.session.val)


@dataclass(frozen=True)
class ModelSpec:
    """Which model to train, and where it is kept."""

    run: Path  # the run directory
    folder: Path  # the model's folder in it
    name: str  # in messages
    arm: str | None  # the name of the arm up to this model; None for the teacher
    step: int
    target: Target | None  # None for the teacher, which is trained on the given labels
    teacher: FinishedModel | None

    @property
    def is_finished(self) -> bool:
        """Whether the model is finished on disk."""
        return is_finished(self.folder)

    @property
    def alpha(self) -> float | None:
        """Weight of the given labels in the targets; None for the teacher."""
        return self.target.alpha if isinstance(self.target, Fixed) else None


class Training:
    """A model in training. After every epoch one file holds its state and metrics, from which it resumes."""

    def __init__(self, session: Session, spec: ModelSpec) -> None:
        self.folder = spec.folder
        self.selects_best = session.selects_best
        self.trainer = Trainer(_initial_model(session, spec), session.config.train, session.device, session.ranks)
        self.rows: list[dict[str, Any]] = []  # of metrics.csv
        self.best: dict[str, Tensor] | None = None  # parameters of the epoch most accurate on the held-out images
        self.trained_on = {"alpha": spec.alpha, "teacher": None if spec.teacher is None else spec.teacher.sha256}
        self.of = {"seed": session.seed, "arm": spec.arm, "step": spec.step}
        self.options = options_of_models(session.config)
        self.run = RunDir(spec.run)
        self.writes_events = session.config.run.tensorboard
        self.run.make_folder(spec.folder)
        if (self.folder / STATE).exists():
            self._resume(session.config)

    def _resume(self, config: Config) -> None:
        file = self.folder / STATE
        with _state_errors(self.folder):
            state = read_tensors(file)
            if state.get("of", self.of) != self.of:  # an old version's state does not say of which model it is
                raise DamagedRecordError(f"{file} is of another model ({name_model(**state['of'])})")
            check_options(file, state.get("configuration"), config)
            if state["taught"] != self.trained_on:
                raise ConfigError(f"{self.folder} was begun with another teacher or alpha; delete it to retrain")
            self.trainer.load_state_dict(state["fit"])
            self.rows = state["rows"]
            self.best = state["best"]
            self._check()
        self._write_metrics()  # the process may have died between the two writes

    def _check(self) -> None:
        """Raise an error, of any type, if training cannot continue from the state that was read."""
        if [row["epoch"] for row in self.rows] != list(range(1, self.trainer.epochs + 1)):
            raise ValueError("its rows are not those of its epochs")
        for row in self.rows:
            if any(not isinstance(row[name], int | float | None) for name in EPOCH_COLUMNS):
                raise ValueError("its rows do not hold numbers")
        expected = {name: tensor.shape for name, tensor in self.trainer.model.state_dict().items()}
        if self.selects_best and {name: tensor.shape for name, tensor in (self.best or {}).items()} != expected:
            raise ValueError("its best model is of another architecture")
        for parameter, held in self.trainer.optimizer.state.items():
            if any(isinstance(value, Tensor) and value.shape not in (parameter.shape, ()) for value in held.values()):
                raise ValueError("its optimiser is of another model")

    def record(self, row: dict[str, Any]) -> None:
        """Write the metrics of an epoch and the state after it. Raises claims.ClaimLostError."""
        claims.check()
        if self.selects_best and row["val_acc"] > max((r["val_acc"] for r in self.rows), default=-1):
            self.best = {name: tensor.cpu().clone() for name, tensor in self.trainer.kept.state_dict().items()}
        self.rows.append(row)
        state = {
            **{"fit": self.trainer.state_dict(), "rows": self.rows, "best": self.best},
            **{"taught": self.trained_on, "of": self.of, "configuration": self.options},
        }
        write_tensors(self.folder / STATE, state)
        self._write_metrics()

    def _write_metrics(self) -> None:
        write_derived(self.folder / "metrics.csv", metrics_csv(self.rows))
        if self.writes_events:
            write_model_events(self.run, self.folder, self.rows)

    def selected(self) -> nn.Module:
        """The model to keep: that of the last epoch, or of the best."""
        if self.best is not None:
            self.trainer.kept.load_state_dict(self.best)
        return self.trainer.kept


def _initial_model(session: Session, spec: ModelSpec) -> Classifier:
    """A model on the CPU with the initial parameters that ``--student-init`` names."""
    init = session.config.chain.student_init
    model = session.new_model(0 if init == "same" else spec.step)
    if init == "teacher" and spec.teacher is not None:
        model.load_state_dict(spec.teacher.model.state_dict())
    return model


def metrics_csv(rows: list[dict[str, Any]]) -> str:
    """The text of metrics.csv."""
    return to_csv(list(EPOCH_COLUMNS), rows)


def metrics_record(rows: list[dict[str, Any]]) -> dict[str, str | None]:
    """What result.json records of metrics.csv: its SHA-256, and its text, to write a damaged file again."""
    text = metrics_csv(rows) if rows else None
    return {"metrics_sha256": text and hashlib.sha256(text.encode()).hexdigest(), "metrics_csv": text}


def train_model(
    session: Session, spec: ModelSpec, listener: Listener, estimate: dict[str, Any] | None = None
) -> FinishedModel:
    """Train or resume a model on ``alpha * given labels + (1 - alpha) * teacher``; a finished one is returned.

    ``estimate``, the estimate of its alpha, is written to its result.json.
    """
    if spec.is_finished:
        return checked_model(session, spec)
    rows = _training_rows(session, spec)
    training = Training(session, spec)
    listener.start_model(spec.name, len(rows), training.trainer.epochs)
    for epoch in range(training.trainer.epochs, session.config.train.epochs):
        row = _train_epoch(session, spec, rows, training.trainer, epoch, listener)
        training.record(row)
        listener.end_epoch(spec.name, row)
    parent = None
    if spec.teacher is not None:
        parent = {"path": str(spec.teacher.folder.relative_to(spec.run)), "sha256": spec.teacher.sha256}
    finish_model(session, spec, training.selected(), training.rows, parent, listener, estimate)
    return FinishedModel(session, spec.folder)


def checked_model(session: Session, spec: ModelSpec) -> FinishedModel:
    """A finished model.

    Raises ConfigError if its record is damaged or of another model, or if it was trained with another teacher.
    """
    RunDir(spec.run).record(Model(spec.folder, session.seed, spec.arm, spec.step), session.config)
    (spec.folder / STATE).unlink(missing_ok=True)  # the process may have died between the two writes
    model = FinishedModel(session, spec.folder)
    if spec.teacher is not None and model.parent.get("sha256") != spec.teacher.sha256:
        raise ConfigError(
            f"{spec.folder} was trained with a different teacher than {spec.teacher.folder}; delete it to retrain"
        )
    return model


def _training_rows(session: Session, spec: ModelSpec) -> Tensor:
    """The positions (n,) of the images to train on: all, unless the student's target keeps a part of them.

    Raises TrainingError for too few.
    """
    given = session.train.labels
    rows = torch.arange(len(given))
    if spec.teacher is None or not isinstance(spec.target, Fixed):
        return rows
    kept = spec.target.keeps(spec.teacher.train_logits.argmax(1).to(given.device), given)
    if kept is None:
        return rows
    if kept.sum() < session.config.train.batch_size:
        raise TrainingError(
            f"{spec.name}: the teacher predicts the given label of {int(kept.sum())} of {len(given):,} images, fewer "
            f"than a batch of {session.config.train.batch_size}: lower --batch-size, or train the teacher for longer"
        )
    return rows[kept.cpu()]


def _train_epoch(
    session: Session, spec: ModelSpec, rows: Tensor, trainer: Trainer, epoch: int, listener: Listener
) -> dict[str, Any]:
    """Train one epoch and score the held-out images; returns the epoch's row of metrics.csv."""
    started = time.perf_counter()
    data = session.data
    width = data.train.images.shape[-1]
    config = session.config.data
    plan = augment.plan(session.seed, spec.step, epoch, len(rows), width, config.augment, data.flip, config.cutout)
    plan = replace(plan, order=rows[plan.order])
    with RNG_LOCK:
        torch.manual_seed(torch_seed(session.seed, "update", spec.step, epoch))  # for dropout in a custom network
    teacher = None
    target = Fixed(1.0)  # without a teacher, the given labels alone
    if spec.teacher is not None:
        if not isinstance(spec.target, Fixed):
            raise TypeError(f"a student's target is an object of Fixed or of a subclass, not {spec.target!r}")
        # At alpha = 1 the teacher has zero weight: skip its forward pass.
        if spec.target.uses_teacher:
            teacher = spec.teacher.model
            target = spec.target
    try:
        train_metrics = session.train_epoch(trainer, plan, teacher, target, listener)
    except NotFiniteLossError as error:
        raise TrainingError(f"{spec.name}, epoch {epoch + 1}: {error}; {error.advice}") from None
    val_loss = None
    val_acc = None
    if session.val is not None:
        val_loss, val_logits = session.score(trainer.kept, session.val)
        val_acc = metrics.accuracy(val_logits, session.val.labels)
    return {
        "epoch": epoch + 1,
        "lr": trainer.lr,
        **{f"train_{name}": value for name, value in train_metrics.items()},
        "val_loss": val_loss,
        "val_acc": val_acc,
        "seconds": time.perf_counter() - started,
    }


def finish_model(
    session: Session,
    spec: ModelSpec,
    model: nn.Module,
    rows: list[dict[str, Any]],
    parent: dict[str, str] | None,
    listener: Listener,
    estimate: dict[str, Any] | None = None,
) -> None:
    """Score a model; write model.pt, predictions.npz and then result.json; delete the training state."""
    losses, predictions = _scores(session, spec, model)
    last = rows[-1] if rows else {}
    if session.selects_best and rows:
        last = max(rows, key=lambda row: row["val_acc"])  # the first of the best, as in training
    columns = {
        "seed": session.seed,
        "alpha": spec.alpha,
        "step": spec.step,
        "train_loss": last.get("train_loss"),
        "train_acc": last.get("train_acc"),
        **losses,
        "epochs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "arm": spec.arm,
    }
    result = Result.of(columns, metrics.evaluate_all(predictions))
    run = RunDir(spec.run)
    claims.check()
    write_tensors(spec.folder / "model.pt", {name: t.cpu().contiguous() for name, t in model.state_dict().items()})
    write_predictions(spec.folder, _kept(predictions))
    record = result.row() | {
        "format": FORMAT,
        "selected_epoch": last.get("epoch"),
        "model_sha256": sha256(spec.folder / "model.pt"),
        "predictions_sha256": sha256(spec.folder / PREDICTIONS),
        **metrics_record(rows),
        **run.digests(session.seed, session.data.noise_kind is not None),
        "label_noise": session.data.label_noise,
        "parent": parent,
        "classes": list(session.data.classes),
        "channels": session.data.train.images.shape[1],
        "size": list(session.data.train.images.shape[2:]),
        "model": asdict(session.config.model),
        "configuration": session.config.identity,
        "reliability": metrics.reliability(predictions.test_logits, session.test.labels),
        "confusions": metrics.confusions(predictions.test_logits, session.test.labels),
    }
    if spec.teacher is not None and isinstance(spec.target, Fixed) and spec.target.kind:
        labels = predictions.given_labels, predictions.true_labels
        record["target"] = {"kind": spec.target.kind, **spec.target.diagnose(spec.teacher.train_logits, *labels)}
    if estimate is not None:
        record["auto"] = estimate | {"val_brier": result.val_brier}
    run.write_result(spec.folder, record)
    if session.config.run.tensorboard:
        write_model_events(run, spec.folder, rows, read_record(spec.folder))
    (spec.folder / STATE).unlink(missing_ok=True)
    listener.end_model(result)


def _scores(session: Session, spec: ModelSpec, model: nn.Module) -> tuple[dict[str, float | None], metrics.Predictions]:
    """The losses of a finished model against the true labels, and what its metrics are computed from.

    Raises TrainingError if its predictions are not finite.
    """
    test_loss, test_logits = session.score(model, session.test)
    val_loss = None
    val_logits = None
    if session.val is not None:
        val_loss, val_logits = session.score(model, session.val)
    predictions = metrics.Predictions(
        test_logits=test_logits,
        test_labels=session.test.labels,
        train_logits=session.predict(model, session.train),
        given_labels=torch.from_numpy(session.data.train.labels),
        true_labels=torch.from_numpy(session.data.train.true_labels),
        val_logits=val_logits,
        val_labels=None if session.val is None else session.val.labels,
        teacher_test_logits=None if spec.teacher is None else spec.teacher.test_logits,
    )
    for logits in (test_logits, predictions.train_logits, val_logits):
        if logits is not None and not logits.isfinite().all():
            raise TrainingError(f"{spec.name}: its predictions are not finite; try a smaller --lr")
    return {"val_loss": val_loss, "test_loss": test_loss}, predictions


def _kept(predictions: metrics.Predictions) -> TestPredictions:
    """What a finished model keeps of its predictions for the test images."""
    probabilities, predicted = metrics.probabilities_and_classes(predictions.test_logits)
    labels = predictions.test_labels.cpu().int().numpy()
    return TestPredictions(probabilities.half().numpy(), predicted.int().numpy(), labels)


def epochs_on_disk(folder: Path) -> int:
    """Finished epochs of a model in training. Raises ConfigError if its state is damaged."""
    if not (folder / STATE).exists():
        return 0
    with _state_errors(folder):
        return len(read_tensors(folder / STATE)["rows"])


@contextmanager
def _state_errors(folder: Path) -> Iterator[None]:
    """Turn any error in a training state into a ConfigError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # from whatever the file holds
        if isinstance(error, OSError | MemoryError) or (
            isinstance(error, ConfigError) and not isinstance(error, DamagedRecordError)
        ):
            raise
        what = error if isinstance(error, DamagedRecordError) else f"{folder / STATE} does not belong to this training"
        raise ConfigError(f"{what}; delete it to train this model from its beginning") from None
