"""Results of finished models: what result.json and a row of results.csv hold. Imports no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from distill import arms, metrics
from distill.configfile import check_format
from distill.errors import ConfigError
from distill.records import DamagedRecordError, read_json


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
        """Make a result from one or more mappings of column to value. Missing values become None.

        Raises KeyError if a column in ``REQUIRED`` is missing.
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


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _has(shape: dict[str, Callable[[Any], bool]]) -> Callable[[Any], bool]:
    """A check that a value is an object with all of these entries."""
    return lambda value: (
        isinstance(value, dict) and all(name in value and check(value[name]) for name, check in shape.items())
    )


def _list_of(check: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value)) and length in (None, len(value))


# An estimated alpha, in choice.json and as ``auto`` in result.json.
ESTIMATE: dict[str, Callable[[Any], bool]] = {
    "alpha_star": _or_none(_is_number),
    "standard_error": _or_none(_is_number),
    "alpha": _is_number,
    "takes_probe": lambda value: type(value) is bool,
    "probe_val_brier": _is_number,
    "predicted_val_brier": _is_number,
}
_BINS = _list_of(_is_number, metrics.ECE_BINS)
# What the entries of result.json are, as far as they are there.
SHAPE: dict[str, Callable[[Any], bool]] = {
    **{name: _or_none(_is_number) for name in columns()},
    **dict.fromkeys(("seed", "step", "epochs"), _is_count),
    "alpha": _or_none(_is_number),
    "arm": _or_none(_is_text),
    "test_acc": _is_share,
    "seconds": _is_number,
    "selected_epoch": _or_none(_is_count),
    "model_sha256": _is_text,
    "metrics_sha256": _or_none(_is_text),
    "metrics_csv": _or_none(_is_text),
    "predictions_sha256": _is_text,
    "labels_sha256": _or_none(_is_text),
    "data_sha256": _or_none(_is_text),
    "label_noise": _or_none(_has({"kind": _is_text, "rate": _is_share})),
    "parent": _or_none(_has({"path": _is_text, "sha256": _is_text})),
    "classes": _list_of(_is_text),
    "channels": lambda value: _is_count(value) and value > 0,
    "size": _list_of(lambda value: _is_count(value) and value > 0, 2),
    "model": _has({}),
    "configuration": _has({}),
    "target": _has({"kind": _is_text, "right": _is_share}),
    "confusions": _has({}),
    "reliability": _has(dict.fromkeys(("count", "confidence", "correct"), _BINS)),
    "auto": _has(ESTIMATE | {"val_brier": _is_number}),
}


def check_shape(content: Mapping[str, Any], shape: Mapping[str, Callable[[Any], bool]], file: Path) -> None:
    """Raise DamagedRecordError if an entry of the content of ``file`` has the wrong type."""
    for name, check in shape.items():
        if name in content and not check(content[name]):
            raise DamagedRecordError(f"{file} is damaged (its {name} is {str(content[name])[:50]})")


def check_estimate(content: Mapping[str, Any], file: Path) -> None:
    """Raise DamagedRecordError unless ``file`` holds an estimate that the program can have made."""
    if missing := sorted(ESTIMATE.keys() - content.keys()):
        raise DamagedRecordError(f"{file} is damaged (it lacks {', '.join(missing)})")
    check_shape(content, ESTIMATE, file)
    unknown = content["alpha_star"] is None or content["standard_error"] is None
    if (unknown and not content["takes_probe"]) or (content["takes_probe"] and content["alpha"] != 0):
        raise DamagedRecordError(f"{file} is damaged (its entries contradict one another)")


def read_record(folder: Path) -> dict[str, Any]:
    """The whole of a finished model's result.json. Raises ConfigError if it is missing or damaged."""
    file = folder / "result.json"
    try:
        content = read_json(file)
        check_format(content, f"{file}: ")
        if missing := sorted((REQUIRED | MODEL_KEYS) - content.keys()):
            raise DamagedRecordError(f"{file} is damaged (it lacks {', '.join(missing)})")
        if "metrics_sha256" in content and "sha256" not in content:  # an old version has neither
            raise DamagedRecordError(f"{file} is damaged (it lacks sha256)")
        check_shape(content, SHAPE, file)
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no finished model (no result.json in it)") from None
    except DamagedRecordError as error:
        raise DamagedRecordError(f"{error}; delete its folder to retrain that model") from None
    return content


def name_model(seed: int, arm: str | None, step: int) -> str:
    """``seed 1, alpha 0.6, step 2``, or ``seed 1, step 0`` for the teacher."""
    if arm is None:
        return f"seed {seed}, step {step}"
    title = f"alpha {arm}" if arm in arms.ALPHA_WORDS else arms.arm_title(arm).replace(" =", "")
    return f"seed {seed}, {title}, step {step}"


def sort_key(result: Result) -> tuple[Any, ...]:
    """A key that sorts results by seed, by arm (the teacher first) and by step, a probe after its student."""
    return result.seed, arms.sort_key(result.arm), result.step, result.arm or ""
