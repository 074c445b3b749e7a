"""augment.py against torchvision's crops and flips, image by image."""

import inspect
from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from distill.training import augment


def images_of(n: int, channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    rng = torch.Generator().manual_seed(5)
    return torch.randint(1, 256, (n, channels, height, width), dtype=torch.uint8, generator=rng)


def one_by_one(images: torch.Tensor, plan: augment.Plan) -> torch.Tensor:
    """The plan applied by torchvision to images that are already in its order."""
    height, width = images.shape[2:]
    out = []
    for image, top, left, flip in zip(images, plan.top, plan.left, plan.flip, strict=True):
        image = tv.crop(tv.pad(image, [plan.pad] * 4), int(top), int(left), height, width)
        out.append(tv.horizontal_flip(image) if flip else image)
    return torch.stack(out)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 16, 16), (1, 8, 8), (3, 32, 32), (2, 9, 16), (3, 7, 7)])
def test_crops_and_flips_are_torchvisions(channels, height, width):
    images = images_of(64, channels, height, width)
    plan = augment.plan(1, 2, 3, 64, width, augment=True, flip=True)
    assert torch.equal(augment.apply(images, plan), one_by_one(images, plan))


def test_every_crop_and_flip_of_one_image():
    pad = 2
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(5), torch.arange(2))
    plan = augment.Plan(torch.arange(50), grid[:, 0], grid[:, 1], grid[:, 2].bool(), pad, True)
    images = images_of(1).expand(50, -1, -1, -1)
    out = augment.apply(images, plan)
    assert torch.equal(out, one_by_one(images, plan))
    assert len(out.flatten(1).unique(dim=0)) == 50
    centre = (grid == torch.tensor([pad, pad, 0])).all(1)
    assert torch.equal(out[centre], images[:1])


def test_the_padding_is_black():
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    plan = augment.Plan(torch.tensor([0]), torch.tensor([0]), torch.tensor([4]), torch.tensor([False]), 2, True)
    out = augment.apply(white, plan)[0, 0]
    assert (out[:2] == 0).all()
    assert (out[:, -2:] == 0).all()
    assert (out[2:, :-2] == 255).all()


def test_apply_does_not_change_its_input():
    images = images_of(8)
    before = images.clone()
    augment.apply(images, augment.plan(1, 0, 0, 8, 16, augment=True, flip=True))
    assert torch.equal(images, before)


def test_a_plan_for_cifar_pads_four_pixels():
    assert augment.plan(1, 0, 0, 10, 32, augment=True, flip=True).pad == 4


@pytest.mark.parametrize("flip", [True, False])
def test_without_augmentation_only_the_order_is_drawn(flip):
    images, plan = images_of(20), augment.plan(1, 0, 0, 20, 16, augment=False, flip=flip)
    assert torch.equal(augment.apply(images, plan), images)
    assert torch.equal(plan.order.sort().values, torch.arange(20))
    assert not torch.equal(plan.order, torch.arange(20))


def test_images_that_may_not_be_mirrored_are_cropped_only():
    plan = augment.plan(1, 0, 0, 200, 16, augment=True, flip=False)
    assert not plan.flip.any()
    assert plan.top.unique().tolist() == plan.left.unique().tolist() == [0, 1, 2, 3, 4]


def test_flips_do_not_shift_the_other_draws():
    one, other = (augment.plan(1, 0, 0, 50, 16, augment=True, flip=flip) for flip in (True, False))
    assert torch.equal(one.order, other.order)
    assert torch.equal(one.top, other.top)
    assert torch.equal(one.left, other.left)


def test_the_order_is_the_same_with_and_without_augmentation():
    one, other = (augment.plan(1, 0, 0, 50, 16, augment=on, flip=True) for on in (True, False))
    assert torch.equal(one.order, other.order)


def test_offsets_and_flips_are_uniform_and_independent():
    """Chi-squared over the 9 x 9 x 2 equally likely outcomes for CIFAR, within five standard deviations."""
    n = 100_000
    plan = augment.plan(3, 0, 0, n, 32, augment=True, flip=True)
    counts = torch.bincount((plan.top * 9 + plan.left) * 2 + plan.flip, minlength=162)
    assert len(counts) == 162
    statistic = ((counts - n / 162) ** 2 / (n / 162)).sum().item()
    assert abs(statistic - 161) < 5 * (2 * 161) ** 0.5


def test_every_image_appears_once():
    assert torch.equal(augment.plan(1, 2, 3, 777, 32, True, True).order.sort().values, torch.arange(777))


def same(a: augment.Plan, b: augment.Plan) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("order", "top", "left", "flip"))


def test_a_plan_is_a_function_of_seed_step_and_epoch():
    def draw(*key):
        return augment.plan(*key, 100, 32, True, True)

    here = draw(1, 2, 3)
    assert same(here, draw(1, 2, 3))
    assert not any(same(here, draw(*other)) for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)))


def test_a_plan_cannot_depend_on_alpha():
    """The arms of a grid use the same images in the same order, so their results are paired."""
    names = ["seed", "step", "epoch", "n", "size", "augment", "flip", "cutout"]
    assert list(inspect.signature(augment.plan).parameters) == names


def test_parts_of_a_plan_make_the_whole():
    images, plan = images_of(50), augment.plan(1, 0, 0, 50, 16, augment=True, flip=True)
    parts = [augment.apply(images[plan[i : i + 7].order], plan[i : i + 7]) for i in range(0, 50, 7)]
    assert len(plan) == 50
    assert [len(part) for part in parts] == [7] * 7 + [1]
    assert torch.equal(torch.cat(parts), augment.apply(images[plan.order], plan))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits():
    images, plan = images_of(100), augment.plan(1, 0, 0, 100, 16, augment=True, flip=True)
    on_gpu = augment.apply(images.cuda(), plan.to(torch.device("cuda")))
    assert torch.equal(on_gpu.cpu(), augment.apply(images, plan))


@pytest.mark.parametrize(("side", "height", "width"), [(1, 8, 8), (4, 16, 16), (5, 9, 16), (40, 8, 8)])
def test_cutout_makes_the_part_of_a_square_that_is_in_the_image_black(side, height, width):
    white = torch.full((200, 2, height, width), 255, dtype=torch.uint8)
    plan = augment.plan(1, 2, 3, 200, width, augment=True, flip=True, cutout=side)
    plan = replace(plan, pad=0, top=torch.zeros_like(plan.top), left=torch.zeros_like(plan.left))
    for image, (row, column) in zip(augment.apply(white, plan), plan.centre.tolist(), strict=True):
        expected = torch.full((height, width), 255, dtype=torch.uint8)
        top, left = int(row * height) - side // 2, int(column * width) - side // 2
        expected[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        assert torch.equal(image, expected.expand_as(image))


def test_cutout_changes_no_other_draw():
    plain, cut = (augment.plan(1, 2, 3, 50, 16, augment=True, flip=True, cutout=side) for side in (0, 4))
    assert all(torch.equal(getattr(plain, name), getattr(cut, name)) for name in ("order", "top", "left", "flip"))
