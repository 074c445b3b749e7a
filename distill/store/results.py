"""Results of finished models: what result.json and a row of results.csv hold. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from distill import arms, metrics
from distill.errors import ConfigError
from distill.files import read_text


@dataclass(frozen=True)
class Result:
    """The numbers of one finished model: a row of results.csv. Accuracies and agreement are fractions in [0, 1].

    train_loss and train_acc are means over the epoch that was selected (the last, or the best), measured during
    training (augmented images, given labels, regulariser included). val_* and test_* are of the finished model,
    against true labels, without the regulariser. train_distance, clean_acc, memorised and recovered are of
    the finished model on its training images, not augmented. A value is None if it does not apply or if an older
    version did not compute it.

    Metrics of ``distill.metrics`` without a field here are attributes too; ``extra`` holds them.
    """

    seed: int
    alpha: float | None  # weight of the given labels in its targets; None: the teacher that all arms of a seed share
    step: int
    train_loss: float | None
    train_acc: float | None
    val_loss: float | None
    val_acc: float | None
    test_loss: float | None
    test_acc: float
    test_nll: float | None  # natural logarithm
    test_brier: float | None
    test_ece: float | None
    agreement: float | None  # share of test images on which the model and its teacher predict the same class
    epochs: int  # trained: 0 for a given model and for a student that is its probe
    seconds: float
    arm: str | None  # the arm up to this model, see arms.arm_name; None: the teacher
    val_brier: float | None
    test_entropy: float | None  # of the predicted probabilities, natural logarithm
    teacher_kl: float | None  # KL(teacher || model) on the test images, natural logarithm
    train_distance: float | None  # root mean square of |p - one_hot(given label)|_2, in [0, sqrt 2]
    clean_acc: float | None  # accuracy on the images with right labels
    memorised: float | None  # share of the images with wrong labels that the model predicts as that label
    recovered: float | None  # share of the images with wrong labels that the model predicts as their true class
    extra: dict[str, float | None] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, *values: Mapping[str, Any]) -> "Result":
        """A result from values by column, in one mapping or several. Missing ones are None, other names are ignored.

        Raises KeyError without a value that every result has (``REQUIRED``).
        """
        known: dict[str, Any] = {}
        for mapping in values:
            known.update(mapping)
        own: dict[str, Any] = {name: known[name] if name in REQUIRED else known.get(name) for name in FIELDS}
        return cls(**own, extra={name: known.get(name) for name in columns() if name not in FIELDS})

    def __getattr__(self, name: str) -> float | None:
        """A metric among ``extra``. Python calls this only for names without a field."""
        if name in self.__dict__.get("extra", {}):
            return self.__dict__["extra"][name]
        raise AttributeError(f"a result has no {name}")

    def row(self) -> dict[str, Any]:
        """All values by column."""
        return {name: getattr(self, name) for name in FIELDS} | self.extra


FIELDS = tuple(f.name for f in fields(Result) if f.name != "extra")
REQUIRED = {"seed", "alpha", "step", "arm", "test_acc", "epochs", "seconds"}
# Entries of result.json without which the model can neither be loaded nor its chain be checked.
MODEL_KEYS = {"model_sha256", "parent", "classes", "channels", "model"}


def columns() -> list[str]:
    """The columns of results.csv: the fields of ``Result``, then the metrics that have none."""
    return [*FIELDS, *(metric.name for metric in metrics.METRICS if metric.name not in FIELDS)]


def read_record(folder: Path) -> dict[str, Any]:
    """The whole of a finished model's result.json. Raises ConfigError if it is missing or damaged."""
    file = folder / "result.json"
    try:
        content = json.loads(read_text(file))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        if missing := sorted((REQUIRED | MODEL_KEYS) - content.keys()):
            raise ValueError(f"it lacks {', '.join(missing)}")
        int(content["seed"])
        int(content["step"])
        float(content["alpha"] or 0)
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no finished model (no result.json in it)") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{file} is damaged ({error}); delete its folder to retrain that model") from None
    return content


def name_model(seed: int, arm: str | None, step: int) -> str:
    """``seed 1, alpha 0.6, step 2``, or ``seed 1, step 0`` for the teacher."""
    return f"seed {seed}, {'' if arm is None else f'alpha {arm}, '}step {step}"


def sort_key(result: Result) -> tuple[Any, ...]:
    """A key that sorts results by seed, by arm (the teacher first) and by step, a probe after its student."""
    return result.seed, arms.sort_key(result.arm), result.step, result.arm or ""
