"""Fixtures of the tests that need a CUDA device."""

import pytest
import torch
from graph_tools import CUDA

from distill.config import TrainConfig
from distill.training.device import set_up


@pytest.fixture
def deterministic():
    """Deterministic algorithms on the GPU."""
    train = TrainConfig(deterministic=True)
    set_up(train, CUDA, None)
    yield
    torch.use_deterministic_algorithms(False)
