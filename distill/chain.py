"""The algorithm: a teacher is trained on the truth, then student after student on the truth and its teacher.

Borup & Andersen, "Even your Teacher Needs Guidance", NeurIPS 2021, arXiv 2102.13088, section 5.
"""

import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from . import augment, engine, metrics, models
from .config import CUSTOM_MODEL, Config, ConfigError, ModelConfig, from_dict
from .data import Dataset
from .draws import torch_seed
from .objective import LOSSES, one_hot
from .rundir import Result, RunDir, read_json, read_result, sha256, write, write_csv, write_json

STATE = "training_state.pt"
METRICS = "epoch lr train_loss train_truth_loss train_teacher_loss train_reg train_acc val_loss val_acc seconds"


class Chains:
    """What the chains of one seed share: configuration, data in device memory, and where models are kept.

    ``network()`` makes a new network from normalised images (n, c, h, w) float32 to logits (n, classes). ``show`` is
    told of the progress, and ``finished`` is called with the Result of every model that has been trained.
    """

    def __init__(
        self,
        config: Config,
        seed: int,
        data: Dataset,
        rundir: RunDir,
        device: torch.device,
        network: Callable[[], nn.Module],
        finished: Callable[[Result], None],
        show,
    ):
        self.config, self.seed, self.data, self.rundir, self.device = config, seed, data, rundir, device
        self.network, self.finished, self.show = network, finished, show
        self.train = engine.make_pool(data.train, device)
        self.val = data.val and engine.make_pool(data.val, device)
        self.test = engine.make_pool(data.test, device)
        self.selects_best = config.chain.teacher_select == "best"

    def run(self, alpha: float) -> list[Result]:
        """One arm: the teacher, then student after student, each taught by the one before. Finished models are kept."""
        chain = [self.teacher]
        first = self.config.chain.first_step + 1
        for step in range(first, first + self.config.chain.distillation_steps):
            chain.append(self.fit(step, chain[-1], alpha))
        return [model.result for model in chain]

    @cached_property
    def teacher(self) -> "Finished":
        """Step 0, trained on the truth, or the given checkpoint at its step. The same for every alpha."""
        if self.config.chain.teacher_ckpt is None:
            return self.fit(0, None, None)
        step = self.config.chain.first_step
        folder = self.rundir.model(self.seed, None, step)
        if not (folder / "result.json").exists():
            file = Path(self.config.chain.teacher_ckpt)
            model = self.new_model(step)
            load_weights(model, file)
            parent = {"path": str(file), "sha256": sha256(file)}
            self.finish(folder, model.to(self.device), None, step, None, parent, rows=[])
        return Finished(self, folder)

    def new_model(self, step: int) -> models.Classifier:
        """A model with initial weights drawn from (seed, step)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(self.seed, "init", step))
            return models.Classifier(self.network(), self.data.mean, self.data.std)

    def fit(self, step: int, teacher: "Finished | None", alpha: float | None) -> "Finished":
        """Train the model of one step on ``alpha * truth + (1 - alpha) * teacher``, or go on with it."""
        folder = self.rundir.model(self.seed, alpha, step)
        if (folder / "result.json").exists():
            (folder / STATE).unlink(missing_ok=True)  # where the end came between the two
            return Finished(self, folder)
        data, train = self.data, self.config.train
        size, classes = data.train.images.shape[-1], len(data.classes)
        fit = engine.Fit(self.new_model(step), train, self.device)
        rows, best = self.resume(folder, fit)
        self.show.start_model(self.seed, alpha, step, len(self.train), fit.epochs)
        # At alpha = 1 the teacher has no say, so it is not asked.
        guide = teacher.model if teacher and alpha < 1 else None
        for epoch in range(fit.epochs, train.epochs):
            started = time.perf_counter()
            plan = augment.plan(self.seed, step, epoch, len(self.train), size, self.config.data.augment, data.flip)
            torch.manual_seed(torch_seed(self.seed, "update", step, epoch))  # for dropout in a network of one's own
            try:
                figures = fit.epoch(self.train, plan, classes, guide, 1.0 if alpha is None else alpha, self.show)
            except engine.NotFinite as error:
                arm = "" if alpha is None else f"alpha {alpha:g}, "
                raise ConfigError(
                    f"seed {self.seed}, {arm}step {step}, epoch {epoch + 1}: {error}; try a smaller --lr"
                ) from None
            row = {"epoch": epoch + 1, "lr": fit.optimizer.param_groups[0]["lr"]}
            row |= {f"train_{name}": value for name, value in figures.items()}
            row |= {f"val_{k}": v for k, v in self.score(fit.model, self.val)[0].items() if k in ("loss", "acc")}
            row["seconds"] = time.perf_counter() - started
            rows.append(row)
            if self.selects_best and row["val_acc"] > max((r["val_acc"] for r in rows[:-1]), default=-1):
                best = {name: tensor.cpu().clone() for name, tensor in fit.model.state_dict().items()}
            state = {"fit": fit.state_dict(), "rows": rows, "best": best}
            write_tensors(folder / STATE, state)
            write_csv(folder / "metrics.csv", METRICS.split(), rows)
            self.show.end_epoch(row)
        if best is not None:
            fit.model.load_state_dict(best)
        parent = teacher and {"path": str(teacher.folder.relative_to(self.rundir.path)), "sha256": teacher.sha256}
        self.finish(folder, fit.model, alpha, step, teacher, parent, rows)
        return Finished(self, folder)

    def resume(self, folder: Path, fit: engine.Fit) -> tuple[list[dict], dict | None]:
        """Go on from the last finished epoch, where there is one: its metrics and, under ``best``, the best weights."""
        if not (folder / STATE).exists():
            return [], None
        try:
            state = read_tensors(folder / STATE)
            fit.load_state_dict(state["fit"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error) if isinstance(error, ConfigError) else f"{folder / STATE} is no state of this training"
            raise ConfigError(f"{reason}; delete it to train this model from its beginning") from None
        write_csv(folder / "metrics.csv", METRICS.split(), state["rows"])  # where the end came between the two
        return state["rows"], state["best"]

    def finish(
        self, folder: Path, model: nn.Module, alpha, step: int, teacher, parent: dict | None, rows: list[dict]
    ) -> None:
        """Score a model and leave it on disk: weights, then result.json, then nothing of the training state."""
        test, logits = self.score(model, self.test)
        val, _ = self.score(model, self.val)
        last = rows[-1] if rows else {}
        if self.selects_best and rows:
            last = max(rows, key=lambda row: row["val_acc"])  # the first of the best, as in training
        result = Result(
            seed=self.seed,
            alpha=alpha,
            step=step,
            train_loss=last.get("train_loss"),
            train_acc=last.get("train_acc"),
            val_loss=val.get("loss"),
            val_acc=val.get("acc"),
            **{f"test_{name}": value for name, value in test.items()},
            agreement=None if teacher is None else metrics.agreement(logits, teacher.test_logits),
            epochs=len(rows),
            seconds=round(sum(row["seconds"] for row in rows), 3),
        )
        write_tensors(folder / "model.pt", model.state_dict())
        about = {
            "selected_epoch": last.get("epoch"),
            "model_sha256": sha256(folder / "model.pt"),
            "parent": parent,
            "classes": list(self.data.classes),
            "channels": self.data.train.images.shape[1],
            "model": asdict(self.config.model),
            "configuration": self.config.identity,
        }
        write_json(folder / "result.json", asdict(result) | about)
        (folder / STATE).unlink(missing_ok=True)
        self.finished(result)

    def score(self, model: nn.Module, pool: engine.Pool | None) -> tuple[dict[str, float], Tensor | None]:
        """Loss, accuracy, NLL, Brier and ECE on a split against true labels, and the logits; nothing for no split."""
        if pool is None:
            return {}, None
        logits = engine.predict_all(model, pool, self.config.train)
        labels = pool.labels.cpu()
        loss = LOSSES[self.config.train.loss](logits.double(), one_hot(labels, logits.shape[1])).mean().item()
        return {"loss": loss} | metrics.evaluate(logits, labels), logits


class Finished:
    """A finished model on disk; its weights are read when they are first needed."""

    def __init__(self, chains: Chains, folder: Path):
        self.chains, self.folder = chains, folder
        self.result = read_result(folder)
        self.sha256 = read_json(folder / "result.json")["model_sha256"]

    @cached_property
    def model(self) -> nn.Module:
        """The model on the device, frozen and in eval mode. Raises ConfigError where model.pt was changed or lost."""
        file = self.folder / "model.pt"
        check_hash(file, self.sha256)
        model = self.chains.new_model(self.result.step)
        load_weights(model, file)
        return model.to(self.chains.device).requires_grad_(False).eval()

    @cached_property
    def test_logits(self) -> Tensor:
        """(n, classes) float32 on the test split."""
        return engine.predict_all(self.model, self.chains.test, self.chains.config.train)


def write_tensors(file: Path, content: dict) -> None:
    """Write tensors and plain values. By way of memory: torch.save turns a full disk into an error of its own."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(file, buffer.getvalue())


