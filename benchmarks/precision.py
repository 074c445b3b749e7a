"""How far float32 and bfloat16 gradients are from float64's at initialisation: cosines over all parameters together.

    python -m benchmarks.precision

A teacher's first gradient on a batch of random images (squared error of the softmax, no regulariser), for five seeds of
initial weights and images. The images are normal noise of 4x4 pixels enlarged to 32x32: a network can hardly tell finer
noise apart.
"""

import itertools
import statistics

import torch
import torch.nn.functional as F

from benchmarks.common import CLASSES, markdown
from benchmarks.options import Parser
from distill.config import ModelConfig, TrainConfig
from distill.training import models
from distill.training.device import autocast, place

SEEDS = 5
BATCHES = (16, 128)
NETWORKS = {
    "ResNet-18, ImageNet stem": ModelConfig(resnet=18),
    "ResNet-50, ImageNet stem": ModelConfig(resnet=50),
    "ResNet-20": ModelConfig(resnet=20),
}


def gradient(config: ModelConfig, batch: int, seed: int, precision: str) -> torch.Tensor:
    """The gradient (parameters,) float64 of one batch's loss, in float64 arithmetic or in a run's precision."""
    torch.manual_seed(seed)
    network = models.build(config, 3, CLASSES)
    images = F.interpolate(torch.randn(batch, 3, 4, 4), size=32, mode="bilinear")
    labels = torch.randint(0, CLASSES, (batch,))
    if precision == "fp64":
        logits = network.double()(images.double())
    else:
        network = place(network, TrainConfig(precision=precision), torch.device("cpu"))
        with autocast(TrainConfig(precision=precision), torch.device("cpu")):
            logits = network(images).float()
    F.mse_loss(logits.softmax(1), F.one_hot(labels, CLASSES).to(logits.dtype)).backward()
    return torch.cat([p.grad.double().flatten() for p in network.parameters()])


def main() -> None:
    """Print a table of medians over seeds, with their ranges."""
    Parser("precision", __doc__).parse_args()
    rows = []
    for (name, config), batch in itertools.product(NETWORKS.items(), BATCHES):
        cosines: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for seed in range(SEEDS):
            exact = gradient(config, batch, seed, "fp64")
            for precision, found in cosines.items():
                found.append(F.cosine_similarity(gradient(config, batch, seed, precision), exact, dim=0).item())
        cells = [f"{statistics.median(c):.4f} ({min(c):.4f} to {max(c):.4f})" for c in cosines.values()]
        rows.append([name, str(batch), *cells])
    print(markdown(["network", "batch", "fp32", "bf16"], rows))


if __name__ == "__main__":
    main()
