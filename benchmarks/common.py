"""What the benchmarks share: networks and images, paired ratios, Markdown tables, and a description of the machine."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models import get_model

from distill.config import CIFAR_RESNETS, ModelConfig
from distill.data.splits import Split
from distill.training.models import Classifier, build

RESULTS = Path(__file__).parent / "results"
CLASSES = 10
ALPHA = 0.6
LR = 1e-4
REG_COEF = 1e-4
MEAN = np.full(3, 0.5, np.float32)
STD = np.full(3, 0.25, np.float32)


def plain_network(resnet: int, seed: int) -> nn.Module:
    """A network with torch's own convolutions: torchvision's with a new head, or one of the 6n+2 family.

    Initial weights are drawn from the seed.
    """
    torch.manual_seed(seed)
    if resnet in CIFAR_RESNETS:
        return build(ModelConfig(resnet=resnet), 3, CLASSES)
    network = get_model(f"resnet{resnet}")
    network.fc = nn.Linear(network.fc.in_features, CLASSES)
    return network


def plain_classifier(resnet: int, seed: int) -> Classifier:
    """``plain_network`` behind the normalisation of uint8 images."""
    return Classifier(plain_network(resnet, seed), MEAN, STD)


def classifier(model: ModelConfig, seed: int) -> Classifier:
    """The network that a run with this configuration trains; initial weights are drawn from the seed."""
    torch.manual_seed(seed)
    return Classifier(build(model, 3, CLASSES), MEAN, STD)


def random_split(images: int) -> Split:
    """Random uint8 images (images, 3, 32, 32) with random labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, images)
    return Split(rng.integers(0, 256, (images, 3, 32, 32), np.uint8), labels, labels, np.arange(images))


def step_name(student: bool) -> str:
    """The word for the kind of training in a row of results."""
    return "student" if student else "teacher"


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median and range over rounds of the ratio within a round."""
    ratios = [above / below for above, below in zip(numerators, denominators, strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def rates(times: dict[str, list[float]], images: int, base: str) -> list[dict]:
    """A row per variant: images/s, and their ratio to those of the variant ``base``.

    ``times`` are seconds by variant and round, for the same number of images each.
    """
    return [
        {"variant": variant, "images_per_second": images / statistics.median(seconds)}
        | paired_ratio(times[base], seconds)
        for variant, seconds in times.items()
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> dict[str, str | int | None]:
    """The hardware, the Python version and today's date, for the record."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }
