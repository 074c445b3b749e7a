"""predict.py: predictions and soft targets in eval mode, in the order of the images."""

import copy

import pytest
import torch
from training_tools import (
    a_teacher,
    assert_same_bits,
    classifier,
    pool_of,
)

from distill.config import TrainConfig
from distill.training.predict import predict_all, soft_targets


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_of_a_large_batch_are_those_of_small_ones(temperature):
    teacher, images = a_teacher(), pool_of(64).images
    train = TrainConfig(loss="kl", temperature=temperature)
    parts = [(teacher(part) / temperature).softmax(1) for part in images.split(4)]
    soft = soft_targets(teacher, images, train)
    torch.testing.assert_close(soft, torch.cat(parts), rtol=1e-5, atol=1e-6)
    assert soft.dtype == torch.float32
    assert not soft.requires_grad


def test_without_a_teacher_there_are_no_soft_targets():
    assert soft_targets(None, pool_of(4).images, TrainConfig()) is None


def test_predictions_are_in_eval_mode_and_in_order(small_chunks):
    model, pool = classifier(), pool_of(21)
    logits = predict_all(model.train(), pool, TrainConfig(batch_size=4))
    torch.testing.assert_close(logits, model.eval()(pool.images).detach(), rtol=1e-5, atol=1e-6)
    assert not logits.requires_grad


def test_predicting_does_not_change_batch_statistics():
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    predict_all(model.train(), pool_of(21), TrainConfig())
    assert_same_bits(before, model.state_dict())
