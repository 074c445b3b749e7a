"""Metrics of a finished model, one entry of ``METRICS`` each. Importing this module loads no torch.

To add a metric, append a ``Metric`` to ``METRICS`` and test it. It then appears in result.json, as the last column of
results.csv, as an attribute of ``Result``, and in the diagnostics figure. In runs made before, its value is None.

Every metric is a mean over images, computed in float64. Logits are (n, classes) floats, labels (n,) int64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ECE_BINS = 15


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of a finished model in eval mode, and labels on the CPU: what its metrics are computed from."""

    test_logits: Tensor
    test_labels: Tensor
    train_logits: Tensor  # of the training images, not augmented
    given_labels: Tensor  # of the training images, as the model was trained on them: corrupted ones included
    true_labels: Tensor  # of the training images
    val_logits: Tensor | None = None  # of the held-out images; None if there are none
    val_labels: Tensor | None = None
    teacher_test_logits: Tensor | None = None  # None for a teacher


@dataclass(frozen=True)
class Metric:
    """A number of a finished model."""

    name: str  # the key in result.json and the column of results.csv
    label: str | None  # the panel's title in the diagnostics figure; None: no panel
    compute: Callable[[Predictions], float | None]  # None if it does not apply


METRICS = [
    Metric("val_acc", None, lambda p: _held_out(accuracy, p)),
    Metric("val_brier", None, lambda p: _held_out(brier, p)),
    Metric("test_acc", "test accuracy", lambda p: accuracy(p.test_logits, p.test_labels)),
    Metric("test_nll", "test NLL (nats)", lambda p: nll(p.test_logits, p.test_labels)),
    Metric("test_brier", "test Brier score", lambda p: brier(p.test_logits, p.test_labels)),
    Metric("test_ece", "test ECE", lambda p: calibration_error(p.test_logits, p.test_labels)),
    Metric("test_entropy", "test entropy (nats)", lambda p: entropy(p.test_logits)),
    Metric("agreement", "agreement with the teacher", lambda p: _with_teacher(agreement, p)),
    Metric("teacher_kl", "KL(teacher ‖ student) (nats)", lambda p: _with_teacher(mean_kl, p)),
    Metric("train_distance", "distance to the given labels", lambda p: distance(p.train_logits, p.given_labels)),
    Metric("clean_acc", "accuracy on right labels", lambda p: clean_accuracy(p)),
    Metric("memorised", "wrong labels memorised", lambda p: memorised(p)),
    Metric("recovered", "wrong labels recovered", lambda p: recovered(p)),
]


def evaluate_all(predictions: Predictions) -> dict[str, float | None]:
    """The value of every metric, by its name."""
    return {metric.name: metric.compute(predictions) for metric in METRICS}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The fraction of images whose most probable class is the label."""
    _, correct = _confidence_and_correct(logits, labels)
    return correct.mean().item()


def nll(logits: Tensor, labels: Tensor) -> float:
    """Negative log-likelihood of the labels, natural logarithm."""
    return -_log_probabilities(logits).gather(1, labels.cpu()[:, None]).mean().item()


def brier(logits: Tensor, labels: Tensor) -> float:
    """The Brier score (1950): sum over classes of (p - one_hot)^2, in [0, 2]."""
    p = _log_probabilities(logits).exp()
    one_hot = p.new_zeros(p.shape).scatter_(1, labels.cpu()[:, None], 1)
    return (p - one_hot).square().sum(1).mean().item()


def distance(logits: Tensor, labels: Tensor) -> float:
    """Root mean square of |p - one_hot|_2, in [0, sqrt 2]: the root of the Brier score."""
    return brier(logits, labels) ** 0.5


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error (ECE), in [0, 1].

    Guo et al. 2017, arXiv 1706.04599: 15 bins of equal width over the largest probability, |accuracy - confidence|
    weighted by the bin's share of the images.
    """
    return binned_gap(*_confidence_and_correct(logits, labels))


def entropy(logits: Tensor) -> float:
    """Mean entropy of the predicted probabilities, natural logarithm."""
    import torch

    return torch.special.entr(_log_probabilities(logits).exp()).sum(1).mean().item()


