"""The algorithm: a teacher is trained on the truth, then student after student on the truth and its teacher.

Borup & Andersen, "Even your Teacher Needs Guidance", NeurIPS 2021, arXiv 2102.13088, section 5.
"""

import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from distill import metrics
from distill.chains.checkpoints import DamagedFileError, check_hash, load_weights, read_tensors, write_tensors
from distill.chains.estimated_alpha import Choice, choose
from distill.config import AUTO, Arm, Config, arm_name, prefixes
from distill.data.splits import Dataset
from distill.errors import ConfigError
from distill.files import sha256, write_atomically
from distill.losses import loss_function
from distill.randomness import ONE_AT_A_TIME, generator, torch_seed
from distill.store.results import Result, name_model, read_record
from distill.store.rundir import RunDir, write_csv, write_json
from distill.training import augment, engine, models
from distill.training.objective import one_hot

STATE = "training_state.pt"
METRICS = "epoch lr train_loss train_truth_loss train_teacher_loss train_reg train_acc val_loss val_acc seconds"


class Chain:
    """What the chains of one seed share: configuration, data in device memory, and where models are kept.

    ``network()`` makes a new network from normalised images (n, c, h, w) float32 to logits (n, classes).
    ``listener`` receives the progress.
    """

    def __init__(
        self,
        config: Config,
        seed: int,
        data: Dataset,
        rundir: RunDir,
        device: torch.device,
        network: Callable[[], nn.Module],
        listener,
    ):
        self.config, self.seed, self.data, self.rundir, self.device = config, seed, data, rundir, device
        self.network, self.listener = network, listener
        self.train = engine.make_image_store(data.train, device)
        self.val = data.val and engine.make_image_store(data.val, device)
        self.test = engine.make_image_store(data.test, device)
        self.selects_best = config.chain.teacher_select == "best"

    def run(self, arm: Arm) -> list[Result]:
        """One chain: the teacher, then students, each taught by the one before. What is finished is kept."""
        chain = [self.teacher]
        for step, prefix in enumerate(prefixes(arm), start=self.config.chain.first_step + 1):
            brief = self.brief(arm_name(prefix), step, prefix[-1], chain[-1])
            chain.append(self.fit(brief) if brief.alpha != AUTO else self.fit_estimated(brief))
        return [model.result for model in chain]

    @cached_property
    def teacher(self) -> "Finished":
        """Step 0, trained on the truth, or the given checkpoint at its step. The same for every alpha."""
        brief = self.brief(None, self.config.chain.first_step, None, None)
        if self.config.chain.teacher_ckpt is None:
            return self.fit(brief)
        file = Path(self.config.chain.teacher_ckpt)
        if not (brief.folder / "result.json").exists():
            model = self.new_model(brief.step)
            load_weights(model, file)
            parent = {"path": str(file), "sha256": sha256(file)}
            self.finish(brief, engine.place(model, self.config.train, self.device), rows=[], parent=parent)
        teacher = Finished(self, brief.folder)
        if file.exists() and sha256(file) != teacher.parent.get("sha256"):
            raise ConfigError(f"{file} is not the file that this run began with; choose another --output")
        return teacher

    def brief(self, arm: str | None, step: int, alpha: float | None, teacher: "Finished | None") -> "ModelSpec":
        """The ModelSpec of the model of a step, kept where its chain's models are."""
        folder = self.rundir.model(self.seed, arm, step)
        return ModelSpec(folder, name_model(self.seed, arm, step), arm, step, alpha, teacher)

    def new_model(self, step: int) -> models.Classifier:
        """A model with initial weights drawn from (seed, step)."""
        with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(self.seed, "init", step))
            return models.Classifier(self.network(), self.data.mean, self.data.std)

    def fit_estimated(self, brief: "ModelSpec") -> "Finished":
        """The student of a step whose alpha is estimated (alpha.py), after the probe that this takes.

        The estimate is written down before the student begins, so that it goes on with the same alpha wherever it is.
        """
        noted = brief.folder / "choice.json"
        if (brief.folder / "result.json").exists():
            noted.unlink(missing_ok=True)  # where the end came between the two
            return self.fit(brief)
        arm = f"{brief.arm} probe"
        name = name_model(self.seed, arm, brief.step)
        if not (brief.folder / "probe" / "result.json").exists():
            for stale in (noted, brief.folder / STATE):  # of a probe that was deleted
                stale.unlink(missing_ok=True)
        probe = self.fit(replace(brief, folder=brief.folder / "probe", name=name, arm=arm, alpha=0.0))
        if not noted.exists():
            write_json(noted, asdict(self.choose(brief, probe)))
        choice = read_choice(noted)
        if choice.takes_probe:
            self.take(probe, brief, choice)
        else:
            self.fit(replace(brief, alpha=choice.alpha), choice)
        noted.unlink()
        return Finished(self, brief.folder)

    def choose(self, brief: "ModelSpec", probe: "Finished") -> Choice:
        """The alpha of a step from what its probe and the teacher of step 0 say of the held-out images."""
        first, guess = self.teacher.val_logits, probe.val_logits
        rng = generator(self.seed, "bootstrap", brief.step)
        labels = self.val.labels.cpu().numpy()
        choice = choose(first.double().softmax(1).numpy(), guess.double().softmax(1).numpy(), labels, rng)
        if choice.alpha_star is None:
            said = "teacher and probe agree to rounding, alpha does not matter here: the probe is taken"
        else:
            said = (
                f"alpha* = {choice.alpha_star:.4f} ± {choice.standard_error:.4f} on {len(labels):,} held-out images: "
            )
            said += "the probe (alpha 0) is taken" if choice.takes_probe else f"trained with {choice.alpha:.4f}"
        self.listener.note(f"{brief.name}: {said}")
        return choice

    def take(self, probe: "Finished", brief: "ModelSpec", choice: Choice) -> None:
        """Make a probe the student of its step: the same weights and figures, with no training of its own."""
        write_atomically(brief.folder / "model.pt", (probe.folder / "model.pt").read_bytes())
        result = replace(probe.result, arm=brief.arm, epochs=0, seconds=0.0)
        record = read_record(probe.folder) | result.row() | estimate_of(choice, result)
        write_json(brief.folder / "result.json", record)
        self.listener.end_model(result)

    def fit(self, brief: "ModelSpec", choice: Choice | None = None) -> "Finished":
        """Train a model on ``alpha * truth + (1 - alpha) * teacher``, or go on with it. ``choice`` is kept with it."""
        folder, teacher = brief.folder, brief.teacher
        if (folder / "result.json").exists():
            (folder / STATE).unlink(missing_ok=True)  # where the end came between the two
            model = Finished(self, folder)
            if teacher is not None and model.parent.get("sha256") != teacher.sha256:
                raise ConfigError(
                    f"{folder} was taught by another model than {teacher.folder}; delete it to train it again"
                )
            return model
        fit = engine.Fit(self.new_model(brief.step), self.config.train, self.device)
        training = Training(folder, fit, brief.alpha, teacher and teacher.sha256)
        self.listener.start_model(brief.name, len(self.train), training.fit.epochs)
        for epoch in range(training.fit.epochs, self.config.train.epochs):
            row = self.train_epoch(training.fit, brief, epoch)
            training.record(row, self.selects_best)
            self.listener.end_epoch(brief.name, row)
        parent = teacher and {"path": str(teacher.folder.relative_to(self.rundir.path)), "sha256": teacher.sha256}
        self.finish(brief, training.selected(), training.rows, parent, choice)
        return Finished(self, folder)

    def train_epoch(self, fit: engine.Fit, brief: "ModelSpec", epoch: int) -> dict:
        """Train one epoch and look at the held-out images; returns the epoch's row of metrics.csv."""
        started = time.perf_counter()
        data, step, teacher = self.data, brief.step, brief.teacher
        plan = augment.plan(
            self.seed, step, epoch, len(self.train), data.train.images.shape[-1], self.config.data.augment, data.flip
        )
        with ONE_AT_A_TIME:
            torch.manual_seed(torch_seed(self.seed, "update", step, epoch))  # for dropout in a network of one's own
        # At alpha = 1 the teacher has no say, so it is not asked; at step 0 there is none.
        guide, weight = (teacher.model, brief.alpha) if teacher and brief.alpha < 1 else (None, 1.0)
        try:
            figures = fit.epoch(self.train, plan, len(data.classes), guide, weight, self.listener)
        except engine.NotFiniteLossError as error:
            raise ConfigError(f"{brief.name}, epoch {epoch + 1}: {error}; try a smaller --lr") from None
        val_loss, val_logits = self.score(fit.model, self.val)
        return {
            "epoch": epoch + 1,
            "lr": fit.lr,
            **{f"train_{name}": value for name, value in figures.items()},
            "val_loss": val_loss,
            "val_acc": None if val_logits is None else metrics.accuracy(val_logits, self.val.labels),
            "seconds": time.perf_counter() - started,
        }

    def finish(
        self,
        brief: "ModelSpec",
        model: nn.Module,
        rows: list[dict],
        parent: dict | None,
        choice: Choice | None = None,
    ) -> None:
        """Score a model and leave it on disk: weights, then result.json, then nothing of the training state."""
        folder, teacher = brief.folder, brief.teacher
        test_loss, test_logits = self.score(model, self.test)
        val_loss, val_logits = self.score(model, self.val)
        predictions = metrics.Predictions(
            test_logits=test_logits,
            test_labels=self.test.labels,
            train_logits=engine.predict_all(model, self.train, self.config.train),
            given_labels=torch.from_numpy(self.data.train.labels),
            true_labels=torch.from_numpy(self.data.train.true_labels),
            val_logits=val_logits,
            val_labels=None if self.val is None else self.val.labels,
            teacher_test_logits=None if teacher is None else teacher.test_logits,
        )
        last = rows[-1] if rows else {}
        if self.selects_best and rows:
            last = max(rows, key=lambda row: row["val_acc"])  # the first of the best, as in training
        about = {
            "seed": self.seed,
            "alpha": brief.alpha,
            "step": brief.step,
            "train_loss": last.get("train_loss"),
            "train_acc": last.get("train_acc"),
            "val_loss": val_loss,
            "test_loss": test_loss,
            "epochs": len(rows),
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "arm": brief.arm,
        }
        result = Result.of(about, metrics.evaluate_all(predictions))
        write_tensors(folder / "model.pt", {name: t.cpu().contiguous() for name, t in model.state_dict().items()})
        record = {
            "selected_epoch": last.get("epoch"),
            "model_sha256": sha256(folder / "model.pt"),
            "parent": parent,
            "classes": list(self.data.classes),
            "channels": self.data.train.images.shape[1],
            "model": asdict(self.config.model),
            "configuration": self.config.identity,
            "reliability": metrics.reliability(test_logits, self.test.labels),
        }
        record |= {} if choice is None else estimate_of(choice, result)
        write_json(folder / "result.json", result.row() | record)
        (folder / STATE).unlink(missing_ok=True)
        self.listener.end_model(result)

    def score(self, model: nn.Module, pool: engine.ImageStore | None) -> tuple[float | None, Tensor | None]:
        """The mean loss on a split against true labels, and the logits; None twice for no split."""
        if pool is None:
            return None, None
        logits = engine.predict_all(model, pool, self.config.train)
        if not logits.isfinite().all():
            raise ConfigError("the predictions of the given teacher are not finite")  # training would have said so
        labels = pool.labels.cpu()
        loss = loss_function(self.config.train.loss)(logits.double(), one_hot(labels, logits.shape[1])).mean().item()
        return loss, logits


