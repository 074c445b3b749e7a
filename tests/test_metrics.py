"""Metrics against scikit-learn, computations by hand and the limits of each."""

import math

import numpy as np
import pytest
import scipy.stats
import tiny
import torch
from sklearn.metrics import accuracy_score, log_loss

from distill import metrics
from distill.reporting.plots import diagnostics_figure
from distill.reporting.results import RunResults
from distill.running import run as sweep
from distill.store.rundir import RunDir


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
    assert metrics.accuracy(logits, labels) == pytest.approx(accuracy_score(labels.numpy(), p.argmax(1)), abs=1e-15)


def test_nll_is_scikit_learns_log_loss(predictions):
    logits, labels, p = predictions
    assert metrics.nll(logits, labels) == pytest.approx(log_loss(labels, p, labels=range(7)), rel=1e-12)


def test_brier_is_the_squared_distance_to_the_corner_of_the_label(predictions):
    logits, labels, p = predictions
    by_hand = np.mean([sum((p[i, c] - (c == y)) ** 2 for c in range(7)) for i, y in enumerate(labels.tolist())])
    assert metrics.brier(logits, labels) == pytest.approx(by_hand, rel=1e-12)


def test_ece_is_the_weighted_gap_of_fifteen_bins(predictions):
    logits, labels, p = predictions
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    by_hand = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            by_hand += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(logits, labels) == pytest.approx(by_hand, rel=1e-12)


