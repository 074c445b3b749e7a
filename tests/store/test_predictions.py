"""predictions.npz: what is read is what was written, and damage is one line."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from distill.files import sha256
from distill.records import DamagedRecordError
from distill.store.predictions import PER_IMAGE, PREDICTIONS, TestPredictions, read_predictions, write_predictions

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 50).astype(np.int32)
P = RNG.dirichlet([1, 1, 1], 50)
KEPT = TestPredictions(P.astype(np.float16), P.argmax(1).astype(np.int32), LABELS)


def test_what_is_read_is_what_was_written(tmp_path):
    assert read_predictions(tmp_path) is None  # a model of an older version
    write_predictions(tmp_path, KEPT)
    first = (tmp_path / PREDICTIONS).read_bytes()
    found = read_predictions(tmp_path)
    for name in ("probabilities", "predicted", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(KEPT, name))
    write_predictions(tmp_path, found)
    assert (tmp_path / PREDICTIONS).read_bytes() == first  # no date in it


def test_the_confusion_matrix_is_scikit_learns():
    np.testing.assert_array_equal(KEPT.confusion(), confusion_matrix(LABELS, P.argmax(1), labels=[0, 1, 2]))


def test_the_values_of_the_images_have_the_metrics_as_their_means():
    assert PER_IMAGE["test_acc"](KEPT).mean() == (P.argmax(1) == LABELS).mean()
    brier = np.square(P - np.eye(3)[LABELS]).sum(1).mean()
    assert PER_IMAGE["test_brier"](KEPT).mean() == pytest.approx(brier, abs=1e-3)


@pytest.mark.parametrize("content", ["nothing", "half", "types", "classes", "lacks"])
def test_damage_is_named(tmp_path, content):
    write_predictions(tmp_path, KEPT)
    file = tmp_path / PREDICTIONS
    arrays = {"probabilities": KEPT.probabilities, "predicted": KEPT.predicted, "labels": KEPT.labels}
    match content:
        case "nothing":
            file.write_bytes(b"")
        case "half":
            file.write_bytes(file.read_bytes()[:200])
        case "types":
            np.savez(file, **arrays | {"probabilities": P})
        case "classes":
            np.savez(file, **arrays | {"labels": LABELS + 1})
        case "lacks":
            np.savez(file, probabilities=KEPT.probabilities)
    with pytest.raises(DamagedRecordError, match=PREDICTIONS):
        read_predictions(tmp_path)


def test_predictions_of_another_model_are_not_believed(tmp_path):
    write_predictions(tmp_path, KEPT)
    recorded = sha256(tmp_path / PREDICTIONS)
    assert read_predictions(tmp_path, recorded) is not None
    write_predictions(tmp_path, TestPredictions(KEPT.probabilities, KEPT.predicted[::-1], KEPT.labels))
    with pytest.raises(DamagedRecordError, match="its SHA-256 is not the recorded one"):
        read_predictions(tmp_path, recorded)
