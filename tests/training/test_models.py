"""models.py: sizes and shapes of the networks, their initial weights, and the classifier around them."""

from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models import _api as torchvision_api

from distill.config import CIFAR_RESNETS, TORCHVISION_RESNETS, ModelConfig
from distill.errors import ConfigError
from distill.randomness import torch_seed
from distill.training.convolutions import ProductConv2d
from distill.training.models import CifarResNet, Classifier, build


def without_weights(channels: int = 3, classes: int = 10, **options) -> nn.Module:
    """A network on torch's meta device, which has shapes but no values."""
    with torch.device("meta"):
        return build(ModelConfig(**options), channels, classes)


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def shape_after(network: nn.Module, layer: str, channels: int = 3, size: int = 32) -> tuple[int, ...]:
    shapes = []
    network.get_submodule(layer).register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    network(torch.empty(2, channels, size, size, device="meta"))
    return shapes[0]


# --------------------------------------------------------------------------------------------------- the 6n+2 family


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameter_counts_are_those_of_the_paper(depth, millions):
    """He et al. (2016), table 6."""
    digits = 1 if depth == 110 else 2
    assert round(parameter_count(without_weights(resnet=depth)) / 1e6, digits) == millions


def test_resnet20_has_269722_parameters():
    convolutions = 3 * 9 * 16 + 6 * 9 * 16**2 + (9 * 16 * 32 + 5 * 9 * 32**2) + (9 * 32 * 64 + 5 * 9 * 64**2)
    normalisations = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    head = 64 * 10 + 10
    assert parameter_count(without_weights(resnet=20)) == convolutions + normalisations + head == 269_722


@pytest.mark.parametrize("depth", CIFAR_RESNETS)
def test_the_depth_is_the_number_of_weighted_layers(depth):
    layers = [m for m in without_weights(resnet=depth).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize("width", [1, 8, 16])
def test_stages_halve_the_image_and_double_the_width(width):
    network = without_weights(resnet=14, width=width)
    shapes = [shape_after(network, f"blocks.{i}") for i in (1, 3, 5)]
    assert shapes == [(2, width, 32, 32), (2, 2 * width, 16, 16), (2, 4 * width, 8, 8)]
    assert shape_after(network, "fc") == (2, 10)


def test_shortcuts_subsample_and_pad_with_zeros():
    """With residual branches of zero the output is the subsampled stem in the first channels."""
    torch.manual_seed(0)
    network = CifarResNet(8, 4, channels=3, classes=5).eval()
    for block in network.blocks:
        nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 3, 8, 8)
    stem = F.relu(network.bn1(network.conv1(x)))
    features = torch.cat([stem[:, :, ::4, ::4].mean((2, 3)), torch.zeros(2, 12)], dim=1)
    torch.testing.assert_close(network(x), network.fc(features))


def test_small_and_odd_image_sizes_work():
    network = without_weights(channels=1, resnet=8, width=4)
    assert shape_after(network, "fc", channels=1, size=8) == (2, 10)
    assert shape_after(network, "fc", channels=1, size=7) == (2, 10)


def test_convolutions_have_the_initial_weights_of_he_et_al():
    torch.manual_seed(0)
    weight = build(ModelConfig(resnet=8), 3, 10).blocks[2].conv2.weight  # 64 -> 64 channels
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


# -------------------------------------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize("depth", TORCHVISION_RESNETS)
@pytest.mark.parametrize("classes", [2, 100])
def test_torchvision_networks_have_a_new_head(depth, classes):
    network = without_weights(resnet=depth, classes=classes)
    with torch.device("meta"):
        original = torchvision_models.get_model(f"resnet{depth}")
    features = original.fc.in_features
    assert shape_after(network, "fc") == (2, classes)
    assert parameter_count(network) == parameter_count(original) + (features + 1) * (classes - 1000)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_imagenet_stem_quarters_the_image(channels):
    network = without_weights(resnet=18, channels=channels)
    assert network.conv1.kernel_size == (7, 7)
    assert shape_after(network, "maxpool", channels) == (2, 64, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_cifar_stem_keeps_the_image(channels):
    network = without_weights(resnet=18, stem="cifar", channels=channels)
    assert network.conv1.kernel_size == (3, 3)
    assert shape_after(network, "maxpool", channels) == (2, 64, 32, 32)


def test_a_replaced_first_layer_has_torchvisions_initial_weights():
    torch.manual_seed(0)
    weight = build(ModelConfig(resnet=18, stem="cifar"), 3, 10).conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)  # fan out