def read_choice(file: Path) -> Choice:
    """An estimate that was written down. Raises ConfigError where the file is damaged."""
    try:
        choice = Choice(**json.loads(file.read_text(encoding="utf-8")))
        float(choice.alpha)
        return choice
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{file} is damaged ({error}); delete it to estimate alpha again") from None


def estimate_of(choice: Choice, result: Result) -> dict:
    """What result.json says of an estimate and what came of it."""
    return {"auto": asdict(choice) | {"val_brier": result.val_brier}}


@dataclass(frozen=True)
class ModelSpec:
    """Which model is to be trained, and how it differs from the others of its seed."""

    folder: Path
    name: str  # for people
    arm: str | None  # the chain up to it; None: the teacher of all chains
    step: int
    alpha: float | str | None  # "auto" until it is estimated
    teacher: "Finished | None"


def epochs_on_disk(folder: Path) -> int:
    """Finished epochs of a model in training. Raises ConfigError where its state is damaged."""
    if not (folder / STATE).exists():
        return 0
    with _state_errors(folder):
        return len(read_tensors(folder / STATE)["rows"])


@contextmanager
def _state_errors(folder: Path):
    """Make whatever is wrong with a training state a ConfigError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (DamagedFileError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError) and not isinstance(error, DamagedFileError):
            raise
        what = error if isinstance(error, DamagedFileError) else f"{folder / STATE} is no state of this training"
        raise ConfigError(f"{what}; delete it to train this model from its beginning") from None


class Training:
    """A model in training and its record, both on disk after every epoch, in one file."""

    def __init__(self, folder: Path, fit: engine.Fit, alpha: float | None, teacher: str | None):
        """``teacher``: the SHA-256 of its weights."""
        self.folder, self.fit, self.taught = folder, fit, {"alpha": alpha, "teacher": teacher}
        self.rows: list[dict] = []  # of metrics.csv
        self.best: dict[str, Tensor] | None = None  # weights of the epoch most accurate on the held-out images
        if (folder / STATE).exists():
            with _state_errors(folder):
                state = read_tensors(folder / STATE)
                if state["taught"] != self.taught:
                    raise ConfigError(f"{folder} was begun with another teacher or alpha; delete it to train it again")
                fit.load_state_dict(state["fit"])
                self.rows, self.best = state["rows"], state["best"]
            self.write_metrics()  # the end may have come between the two files

    def record(self, row: dict, selects_best: bool) -> None:
        """Keep an epoch's row and the state after it."""
        if selects_best and row["val_acc"] > max((r["val_acc"] for r in self.rows), default=-1):
            self.best = {name: tensor.cpu().clone() for name, tensor in self.fit.model.state_dict().items()}
        self.rows.append(row)
        state = {"fit": self.fit.state_dict(), "rows": self.rows, "best": self.best, "taught": self.taught}
        write_tensors(self.folder / STATE, state)
        self.write_metrics()

    def write_metrics(self) -> None:
        """Write metrics.csv, a row per epoch."""
        write_csv(self.folder / "metrics.csv", METRICS.split(), self.rows)

    def selected(self) -> nn.Module:
        """The model that teaches: the last epoch's, or the best."""
        if self.best is not None:
            self.fit.model.load_state_dict(self.best)
        return self.fit.model


class Finished:
    """A finished model on disk; its weights are read when they are first needed."""

    def __init__(self, chains: Chain, folder: Path):
        self.chains, self.folder = chains, folder
        record = read_record(folder)
        self.result, self.sha256, self.parent = Result.of(record), record["model_sha256"], record["parent"] or {}

    @cached_property
    def model(self) -> nn.Module:
        """The model on the device, frozen and in eval mode. Raises ConfigError where model.pt was changed or lost."""
        file = self.folder / "model.pt"
        check_hash(file, self.sha256)
        model = self.chains.new_model(self.result.step)
        load_weights(model, file)
        model = engine.place(model, self.chains.config.train, self.chains.device)
        return model.requires_grad_(False).eval()

    @cached_property
    def test_logits(self) -> Tensor:
        """(n, classes) float32 on the test split."""
        return engine.predict_all(self.model, self.chains.test, self.chains.config.train)

    @cached_property
    def val_logits(self) -> Tensor:
        """(n, classes) float32 on the held-out images."""
        return engine.predict_all(self.model, self.chains.val, self.chains.config.train)
