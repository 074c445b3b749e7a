"""The networks that --network names: wide residual networks and torchvision's."""

import pytest
import torch
from tiny import refusal
from torch import nn

from distill.config import ModelConfig
from distill.errors import ConfigError
from distill.training.models import build


def network(name: str, channels: int = 3, classes: int = 10, **options) -> nn.Module:
    """The network on the meta device: all shapes, no memory."""
    with torch.device("meta"):
        return build(ModelConfig(network=name, **options), channels, classes)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("wrn-40-1", 0.6),
        ("wrn-40-2", 2.2),
        ("wrn-40-4", 8.9),
        ("wrn-16-8", 11.0),
        ("wrn-22-8", 17.2),
        ("wrn-28-10", 36.5),
    ],
)
def test_wide_networks_have_as_many_parameters_as_in_the_paper(name, millions):
    """Table 2 and 4 of Zagoruyko & Komodakis 2016, without the last layer's few for CIFAR-10."""
    assert sum(p.numel() for p in network(name).parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_wrn_28_10_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in network("wrn-28-10").parameters()) == 36_479_194


@pytest.mark.parametrize("name", ["wrn-10-1", "wrn-16-4"])
def test_wide_networks_quarter_the_image_and_have_their_depth(name):
    made = network(name, channels=1, classes=7)
    shapes = []
    made.blocks.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    assert made(torch.zeros(2, 1, 32, 32, device="meta")).shape == (2, 7)
    depth, width = (int(part) for part in name.split("-")[1:])
    assert shapes == [(2, 64 * width, 8, 8)]
    layers = [m for m in made.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(layers) + 3 == depth  # the paper's depth counts the last layer and two shortcuts of the three


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_1", "resnext50_32x4d", "mnasnet0_5"],
)
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_torchvisions_networks_have_our_classes_channels_and_stem(name, stem):
    made = network(f"torchvision:{name}", channels=1, classes=7, stem=stem).eval()
    assert made(torch.zeros(2, 1, 32, 32, device="meta")).shape == (2, 7)
    first = next(module for module in made.modules() if isinstance(module, nn.Conv2d))
    assert first.stride == ((1, 1) if stem == "cifar" else (2, 2))


@pytest.mark.parametrize(
    ("name", "stem", "said"),
    [
        ("mobilenet_v3_smal", None, "did you mean mobilenet_v3_small?"),
        ("fcn_resnet50", None, "is no classifier of torchvision"),
        ("inception_v3", None, "is no classifier of torchvision"),
        ("vgg11", "cifar", "has no stem to replace"),
        ("vit_b_16", "cifar", "has no stem to replace"),
    ],
)
def test_other_names_and_stems_are_refused(name, stem, said):
    with pytest.raises(ConfigError) as caught:
        network(f"torchvision:{name}", stem=stem)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_cannot_take_the_images_is_refused(capsys, tmp_path):
    words = "--dataset digits --batch-size 20 --network torchvision:alexnet --fast-dev-run --threads 1"
    said = refusal(capsys, tmp_path / "run", *words.split())
    assert "torchvision:alexnet cannot classify images of 1x8x8" in said
