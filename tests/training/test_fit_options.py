"""Label smoothing, clipped gradients, Nesterov momentum and the average of parameters, against plain torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import config, contents, killed_at, source
from torch.optim.swa_utils import AveragedModel
from training_tools import CLASSES, CPU, SHOW, classifier, plan_of, pool_of

import distill
from distill.arms import Fixed
from distill.config import TrainConfig
from distill.training import augment
from distill.training.fit import Trainer

PLAIN = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.5, "reg": "none", "loss": "ce", "batch_size": 8}


def plainly(options: dict, epochs: int = 2) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The model and its average after some epochs of a plain loop, with torch's own parts."""
    model, images = classifier().train(), pool_of(32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, nesterov=options.get("nesterov", False))
    decays = iter([min(options.get("ema", 0), (1 + t) / (10 + t)) for t in range(4 * epochs)])
    average = AveragedModel(model, avg_fn=lambda held, new, n: held + (1 - decay) * (new - held), use_buffers=True)
    average.n_averaged += 1  # it begins at the initial parameters, not at those after the first update
    for epoch in range(epochs):
        plan = plan_of(32, epoch)
        shown = augment.apply(images.images[plan.order], plan)
        labels = images.labels[plan.order]
        for i in range(0, 32, 8):
            optimizer.zero_grad()
            smoothing = options.get("label_smoothing", 0.0)
            F.cross_entropy(model(shown[i : i + 8]), labels[i : i + 8], label_smoothing=smoothing).backward()
            if "clip_grad" in options:
                norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
                for p in model.parameters():
                    p.grad *= min(1.0, options["clip_grad"] / norm.item())
            optimizer.step()
            decay = next(decays)
            average.update_parameters(model)
    return model, average.module


def ours(options: dict, epochs: int = 2) -> Trainer:
    trainer = Trainer(copy.deepcopy(classifier()), TrainConfig(**PLAIN, **options), CPU)
    for epoch in range(epochs):
        trainer.epoch(pool_of(32), plan_of(32, epoch), CLASSES, None, Fixed(1.0), SHOW)
    return trainer


OPTIONS = [{"label_smoothing": 0.2}, {"clip_grad": 0.3}, {"clip_grad": 1e9}, {"nesterov": True}, {"ema": 0.4}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_two_epochs_equal_a_plain_loop(options):
    model, average = plainly(options)
    trainer = ours(options)
    torch.testing.assert_close(trainer.model.state_dict(), model.state_dict(), rtol=1e-3, atol=1e-5)
    if "ema" in options:
        kept = trainer.kept.state_dict()
        for name, value in average.state_dict().items():  # torch averages the counts of batches, which is no use
            if name.endswith("num_batches_tracked"):
                value.copy_(model.state_dict()[name])
        torch.testing.assert_close(kept, dict(average.state_dict()), rtol=1e-3, atol=1e-5)
        assert not torch.allclose(kept["network.fc.weight"], trainer.model.network.fc.weight, rtol=1e-3)
    else:
        assert trainer.kept is trainer.model


def test_a_clipped_gradient_moves_the_parameters_less():
    start = classifier().network.fc.weight
    free, clipped = (ours(options, 1).model.network.fc.weight for options in ({}, {"clip_grad": 0.01}))
    assert (clipped - start).norm() < 0.1 * (free - start).norm()


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1, "clip_grad": 0.5, "cutout": 3},
        {"ema": 0.9, "teacher_select": "best", "val_size": 9},
        {"optimizer": "sgd", "nesterov": True, "ema": 0.5},
    ],
    ids=str,
)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, options):
    options = options | {"distillation_steps": 1, "max_epochs": 3}
    distill.run(config(tmp_path / "whole", **options), source=source())
    with killed_at("training_state.pt", 3 + 2):  # the student's second epoch
        distill.run(config(tmp_path / "cut", **options), source=source())
    distill.run(config(tmp_path / "cut", **options), source=source())
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