def read_tensors(file: Path) -> dict:
    """A file of tensors and plain values, read without running any code in it. Raises ConfigError."""
    try:
        if zipfile.is_zipfile(file):  # torch itself does not look at the checksums
            with zipfile.ZipFile(file) as parts:
                if parts.testzip() is not None:
                    raise ConfigError(f"{file} is damaged: its checksum is wrong")
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except ConfigError:
        raise
    except Exception:  # torch raises a dozen kinds, with advice for other cases, where a file is no checkpoint
        raise ConfigError(f"{file} is damaged, or no checkpoint of tensors alone") from None


def check_hash(file: Path, expected: str) -> None:
    """Raises ConfigError where a finished model's file was changed or lost."""
    if not file.exists() or sha256(file) != expected:
        raise ConfigError(f"{file} is not the model of its result.json; delete {file.parent} to train it again")


def load_weights(model: models.Classifier, file: Path) -> None:
    """Load model.pt, or a bare state_dict of the network. Raises ConfigError for another architecture."""
    state = read_tensors(file)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{file} holds no model weights (a dictionary of tensors by name)")
    target = model if any(name.startswith("network.") for name in state) else model.network
    expected = target.state_dict()
    for name in [*expected, *state]:
        here, there = (tuple(d[name].shape) if name in d else "nothing" for d in (expected, state))
        if here != there:
            raise ConfigError(f"{file} is of another architecture: {name} is {there} there and {here} here")
    target.load_state_dict(state)


def load_model(path: str | Path, network: Callable | None = None) -> models.Classifier:
    """A finished model from its model.pt or its folder, on the CPU in eval mode.

    It takes images (n, c, h, w), uint8 or floating point in [0, 1], and returns logits (n, classes); ``classes`` has
    the class names, ``mean`` and ``std`` the normalisation. ``network`` makes the network where it was one of your own.
    """
    file = path / "model.pt" if (path := Path(path)).is_dir() else path
    about = read_json(file.parent / "result.json")
    check_hash(file, about["model_sha256"])
    if network is None:
        if about["model"]["resnet"] == CUSTOM_MODEL:
            raise ConfigError(f"{file} is of a network of your own: give the function that makes it as network")
        config = from_dict({"model": {k: v for k, v in about["model"].items() if v is not None}}).model
        network = default_network(config, about["channels"], len(about["classes"]))
    zeros = torch.zeros(about["channels"])
    model = models.Classifier(network(), zeros, zeros)
    load_weights(model, file)
    model.classes = tuple(about["classes"])
    return model.eval()


def default_network(config: ModelConfig, channels: int, classes: int) -> Callable[[], nn.Module]:
    """The function that makes the networks that ``config`` names."""
    return lambda: models.build(config, channels, classes)
