"""Fixtures of the tests of training."""

import pytest
import torch


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of eight images of 8x8 (two batches of four), so that a small epoch has several."""
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 8 * 8 * 8)


@pytest.fixture
def switches(monkeypatch):
    """torch's global switches, put back afterwards."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.benchmark, cudnn.allow_tf32, precision = before
    torch.set_float32_matmul_precision(precision)
