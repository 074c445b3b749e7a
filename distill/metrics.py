"""How good predictions are: every figure is a mean over images, computed in float64 on the CPU.

Predictions are logits (n, classes); labels (n,) int64.
"""

import torch
from torch import Tensor

ECE_BINS = 15


def evaluate(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL (natural logarithm), Brier score and expected calibration error of logits against labels.

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
    }


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """ECE from the largest probability (n,) in [0, 1] and whether it was right (n,) in {0, 1}, both float64."""
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1  # (lower, upper], as in the paper
    gap = torch.zeros(ECE_BINS, dtype=torch.float64).index_add_(0, bins, correct - confidence)
    return (gap.abs().sum() / len(confidence)).item()


def agreement(logits: Tensor, other: Tensor) -> float:
    """The fraction of images on which two models name the same class."""
    return (logits.argmax(1) == other.argmax(1)).double().mean().item()