def test_gaps_of_opposite_sign_cancel_within_a_bin_but_not_between_bins():
    confidence = torch.tensor([0.61, 0.65, 0.81], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    by_hand = (abs((1 - 0.61) + (0 - 0.65)) + (1 - 0.81)) / 3
    assert metrics.binned_gap(confidence, right) == pytest.approx(by_hand, rel=1e-12)


def of_labels(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Accuracy, NLL, Brier score, ECE and entropy."""
    both = [
        metric(logits, labels) for metric in (metrics.accuracy, metrics.nll, metrics.brier, metrics.calibration_error)
    ]
    return [*both, metrics.entropy(logits)]


def test_perfect_predictions():
    labels = torch.arange(20) % 5
    assert of_labels(1000 * torch.eye(5)[labels], labels) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_certain_and_wrong_predictions():
    labels = torch.arange(20) % 5
    assert of_labels(1000 * torch.eye(5)[(labels + 1) % 5], labels) == [0.0, 1000.0, 2.0, 1.0, 0.0]


def test_uniform_predictions():
    values = of_labels(torch.zeros(20, 5), torch.arange(20) % 5)
    assert values == pytest.approx([0.2, math.log(5), 0.8, 0.0, math.log(5)], abs=1e-12)


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one():
    """(lower, upper], as in Guo et al. (2017): 3/15 shares a bin with 0.19, not with 0.21."""
    right = torch.tensor([1.0, 0.0], dtype=torch.float64)
    below, above = (torch.tensor([0.2, other], dtype=torch.float64) for other in (0.19, 0.21))
    assert metrics.binned_gap(below, right) == pytest.approx(abs(0.8 - 0.19) / 2, rel=1e-12)
    assert metrics.binned_gap(above, right) == pytest.approx((0.8 + 0.21) / 2, rel=1e-12)


def test_confidences_on_the_edges_of_the_bins_are_counted_once():
    confidence = torch.arange(16, dtype=torch.float64) / 15
    assert metrics.binned_gap(confidence, confidence) == pytest.approx(0, abs=1e-15)
    assert metrics.binned_gap(confidence, torch.zeros(16).double()) == pytest.approx(0.5, rel=1e-12)


def test_figures_of_float32_logits_have_float64_precision():
    """A float32 mean over many images is off in the fifth decimal or so."""
    logits = torch.tensor([[0.0, 1e-4]]).repeat(10_000, 1)
    expected = math.log1p(math.exp(float(np.float32(1e-4))))
    assert metrics.nll(logits, torch.zeros(10_000, dtype=torch.long)) == pytest.approx(expected, rel=1e-13)


def test_agreement_is_the_share_of_equal_classes(predictions):
    logits, _, p = predictions
    other = torch.randn(300, 7, generator=torch.Generator().manual_seed(1))
    expected = accuracy_score(p.argmax(1), other.argmax(1).numpy())
    assert metrics.agreement(logits, other) == pytest.approx(expected, abs=1e-15)
    assert metrics.agreement(logits, 2 * logits - 1) == 1.0


def test_entropy_is_scipys(predictions):
    logits, _, p = predictions
    assert metrics.entropy(logits) == pytest.approx(scipy.stats.entropy(p, axis=1).mean(), rel=1e-12)


def test_divergence_is_scipys_relative_entropy_of_the_teacher(predictions):
    logits, _, p = predictions
    teacher = torch.randn(300, 7, generator=torch.Generator().manual_seed(2))
    q = teacher.double().softmax(1).numpy()
    by_scipy = scipy.stats.entropy(q, p, axis=1).mean()
    assert metrics.mean_kl(logits, teacher) == pytest.approx(by_scipy, rel=1e-12)
    assert metrics.mean_kl(logits, logits + 3) == pytest.approx(0, abs=1e-12)


def test_the_reliability_diagram_adds_up_to_accuracy_confidence_and_ece(predictions):
    logits, labels, p = predictions
    count, confidence, correct = (
        np.array(metrics.reliability(logits, labels)[n]) for n in ("count", "confidence", "correct")
    )
    assert count.sum() == 300
    assert correct.sum() / 300 == pytest.approx(metrics.accuracy(logits, labels), rel=1e-12)
    assert confidence.sum() == pytest.approx(p.max(1).sum(), rel=1e-12)
    assert np.abs(correct - confidence).sum() / 300 == pytest.approx(
        metrics.calibration_error(logits, labels), rel=1e-12
    )
    inside = count > 0
    bins = np.flatnonzero(inside)
    assert np.all(confidence[inside] / count[inside] > bins / 15 - 1e-12)
    assert np.all(confidence[inside] / count[inside] <= (bins + 1) / 15 + 1e-12)


def on_training_images(logits: torch.Tensor, given: torch.Tensor, true: torch.Tensor) -> metrics.Predictions:
    return metrics.Predictions(
        test_logits=logits, test_labels=true, train_logits=logits, given_labels=given, true_labels=true
    )


def test_training_images_are_judged_by_given_and_true_labels():
    true = torch.tensor([0, 0, 1, 1, 2, 2])
    given = torch.tensor([0, 0, 1, 2, 0, 1])
    predicted = torch.tensor([0, 1, 1, 2, 2, 0])  # right, wrong, right; memorised, recovered, neither
    predictions = on_training_images(100.0 * torch.eye(3)[predicted], given, true)
    assert metrics.clean_accuracy(predictions) == pytest.approx(2 / 3)
    assert metrics.memorised(predictions) == pytest.approx(1 / 3)
    assert metrics.recovered(predictions) == pytest.approx(1 / 3)
    expected = math.sqrt(3 * 2 / 6)  # the predictions of three of the six are 2 away in squares
    assert metrics.distance(predictions.train_logits, given) == pytest.approx(expected)


def test_without_wrong_labels_nothing_is_memorised():
    labels = torch.tensor([0, 1, 2])
    right = on_training_images(torch.eye(3), labels, labels)
    assert metrics.clean_accuracy(right) == 1.0
    assert metrics.memorised(right) is None
    assert metrics.recovered(right) is None
    assert metrics.clean_accuracy(on_training_images(torch.eye(3), labels, labels.roll(1))) is None


# ---- the table


def test_every_metric_of_a_student_has_a_value(predictions):
    logits, labels, _ = predictions
    given = labels.roll(1)
    everything = metrics.Predictions(logits, labels, logits, given, labels, logits, labels, logits)
    values = metrics.evaluate_all(everything)
    assert [*values] == [metric.name for metric in metrics.METRICS]
    assert all(isinstance(value, float) for value in values.values())
    assert values["val_brier"] == values["test_brier"] == metrics.brier(logits, labels)
    assert (values["agreement"], values["teacher_kl"]) == (1.0, 0.0)


def test_a_metric_that_does_not_apply_is_none(predictions):
    logits, labels, _ = predictions
    values = metrics.evaluate_all(on_training_images(logits, labels, labels))
    missing = {name for name, value in values.items() if value is None}
    assert missing == {"val_acc", "val_brier", "agreement", "teacher_kl", "memorised", "recovered"}


def test_a_new_metric_is_one_entry(tmp_path, monkeypatch):
    """It reaches result.json, results.csv, ``Result`` and the diagnostics; runs without it stay readable."""
    before = tiny.config(tmp_path / "before", max_epochs=1, distillation_steps=1)
    sweep.run(before, tiny.source())
    largest = metrics.Metric("largest", "largest logit", lambda p: p.test_logits.max().item())
    monkeypatch.setattr(metrics, "METRICS", [*metrics.METRICS, largest])
    config = tiny.config(tmp_path / "after", max_epochs=1, distillation_steps=1)
    results = sweep.run(config, tiny.source())
    value = results[1].largest
    assert isinstance(value, float)
    assert tiny.result(tmp_path / "after/seed_1/alpha_0.3/step_1")["largest"] == value
    last = [list(row.items())[-1] for row in tiny.rows(tmp_path / "after/results.csv")]
    assert last == [("largest", str(result.largest)) for result in results]
    shown = RunResults(config, RunDir(config.output).records())
    assert "largest logit" in [axes.get_title() for axes in diagnostics_figure(shown).axes]

    old = RunDir(before.output).results()
    assert [result.largest for result in old] == [None, None]
    assert [result.test_acc for result in old] == [result.test_acc for result in results]
    shown = RunResults(before, RunDir(before.output).records())
    assert "largest logit" not in [axes.get_title() for axes in diagnostics_figure(shown).axes]
