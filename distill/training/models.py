"""Residual networks by depth and stem, and the classifier that includes the normalisation of its images."""

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from distill import metrics
from distill.config import ModelConfig
from distill.errors import ConfigError, one_line, suggestion
from distill.randomness import RNG_LOCK
from distill.training.convolutions import ProductConv2d, is_plain

OUTPUTS = nn.Linear | nn.Conv2d  # the types of a network's last layer
PREDICTED = 256  # images at a time


class Prediction(NamedTuple):
    """A model's predictions for n images."""

    classes: list[str]  # n names: the most probable class of each image
    probabilities: np.ndarray  # (n, classes) float64, columns in the order of the model's ``classes``


class Classifier(nn.Module):
    """A network that first normalises its images, so that its checkpoint needs nothing else.

    ``forward`` takes images (n, c, h, w), uint8 in [0, 255] or floating point in [0, 1], and returns logits
    (n, classes). ``mean`` and ``std`` (c,) are in units of [0, 1].
    """

    mean: Tensor
    std: Tensor
    classes: tuple[str, ...] = ()  # names, set by load_model
    size: tuple[int, int] | None = None  # height and width of the images it was trained on, set by load_model

    def __init__(self, network: nn.Module, mean: ArrayLike | Tensor, std: ArrayLike | Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone().view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).clone().view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        return self.network((x - self.mean) / self.std)

    def predict(self, images: object) -> Prediction:
        """The classes of images, with probabilities: paths, PIL images, or arrays of any layout, one or several.

        They are converted and resized as the run's images were; see ``data.images.as_images``. Raises DataError.
        """
        from distill.data.images import as_images

        array = as_images(images, len(self.mean), self.size)
        with torch.inference_mode():
            batches = torch.tensor(array).split(PREDICTED)
            logits = torch.cat([self(batch.to(self.mean.device)) for batch in batches])
            probabilities, predicted = metrics.probabilities_and_classes(logits)
        return Prediction([self.classes[i] for i in predicted.tolist()], probabilities.numpy())


@contextmanager
def forked_rng() -> Iterator[None]:
    """Restore torch's CPU generator at the end of the block. Meanwhile other threads draw no numbers from it."""
    with RNG_LOCK, torch.random.fork_rng(devices=[]):
        yield


def build(config: ModelConfig, channels: int, classes: int) -> nn.Module:
    """The network that ``config`` names, for images of ``channels`` channels; initial weights from torch's generator.

    Raises ConfigError if pretrained parameters are not available.
    """
    if config.wide is not None:
        return WideResNet(*config.wide, channels, classes)
    if config.hidden is not None:
        return perceptron((channels, *config.hidden, classes), bias=config.network != "linear-no-bias")
    if config.is_small:
        assert config.resnet is not None
        assert config.width is not None  # the configuration has resolved it
        return CifarResNet(config.resnet, config.width, channels, classes)
    network = _torchvision_network(config, config.torchvision or f"resnet{config.resnet}", channels, classes)
    if config.torchvision is None:
        use_product_convolutions(network)
    return network


def perceptron(widths: tuple[int, ...], bias: bool = True) -> nn.Module:
    """Linear layers with ReLU between them, from vectors (n, p, 1, 1) to logits (n, classes)."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after, bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _from_torchvision(name: str, pretrained: bool) -> Any:
    """torchvision's network of this name, for its 1,000 classes, with its or new parameters. Raises ConfigError."""
    from torchvision import models  # slower to import than torch itself, and small networks do not need it

    known = set(models.list_models(module=models)) - {"googlenet", "inception_v3"}  # which return more than logits
    if name not in known:
        raise ConfigError(f"network torchvision:{name} is no classifier of torchvision{suggestion(name, known)}")
    try:
        with redirect_stderr(sys.stdout):  # torch announces the download on stderr, which is for one-line errors
            return models.get_model(name, weights="DEFAULT" if pretrained else None)
    except Exception as error:  # no connection, a broken download or a damaged file: each raises another type
        if not pretrained:
            raise
        raise ConfigError(
            f"the pretrained parameters of {name} are not available ({one_line(error)}); put torchvision's file into "
            f"{torch.hub.get_dir()}/checkpoints, and replace the one that may be there"
        ) from None


def _torchvision_network(config: ModelConfig, name: str, channels: int, classes: int) -> nn.Module:
    """torchvision's network of this name with a new last layer, and a new first one if it must differ."""
    network = _from_torchvision(name, config.pretrained)
    last, layer = [(path, module) for path, module in network.named_modules() if isinstance(module, OUTPUTS)][-1]
    if isinstance(layer, nn.Conv2d):  # squeezenet
        network.set_submodule(last, nn.Conv2d(layer.in_channels, classes, 1))
    else:
        network.set_submodule(last, nn.Linear(layer.in_features, classes, layer.bias is not None))
    first, conv = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    cifar = config.stem == "cifar"
    if cifar and (conv.stride != (2, 2) or conv.kernel_size[0] not in (3, 7)):
        raise ConfigError(f"network torchvision:{name} has no stem to replace: leave --stem cifar out")
    if cifar or channels != conv.in_channels:
        size, stride, padding = (3, 1, 1) if cifar else (conv.kernel_size, conv.stride, conv.padding)
        new = nn.Conv2d(channels, conv.out_channels, size, stride, padding, bias=conv.bias is not None)  # type: ignore
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        network.set_submodule(first, new)
    for path in ("maxpool", "features.pool0") if cifar else ():
        if path in dict(network.named_modules()):
            network.set_submodule(path, nn.Identity())
    return network


def use_product_convolutions(network: nn.Module) -> None:
    """Replace every plain convolution in a ResNet by a ProductConv2d with the same parameters.

    Sets ``any_layout`` on the network (see ``device.place``).
    """
    network.any_layout = True  # type: ignore[assignment]
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and is_plain(child):
                setattr(parent, name, ProductConv2d.from_conv(child))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.widen = after - before

    def forward(self, x: Tensor) -> Tensor:  # (n, before, h, w) -> (n, after, h / stride, w / stride)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widen:  # option A of the paper: subsample, and pad the new channels with zeros
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.widen))
        return F.relu(out + x)


class _WideBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (n, before, h, w) -> (n, after, h / stride, w / stride)
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(out))))


class WideResNet(nn.Module):
    """WRN-d-k, the wide residual network (Zagoruyko & Komodakis 2016, arXiv 1605.07146, table 1), without dropout.

    Three stages of (d - 4) / 6 blocks with 16 k, 32 k and 64 k channels; normalisation before each convolution.
    """

    any_layout = True  # see device.place

    def __init__(self, depth: int, width: int, channels: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        blocks = []
        before = 16
        for stage in range(3):
            after = 16 * width * 2**stage
            for block in range((depth - 4) // 6):
                blocks.append(_WideBlock(before, after, stride=2 if stage and not block else 1))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # (n, channels, h, w) -> (n, classes)
        x = self.blocks(self.conv1(x))
        return self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))


class CifarResNet(nn.Module):
    """The 6n+2-layer residual network for small images (He et al. 2016, arXiv 1512.03385, section 4.2).

    Three stages of n blocks with ``width``, 2 ``width`` and 4 ``width`` channels and parameter-free shortcuts.
    """

    any_layout = True  # see device.place

    def __init__(self, depth: int, width: int, channels: int, classes: int):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        before = width
        for stage in range(3):
            after = width * 2**stage
            for block in range(blocks):
                stages.append(_Block(before, after, stride=2 if stage and not block else 1))
                before = after
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # (n, channels, h, w) -> (n, classes)
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.blocks(x).mean(dim=(2, 3)))
