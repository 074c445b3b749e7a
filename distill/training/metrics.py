"""How good predictions are: every figure is a mean over images, computed in float64 on the CPU.

Predictions are logits (n, classes); labels (n,) int64.
"""

import torch
from torch import Tensor

ECE_BINS = 15


def evaluate(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL, Brier score, expected calibration error and mean entropy of logits against labels.

    NLL and entropy in natural logarithms.

    Brier (1950): sum over classes of (p - one_hot)^2, in [0, 2]. ECE (Guo et al. 2017, arXiv 1706.04599): 15 bins of
    equal width over the largest probability, |accuracy - confidence| weighted by the bin's share, in [0, 1].
    """
    log_p = logits.double().cpu().log_softmax(1)
    labels = labels.cpu()
    p = log_p.exp()
    confidence, predicted = p.max(1)
    correct = (predicted == labels).double()
    truth = torch.nn.functional.one_hot(labels, p.shape[1])
    return {
        "acc": correct.mean().item(),
        "nll": -log_p.gather(1, labels[:, None]).mean().item(),
        "brier": (p - truth).square().sum(1).mean().item(),
        "ece": calibration_error(confidence, correct),
        "entropy": torch.special.entr(p).sum(1).mean().item(),
    }


def _binned(confidence: Tensor, *values: Tensor) -> list[Tensor]:
    """EpochSums (ECE_BINS,) of each of ``values`` (n,) over bins of the confidence (n,)."""
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1  # (lower, upper], as in the paper
    return [torch.zeros(ECE_BINS, dtype=torch.float64).index_add_(0, bins, value) for value in values]


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """ECE from the largest probability (n,) in [0, 1] and whether it was right (n,) in {0, 1}, both float64."""
    (gap,) = _binned(confidence, correct - confidence)
    return (gap.abs().sum() / len(confidence)).item()


def reliability(logits: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """The reliability diagram: per bin of the ECE the count, and the sums of confidence and of right answers.

    EpochSums, so that diagrams of several seeds add up.
    """
    confidence, predicted = logits.double().cpu().softmax(1).max(1)
    correct = (predicted == labels.cpu()).double()
    sums = _binned(confidence, torch.ones_like(confidence), confidence, correct)
    return {name: value.tolist() for name, value in zip(("count", "confidence", "correct"), sums, strict=True)}


def agreement(logits: Tensor, other: Tensor) -> float:
    """The fraction of images on which two models name the same class."""
    return (logits.argmax(1) == other.argmax(1)).double().mean().item()


def divergence(logits: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher || model), natural logarithm, from the logits of both."""
    log_p, log_q = (x.double().cpu().log_softmax(1) for x in (teacher, logits))
    return (log_p.exp() * (log_p - log_q)).sum(1).mean().item()


def on_training_images(logits: Tensor, given: Tensor, true: Tensor) -> dict[str, float | None]:
    """What the finished model made of its training images: the last four figures of a ``rundir.Result``.

    given, true: labels (n,) with and without the corruption. A share of no images is None.
    """
    predicted, wrong = logits.argmax(1).cpu(), given != true

    def share(right: Tensor) -> float | None:
        return right.double().mean().item() if len(right) else None

    return {
        "train_distance": evaluate(logits, given)["brier"] ** 0.5,
        "clean_acc": share((predicted == true)[~wrong]),
        "memorised": share((predicted == given)[wrong]),
        "recovered": share((predicted == true)[wrong]),
    }