def test_by_default_the_network_equals_torchvisions():
    torch.manual_seed(0)
    ours = build(ModelConfig(resnet=18), 3, 1000).state_dict()
    torch.manual_seed(0)
    theirs = torchvision_models.resnet18().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("fc."))


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError('invalid hash value (expected "f37")')])
def test_unavailable_pretrained_weights_are_a_one_line_error(monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(torchvision_api, "load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError, match=r"the pretrained parameters of resnet50 are not available") as caught:
        build(ModelConfig(resnet=50, pretrained=True), 3, 10)
    assert "\n" not in str(caught.value)
    assert "checkpoints" in str(caught.value)  # where to put the file


@pytest.mark.parametrize(("stem", "channels", "first_is_new"), [(None, 3, False), (None, 1, True), ("cifar", 3, True)])
def test_pretrained_weights_are_used_except_for_new_layers(monkeypatch, stem, channels, first_is_new):
    weights = {name: torch.full_like(value, 3) for name, value in torchvision_models.resnet18().state_dict().items()}
    monkeypatch.setattr(torchvision_api, "load_state_dict_from_url", lambda *args, **kwargs: weights)
    network = build(ModelConfig(resnet=18, stem=stem, pretrained=True), channels, 10)
    new = {name for name, value in network.state_dict().items() if not (value == 3).all()}
    assert new == {"fc.weight", "fc.bias"} | ({"conv1.weight"} if first_is_new else set())


# ------------------------------------------------------------------------------------------- against torchvision's


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("training", [True, False])
def test_our_resnets_equal_torchvisions(depth, training):
    """Logits and gradients in float64, from the same weights, for images of one pixel in the last stage."""
    ours = build(ModelConfig(resnet=depth), 3, 10).double().train(training).to(memory_format=torch.channels_last)
    theirs = torchvision_models.get_model(f"resnet{depth}", num_classes=10).double().train(training)
    theirs.load_state_dict(ours.state_dict())
    x, direction = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.randn(8, 10, dtype=torch.float64)
    logits = [network(x) for network in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-10)
    for each in logits:
        (each * direction).sum().backward()
    for (name, p), exact in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        distance = (p.grad - exact.grad).norm() / exact.grad.norm()
        assert distance < 1e-7, name
    gradient = ours.layer4[1].conv2.weight.grad.clone()
    assert (gradient[:, :, 1, 1] != 0).any()
    gradient[:, :, 1, 1] = 0
    assert (gradient == 0).all()


def test_a_product_convolution_shares_parameters_and_draws_nothing():
    conv = nn.Conv2d(3, 5, (3, 1), stride=2, padding=1).eval()
    before = torch.get_rng_state()
    ours = ProductConv2d.from_conv(conv)
    assert torch.equal(torch.get_rng_state(), before)
    assert ours.weight is conv.weight
    assert ours.bias is conv.bias
    assert (ours.kernel_size, ours.stride, ours.padding, ours.training) == ((3, 1), (2, 2), (1, 1), False)
    assert ProductConv2d.from_conv(nn.Conv2d(3, 5, 3, bias=False)).bias is None


# ----------------------------------------------------------------------------------------------------- initial weights


def initial_weights(seed: int, step: int, **options) -> torch.Tensor:
    torch.manual_seed(torch_seed(seed, "init", step))
    network = build(ModelConfig(**options), 3, 10)
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("options", [{"resnet": 8, "width": 4}, {"resnet": 18, "stem": "cifar"}])
def test_initial_weights_are_drawn_from_the_seed_alone(options):
    first = initial_weights(1, 2, **options)
    torch.rand(5)
    assert torch.equal(initial_weights(1, 2, **options), first)
    assert not torch.equal(initial_weights(1, 3, **options), first)
    assert not torch.equal(initial_weights(2, 2, **options), first)


# -------------------------------------------------------------------------------------------------------- Classifier


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(CifarResNet(8, 4, 3, 5), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])).eval()


def test_uint8_and_float_images_give_the_same_logits(classifier):
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(classifier(images), classifier(images.float() / 255))


def test_images_are_normalised_as_in_torchvision(classifier):
    from torchvision.transforms import functional as tv

    images = torch.rand(6, 3, 8, 8)
    normalised = tv.normalize(images, [0.1, 0.5, 0.9], [0.2, 0.3, 0.4])
    torch.testing.assert_close(classifier(images), classifier.network(normalised))


def test_a_checkpoint_includes_the_normalisation(classifier, tmp_path):
    """It holds weights, batch statistics and the normalisation, and is read without running code."""
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    classifier.train()(images)  # so that the batch statistics are no longer the initial ones
    torch.save(classifier.state_dict(), tmp_path / "model.pt")
    other = Classifier(CifarResNet(8, 4, 3, 5), torch.zeros(3), torch.zeros(3))
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other.eval()(images), classifier.eval()(images))


def test_the_normalisation_is_not_trained(classifier):
    assert not {"mean", "std"} & {name for name, _ in classifier.named_parameters()}