def agreement(logits: Tensor, teacher: Tensor) -> float:
    """The fraction of images on which two models predict the same class."""
    return (logits.argmax(1) == teacher.argmax(1)).double().mean().item()


def mean_kl(logits: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher || model), natural logarithm, from the logits of both."""
    log_p = _log_probabilities(teacher)
    log_q = _log_probabilities(logits)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean().item()


def clean_accuracy(predictions: Predictions) -> float | None:
    """Accuracy on the training images whose given label is true; None if there are none."""
    predicted, wrong = _predicted_and_wrong(predictions)
    return _share((predicted == predictions.true_labels)[~wrong])


def memorised(predictions: Predictions) -> float | None:
    """The share of the images with wrong labels that the model predicts as their wrong label; None without any."""
    predicted, wrong = _predicted_and_wrong(predictions)
    return _share((predicted == predictions.given_labels)[wrong])


def recovered(predictions: Predictions) -> float | None:
    """The share of the images with wrong labels that the model predicts as their true class; None without any."""
    predicted, wrong = _predicted_and_wrong(predictions)
    return _share((predicted == predictions.true_labels)[wrong])


def reliability(logits: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Count, and sums of confidence and of correct predictions, per bin of the ECE. Sums over seeds can be added."""
    # Not the exponential of log_softmax, whose last bits may differ.
    confidence, predicted = logits.double().cpu().softmax(1).max(1)
    correct = (predicted == labels.cpu()).double()
    count = confidence.new_ones(confidence.shape)
    return {
        "count": _bin_sums(confidence, count).tolist(),
        "confidence": _bin_sums(confidence, confidence).tolist(),
        "correct": _bin_sums(confidence, correct).tolist(),
    }


def confusions(logits: Tensor, labels: Tensor) -> dict[str, dict[str, int]]:
    """How many images of a class are predicted as another, ``{"3": {"5": 12}}``: by class, then by predicted class."""
    import torch

    classes = logits.shape[1]
    pairs = torch.bincount(labels.cpu() * classes + logits.argmax(1).cpu(), minlength=classes**2)
    found: dict[str, dict[str, int]] = {}
    for pair in pairs.nonzero().flatten().tolist():
        label, predicted = divmod(pair, classes)
        if label != predicted:
            found.setdefault(str(label), {})[str(predicted)] = int(pairs[pair])
    return found


def binned_gap(confidence: Tensor, correct: Tensor) -> float:
    """The ECE from the largest probability (n,) in [0, 1] and whether it was right (n,) in {0, 1}, both float64."""
    gap = _bin_sums(confidence, correct - confidence)
    return (gap.abs().sum() / len(confidence)).item()


def _bin_sums(confidence: Tensor, values: Tensor) -> Tensor:
    """Sums (ECE_BINS,) of ``values`` (n,) over bins of the confidence (n,)."""
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1  # (lower, upper], as in the paper
    return confidence.new_zeros(ECE_BINS).index_add_(0, bins, values)


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.double().cpu().log_softmax(1)


def _confidence_and_correct(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability (n,), and whether its class is the label, 1 or 0, (n,), both float64."""
    confidence, predicted = _log_probabilities(logits).exp().max(1)
    return confidence, (predicted == labels.cpu()).double()


def probabilities_and_classes(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities (n, classes) float64 on the CPU, and the most probable class (n,) of each image."""
    probabilities = _log_probabilities(logits).exp()
    return probabilities, probabilities.max(1).indices


def _predicted_and_wrong(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """The predicted class (n,) of each training image, and whether its given label is wrong (n,)."""
    predicted = predictions.train_logits.argmax(1).cpu()
    return predicted, predictions.given_labels != predictions.true_labels


def _share(correct: Tensor) -> float | None:
    return correct.double().mean().item() if len(correct) > 0 else None


def _held_out(metric: Callable[[Tensor, Tensor], float], predictions: Predictions) -> float | None:
    if predictions.val_logits is None or predictions.val_labels is None:
        return None
    return metric(predictions.val_logits, predictions.val_labels)


def _with_teacher(metric: Callable[[Tensor, Tensor], float], predictions: Predictions) -> float | None:
    if predictions.teacher_test_logits is None:
        return None
    return metric(predictions.test_logits, predictions.teacher_test_logits)
