"""The test predictions that a finished model keeps beside it, in predictions.npz. Imports no torch."""

from __future__ import annotations

import io
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.files import sha256, write_atomically
from distill.records import DamagedRecordError, read_arrays

if typing.TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREDICTIONS = "predictions.npz"


@dataclass(frozen=True, eq=False)
class TestPredictions:
    """What a finished model predicts for the n test images, in their order."""

    __test__ = False  # not a test, whatever pytest thinks of its name

    probabilities: NDArray[np.float16]  # (n, classes)
    predicted: NDArray[np.int32]  # (n,) the most probable class, before the probabilities were rounded
    labels: NDArray[np.int32]  # (n,) the true class

    def confusion(self) -> NDArray[np.int64]:
        """The number of images (classes, classes) by true class (rows) and predicted class (columns)."""
        import numpy as np

        counts = np.zeros((self.probabilities.shape[1],) * 2, np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts


def _correct(predictions: TestPredictions) -> Any:
    return (predictions.predicted == predictions.labels).astype(float)


def _brier(predictions: TestPredictions) -> Any:
    import numpy as np

    p = predictions.probabilities.astype(np.float64)
    return np.square(p - np.eye(p.shape[1])[predictions.labels]).sum(1)


# Metrics that are means over test images, as a function to the values (n,) of the images.
PER_IMAGE: dict[str, Callable[[TestPredictions], Any]] = {"test_acc": _correct, "test_brier": _brier}


def write_predictions(folder: Path, predictions: TestPredictions) -> None:
    """Write a model's predictions into its folder. Raises OSError."""
    import numpy as np

    content = io.BytesIO()
    np.savez(
        content,
        probabilities=predictions.probabilities,
        predicted=predictions.predicted,
        labels=predictions.labels,
    )
    write_atomically(folder / PREDICTIONS, content.getvalue())


def read_predictions(folder: Path, recorded: str | None = None) -> TestPredictions | None:
    """A model's predictions; None if it has none, as of an older version. ``recorded``: the SHA-256 in its record.

    Raises DamagedRecordError and OSError.
    """
    file = folder / PREDICTIONS
    if not file.exists():
        return None
    try:
        if recorded is not None and recorded != sha256(file):
            raise ValueError("its SHA-256 is not the recorded one")
        arrays = read_arrays(file)
        found = TestPredictions(**{name: arrays[name] for name in ("probabilities", "predicted", "labels")})
        n, classes = found.probabilities.shape
        kinds = tuple(array.dtype.name for array in (found.probabilities, found.predicted, found.labels))
        if kinds != ("float16", "int32", "int32") or not found.predicted.shape == found.labels.shape == (n,):
            raise ValueError("its arrays have other types or shapes")
        for array in (found.predicted, found.labels):
            if n == 0 or array.min() < 0 or array.max() >= classes:
                raise ValueError("it names a class that there is not")
    except (ValueError, KeyError) as error:
        remedy = "delete it to continue without it, or its folder to retrain that model"
        raise DamagedRecordError(f"{file} is damaged ({error}); {remedy}") from None
    return found
