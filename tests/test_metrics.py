"""metrics.py against scikit-learn, hand computations and the limits of each figure."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import accuracy_score, log_loss

from distill.training import metrics


@pytest.fixture(scope="module")
def predictions() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Logits (300, 7) float32, labels (300,) and the probabilities in float64."""
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(300, 7, generator=rng)
    labels = torch.randint(0, 7, (300,), generator=rng)
    labels[::2] = logits[::2].argmax(1)  # better than chance
    exponentials = np.exp(logits.double().numpy())
    return logits, labels, exponentials / exponentials.sum(1, keepdims=True)


def test_accuracy_is_scikit_learns(predictions):
    logits, labels, p = predictions
    assert metrics.evaluate(logits, labels)["acc"] == pytest.approx(accuracy_score(labels, p.argmax(1)), abs=1e-15)


def test_nll_is_scikit_learns_log_loss(predictions):
    logits, labels, p = predictions
    assert metrics.evaluate(logits, labels)["nll"] == pytest.approx(log_loss(labels, p, labels=range(7)), rel=1e-12)


def test_brier_is_the_squared_distance_to_the_corner_of_the_label(predictions):
    logits, labels, p = predictions
    by_hand = np.mean([sum((p[i, c] - (c == y)) ** 2 for c in range(7)) for i, y in enumerate(labels.tolist())])
    assert metrics.evaluate(logits, labels)["brier"] == pytest.approx(by_hand, rel=1e-12)


def test_ece_is_the_weighted_gap_of_fifteen_bins(predictions):
    logits, labels, p = predictions
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    by_hand = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            by_hand += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.evaluate(logits, labels)["ece"] == pytest.approx(by_hand, rel=1e-12)


def test_gaps_of_opposite_sign_cancel_within_a_bin_but_not_between_bins():
    confidence = torch.tensor([0.61, 0.65, 0.81], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    by_hand = (abs((1 - 0.61) + (0 - 0.65)) + (1 - 0.81)) / 3
    assert metrics.calibration_error(confidence, right) == pytest.approx(by_hand, rel=1e-12)


def test_perfect_predictions():
    labels = torch.arange(20) % 5
    figures = metrics.evaluate(1000 * torch.eye(5)[labels], labels)
    assert figures == {"acc": 1.0, "nll": 0.0, "brier": 0.0, "ece": 0.0, "entropy": 0.0}


def test_certain_and_wrong_predictions():
    labels = torch.arange(20) % 5
    figures = metrics.evaluate(1000 * torch.eye(5)[(labels + 1) % 5], labels)
    assert figures == {"acc": 0.0, "nll": 1000.0, "brier": 2.0, "ece": 1.0, "entropy": 0.0}


def test_uniform_predictions():
    figures = metrics.evaluate(torch.zeros(20, 5), torch.arange(20) % 5)
    assert figures == pytest.approx(
        {"acc": 0.2, "nll": math.log(5), "brier": 0.8, "ece": 0.0, "entropy": math.log(5)}, abs=1e-12
    )


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one():
    """(lower, upper], as in Guo et al. (2017): 3/15 shares a bin with 0.19, not with 0.21."""
    right = torch.tensor([1.0, 0.0], dtype=torch.float64)
    below, above = (torch.tensor([0.2, other], dtype=torch.float64) for other in (0.19, 0.21))
    assert metrics.calibration_error(below, right) == pytest.approx(abs(0.8 - 0.19) / 2, rel=1e-12)
    assert metrics.calibration_error(above, right) == pytest.approx((0.8 + 0.21) / 2, rel=1e-12)


def test_confidences_on_the_edges_of_the_bins_are_counted_once():
    confidence = torch.arange(16, dtype=torch.float64) / 15
    assert metrics.calibration_error(confidence, confidence) == pytest.approx(0, abs=1e-15)
    assert metrics.calibration_error(confidence, torch.zeros(16).double()) == pytest.approx(0.5, rel=1e-12)


def test_figures_of_float32_logits_have_float64_precision():
    """A float32 mean over many images is off in the fifth decimal or so."""
    logits = torch.tensor([[0.0, 1e-4]]).repeat(10_000, 1)
    expected = math.log1p(math.exp(float(np.float32(1e-4))))
    assert metrics.evaluate(logits, torch.zeros(10_000, dtype=torch.long))["nll"] == pytest.approx(expected, rel=1e-13)


def test_agreement_is_the_share_of_equal_classes(predictions):
    logits, _, p = predictions
    other = torch.randn(300, 7, generator=torch.Generator().manual_seed(1))
    assert metrics.agreement(logits, other) == pytest.approx(accuracy_score(p.argmax(1), other.argmax(1)), abs=1e-15)
    assert metrics.agreement(logits, 2 * logits - 1) == 1.0


def test_entropy_is_scipys(predictions):
    logits, labels, p = predictions
    assert metrics.evaluate(logits, labels)["entropy"] == pytest.approx(
        scipy.stats.entropy(p, axis=1).mean(), rel=1e-12
    )


def test_divergence_is_scipys_relative_entropy_of_the_teacher(predictions):
    logits, _, p = predictions
    teacher = torch.randn(300, 7, generator=torch.Generator().manual_seed(2))
    q = teacher.double().softmax(1).numpy()
    by_scipy = scipy.stats.entropy(q, p, axis=1).mean()
    assert metrics.divergence(logits, teacher) == pytest.approx(by_scipy, rel=1e-12)
    assert metrics.divergence(logits, logits + 3) == pytest.approx(0, abs=1e-12)


def test_the_reliability_diagram_adds_up_to_accuracy_confidence_and_ece(predictions):
    logits, labels, p = predictions
    count, confidence, correct = (
        np.array(metrics.reliability(logits, labels)[n]) for n in ("count", "confidence", "correct")
    )
    figures = metrics.evaluate(logits, labels)
    assert count.sum() == 300
    assert correct.sum() / 300 == pytest.approx(figures["acc"], rel=1e-12)
    assert confidence.sum() == pytest.approx(p.max(1).sum(), rel=1e-12)
    assert np.abs(correct - confidence).sum() / 300 == pytest.approx(figures["ece"], rel=1e-12)
    inside = count > 0
    bins = np.flatnonzero(inside)
    assert np.all(confidence[inside] / count[inside] > bins / 15 - 1e-12)
    assert np.all(confidence[inside] / count[inside] <= (bins + 1) / 15 + 1e-12)


def test_training_images_are_told_apart_by_their_labels():
    true = torch.tensor([0, 0, 1, 1, 2, 2])
    given = torch.tensor([0, 0, 1, 2, 0, 1])
    said = torch.tensor([0, 1, 1, 2, 2, 0])  # right, wrong, right; memorised, recovered, neither
    figures = metrics.on_training_images(100.0 * torch.eye(3)[said], given, true)
    assert figures["clean_acc"] == pytest.approx(2 / 3)
    assert (figures["memorised"], figures["recovered"]) == pytest.approx((1 / 3, 1 / 3))
    assert figures["train_distance"] == pytest.approx(math.sqrt(3 * 2 / 6))  # three of six are a corner away


def test_without_wrong_labels_there_is_nothing_to_memorise():
    labels = torch.tensor([0, 1, 2])
    figures = metrics.on_training_images(torch.eye(3), labels, labels)
    assert (figures["clean_acc"], figures["memorised"], figures["recovered"]) == (1.0, None, None)
    assert metrics.on_training_images(torch.eye(3), labels, labels.roll(1))["clean_acc"] is None
